// A few tokens by a panel of 64 outputs: the loop that all time goes into.
#pragma once
#include "vectors.h"

enum {
    GROUP = 6,     // tokens that share a pass: 24 of 32 registers hold their sums
    PIECE = 128,   // steps of a panel: 32 KB
    TOGETHER = 48, // tokens whose sums and activations stay in the first cache beside it
};

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

// What is read from memory while a product runs: `lines` cache lines a step, from `place` on.
typedef struct {
    const char *place;
    int64_t lines;
} Ahead;

// Add the product of `count` tokens and some steps of a panel to sums[token][64 outputs].
static inline __attribute__((always_inline)) void panel(int kind, int count, const char *w, int64_t steps,
                                                        const char *x, int64_t stride, Ahead ahead,
                                                        float (*sums)[PANEL])
{
    __m512 s[GROUP][4];
    for (int m = 0; m < count; m++)
        for (int i = 0; i < 4; i++) s[m][i] = _mm512_loadu_ps(sums[m] + i * LANES);
    for (int64_t k = 0; k < steps; k++, w += 4 * PANEL) {
        for (int64_t i = 0; i < ahead.lines; i++, ahead.place += 64) _mm_prefetch(ahead.place, _MM_HINT_T0);
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
        for (int i = 0; i < 4; i++) _mm512_storeu_ps(sums[m] + i * LANES, s[m][i]);
}

#define COUNTS(kind)                                                            \
    switch (count) {                                                            \
    case 1: panel(kind, 1, w, steps, x, stride, ahead, sums); break;            \
    case 2: panel(kind, 2, w, steps, x, stride, ahead, sums); break;            \
    case 3: panel(kind, 3, w, steps, x, stride, ahead, sums); break;            \
    case 4: panel(kind, 4, w, steps, x, stride, ahead, sums); break;            \
    case 5: panel(kind, 5, w, steps, x, stride, ahead, sums); break;            \
    default: panel(kind, 6, w, steps, x, stride, ahead, sums);                  \
    }

static void products(int64_t kind, int count, const char *w, int64_t steps, const char *x, int64_t stride,
                     Ahead ahead, float (*sums)[PANEL])
{
    if (kind == FP32) {
        COUNTS(FP32)
    } else if (kind == BF16) {
        COUNTS(BF16)
    } else {
        COUNTS(INT8)
    }
}

// Up to TOGETHER tokens by one panel. More than share a pass walk over it a piece at a time that stays in the first
// cache, and read the next piece ahead meanwhile, so that memory does not wait for arithmetic. A sum
// is taken up where the piece before has left it: the same order, whatever the pieces.
static void some_tokens(int64_t kind, int64_t count, const char *w, int64_t steps, const char *x, int64_t stride,
                        float (*sums)[PANEL])
{
    int64_t piece = count > GROUP ? PIECE : steps;
    int64_t groups = (count + GROUP - 1) / GROUP, lines = (4 + groups - 1) / groups;
    memset(sums, 0, (size_t)count * sizeof *sums);
    for (int64_t k = 0; k < steps; k += piece) {
        int64_t here = steps - k < piece ? steps - k : piece, left = 4 * here;
        const char *from = w + k * 4 * PANEL, *next = from + (groups > 1 ? here * 4 * PANEL : 4096);
        for (int64_t first = 0; first < count; first += GROUP) {
            int group = count - first < GROUP ? (int)(count - first) : GROUP;
            Ahead ahead = {next, left > 0 ? lines : 0};
            products(kind, group, from, here, x + first * stride + 4 * k, stride, ahead, sums + first);
            next += lines * here * 64, left -= lines * here;
        }
    }
}
