// A few tokens by a panel of 64 outputs: the loop that all time goes into.
#pragma once
#include "vectors.h"

enum {
    REGISTERS = PANEL / LANES,  // of a step of a panel
    GROUP = 6,                  // tokens that share a pass
    PIECE = 128,                // steps of a panel: 32 KB
    TOGETHER = 48,              // tokens whose sums and activations stay in the first cache beside it
};

// Registers of a panel whose sums for so many tokens are held at once: as many as there is room for.
static inline int strip_of(int count)
{
    int strip = REGISTERS;
    while (strip > 1 && strip * count > SUMS) strip /= 2;
    return strip;
}

// What is read from memory while a product runs: `lines` cache lines a step, from `place` on.
typedef struct {
    const char *place;
    int64_t lines;
} Ahead;

#include "amx.h"

// Add the product of `count` tokens and some steps of a panel to sums[token][64 outputs], a strip at a time.
static inline __attribute__((always_inline)) void panel(int kind, int count, const char *weight, int64_t steps,
                                                        const char *x, int64_t stride, Ahead ahead,
                                                        float (*sums)[PANEL])
{
    const int strip = strip_of(count);
    for (int from = 0; from < REGISTERS; from += strip) {
        const char *w = weight + 4 * LANES * from;
        vfloat s[GROUP][REGISTERS];
        vint t[GROUP][REGISTERS];  // of int8; one array for both costs copies
        for (int m = 0; m < count; m++)
            for (int i = 0; i < strip; i++) {
                s[m][i] = load(sums[m] + (from + i) * LANES);
                t[m][i] = (vint)s[m][i];
            }
        for (int64_t k = 0; k < steps; k++, w += 4 * PANEL) {
            for (int64_t i = 0; i < ahead.lines; i++, ahead.place += 64) __builtin_prefetch(ahead.place, 0, 3);
            Operand part[REGISTERS];
            for (int i = 0; i < strip; i++) part[i] = weights(kind, w + 4 * LANES * i);
            for (int m = 0; m < count; m++) {
                Operand each = inputs(kind, x + m * stride + 4 * k);
                for (int i = 0; i < strip; i++) {
                    if (kind == INT8)
                        t[m][i] = dot_int8(t[m][i], each, part[i]);
                    else
                        s[m][i] = dot(kind, s[m][i], each, part[i]);
                }
            }
        }
        for (int m = 0; m < count; m++)
            for (int i = 0; i < strip; i++)
                store(sums[m] + (from + i) * LANES, kind == INT8 ? (vfloat)t[m][i] : s[m][i]);
    }
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

// Up to TOGETHER tokens by one panel. If more than one pass goes over it, they walk over it a piece at a time that
// stays in the first cache, and read the next piece ahead meanwhile, so that memory does not wait for arithmetic. A
// sum is taken up where the piece before has left it: the same order, whatever the pieces.
static void some_tokens(int64_t kind, int64_t count, const char *w, int64_t steps, const char *x, int64_t stride,
                        float (*sums)[PANEL])
{
    int tiled = uses_tiles(kind, steps), together = tiled ? TILE : GROUP;
    int64_t groups = (count + together - 1) / together;
    int64_t passes = tiled ? groups : groups * (REGISTERS / strip_of(count < GROUP ? (int)count : GROUP));
    int64_t piece = passes > 1 ? PIECE : steps, lines = (4 + passes - 1) / passes;
    memset(sums, 0, (size_t)count * sizeof *sums);
    for (int64_t k = 0; k < steps; k += piece) {
        int64_t here = steps - k < piece ? steps - k : piece, left = 4 * here;
        const char *from = w + k * 4 * PANEL, *next = from + (passes > 1 ? here * 4 * PANEL : 4096);
        for (int64_t first = 0; first < count; first += together) {
            int group = count - first < together ? (int)(count - first) : together;
            Ahead ahead = {next, left > 0 ? lines : 0};
            const char *inputs = x + first * stride + 4 * k;
            if (tiled)
                tiles(kind, group, from, here, inputs, stride, ahead, sums + first);
            else
                products(kind, group, from, here, inputs, stride, ahead, sums + first);
            int64_t read = lines * here * (tiled ? 1 : REGISTERS / strip_of(group));
            next += read * 64, left -= read;
        }
    }
}
