// Muon's step of one matrix on one core: momentum, Newton-Schulz and the update, in the core's cache.
//
// A matrix of a small model fits into the cache, so each core takes whole matrices and none waits for another.
// X is held tall, (long, short), and multiplied from the right: A = X'X and b A + c A A are symmetric, so half of
// each is computed and mirrored, which batched products cannot do. Right-hand sides lie in panels of 32 columns;
// two rows of a panel are interleaved, as vdpbf16ps wants them: dword k of a column holds rows 2k and 2k + 1.
#include <omp.h>
#include <stdlib.h>

#include "vectors.h"

enum { BLOCK_ROWS = 8, PANEL_COLUMNS = 32, DEPTH = 128 };  // 16 sums in registers; 16 kB of a panel at a time

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

// s[m][i] += over k: left[m, k] times 16 columns i of a panel, two rows of it at a time.
static inline __attribute__((always_inline)) void block(const Pair *left, int64_t apart, int64_t step,
                                                        const uint32_t *panel, int64_t pairs, __m512 s[][2])
{
#ifdef __AVX512BF16__
    for (int64_t k = 0; k < pairs; k++, left += step, panel += PANEL_COLUMNS) {
        __m512bh one = (__m512bh)_mm512_loadu_si512(panel), two = (__m512bh)_mm512_loadu_si512(panel + 16);
        for (int m = 0; m < BLOCK_ROWS; m++) {
            __m512bh each = (__m512bh)_mm512_set1_epi32(left[m * apart]);
            s[m][0] = _mm512_dpbf16_ps(s[m][0], each, one);
            s[m][1] = _mm512_dpbf16_ps(s[m][1], each, two);
        }
    }
#endif
}

static inline __m512i rounded(__m512 x) { return _mm512_cvtepu16_epi32(to_bf16(x)); }

