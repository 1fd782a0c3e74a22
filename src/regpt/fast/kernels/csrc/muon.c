// Muon's step of one matrix on one core: momentum, Newton-Schulz and the update, in the core's cache.
//
// A matrix of a small model fits into the cache, so each core takes whole matrices and none waits for another.
// X is held tall, (long, short), and multiplied from the right: A = X'X and b A + c A A are symmetric, so half of
// each is computed and mirrored, which batched products cannot do. Right-hand sides lie in panels of 32 columns;
// two rows of a panel are interleaved, as products of bfloat16 want them: word k of a column holds rows 2k and 2k + 1.
// A block of 32 by 32 sums is computed by vector instructions, or by the matrix unit, which wants left-hand sides row
// by row.
#include "gate.h"
#include "tiles.h"
#include "vectors.h"

enum { SIDE = 32, DEPTH = 128 };          // of a block of sums, and of a panel; 16 kB of a panel at a time
enum { WIDE = 2, HIGH = SUMS >= 16 ? 8 : 4 };  // registers of sums: WIDE by HIGH

typedef struct {
    int64_t rows, columns, low;  // low: whether the gradient is in bfloat16
    const void *gradient;
    float *average, *weight;
    uint16_t *copy;  // of the weight in bfloat16, or none
} Matrix;

typedef struct {
    float scale;  // of gradients in bfloat16
    float momentum, keep, rate, epsilon;  // keep: 1 - rate * weight decay
    int64_t nesterov, iterations;
    const float *polynomials;  // a, b, c of each iteration
} MuonRule;

typedef struct {
    uint16_t *X, *other;           // (long, short), and as much again
    uint32_t *panels, *A, *M;      // X, A = X'X and b A + c A A in panels
    uint32_t *turned;              // X' or A, row by row
    float *sums;                   // A in float32
} Space;

typedef uint32_t __attribute__((may_alias)) Pair;  // two neighbours in a row of bfloat16

// A left-hand side: word k of row m is at[m * apart + k * step].
typedef struct {
    const Pair *at;
    int64_t apart, step;
} Left;

typedef float Square[SIDE][SIDE];

#ifdef HAS_AMX
// `block` below in tiles: 0 to 3 are the sums, 4 and 5 of the left side, 6 and 7 of the right.
static void tiled_block(Left left, const uint32_t *panel, int64_t pairs, Square out)
{
    int64_t row = left.apart * sizeof *left.at;
    set_up_tiles(TILE);
    _tile_loadd(0, out[0], sizeof out[0]);
    _tile_loadd(1, out[0] + TILE, sizeof out[0]);
    _tile_loadd(2, out[TILE], sizeof out[0]);
    _tile_loadd(3, out[TILE] + TILE, sizeof out[0]);
    for (int64_t k = 0; k < pairs; k += TILE, panel += TILE * SIDE) {
        _tile_loadd(4, left.at + k, row);
        _tile_loadd(6, panel, SIDE * sizeof *panel);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, panel + TILE, SIDE * sizeof *panel);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, left.at + TILE * left.apart + k, row);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, out[0], sizeof out[0]);
    _tile_stored(1, out[0] + TILE, sizeof out[0]);
    _tile_stored(2, out[TILE], sizeof out[0]);
    _tile_stored(3, out[TILE] + TILE, sizeof out[0]);
}
#else
static void tiled_block(Left left, const uint32_t *panel, int64_t pairs, Square out)
{
    (void)left, (void)panel, (void)pairs, (void)out;
}
#endif

// out[m, i] += over k: left[m, k] times column i of a panel, two rows of it at a time.
static inline __attribute__((always_inline)) void block(Left left, const uint32_t *panel, int64_t pairs, Square out)
{
    if (may_use_tiles) {
        tiled_block(left, panel, pairs, out);
        return;
    }
    for (int from = 0; from < SIDE; from += WIDE * LANES)
        for (int row = 0; row < SIDE; row += HIGH) {
            const Pair *l = left.at + row * left.apart;
            const uint32_t *right = panel + from;
            vfloat s[HIGH][WIDE];
            for (int m = 0; m < HIGH; m++)
                for (int i = 0; i < WIDE; i++) s[m][i] = load(out[row + m] + from + i * LANES);
            for (int64_t k = 0; k < pairs; k++, l += left.step, right += SIDE) {
                Operand part[WIDE];
                for (int i = 0; i < WIDE; i++) part[i] = weights(BF16, (const char *)(right + i * LANES));
                for (int m = 0; m < HIGH; m++) {
                    Operand each = inputs(BF16, (const char *)(l + m * left.apart));
                    for (int i = 0; i < WIDE; i++) s[m][i] = dot(BF16, s[m][i], each, part[i]);
                }
            }
            for (int m = 0; m < HIGH; m++)
                for (int i = 0; i < WIDE; i++) store(out[row + m] + from + i * LANES, s[m][i]);
        }
}

