// What stands between the matrix products of a training step, each in one pass over bfloat16 rows:
// LayerNorm, GELU, softmax and loss, their gradients, and the sums over rows that biases want.
//
// Arithmetic is in float32. Threads take rows in contiguous shares, and sums over rows are added up
// share by share: the same numbers each time on the same number of threads. Widths are multiples of 16.
#include <omp.h>
#include <stdlib.h>

#include "vectors.h"

static inline void store_bf16(uint16_t *place, __m512 x) { _mm256_storeu_si256((__m256i *)place, to_bf16(x)); }

// One share of rows of one thread.
static inline void share(int64_t rows, int64_t *first, int64_t *last)
{
    int64_t threads = omp_get_num_threads(), me = omp_get_thread_num();
    *first = rows * me / threads, *last = rows * (me + 1) / threads;
}

// out = the sum of `threads` buffers of `width`, `apart` numbers apart.
static void add_shares(const float *parts, int64_t threads, int64_t apart, int64_t width, float *out)
{
    for (int64_t i = 0; i < width; i += LANES) {
        __m512 sum = _mm512_loadu_ps(parts + i);
        for (int64_t t = 1; t < threads; t++) sum = _mm512_add_ps(sum, _mm512_loadu_ps(parts + t * apart + i));
        _mm512_storeu_ps(out + i, sum);
    }
}

static inline void add_to(float *place, __m512 x) { _mm512_storeu_ps(place, _mm512_add_ps(_mm512_loadu_ps(place), x)); }

// LayerNorm of rows of x, or of x + delta, which is written to total (may be x); stats: mean, 1/std.
void regpt_norm(int64_t rows, int64_t n, const float *x, const uint16_t *delta, float *total, const float *weight,
                const float *bias, float epsilon, uint16_t *out, float *stats, int64_t threads)
{
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        const float *from = x + row * n;
        if (delta) {
            float *to = total + row * n;
            for (int64_t i = 0; i < n; i += LANES)
                _mm512_storeu_ps(to + i, _mm512_add_ps(_mm512_loadu_ps(from + i), from_bf16(delta + row * n + i)));
            from = to;
        }
        __m512 sum = _mm512_setzero_ps(), square = _mm512_setzero_ps();
        for (int64_t i = 0; i < n; i += LANES) sum = _mm512_add_ps(sum, _mm512_loadu_ps(from + i));
        float mean = _mm512_reduce_add_ps(sum) / n;
        __m512 middle = _mm512_set1_ps(mean);
        for (int64_t i = 0; i < n; i += LANES) {
            __m512 d = _mm512_sub_ps(_mm512_loadu_ps(from + i), middle);
            square = _mm512_fmadd_ps(d, d, square);
        }
        float inverse = 1.0f / sqrtf(_mm512_reduce_add_ps(square) / n + epsilon);
        __m512 factor = _mm512_set1_ps(inverse);
        for (int64_t i = 0; i < n; i += LANES) {
            __m512 d = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(from + i), middle), factor);
            store_bf16(out + row * n + i, _mm512_fmadd_ps(d, _mm512_loadu_ps(weight + i), _mm512_loadu_ps(bias + i)));
        }
        stats[2 * row] = mean, stats[2 * row + 1] = inverse;
    }
}

// The same rows again from what is known of them.
void regpt_norm_again(int64_t rows, int64_t n, const float *x, const float *stats, const float *weight,
                      const float *bias, uint16_t *out, int64_t threads)
{
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        __m512 middle = _mm512_set1_ps(stats[2 * row]), factor = _mm512_set1_ps(stats[2 * row + 1]);
        for (int64_t i = 0; i < n; i += LANES) {
            __m512 d = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(x + row * n + i), middle), factor);
            store_bf16(out + row * n + i, _mm512_fmadd_ps(d, _mm512_loadu_ps(weight + i), _mm512_loadu_ps(bias + i)));
        }
    }
}

