// One AdamW step of a matrix in one pass: the gradient is read in bfloat16, weight and averages are
// updated in float32, and the weight's bfloat16 copy is written while the number is in a register.
// 28 bytes of traffic for each number; torch's kernel and the casts around it take 36 and more.
#include <omp.h>

#include "vectors.h"

typedef struct {
    float scale;      // of the gradient
    float keep;       // 1 - rate * weight decay
    float beta1, beta2;
    float step_size;  // rate / (1 - beta1^t)
    float correction; // 1 / sqrt(1 - beta2^t)
    float epsilon;
} Rule;

static inline void update(float *w, const uint16_t *g, float *m, float *v, uint16_t *low,
                          const Rule *rule)
{
    __m512 gradient = _mm512_mul_ps(from_bf16(g), _mm512_set1_ps(rule->scale));
    __m512 first = _mm512_loadu_ps(m), second = _mm512_loadu_ps(v);
    first = _mm512_fmadd_ps(_mm512_sub_ps(gradient, first), _mm512_set1_ps(1.0f - rule->beta1),
                            first);
    second = _mm512_fmadd_ps(_mm512_mul_ps(gradient, gradient),
                             _mm512_set1_ps(1.0f - rule->beta2),
                             _mm512_mul_ps(second, _mm512_set1_ps(rule->beta2)));
    __m512 root = _mm512_mul_ps(_mm512_sqrt_ps(second), _mm512_set1_ps(rule->correction));
    __m512 change = _mm512_div_ps(_mm512_mul_ps(first, _mm512_set1_ps(rule->step_size)),
                                  _mm512_add_ps(root, _mm512_set1_ps(rule->epsilon)));
    __m512 weight = _mm512_sub_ps(
        _mm512_mul_ps(_mm512_loadu_ps(w), _mm512_set1_ps(rule->keep)), change);
    _mm512_storeu_ps(m, first);
    _mm512_storeu_ps(v, second);
    _mm512_storeu_ps(w, weight);
    _mm256_storeu_si256((__m256i *)low, to_bf16(weight));
}

// n is a multiple of 16.
void regpt_adamw(int64_t n, float *w, const uint16_t *g, float *m, float *v, uint16_t *low,
                 const Rule *rule, int64_t threads)
{
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < n; i += 16)
        update(w + i, g + i, m + i, v + i, low + i, rule);
}

// The sum of the squares of n bfloat16 numbers, n a multiple of 16.
double regpt_squares(int64_t n, const uint16_t *g, int64_t threads)
{
    double total = 0.0;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(+ : total)
    for (int64_t block = 0; block < n; block += 4096) {
        int64_t stop = block + 4096 < n ? block + 4096 : n;
        __m512 sums = _mm512_setzero_ps();
        for (int64_t i = block; i < stop; i += 16) {
            __m512 x = from_bf16(g + i);
            sums = _mm512_fmadd_ps(x, x, sums);
        }
        total += _mm512_reduce_add_ps(sums);
    }
    return total;
}
