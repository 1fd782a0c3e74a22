// Intel's matrix unit: sixteen tokens by sixteen outputs and sixteen steps in one instruction.
//
// It adds up in another order than the vector instructions, so where it can be used it is used for any number of
// tokens, one included: reading the weights is what a few tokens wait for, and a token keeps its bits. A panel is
// four tiles side by side. The system wants to be asked before a process uses it (`regpt_start`).
#pragma once

enum { TILE = 16 };  // rows of a tile, and the 32-bit steps of one

#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__AMX_INT8__) && defined(__linux__) && !defined(REGPT_NO_AMX)
#define HAS_AMX
#include <sys/syscall.h>
#include <unistd.h>

static int may_use_tiles;
static __thread int tile_rows;  // of the tiles of tokens, as this thread has them set up; 0: not

static int ask_for_tiles(void)
{
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    return may_use_tiles = syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}

static inline int uses_tiles(int64_t kind, int64_t steps) { return may_use_tiles && kind != FP32 && steps % TILE == 0; }

// Tiles 0 to 3 hold sums and 4 activations, of `count` tokens; 5 holds weights.
static void set_up_tiles(int count)
{
    struct {
        uint8_t palette, start, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } config = {.palette = 1};
    for (int tile = 0; tile < 6; tile++) config.bytes[tile] = 64, config.rows[tile] = tile == 5 ? TILE : (uint8_t)count;
    _tile_loadconfig(&config);
    tile_rows = count;
}

static void put_tiles_away(void)
{
    if (tile_rows) _tile_release();
    tile_rows = 0;
}

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
    if (tile_rows != count) set_up_tiles(count);
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
static int ask_for_tiles(void) { return 0; }
static void put_tiles_away(void) {}
static inline int uses_tiles(int64_t kind, int64_t steps) { return (void)kind, (void)steps, 0; }
static inline void tiles(int64_t kind, int count, const char *w, int64_t steps, const char *x, int64_t stride,
                         Ahead ahead, float (*sums)[PANEL])
{
    (void)kind, (void)count, (void)w, (void)steps, (void)x, (void)stride, (void)ahead, (void)sums;
}
#endif