// LayerNorm's gradient, added to what came past it: dx = past + dLN(dy) (dx may be past). sums: 3 x n, the
// gradients of weight and bias, and the sum of dx over rows; low: dx in bfloat16, or none.
int regpt_norm_backward(int64_t rows, int64_t n, const uint16_t *dy, const float *x, const float *stats,
                         const float *weight, const float *past, float *dx, uint16_t *low, float *sums,
                         int64_t threads)
{
    float *parts = calloc(threads * 3 * n, sizeof(float));
    if (!parts) return NO_MEMORY;
#pragma omp parallel num_threads(threads)
    {
        int64_t first, last;
        share(rows, &first, &last);
        float *dw = parts + omp_get_thread_num() * 3 * n, *db = dw + n, *all = db + n;
        for (int64_t row = first; row < last; row++) {
            const float *from = x + row * n, *beside = past + row * n;
            const uint16_t *g = dy + row * n;
            __m512 middle = _mm512_set1_ps(stats[2 * row]), factor = _mm512_set1_ps(stats[2 * row + 1]);
            __m512 sum = _mm512_setzero_ps(), product = _mm512_setzero_ps();
            for (int64_t i = 0; i < n; i += LANES) {
                __m512 hat = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(from + i), middle), factor);
                __m512 d = from_bf16(g + i), scaled = _mm512_mul_ps(d, _mm512_loadu_ps(weight + i));
                sum = _mm512_add_ps(sum, scaled);
                product = _mm512_fmadd_ps(scaled, hat, product);
                add_to(db + i, d);
                add_to(dw + i, _mm512_mul_ps(d, hat));
            }
            __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum) / n);
            __m512 slope = _mm512_set1_ps(_mm512_reduce_add_ps(product) / n);
            for (int64_t i = 0; i < n; i += LANES) {
                __m512 hat = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(from + i), middle), factor);
                __m512 scaled = _mm512_mul_ps(from_bf16(g + i), _mm512_loadu_ps(weight + i));
                __m512 d = _mm512_sub_ps(_mm512_fnmadd_ps(hat, slope, scaled), mean);
                d = _mm512_fmadd_ps(d, factor, _mm512_loadu_ps(beside + i));
                _mm512_storeu_ps(dx + row * n + i, d);
                if (low) store_bf16(low + row * n + i, d);
                add_to(all + i, d);
            }
        }
    }
    add_shares(parts, threads, 3 * n, 3 * n, sums);
    free(parts);
    return DONE;
}

// to = x + delta, of n numbers.
void regpt_add(int64_t n, const float *x, const uint16_t *delta, float *to, int64_t threads)
{
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < n; i += LANES)
        _mm512_storeu_ps(to + i, _mm512_add_ps(_mm512_loadu_ps(x + i), from_bf16(delta + i)));
}

void regpt_gelu(int64_t n, const uint16_t *x, uint16_t *out, int64_t threads)
{
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < n; i += LANES) store_bf16(out + i, gelu(from_bf16(x + i)));
}

// The gradient at GELU's input, in place of that at its output, its sum over rows, and GELU's values again.
int regpt_gelu_backward(int64_t rows, int64_t n, const uint16_t *x, uint16_t *d, uint16_t *out, float *sums,
                         int64_t threads)
{
    float *parts = calloc(threads * n, sizeof(float));
    if (!parts) return NO_MEMORY;
    const __m512 one = _mm512_set1_ps(1.0f), twice = _mm512_set1_ps(1.5957691216f);
#pragma omp parallel num_threads(threads)
    {
        int64_t first, last;
        share(rows, &first, &last);
        float *sum = parts + omp_get_thread_num() * n;
        for (int64_t row = first; row < last; row++)
            for (int64_t i = 0; i < n; i += LANES) {
                __m512 v = from_bf16(x + row * n + i), squared = _mm512_mul_ps(v, v);
                __m512 u = _mm512_mul_ps(_mm512_mul_ps(v, twice),
                                         _mm512_fmadd_ps(squared, _mm512_set1_ps(0.044715f), one));
                __m512 s = _mm512_div_ps(one, _mm512_add_ps(one, exponential(_mm512_sub_ps(_mm512_setzero_ps(), u))));
                __m512 inner = _mm512_mul_ps(twice, _mm512_fmadd_ps(squared, _mm512_set1_ps(0.134145f), one));
                __m512 value = _mm512_mul_ps(v, s);
                __m512 slope = _mm512_fmadd_ps(_mm512_mul_ps(value, _mm512_sub_ps(one, s)), inner, s);
                __m512 g = _mm512_mul_ps(from_bf16(d + row * n + i), slope);
                store_bf16(out + row * n + i, value);
                store_bf16(d + row * n + i, g);
                add_to(sum + i, g);
            }
    }
    add_shares(parts, threads, n, n, sums);
    free(parts);
    return DONE;
}

