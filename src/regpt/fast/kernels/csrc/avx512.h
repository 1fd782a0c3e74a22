// AVX-512 (F, BW, DQ, VL), and BF16 and VNNI where the processor has them.
#include <immintrin.h>

#define INSTRUCTIONS_NAME "AVX-512"
#define HAS_POWER
#define HAS_PAIRS

static inline vfloat muladd(vfloat a, vfloat b, vfloat c) { return _mm512_fmadd_ps(a, b, c); }
static inline vfloat larger(vfloat a, vfloat b) { return _mm512_max_ps(a, b); }
static inline vfloat smaller(vfloat a, vfloat b) { return _mm512_min_ps(a, b); }
static inline vfloat root(vfloat x) { return _mm512_sqrt_ps(x); }
static inline vfloat nearest(vfloat x) { return _mm512_roundscale_ps(x, 0); }
static inline vfloat power(vfloat p, vfloat n) { return _mm512_scalef_ps(p, n); }
static inline float sum_of(vfloat x) { return _mm512_reduce_add_ps(x); }
static inline float largest_of(vfloat x) { return _mm512_reduce_max_ps(x); }
static inline float least_of(vfloat x) { return _mm512_reduce_min_ps(x); }
static inline int any_at_least(vfloat x, vfloat y) { return _mm512_cmp_ps_mask(x, y, _CMP_GE_OQ) != 0; }

static inline vbits wide(vhalf x) { return (vbits)_mm512_cvtepu16_epi32((__m256i)x); }
static inline vhalf narrow(vbits x) { return (vhalf)_mm512_cvtepi32_epi16((__m512i)x); }
static inline void store_bytes(char *place, vint x) { _mm_storeu_si128((__m128i *)place, _mm512_cvtepi32_epi8((__m512i)x)); }

static inline vfloat sums_of(const vfloat x[LANES])
{
    __m512 s[8], t[4];
    for (int i = 0; i < 8; i++)
        s[i] = _mm512_add_ps(_mm512_unpacklo_ps(x[2 * i], x[2 * i + 1]), _mm512_unpackhi_ps(x[2 * i], x[2 * i + 1]));
    for (int i = 0; i < 4; i++) {
        __m512d a = _mm512_castps_pd(s[2 * i]), b = _mm512_castps_pd(s[2 * i + 1]);
        t[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
    }
    __m512 u = _mm512_add_ps(_mm512_shuffle_f32x4(t[0], t[1], 0x88), _mm512_shuffle_f32x4(t[0], t[1], 0xdd));
    __m512 v = _mm512_add_ps(_mm512_shuffle_f32x4(t[2], t[3], 0x88), _mm512_shuffle_f32x4(t[2], t[3], 0xdd));
    return _mm512_add_ps(_mm512_shuffle_f32x4(u, v, 0x88), _mm512_shuffle_f32x4(u, v, 0xdd));
}

static inline vint dot_pairs(vint x, vint w) { return (vint)_mm512_madd_epi16((__m512i)x, (__m512i)w); }

#ifdef __AVX512BF16__
#define HAS_BF16 " BF16"
static inline vfloat dot_bf16(vfloat sum, Operand x, Operand w)
{
    return _mm512_dpbf16_ps(sum, (__m512bh)x.even, (__m512bh)w.even);
}
#endif

#ifdef __AVX512VNNI__
#define HAS_INT8 " VNNI"
static inline vint dot_int8(vint sum, Operand x, Operand w)
{
    return (vint)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)x.even, (__m512i)w.even);
}
#endif
