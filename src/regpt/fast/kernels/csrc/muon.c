// Muon's step of one matrix on one core: momentum, Newton-Schulz and the update, in the core's cache.
//
// A matrix of a small model fits into the cache, so each core takes whole matrices and none waits for another.
// X is held tall, (long, short), and multiplied from the right: A = X'X and b A + c A A are symmetric, so half of
// each is computed and mirrored, which batched products cannot do. Right-hand sides lie in panels of 32 columns;
// two rows of a panel are interleaved, as products of bfloat16 want them: word k of a column holds rows 2k and 2k + 1.
#include "gate.h"
#include "vectors.h"

enum { BLOCK_ROWS = 8, PANEL_COLUMNS = 32, DEPTH = 128 };  // 16 kB of a panel at a time
enum { WIDE = 2, HIGH = SUMS >= 2 * BLOCK_ROWS ? BLOCK_ROWS : BLOCK_ROWS / 2 };  // registers of sums: WIDE by HIGH

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
    float *sums;                   // A in float32
} Space;

typedef uint32_t __attribute__((may_alias)) Pair;  // two neighbours in a row of bfloat16

typedef float Square[BLOCK_ROWS][PANEL_COLUMNS];

// s[m, i] += over k: left[m, k] times 32 columns i of a panel, two rows of it at a time.
static inline __attribute__((always_inline)) void block(const Pair *left, int64_t apart, int64_t step,
                                                        const uint32_t *panel, int64_t pairs, Square out)
{
    for (int from = 0; from < PANEL_COLUMNS; from += WIDE * LANES)
        for (int row = 0; row < BLOCK_ROWS; row += HIGH) {
            const Pair *l = left + row * apart;
            const uint32_t *right = panel + from;
            vfloat s[HIGH][WIDE];
            for (int m = 0; m < HIGH; m++)
                for (int i = 0; i < WIDE; i++) s[m][i] = load(out[row + m] + from + i * LANES);
            for (int64_t k = 0; k < pairs; k++, l += step, right += PANEL_COLUMNS) {
                Operand part[WIDE];
                for (int i = 0; i < WIDE; i++) part[i] = weights(BF16, (const char *)(right + i * LANES));
                for (int m = 0; m < HIGH; m++) {
                    Operand each = inputs(BF16, (const char *)(l + m * apart));
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

// 8 rows from i, 32 columns from j, of a symmetric matrix of n columns into its panels, and their mirror image.
static inline void store_symmetric(Square s, int64_t i, int64_t j, int64_t n, uint32_t *panels)
{
    uint32_t *place = panels + j / PANEL_COLUMNS * PANEL_COLUMNS * (n / 2) + i / 2 * PANEL_COLUMNS;
    for (int m = 0; m < BLOCK_ROWS; m += 2)
        for (int c = 0; c < PANEL_COLUMNS; c += LANES)
            store_pairs(place + m / 2 * PANEL_COLUMNS + c, to_bf16(load(s[m] + c)), to_bf16(load(s[m + 1] + c)));
    if (i / PANEL_COLUMNS == j / PANEL_COLUMNS) return;  // blocks on the diagonal are computed whole
    uint32_t *mirror = panels + i / PANEL_COLUMNS * PANEL_COLUMNS * (n / 2) + j / 2 * PANEL_COLUMNS + i % PANEL_COLUMNS;
    uint16_t low[BLOCK_ROWS][PANEL_COLUMNS];
    for (int m = 0; m < BLOCK_ROWS; m++)
        for (int c = 0; c < PANEL_COLUMNS; c += LANES) store_bf16(low[m] + c, load(s[m] + c));
    for (int c = 0; c < PANEL_COLUMNS; c += 2, mirror += PANEL_COLUMNS)
        for (int m = 0; m < BLOCK_ROWS; m++) mirror[m] = low[m][c] | (uint32_t)low[m][c + 1] << 16;
}

// A = X'X of X in panels, (rows, n), in float32 (where it is computed) and in panels.
static void square(const uint32_t *panels, int64_t rows, int64_t n, float *sums, uint32_t *A)
{
    for (int64_t start = 0; start < rows / 2; start += DEPTH) {
        int64_t depth = rows / 2 - start < DEPTH ? rows / 2 - start : DEPTH;
        int last = start + depth == rows / 2;
        for (int64_t j = 0; j < n; j += PANEL_COLUMNS) {
            const uint32_t *right = panels + j * (rows / 2) + start * PANEL_COLUMNS;
            for (int64_t i = 0; i < j + PANEL_COLUMNS; i += BLOCK_ROWS) {
                const uint32_t *left = panels + i / PANEL_COLUMNS * PANEL_COLUMNS * (rows / 2) +
                                       start * PANEL_COLUMNS + i % PANEL_COLUMNS;
                Square s = {{0}};
                for (int m = 0; m < BLOCK_ROWS && start; m++) memcpy(s[m], sums + (i + m) * n + j, sizeof s[m]);
                block(left, 1, PANEL_COLUMNS, right, depth, s);
                for (int m = 0; m < BLOCK_ROWS; m++) memcpy(sums + (i + m) * n + j, s[m], sizeof s[m]);
                if (last) store_symmetric(s, i, j, n, A);
            }
        }
    }
}

// M = b A + c A A, in panels. Both of the same rounded A: where A is near 1, b + 2 c A is small, and so is what the
// rounding does to the sum.
static void polynomial(const uint32_t *A, const float *sums, int64_t n, float b, float c, uint32_t *M)
{
    for (int64_t j = 0; j < n; j += PANEL_COLUMNS)
        for (int64_t i = 0; i < j + PANEL_COLUMNS; i += BLOCK_ROWS) {
            Square s = {{0}};
            block(A + i / PANEL_COLUMNS * PANEL_COLUMNS * (n / 2) + i % PANEL_COLUMNS, 1, PANEL_COLUMNS,
                  A + j * (n / 2), n / 2, s);
            for (int m = 0; m < BLOCK_ROWS; m++)
                for (int k = 0; k < PANEL_COLUMNS; k += LANES) {
                    vfloat first = widened(to_bf16(load(sums + (i + m) * n + j + k)));
                    store(s[m] + k, muladd(all(c), load(s[m] + k), b * first));
                }
            store_symmetric(s, i, j, n, M);
        }
}

// X = a X + X M, 8 rows at a time.
static void multiply(uint16_t *X, int64_t rows, int64_t n, float a, const uint32_t *M, uint16_t *other)
{
    for (int64_t i = 0; i < rows; i += BLOCK_ROWS) {
        uint16_t *at = X + i * n;
        for (int64_t j = 0; j < n; j += PANEL_COLUMNS) {
            Square s = {{0}};
            block((const Pair *)at, n / 2, 1, M + j * (n / 2), n / 2, s);
            for (int m = 0; m < BLOCK_ROWS; m++)
                for (int k = 0; k < PANEL_COLUMNS; k += LANES) {
                    int64_t place = m * n + j + k;
                    store_bf16(other + place, muladd(all(a), from_bf16(at + place), load(s[m] + k)));
                }
        }
        memcpy(at, other, BLOCK_ROWS * n * sizeof(uint16_t));
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
            store_pairs(panels + j / PANEL_COLUMNS * PANEL_COLUMNS * (rows / 2) + k / 2 * PANEL_COLUMNS +
                            j % PANEL_COLUMNS, even, odd);
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
        square(space->panels, rows, n, space->sums, space->A);
        polynomial(space->A, space->sums, n, p[1], p[2], space->M);
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
// 6 most + 8 least^2 bytes.
void regpt_muon(int64_t count, const Matrix *matrices, const MuonRule *rule, int64_t most, int64_t least, char *room,
                int64_t threads)
{
    int64_t bytes = 6 * most + 8 * least * least;
    (void)threads;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (int64_t i = 0; i < count; i++) {
        char *mine = room + member() * bytes;
        Space space = {.X = (uint16_t *)mine, .other = (uint16_t *)(mine + 2 * most)};
        space.panels = (uint32_t *)(mine + 4 * most);
        space.A = (uint32_t *)(mine + 6 * most), space.M = space.A + least * least / 2;
        space.sums = (float *)(space.M + least * least / 2);
        step(matrices + i, rule, &space);
    }
}