// Two registers of bfloat16 numbers, one in the lower halves of the lanes and one in the upper.
static inline void store_pairs(uint32_t *place, vhalf even, vhalf odd)
{
    vbits pairs = wide(even) | wide(odd) << 16;
    memcpy(place, &pairs, sizeof pairs);
}

// 32 rows from i, 32 columns from j, of a symmetric matrix of n columns into its panels, and their mirror image.
static inline void store_symmetric(Square s, int64_t i, int64_t j, int64_t n, uint32_t *panels)
{
    uint32_t *place = panels + j * (n / 2) + i / 2 * SIDE, *mirror = panels + i * (n / 2) + j / 2 * SIDE;
    for (int m = 0; m < SIDE; m += 2)
        for (int c = 0; c < SIDE; c += LANES)
            store_pairs(place + m / 2 * SIDE + c, to_bf16(load(s[m] + c)), to_bf16(load(s[m + 1] + c)));
    if (i == j) return;  // blocks on the diagonal are computed whole
    uint16_t low[SIDE][SIDE];
    for (int m = 0; m < SIDE; m++)
        for (int c = 0; c < SIDE; c += LANES) store_bf16(low[m] + c, load(s[m] + c));
    for (int c = 0; c < SIDE; c += 2, mirror += SIDE)
        for (int m = 0; m < SIDE; m++) mirror[m] = low[m][c] | (uint32_t)low[m][c + 1] << 16;
}

// The columns of a matrix (rows, n) in panels, one after the other, if the matrix unit is to read them.
static void turn(const uint32_t *panels, int64_t rows, int64_t n, uint32_t *columns)
{
    if (!may_use_tiles) return;
    for (int64_t j = 0; j < n; j += SIDE, panels += SIDE * (rows / 2))
        for (int64_t k = 0; k < rows / 2; k += TILE)
            for (int64_t c = 0; c < SIDE; c++)
                for (int64_t m = 0; m < TILE; m++) columns[(j + c) * (rows / 2) + k + m] = panels[(k + m) * SIDE + c];
}

// 32 columns from i of a matrix (rows, n) in panels, from row `start` of pairs on, as the left-hand side of a product.
static inline Left columns_of(const uint32_t *panels, const uint32_t *turned, int64_t rows, int64_t i, int64_t start)
{
    if (may_use_tiles) return (Left){turned + i * (rows / 2) + start, rows / 2, 1};
    return (Left){panels + i * (rows / 2) + start * SIDE, 1, SIDE};
}

// A = X'X of X in panels, (rows, n), in float32 (where it is computed) and in panels.
static void square(const uint32_t *panels, const uint32_t *turned, int64_t rows, int64_t n, float *sums, uint32_t *A)
{
    int64_t most = may_use_tiles ? rows / 2 : DEPTH;
    for (int64_t start = 0; start < rows / 2; start += most) {
        int64_t depth = rows / 2 - start < most ? rows / 2 - start : most;
        int last = start + depth == rows / 2;
        for (int64_t j = 0; j < n; j += SIDE)
            for (int64_t i = 0; i <= j; i += SIDE) {
                Square s = {{0}};
                for (int m = 0; m < SIDE && start; m++) memcpy(s[m], sums + (i + m) * n + j, sizeof s[m]);
                block(columns_of(panels, turned, rows, i, start), panels + j * (rows / 2) + start * SIDE, depth, s);
                for (int m = 0; m < SIDE; m++) memcpy(sums + (i + m) * n + j, s[m], sizeof s[m]);
                if (last) store_symmetric(s, i, j, n, A);
            }
    }
}

// M = b A + c A A, in panels. Both of the same rounded A: where A is near 1, b + 2 c A is small, and so is what the
// rounding does to the sum.
static void polynomial(const uint32_t *A, const uint32_t *turned, const float *sums, int64_t n, float b, float c,
                       uint32_t *M)
{
    for (int64_t j = 0; j < n; j += SIDE)
        for (int64_t i = 0; i <= j; i += SIDE) {
            Square s = {{0}};
            block(columns_of(A, turned, n, i, 0), A + j * (n / 2), n / 2, s);
            for (int m = 0; m < SIDE; m++)
                for (int k = 0; k < SIDE; k += LANES) {
                    vfloat first = widened(to_bf16(load(sums + (i + m) * n + j + k)));
                    store(s[m] + k, muladd(all(c), load(s[m] + k), b * first));
                }
            store_symmetric(s, i, j, n, M);
        }
}

// X = a X + X M, 32 rows at a time.
static void multiply(uint16_t *X, int64_t rows, int64_t n, float a, const uint32_t *M, uint16_t *other)
{
    for (int64_t i = 0; i < rows; i += SIDE) {
        uint16_t *at = X + i * n;
        for (int64_t j = 0; j < n; j += SIDE) {
            Square s = {{0}};
            block((Left){(const Pair *)at, n / 2, 1}, M + j * (n / 2), n / 2, s);
            for (int m = 0; m < SIDE; m++)
                for (int k = 0; k < SIDE; k += LANES) {
                    int64_t place = m * n + j + k;
                    store_bf16(other + place, muladd(all(a), from_bf16(at + place), load(s[m] + k)));
                }
        }
        memcpy(at, other, SIDE * n * sizeof(uint16_t));
    }
}