// 8 rows from i, 32 columns from j, of a symmetric matrix of n columns into its panels, and their mirror image.
static inline void store_symmetric(__m512 s[][2], int64_t i, int64_t j, int64_t n, uint32_t *panels)
{
    uint32_t *place = panels + j / PANEL_COLUMNS * PANEL_COLUMNS * (n / 2);
    __m512i low[BLOCK_ROWS][2];
    for (int m = 0; m < BLOCK_ROWS; m++)
        for (int h = 0; h < 2; h++) low[m][h] = rounded(s[m][h]);
    for (int m = 0; m < BLOCK_ROWS; m += 2)
        for (int h = 0; h < 2; h++)
            _mm512_storeu_si512(place + (i + m) / 2 * PANEL_COLUMNS + 16 * h,
                                _mm512_or_si512(low[m][h], _mm512_slli_epi32(low[m + 1][h], 16)));
    if (i / PANEL_COLUMNS == j / PANEL_COLUMNS) return;  // blocks on the diagonal are computed whole
    uint32_t *mirror = panels + i / PANEL_COLUMNS * PANEL_COLUMNS * (n / 2) + j / 2 * PANEL_COLUMNS + i % PANEL_COLUMNS;
    const __m512i each = _mm512_mullo_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                                            _mm512_set1_epi32(PANEL_COLUMNS));
    for (int m = 0; m < BLOCK_ROWS; m++) {
        __m512i row = _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtepi32_epi16(low[m][0])),
                                         _mm512_cvtepi32_epi16(low[m][1]), 1);
        _mm512_i32scatter_epi32(mirror + m, each, row, 4);
    }
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
                float *place = sums + i * n + j;
                __m512 s[BLOCK_ROWS][2];
                for (int m = 0; m < BLOCK_ROWS; m++)
                    for (int h = 0; h < 2; h++)
                        s[m][h] = start ? _mm512_loadu_ps(place + m * n + 16 * h) : _mm512_setzero_ps();
                block(left, 1, PANEL_COLUMNS, right, depth, s);
                for (int m = 0; m < BLOCK_ROWS; m++)
                    for (int h = 0; h < 2; h++) _mm512_storeu_ps(place + m * n + 16 * h, s[m][h]);
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
            __m512 s[BLOCK_ROWS][2];
            for (int m = 0; m < BLOCK_ROWS; m++) s[m][0] = s[m][1] = _mm512_setzero_ps();
            block(A + i / PANEL_COLUMNS * PANEL_COLUMNS * (n / 2) + i % PANEL_COLUMNS, 1, PANEL_COLUMNS,
                  A + j * (n / 2), n / 2, s);
            for (int m = 0; m < BLOCK_ROWS; m++)
                for (int h = 0; h < 2; h++) {
                    __m512i low = rounded(_mm512_loadu_ps(sums + (i + m) * n + j + 16 * h));
                    __m512 first = _mm512_castsi512_ps(_mm512_slli_epi32(low, 16));
                    s[m][h] = _mm512_fmadd_ps(_mm512_set1_ps(c), s[m][h], _mm512_mul_ps(_mm512_set1_ps(b), first));
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
            __m512 s[BLOCK_ROWS][2];
            for (int m = 0; m < BLOCK_ROWS; m++) s[m][0] = s[m][1] = _mm512_setzero_ps();
            block((const Pair *)at, n / 2, 1, M + j * (n / 2), n / 2, s);
            for (int m = 0; m < BLOCK_ROWS; m++)
                for (int h = 0; h < 2; h++) {
                    int64_t k = m * n + j + 16 * h;
                    __m512 x = _mm512_fmadd_ps(_mm512_set1_ps(a), from_bf16(at + k), s[m][h]);
                    _mm256_storeu_si256((__m256i *)(other + k), to_bf16(x));
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
            __m512i even, odd;
            uint16_t *one = X + k * n + j, *two = one + n;
            if (factor != 1.0f) {
                _mm256_storeu_si256((__m256i *)one, to_bf16(_mm512_mul_ps(from_bf16(one), _mm512_set1_ps(factor))));
                _mm256_storeu_si256((__m256i *)two, to_bf16(_mm512_mul_ps(from_bf16(two), _mm512_set1_ps(factor))));
            }
            even = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)one));
            odd = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)two));
            _mm512_storeu_si512(panels + j / PANEL_COLUMNS * PANEL_COLUMNS * (rows / 2) + k / 2 * PANEL_COLUMNS +
                                    j % PANEL_COLUMNS,
                                _mm512_or_si512(even, _mm512_slli_epi32(odd, 16)));
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
    __m512 squares = _mm512_setzero_ps(), momentum = _mm512_set1_ps(rule->momentum);
    for (int64_t i = 0; i < numbers; i += LANES) {
        __m512 g = matrix->low ? _mm512_mul_ps(from_bf16((const uint16_t *)matrix->gradient + i),
                                               _mm512_set1_ps(rule->scale))
                               : _mm512_loadu_ps((const float *)matrix->gradient + i);
        __m512 m = _mm512_loadu_ps(matrix->average + i);
        m = _mm512_fmadd_ps(_mm512_sub_ps(g, m), _mm512_set1_ps(1.0f - rule->momentum), m);
        _mm512_storeu_ps(matrix->average + i, m);
        __m512 next = rule->nesterov ? _mm512_fmadd_ps(_mm512_sub_ps(m, g), momentum, g) : m;
        __m256i low = to_bf16(next);
        _mm256_storeu_si256((__m256i *)(out + i), low);
        next = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(low), 16));
        squares = _mm512_fmadd_ps(next, next, squares);
    }
    return _mm512_reduce_add_ps(squares);
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
    __m512 rate = _mm512_set1_ps(rule->rate * (ratio > 1.0f ? sqrtf(ratio) : 1.0f));
    for (int64_t i = 0; i < numbers; i += LANES) {
        __m512 w = _mm512_mul_ps(_mm512_loadu_ps(matrix->weight + i), _mm512_set1_ps(rule->keep));
        w = _mm512_fnmadd_ps(from_bf16(update + i), rate, w);
        _mm512_storeu_ps(matrix->weight + i, w);
        if (matrix->copy) _mm256_storeu_si256((__m256i *)(matrix->copy + i), to_bf16(w));
    }
}

// Sides are multiples of 32; `most` numbers and `least` short side bound every matrix.
int regpt_muon(int64_t count, const Matrix *matrices, const MuonRule *rule, int64_t most, int64_t least, int64_t threads)
{
    int64_t bytes = 6 * most + 8 * least * least;
    char *memory = aligned_alloc(64, threads * bytes);
    if (!memory) return NO_MEMORY;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (int64_t i = 0; i < count; i++) {
        char *mine = memory + omp_get_thread_num() * bytes;
        Space space = {(uint16_t *)mine, (uint16_t *)(mine + 2 * most), (uint32_t *)(mine + 4 * most)};
        space.A = (uint32_t *)(mine + 6 * most), space.M = space.A + least * least / 2;
        space.sums = (float *)(space.M + least * least / 2);
        step(matrices + i, rule, &space);
    }
    free(memory);
    return DONE;
}
