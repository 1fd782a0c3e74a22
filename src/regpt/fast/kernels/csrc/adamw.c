// One AdamW step of a matrix in one pass: the gradient is read in bfloat16, weight and averages are
// updated in float32, and the weight's bfloat16 copy is written while the number is in a register.
// 28 bytes of traffic for each number; torch's kernel and the casts around it take 36 and more.
#include "vectors.h"

typedef struct {
    float scale;      // of the gradient
    float keep;       // 1 - rate * weight decay
    float beta1, beta2;
    float step_size;  // rate / (1 - beta1^t)
    float correction; // 1 / sqrt(1 - beta2^t)
    float epsilon;
} Rule;

static inline void update(float *w, const uint16_t *g, float *m, float *v, uint16_t *low, const Rule *rule)
{
    vfloat gradient = from_bf16(g) * rule->scale;
    vfloat first = muladd(gradient - load(m), all(1.0f - rule->beta1), load(m));
    vfloat second = muladd(gradient * gradient, all(1.0f - rule->beta2), load(v) * rule->beta2);
    vfloat change = first * rule->step_size / (root(second) * rule->correction + rule->epsilon);
    vfloat weight = load(w) * rule->keep - change;
    store(m, first), store(v, second), store(w, weight);
    store_bf16(low, weight);
}

// n is a multiple of 16.
void regpt_adamw(int64_t n, float *w, const uint16_t *g, float *m, float *v, uint16_t *low,
                 const Rule *rule, int64_t threads)
{
    (void)threads;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < n; i += LANES) update(w + i, g + i, m + i, v + i, low + i, rule);
}

// The sum of the squares of n bfloat16 numbers, n a multiple of 16.
double regpt_squares(int64_t n, const uint16_t *g, int64_t threads)
{
    double total = 0.0;
    (void)threads;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(+ : total)
    for (int64_t block = 0; block < n; block += 4096) {
        int64_t stop = block + 4096 < n ? block + 4096 : n;
        vfloat sums = {0};
        for (int64_t i = block; i < stop; i += LANES) {
            vfloat x = from_bf16(g + i);
            sums = muladd(x, x, sums);
        }
        total += sum_of(sums);
    }
    return total;
}