// Sums over rows of float32 x, which is also written in bfloat16 to low; or of low, where x is none.
int regpt_row_sums(int64_t rows, int64_t n, const float *x, uint16_t *low, float *sums, int64_t threads)
{
    float *parts = calloc(threads * n, sizeof(float));
    if (!parts) return NO_MEMORY;
#pragma omp parallel num_threads(threads)
    {
        int64_t first, last;
        share(rows, &first, &last);
        float *sum = parts + omp_get_thread_num() * n;
        for (int64_t row = first; row < last; row++)
            for (int64_t i = 0; i < n; i += LANES) {
                __m512 v = x ? _mm512_loadu_ps(x + row * n + i) : from_bf16(low + row * n + i);
                if (x) store_bf16(low + row * n + i, v);
                add_to(sum + i, v);
            }
    }
    add_shares(parts, threads, n, n, sums);
    free(parts);
    return DONE;
}

// Rows of logits, `stride` apart, to the gradient of their summed cross-entropy, in place; nats of each row. A row
// whose target is `ignored` has none. `more` is added to the last of the `n` logits. Columns beyond n become 0.
int regpt_loss(int64_t rows, int64_t n, int64_t stride, uint16_t *logits, const int64_t *targets, int64_t ignored,
                float more, float *nats, int64_t with_gradient, int64_t threads)
{
    int64_t whole = n / LANES * LANES, padded = (n + LANES - 1) / LANES * LANES;
    __mmask16 rest = (1u << (n - whole)) - 1;
    for (int64_t row = 0; row < rows; row++)
        if (targets[row] != ignored && (targets[row] < 0 || targets[row] >= n)) return OUTSIDE;
    float *buffers = aligned_alloc(64, threads * padded * sizeof(float));
    if (!buffers) return NO_MEMORY;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        uint16_t *z = logits + row * stride;
        float *e = buffers + omp_get_thread_num() * padded;
        if (targets[row] == ignored) {
            if (with_gradient) memset(z, 0, stride * sizeof(uint16_t));
            nats[row] = 0.0f;
            continue;
        }
        __m512 high = _mm512_set1_ps(-INFINITY), poison = _mm512_setzero_ps();  // not 0 if one is not finite
        for (int64_t i = 0; i < whole; i += LANES) {
            __m512 v = from_bf16(z + i);
            _mm512_store_ps(e + i, v);
            high = _mm512_max_ps(high, v);
            poison = _mm512_fmadd_ps(v, _mm512_setzero_ps(), poison);
        }
        for (int64_t i = whole; i < padded; i++) {
            uint32_t bits = (uint32_t)z[i < n ? i : 0] << 16;
            memcpy(e + i, &bits, 4);
        }
        e[n - 1] += more;
        if (rest) {
            high = _mm512_mask_max_ps(high, rest, high, _mm512_load_ps(e + whole));
            poison = _mm512_fmadd_ps(_mm512_load_ps(e + whole), _mm512_setzero_ps(), poison);
        }
        __m512 largest = _mm512_set1_ps(_mm512_reduce_max_ps(_mm512_max_ps(high, _mm512_set1_ps(e[n - 1]))));
        __m512 sum = _mm512_setzero_ps();
        float at_target = e[targets[row]] - _mm512_cvtss_f32(largest);
        for (int64_t i = 0; i < whole; i += LANES) {
            __m512 v = exponential(_mm512_sub_ps(_mm512_load_ps(e + i), largest));
            _mm512_store_ps(e + i, v);
            sum = _mm512_add_ps(sum, v);
        }
        if (rest) {
            __m512 v = exponential(_mm512_sub_ps(_mm512_load_ps(e + whole), largest));
            _mm512_store_ps(e + whole, v);
            sum = _mm512_mask_add_ps(sum, rest, sum, v);
        }
        float total = _mm512_reduce_add_ps(_mm512_add_ps(sum, poison));
        nats[row] = logf(total) - at_target;
        if (!with_gradient) continue;
        e[targets[row]] -= total;
        __m512 scale = _mm512_set1_ps(1.0f / total);
        for (int64_t i = 0; i < whole; i += LANES) store_bf16(z + i, _mm512_mul_ps(_mm512_load_ps(e + i), scale));
        if (rest) {
            uint16_t last[LANES];
            store_bf16(last, _mm512_mul_ps(_mm512_load_ps(e + whole), scale));
            memcpy(z + whole, last, (n - whole) * sizeof(uint16_t));
        }
        memset(z + n, 0, (stride - n) * sizeof(uint16_t));
    }
    free(buffers);
    return DONE;
}
