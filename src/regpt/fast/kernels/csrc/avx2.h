// AVX2 and FMA, and AVX-VNNI where the processor has it.
#include <immintrin.h>

#define INSTRUCTIONS_NAME "AVX2"
#define HAS_PAIRS

static inline vfloat muladd(vfloat a, vfloat b, vfloat c) { return _mm256_fmadd_ps(a, b, c); }
static inline vfloat larger(vfloat a, vfloat b) { return _mm256_max_ps(a, b); }
static inline vfloat smaller(vfloat a, vfloat b) { return _mm256_min_ps(a, b); }
static inline vfloat root(vfloat x) { return _mm256_sqrt_ps(x); }
static inline vfloat nearest(vfloat x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static inline int any_at_least(vfloat x, vfloat y) { return _mm256_movemask_ps(_mm256_cmp_ps(x, y, _CMP_GE_OQ)) != 0; }

#define OVER_LANES(name, operation)                                                      \
    static inline float name(vfloat x)                                                   \
    {                                                                                    \
        __m128 four = _mm_##operation##_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1)); \
        four = _mm_##operation##_ps(four, _mm_movehl_ps(four, four));                    \
        return _mm_cvtss_f32(_mm_##operation##_ps(four, _mm_movehdup_ps(four)));         \
    }
OVER_LANES(sum_of, add)
OVER_LANES(largest_of, max)
OVER_LANES(least_of, min)

static inline vbits wide(vhalf x) { return (vbits)_mm256_cvtepu16_epi32((__m128i)x); }

static inline vhalf narrow(vbits x)
{
    __m256i low = _mm256_and_si256((__m256i)x, _mm256_set1_epi32(0xffff));
    return (vhalf)_mm_packus_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1));
}

static inline void store_bytes(char *place, vint x)
{
    __m128i low = (__m128i)narrow((vbits)(x & 0xff));
    _mm_storel_epi64((__m128i *)place, _mm_packus_epi16(low, low));
}

static inline vfloat sums_of(const vfloat x[LANES])
{
    __m256 low = _mm256_hadd_ps(_mm256_hadd_ps(x[0], x[1]), _mm256_hadd_ps(x[2], x[3]));
    __m256 high = _mm256_hadd_ps(_mm256_hadd_ps(x[4], x[5]), _mm256_hadd_ps(x[6], x[7]));
    return _mm256_add_ps(_mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31));
}

static inline vint dot_pairs(vint x, vint w) { return (vint)_mm256_madd_epi16((__m256i)x, (__m256i)w); }

#ifdef __AVXVNNI__
#define HAS_INT8 " VNNI"
static inline vint dot_int8(vint sum, Operand x, Operand w)
{
    return (vint)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)x.even, (__m256i)w.even);
}
#endif
