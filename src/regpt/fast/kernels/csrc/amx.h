// A few tokens by a panel, in Intel's matrix unit.
//
// It adds up in another order than the vector instructions, so where it can be used it is used for any number of
// tokens, one included: reading the weights is what a few tokens wait for, and a token keeps its bits. A panel is
// four tiles side by side: tiles 0 to 3 hold their sums, 4 the activations, 5 weights.
#pragma once
#include "tiles.h"

static inline int uses_tiles(int64_t kind, int64_t steps) { return may_use_tiles && kind != FP32 && steps % TILE == 0; }

#ifdef HAS_AMX
#define STEP(tile, product)                               \
    _tile_loadd(5, w + 64 * tile, 4 * PANEL);             \
    product(tile, 4, 5);
#define STEPS(product)                                                                                        \
    for (int64_t k = 0; k < steps; k += TILE, w += TILE * 4 * PANEL) {                                        \
        for (int64_t i = 0; i < TILE * ahead.lines; i++, ahead.place += 64) __builtin_prefetch(ahead.place, 0, 3); \
        _tile_loadd(4, x + 4 * k, stride);                                                                    \
        STEP(0, product) STEP(1, product) STEP(2, product) STEP(3, product)                                   \
    }

// As `panel` of products.h does, for up to sixteen tokens.
static void tiles(int64_t kind, int count, const char *w, int64_t steps, const char *x, int64_t stride, Ahead ahead,
                  float (*sums)[PANEL])
{
    set_up_tiles(count);
    _tile_loadd(0, sums[0], 4 * PANEL);
    _tile_loadd(1, sums[0] + 16, 4 * PANEL);
    _tile_loadd(2, sums[0] + 32, 4 * PANEL);
    _tile_loadd(3, sums[0] + 48, 4 * PANEL);
    if (kind == BF16) {
        STEPS(_tile_dpbf16ps)
    } else {
        STEPS(_tile_dpbusd)
    }
    _tile_stored(0, sums[0], 4 * PANEL);
    _tile_stored(1, sums[0] + 16, 4 * PANEL);
    _tile_stored(2, sums[0] + 32, 4 * PANEL);
    _tile_stored(3, sums[0] + 48, 4 * PANEL);
}
#else
static inline void tiles(int64_t kind, int count, const char *w, int64_t steps, const char *x, int64_t stride,
                         Ahead ahead, float (*sums)[PANEL])
{
    (void)kind, (void)count, (void)w, (void)steps, (void)x, (void)stride, (void)ahead, (void)sums;
}
#endif
