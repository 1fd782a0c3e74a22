// Intel's matrix unit: sixteen rows by sixteen columns and sixteen steps of a product in one instruction.
//
// The system wants to be asked before a process uses it (`ask_for_tiles`), and each thread sets its tiles up.
#pragma once
#include <stdint.h>

enum { TILE = 16 };  // rows of a tile, and the 32-bit steps of one

#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__AMX_INT8__) && defined(__linux__) && !defined(REGPT_NO_AMX)
#define HAS_AMX
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

static int may_use_tiles;
static __thread int tile_rows;  // of tiles 0 to 4, as this thread has them set up; 0: not

static int ask_for_tiles(void)
{
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    return may_use_tiles = syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}

// Tiles 0 to 4 of so many rows, and 5 to 7 whole.
static void set_up_tiles(int rows)
{
    struct {
        uint8_t palette, start, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } config = {.palette = 1};
    if (tile_rows == rows) return;
    for (int tile = 0; tile < 8; tile++) config.bytes[tile] = 64, config.rows[tile] = tile < 5 ? (uint8_t)rows : TILE;
    _tile_loadconfig(&config);
    tile_rows = rows;
}

static void put_tiles_away(void)
{
    if (tile_rows) _tile_release();
    tile_rows = 0;
}
#else
enum { may_use_tiles = 0 };
static int ask_for_tiles(void) { return 0; }
static void put_tiles_away(void) {}
#endif
