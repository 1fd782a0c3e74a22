// A token of each row: top-k, softmax and the exponential race of torch's multinomial, in one pass
// over the logits and a few microseconds over the candidates.
//
// The k-th largest of 1024 maxima of groups is at most the k-th largest of all, and most often only
// a few more than k logits are not below it; those are the candidates, ties included. What happens
// among them is `draw_among_few` of sampling.py. Rows that this cannot decide are marked: a logit
// that is no number, too many candidates, or two so close that rounding could order them.
#include "largest.h"

enum { MOST = 2048 };  // candidates that there is room for

typedef struct {
    const float *logits;  // rows of `columns`, `stride` apart
    int64_t rows, columns, stride;
    const int64_t *const *words;  // of each row: one for each column
    int64_t top_k;
    float temperature;
    double close;     // relative distance below which two scores count as equal
    int64_t *tokens;  // out
    uint8_t *open;    // out: 1 where the row is not decided
    int64_t threads;
} Draw;

// Logits of a row that may be among the k largest; how many, or -1.
static int64_t candidates(const float *x, const Draw *draw, float *values, int32_t *ids)
{
    float maxima[GROUPS];
    vint strange = {0};
    lowest(maxima);
    for (int64_t i = 0; i < draw->columns; i += LANES) {
        vfloat v = load_part(x + i, draw->columns - i, -INFINITY);
        strange |= v != v;
        raise_maxima(maxima, i, v);
    }
    if (any(strange)) return -1;
    float bound = kth_largest(maxima, GROUPS, draw->top_k);
    vfloat least = all(bound - fabsf(bound) * 1e-6f);  // dividing by a temperature may make neighbours equal
    int64_t count = 0;
    for (int64_t i = 0; i < draw->columns; i += LANES) {
        vfloat v = load_part(x + i, draw->columns - i, NAN);
        if (!any_at_least(v, least)) continue;
        if (count > MOST - LANES) return -1;
        count += chosen_ids(ids + count, v, least, i);
    }
    for (int64_t i = 0; i < count; i++) values[i] = x[ids[i]];
    return count;
}

// The winner among a row's candidates; 0 if it is not decided.
static int race(const Draw *draw, const int64_t *words, float *values, const int32_t *ids, int64_t count,
                int64_t *token)
{
    float largest = -INFINITY;
    for (int64_t i = 0; i < count; i++) {
        values[i] /= draw->temperature;
        largest = values[i] > largest ? values[i] : largest;
    }
    if (largest == -INFINITY || largest == INFINITY) return 0;
    for (int64_t i = count; i < (count + LANES - 1) / LANES * LANES; i++) values[i] = -INFINITY;
    float kth = kth_largest(values, (count + LANES - 1) / LANES * LANES, draw->top_k);
    double best = -1, second = -1;
    for (int64_t i = 0; i < count; i++) {
        if (values[i] < kth) continue;
        double uniform = (double)(words[ids[i]] & ((1LL << 53) - 1)) * 0x1p-53;
        double score = exp((double)(values[i] - largest)) / (double)(float)-log1p(-uniform);
        if (score > best)
            second = best, best = score, *token = ids[i];
        else if (score > second)
            second = score;
    }
    return best > second * (1 + draw->close);
}

void regpt_draw(const Draw *draw)
{
#pragma omp parallel for if (draw->rows > 4) num_threads((int)draw->threads)
    for (int64_t row = 0; row < draw->rows; row++) {
        float values[MOST + LANES];
        int32_t ids[MOST + LANES];
        int64_t count = candidates(draw->logits + row * draw->stride, draw, values, ids);
        draw->tokens[row] = 0;
        draw->open[row] = count < draw->top_k || !race(draw, draw->words[row], values, ids, count, draw->tokens + row);
    }
}
