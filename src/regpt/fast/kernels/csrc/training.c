// What stands between the matrix products of a training step, each in one pass over bfloat16 rows:
// LayerNorm, GELU, softmax and loss, their gradients, and the sums over rows that biases want.
//
// Arithmetic is in float32. Threads take rows in contiguous shares, and sums over rows are added up
// share by share: the same numbers each time on the same number of threads. Widths are multiples of 16.
#include "gate.h"
#include "vectors.h"

// One share of rows of one thread.
static inline void share(int64_t rows, int64_t *first, int64_t *last)
{
    int64_t threads = team(), me = member();
    *first = rows * me / threads, *last = rows * (me + 1) / threads;
}

// LayerNorm of rows of x, or of x + delta, which is written to total (may be x); stats: mean, 1/std.
void regpt_norm(int64_t rows, int64_t n, const float *x, const uint16_t *delta, float *total, const float *weight,
                const float *bias, float epsilon, uint16_t *out, float *stats, int64_t threads)
{
    (void)threads;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        const float *from = x + row * n;
        if (delta) {
            float *to = total + row * n;
            for (int64_t i = 0; i < n; i += LANES) store(to + i, load(from + i) + from_bf16(delta + row * n + i));
            from = to;
        }
        float mean, inverse;
        moments(from, n, epsilon, &mean, &inverse);
        for (int64_t i = 0; i < n; i += LANES)
            store_bf16(out + row * n + i, normed(from + i, mean, inverse, weight + i, bias + i));
        stats[2 * row] = mean, stats[2 * row + 1] = inverse;
    }
}

// The same rows again from what is known of them.
void regpt_norm_again(int64_t rows, int64_t n, const float *x, const float *stats, const float *weight,
                      const float *bias, uint16_t *out, int64_t threads)
{
    (void)threads;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        float mean = stats[2 * row], inverse = stats[2 * row + 1];
        for (int64_t i = 0; i < n; i += LANES)
            store_bf16(out + row * n + i, normed(x + row * n + i, mean, inverse, weight + i, bias + i));
    }
}

// LayerNorm's gradient, added to what came past it: dx = past + dLN(dy) (dx may be past). sums: 3 x n of each
// thread, zeros before: the gradients of weight and bias, and the sum of dx over rows; low: dx in bfloat16, or none.
void regpt_norm_backward(int64_t rows, int64_t n, const uint16_t *dy, const float *x, const float *stats,
                         const float *weight, const float *past, float *dx, uint16_t *low, float *sums,
                         int64_t threads)
{
    (void)threads;
#pragma omp parallel num_threads(threads)
    {
        int64_t first, last;
        share(rows, &first, &last);
        float *dw = sums + member() * 3 * n, *db = dw + n, *whole = db + n;
        for (int64_t row = first; row < last; row++) {
            const float *from = x + row * n, *beside = past + row * n;
            const uint16_t *g = dy + row * n;
            float middle = stats[2 * row], factor = stats[2 * row + 1];
            vfloat sum = {0}, product = {0};
            for (int64_t i = 0; i < n; i += LANES) {
                vfloat hat = (load(from + i) - middle) * factor, d = from_bf16(g + i), scaled = d * load(weight + i);
                sum += scaled;
                product = muladd(scaled, hat, product);
                add_to(db + i, d);
                add_to(dw + i, d * hat);
            }
            float mean = sum_of(sum) / n, slope = sum_of(product) / n;
            for (int64_t i = 0; i < n; i += LANES) {
                vfloat hat = (load(from + i) - middle) * factor, scaled = from_bf16(g + i) * load(weight + i);
                vfloat d = muladd(-hat, all(slope), scaled) - mean;
                d = muladd(d, all(factor), load(beside + i));
                store(dx + row * n + i, d);
                if (low) store_bf16(low + row * n + i, d);
                add_to(whole + i, d);
            }
        }
    }
}

// to = x + delta, of n numbers.
void regpt_add(int64_t n, const float *x, const uint16_t *delta, float *to, int64_t threads)
{
    (void)threads;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < n; i += LANES) store(to + i, load(x + i) + from_bf16(delta + i));
}

void regpt_gelu(int64_t n, const uint16_t *x, uint16_t *out, int64_t threads)
{
    (void)threads;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < n; i += LANES) store_bf16(out + i, gelu(from_bf16(x + i)));
}

// The gradient at GELU's input, in place of that at its output, and GELU's values again. sums: n of each thread,
// zeros before: of that gradient over rows.
void regpt_gelu_backward(int64_t rows, int64_t n, const uint16_t *x, uint16_t *d, uint16_t *out, float *sums,
                         int64_t threads)
{
    const float twice = 1.5957691216f;
    (void)threads;
#pragma omp parallel num_threads(threads)
    {
        int64_t first, last;
        share(rows, &first, &last);
        float *sum = sums + member() * n;
        for (int64_t row = first; row < last; row++)
            for (int64_t i = 0; i < n; i += LANES) {
                vfloat v = from_bf16(x + row * n + i), squared = v * v;
                vfloat u = v * twice * muladd(squared, all(0.044715f), all(1.0f));
                vfloat s = 1.0f / (1.0f + exponential(-u));
                vfloat inner = twice * muladd(squared, all(0.134145f), all(1.0f)), value = v * s;
                vfloat g = from_bf16(d + row * n + i) * muladd(value * (1.0f - s), inner, s);
                store_bf16(out + row * n + i, value);
                store_bf16(d + row * n + i, g);
                add_to(sum + i, g);
            }
    }
}