// X times `factor`, in place and in panels.
static void interleave(uint16_t *X, int64_t rows, int64_t n, float factor, uint32_t *panels)
{
    for (int64_t k = 0; k < rows; k += 2)
        for (int64_t j = 0; j < n; j += LANES) {
            uint16_t *one = X + k * n + j, *two = one + n;
            vhalf even = to_bf16(from_bf16(one) * factor), odd = to_bf16(from_bf16(two) * factor);
            memcpy(one, &even, sizeof even), memcpy(two, &odd, sizeof odd);
            store_pairs(panels + j / SIDE * SIDE * (rows / 2) + k / 2 * SIDE +
                            j % SIDE, even, odd);
        }
}

static void transpose(const uint16_t *from, int64_t rows, int64_t columns, uint16_t *to)
{
    for (int64_t i = 0; i < rows; i += 32)
        for (int64_t j = 0; j < columns; j += 32)
            for (int64_t m = i; m < i + 32; m++)
                for (int64_t n = j; n < j + 32; n++) to[n * rows + m] = from[m * columns + n];
}

// Momentum; what is to be made orthogonal, in bfloat16; the sum of its squares.
static float average(const Matrix *matrix, const MuonRule *rule, uint16_t *out)
{
    int64_t numbers = matrix->rows * matrix->columns;
    vfloat squares = {0};
    for (int64_t i = 0; i < numbers; i += LANES) {
        vfloat g = matrix->low ? from_bf16((const uint16_t *)matrix->gradient + i) * rule->scale
                               : load((const float *)matrix->gradient + i);
        vfloat m = load(matrix->average + i);
        m = muladd(g - m, all(1.0f - rule->momentum), m);
        store(matrix->average + i, m);
        vhalf low = to_bf16(rule->nesterov ? muladd(m - g, all(rule->momentum), g) : m);
        memcpy(out + i, &low, sizeof low);
        squares = muladd(widened(low), widened(low), squares);
    }
    return sum_of(squares);
}

static void step(const Matrix *matrix, const MuonRule *rule, Space *space)
{
    int64_t rows = matrix->rows, n = matrix->columns, numbers = rows * n;
    int wide = n > rows;
    float norm = sqrtf(average(matrix, rule, wide ? space->other : space->X));
    if (wide) {
        transpose(space->other, rows, n, space->X);
        rows = matrix->columns, n = matrix->rows;
    }
    float factor = 1.0f / (norm > rule->epsilon ? norm : rule->epsilon);
    for (int64_t k = 0; k < rule->iterations; k++, factor = 1.0f) {
        const float *p = rule->polynomials + 3 * k;
        interleave(space->X, rows, n, factor, space->panels);
        turn(space->panels, rows, n, space->turned);
        square(space->panels, space->turned, rows, n, space->sums, space->A);
        turn(space->A, n, n, space->turned);
        polynomial(space->A, space->turned, space->sums, n, p[1], p[2], space->M);
        multiply(space->X, rows, n, p[0], space->M, space->other);
    }
    uint16_t *update = space->X;
    if (wide) transpose(space->X, rows, n, update = space->other);
    float ratio = (float)matrix->rows / matrix->columns;
    float rate = rule->rate * (ratio > 1.0f ? sqrtf(ratio) : 1.0f);
    for (int64_t i = 0; i < numbers; i += LANES) {
        vfloat w = muladd(from_bf16(update + i), all(-rate), load(matrix->weight + i) * rule->keep);
        store(matrix->weight + i, w);
        if (matrix->copy) store_bf16(matrix->copy + i, w);
    }
}

// Sides are multiples of 32; `most` numbers and `least` short side bound every matrix; room: of each thread,
// 8 most + 8 least^2 bytes.
void regpt_muon(int64_t count, const Matrix *matrices, const MuonRule *rule, int64_t most, int64_t least, char *room,
                int64_t threads)
{
    int64_t bytes = 8 * most + 8 * least * least;
    (void)threads;
    ask_for_tiles();
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (int64_t i = 0; i < count; i++) {
        char *mine = room + member() * bytes;
        Space space = {.X = (uint16_t *)mine, .other = (uint16_t *)(mine + 2 * most)};
        space.panels = (uint32_t *)(mine + 4 * most);
        space.turned = (uint32_t *)(mine + 6 * most);
        space.A = (uint32_t *)(mine + 8 * most), space.M = space.A + least * least / 2;
        space.sums = (float *)(space.M + least * least / 2);
        step(matrices + i, rule, &space);
        put_tiles_away();
    }
}
