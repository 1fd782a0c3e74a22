// A few tokens by a panel of 64 outputs: the loop that all time goes into.
#pragma once
#include "vectors.h"

enum { PANEL = 64, GROUP = 6 };  // GROUP tokens share a pass: 24 of 32 registers hold their sums

static inline __attribute__((always_inline)) __m512 multiply(int kind, __m512 sum, __m512i x, __m512i w)
{
    if (kind == FP32) return _mm512_fmadd_ps(_mm512_castsi512_ps(x), _mm512_castsi512_ps(w), sum);
#ifdef __AVX512BF16__
    if (kind == BF16) return _mm512_dpbf16_ps(sum, (__m512bh)x, (__m512bh)w);
#endif
#ifdef __AVX512VNNI__
    if (kind == INT8)
        return _mm512_castsi512_ps(_mm512_dpbusd_epi32(_mm512_castps_si512(sum), x, w));
#endif
    return sum;
}

// `count` tokens by one panel: sums[token][4 registers of 16 outputs].
static inline __attribute__((always_inline)) void panel(int kind, int count, const char *w, int64_t steps,
                                                        const char *x, int64_t stride, __m512 sums[][4])
{
    __m512 s[GROUP][4];
    for (int m = 0; m < count; m++)
        for (int i = 0; i < 4; i++) s[m][i] = _mm512_setzero_ps();
    for (int64_t k = 0; k < steps; k++, w += 4 * 64) {
        _mm_prefetch(w + 4096, _MM_HINT_T0);
        _mm_prefetch(w + 4096 + 64, _MM_HINT_T0);
        _mm_prefetch(w + 4096 + 128, _MM_HINT_T0);
        _mm_prefetch(w + 4096 + 192, _MM_HINT_T0);
        __m512i a = _mm512_loadu_si512(w), b = _mm512_loadu_si512(w + 64);
        __m512i c = _mm512_loadu_si512(w + 128), d = _mm512_loadu_si512(w + 192);
        for (int m = 0; m < count; m++) {
            int32_t four;
            memcpy(&four, x + m * stride + 4 * k, 4);
            __m512i each = _mm512_set1_epi32(four);
            s[m][0] = multiply(kind, s[m][0], each, a);
            s[m][1] = multiply(kind, s[m][1], each, b);
            s[m][2] = multiply(kind, s[m][2], each, c);
            s[m][3] = multiply(kind, s[m][3], each, d);
        }
    }
    for (int m = 0; m < count; m++)
        for (int i = 0; i < 4; i++) sums[m][i] = s[m][i];
}

#define COUNTS(kind)                                                                    \
    switch (count) {                                                                    \
    case 1: panel(kind, 1, w, steps, x, stride, sums); break;                           \
    case 2: panel(kind, 2, w, steps, x, stride, sums); break;                           \
    case 3: panel(kind, 3, w, steps, x, stride, sums); break;                           \
    case 4: panel(kind, 4, w, steps, x, stride, sums); break;                           \
    case 5: panel(kind, 5, w, steps, x, stride, sums); break;                           \
    default: panel(kind, 6, w, steps, x, stride, sums);                                 \
    }

static void products(int64_t kind, int count, const char *w, int64_t steps, const char *x, int64_t stride,
                     __m512 sums[][4])
{
    if (kind == FP32) {
        COUNTS(FP32)
    } else if (kind == BF16) {
        COUNTS(BF16)
    } else {
        COUNTS(INT8)
    }
}