// Sums over rows of float32 x, which is also written in bfloat16 to low; or of low, where x is none. sums: n of each
// thread, zeros before.
void regpt_row_sums(int64_t rows, int64_t n, const float *x, uint16_t *low, float *sums, int64_t threads)
{
    (void)threads;
#pragma omp parallel num_threads(threads)
    {
        int64_t first, last;
        share(rows, &first, &last);
        float *sum = sums + member() * n;
        for (int64_t row = first; row < last; row++)
            for (int64_t i = 0; i < n; i += LANES) {
                vfloat v = x ? load(x + row * n + i) : from_bf16(low + row * n + i);
                if (x) store_bf16(low + row * n + i, v);
                add_to(sum + i, v);
            }
    }
}

// A row of logits in float32, `more` added to the last of n, and what cannot count behind them up to a whole register.
// Their largest; poison is not 0 if one is not finite.
static inline float widen_row(const uint16_t *z, int64_t n, float more, float *e, vfloat *poison)
{
    int64_t whole = n / LANES * LANES;
    vfloat high = all(-INFINITY);
    for (int64_t i = 0; i < whole; i += LANES) {
        vfloat v = from_bf16(z + i);
        store(e + i, v);
        high = larger(high, v);
        *poison = muladd(v, all(0.0f), *poison);
    }
    for (int64_t i = whole; i < whole + LANES; i++) {
        uint32_t bits = (uint32_t)z[i < n ? i : 0] << 16;
        memcpy(e + i, &bits, 4);
        if (i >= n) e[i] = -FLT_MAX;
    }
    e[n - 1] += more;
    high = larger(high, load(e + whole)), high = larger(high, all(e[n - 1]));
    *poison = muladd(load(e + whole), all(0.0f), *poison);
    return largest_of(high);
}

// Attention's scores, in place, to their causal softmax. Of `queries` rows each, the first at position `start`, a row
// sees the columns up to its own position; the others become 0.
void regpt_causal_softmax(int64_t rows, int64_t queries, int64_t n, int64_t start, uint16_t *scores, int64_t threads)
{
    (void)threads;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        int64_t seen = start + row % queries + 1, whole = seen / LANES * LANES;
        uint16_t *z = scores + row * n, last[LANES];
        float e[n + LANES];
        vfloat poison = {0}, sum = {0};
        float largest = widen_row(z, seen, 0.0f, e, &poison);
        for (int64_t i = 0; i < seen; i += LANES) {
            vfloat v = exponential(load(e + i) - largest);
            store(e + i, v);
            sum += v;
        }
        float scale = 1.0f / sum_of(sum + poison);
        for (int64_t i = 0; i < whole; i += LANES) store_bf16(z + i, load(e + i) * scale);
        store_bf16(last, load(e + whole) * scale);
        memcpy(z + whole, last, (seen - whole) * sizeof(uint16_t));
        memset(z + seen, 0, (n - seen) * sizeof(uint16_t));
    }
}

// The gradient at the scores, in place of that at their softmax p.
void regpt_causal_softmax_backward(int64_t rows, int64_t queries, int64_t n, int64_t start, const uint16_t *p,
                                   uint16_t *d, int64_t threads)
{
    (void)threads;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        int64_t seen = start + row % queries + 1, whole = seen / LANES * LANES, rest = (seen - whole) * sizeof(uint16_t);
        const uint16_t *from = p + row * n;
        uint16_t *g = d + row * n, last[2][LANES] = {0};
        memcpy(last[0], from + whole, rest), memcpy(last[1], g + whole, rest);
        vfloat sum = from_bf16(last[0]) * from_bf16(last[1]);
        for (int64_t i = 0; i < whole; i += LANES) sum = muladd(from_bf16(from + i), from_bf16(g + i), sum);
        float mean = sum_of(sum);
        for (int64_t i = 0; i < whole; i += LANES)
            store_bf16(g + i, from_bf16(from + i) * (from_bf16(g + i) - mean));
        store_bf16(last[1], from_bf16(last[0]) * (from_bf16(last[1]) - mean));
        memcpy(g + whole, last[1], rest);
        memset(g + seen, 0, (n - seen) * sizeof(uint16_t));
    }
}

// Rows of logits, `stride` apart, to the gradient of their summed cross-entropy, in place; nats of each row. A row
// whose target is `ignored` has none. `more` is added to the last of the `n` logits. Columns beyond n become 0.
// room: n + 16 numbers of each thread.
int regpt_loss(int64_t rows, int64_t n, int64_t stride, uint16_t *logits, const int64_t *targets, int64_t ignored,
               float more, float *nats, int64_t with_gradient, float *room, int64_t threads)
{
    (void)threads;
    for (int64_t row = 0; row < rows; row++)
        if (targets[row] != ignored && (targets[row] < 0 || targets[row] >= n)) return OUTSIDE;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        uint16_t *z = logits + row * stride;
        float *e = room + member() * (n + 16);
        if (targets[row] == ignored) {
            if (with_gradient) memset(z, 0, stride * sizeof(uint16_t));
            nats[row] = 0.0f;
            continue;
        }
        vfloat poison = {0}, sum = {0};
        float largest = widen_row(z, n, more, e, &poison), at_target = e[targets[row]] - largest;
        for (int64_t i = 0; i < n; i += LANES) {
            vfloat v = exponential(load(e + i) - largest);
            store(e + i, v);
            sum += v;
        }
        float total = sum_of(sum + poison);
        nats[row] = logf(total) - at_target;
        if (!with_gradient) continue;
        e[targets[row]] -= total;
        int64_t whole = n / LANES * LANES;
        float scale = 1.0f / total;
        for (int64_t i = 0; i < whole; i += LANES) store_bf16(z + i, load(e + i) * scale);
        uint16_t last[LANES];
        store_bf16(last, load(e + whole) * scale);
        memcpy(z + whole, last, (n - whole) * sizeof(uint16_t));
        memset(z + n, 0, (stride - n) * sizeof(uint16_t));
    }
    return DONE;
}
