// Rows of numbers, sixteen at a time: exp, GELU, LayerNorm, and activations as the weights want them.
#pragma once
#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

enum { FP32, BF16, INT8 };
enum { DONE, NO_MEMORY, OUTSIDE };  // what a call returns; OUTSIDE: a token id is not in the vocabulary
enum { LANES = 16, PANEL = 64 };  // numbers of a register; outputs of a panel of weights

static inline __m512 exponential(__m512 z)
{
    z = _mm512_max_ps(z, _mm512_set1_ps(-104.0f));
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(z, _mm512_set1_ps(1.44269504f)), 0);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693145752f), z);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(1.42860677e-6f), r);
    __m512 p = _mm512_set1_ps(1.0f / 720);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 120));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 24));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 6));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.5f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, n);
}

static inline __m512 gelu(__m512 x)  // the tanh form: x * sigmoid(2 sqrt(2/pi) (x + 0.044715 x^3))
{
    __m512 cubic = _mm512_fmadd_ps(_mm512_mul_ps(x, x), _mm512_set1_ps(0.044715f), _mm512_set1_ps(1.0f));
    __m512 u = _mm512_mul_ps(_mm512_mul_ps(x, cubic), _mm512_set1_ps(-1.5957691216f));
    return _mm512_div_ps(x, _mm512_add_ps(_mm512_set1_ps(1.0f), exponential(u)));
}

static inline __mmask16 tail(int64_t left) { return left >= LANES ? 0xffff : (__mmask16)((1 << left) - 1); }

// Sixteen sums of sixteen numbers each, side by side.
static inline __m512 sums_of(const __m512 x[LANES])
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

static inline __m512 from_bf16(const uint16_t *place)
{
    return _mm512_castsi512_ps(
        _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)place)), 16));
}

static inline __m256i to_bf16(__m512 x)  // to the nearest, ties to even
{
    __m512i bits = _mm512_castps_si512(x);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    bits = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(bits, 16));
}

static inline void layer_norm(const float *x, const float *weight, const float *bias, int64_t n,
                       float epsilon, float *out)
{
    __m512 sum = _mm512_setzero_ps(), square = _mm512_setzero_ps();
    for (int64_t i = 0; i < n; i += LANES) sum = _mm512_add_ps(sum, _mm512_loadu_ps(x + i));
    __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum) / n);
    for (int64_t i = 0; i < n; i += LANES) {
        __m512 d = _mm512_sub_ps(_mm512_loadu_ps(x + i), mean);
        square = _mm512_fmadd_ps(d, d, square);
    }
    __m512 factor = _mm512_set1_ps(1.0f / sqrtf(_mm512_reduce_add_ps(square) / n + epsilon));
    for (int64_t i = 0; i < n; i += LANES) {
        __m512 d = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(x + i), mean), factor);
        d = _mm512_fmadd_ps(d, _mm512_loadu_ps(weight + i), _mm512_loadu_ps(bias + i));
        _mm512_storeu_ps(out + i, d);
    }
}

// One token's activations in the form the weights are multiplied with.
static inline void pack(int64_t kind, const float *x, int64_t n, char *out, float *range)
{
    if (kind == FP32) {
        memcpy(out, x, n * sizeof(float));
    } else if (kind == BF16) {
        for (int64_t i = 0; i < n; i += LANES)
            _mm256_storeu_si256((__m256i *)(out + 2 * i), to_bf16(_mm512_loadu_ps(x + i)));
    } else {
        __m512 low = _mm512_setzero_ps(), high = _mm512_setzero_ps();
        for (int64_t i = 0; i < n; i += LANES) {
            __m512 v = _mm512_loadu_ps(x + i);
            low = _mm512_min_ps(low, v), high = _mm512_max_ps(high, v);
        }
        float least = _mm512_reduce_min_ps(low), step = (_mm512_reduce_max_ps(high) - least) / 255;
        step = step > 1e-30f ? step : 1e-30f;
        float zero = nearbyintf(-least / step);
        __m512 inverse = _mm512_set1_ps(1.0f / step);
        __m512i shift = _mm512_set1_epi32((int)zero);
        for (int64_t i = 0; i < n; i += LANES) {
            __m512i q = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + i), inverse));
            q = _mm512_max_epi32(_mm512_add_epi32(q, shift), _mm512_setzero_si512());
            _mm_storeu_si128((__m128i *)(out + i), _mm512_cvtusepi32_epi8(q));
        }
        range[0] = step, range[1] = zero;
    }
}

