// The head in float32: all logits of a token, or exactly those that may be among its k largest.
//
// The head is a third of the bytes of a step, and a draw among the k most likely looks at k of its
// 50,257 outputs. So the matrix w has a copy w' in bfloat16, half as long, and with x' the token's
// activations in bfloat16, Cauchy and Schwarz say how far the cheap product can be off:
//
//     |w x - w' x'|  <=  |w - w'| |x| + |w'| |x - x'|
//
// What lies below the k-th largest of the lower bounds by more than its own bound is not among the k
// largest, ties included, and becomes -inf. The others, some hundreds, are computed in float32, each
// from its own row of the matrix, in the order in which all of them would be: the same bits. A token
// with too many of them, or with numbers that are none, gets all its logits.
#pragma once
#include "largest.h"

enum {
    CANDIDATES = 4096,        // of one token
    ROWS_GROUP = SUMS / 4,    // tokens that four rows of the matrix are multiplied with at once
};

// Four rows of the matrix by a few tokens, or fewer: out[token][row].
static inline __attribute__((always_inline)) void rows_by_tokens(int rows, int count, const float *w, const float *x,
                                                                 int64_t width, float *out, int64_t stride)
{
    vfloat s[4][GROUP];
    for (int r = 0; r < rows; r++)
        for (int m = 0; m < count; m++) s[r][m] = all(0.0f);
    for (int64_t k = 0; k < width; k += LANES) {
        vfloat row[4];
        for (int r = 0; r < rows; r++) {
            row[r] = load(w + r * width + k);
            if (rows == 4) __builtin_prefetch(w + (r + 4) * width + k, 0, 3);
        }
        for (int m = 0; m < count; m++) {
            vfloat v = load(x + m * width + k);
            for (int r = 0; r < rows; r++) s[r][m] = muladd(row[r], v, s[r][m]);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int m = 0; m < count; m++) out[m * stride + r] = sum_of(s[r][m]);
}

#define FOUR_ROWS(count)                                              \
    case count: rows_by_tokens(4, count, w, x, width, out, stride); break;

static void four_rows(int count, const float *w, const float *x, int64_t width, float *out, int64_t stride)
{
    switch (count) {
    FOUR_ROWS(1)
    FOUR_ROWS(2)
    FOUR_ROWS(3)
    FOUR_ROWS(4)
    FOUR_ROWS(5)
    default: rows_by_tokens(4, GROUP, w, x, width, out, stride);
    }
}

// This thread's share of all logits of some tokens; x are their rows.
static void all_logits(const Model *model, const Call *call, int64_t first, int64_t count, const float *x, int thread)
{
    int64_t width = model->width, fours = (model->head.outputs + 3) / 4;
    for (int64_t four = fours * thread / call->threads; four < fours * (thread + 1) / call->threads; four++) {
        int64_t output = 4 * four, rows = model->head.outputs - output < 4 ? model->head.outputs - output : 4;
        const float *w = model->wte + output * width;
        for (int64_t i = 0; i < count; i += ROWS_GROUP) {
            int group = count - i < ROWS_GROUP ? (int)(count - i) : ROWS_GROUP;
            float *out = call->logits + (first + i) * call->logits_stride + output;
            if (rows == 4)
                four_rows(group, w, x + i * width, width, out, call->logits_stride);
            else
                for (int64_t r = 0; r < rows; r++)
                    for (int m = 0; m < group; m++)
                        rows_by_tokens(1, 1, w + r * width, x + (i + m) * width, width,
                                       out + m * call->logits_stride + r, call->logits_stride);
        }
    }
}

// |x| and |x - x'|, rounded up.
static void norms(const float *x, const uint16_t *low, int64_t width, float *size, float *error)
{
    vfloat squares = {0}, errors = {0};
    for (int64_t k = 0; k < width; k += LANES) {
        vfloat v = load(x + k), d = v - from_bf16(low + k);
        squares = muladd(v, v, squares), errors = muladd(d, d, errors);
    }
    *size = 1.0001f * sqrtf(sum_of(squares));
    *error = 1.0001f * sqrtf(sum_of(errors));
}

// How far the cheap logits from the i-th on can be off, for a token whose norms are given.
static inline vfloat margin(const Model *model, int64_t i, vfloat size, vfloat error)
{
    int64_t left = model->head.outputs - i;
    vfloat off = size * load_part(model->head_error + i, left, 0.0f);
    return muladd(error, load_part(model->head_size + i, left, 0.0f), off);
}

// The outputs of a token that may be among its k largest, from its cheap logits, which become -inf
// where they may not; how many, or -1.
static int64_t candidates_of(const Model *model, const Call *call, int64_t token, const float *x, const uint16_t *low)
{
    int64_t outputs = model->head.outputs, count = 0;
    float *logits = call->logits + token * call->logits_stride, maxima[GROUPS], size, error;
    int32_t *ids = call->candidates + token * CANDIDATES;
    vint strange = {0};
    norms(x, low, model->width, &size, &error);
    vfloat x_size = all(size), x_error = all(error), none = all(-INFINITY);
    lowest(maxima);
    for (int64_t i = 0; i < outputs; i += LANES) {
        vfloat least = load_part(logits + i, outputs - i, -INFINITY) - margin(model, i, x_size, x_error);
        strange |= least != least;
        raise_maxima(maxima, i, least);
    }
    if (any(strange)) return -1;
    float bound = kth_largest(maxima, GROUPS, call->top_k);
    vfloat least = all(bound - fabsf(bound) * 1e-6f);  // a temperature may make neighbours equal
    for (int64_t i = 0; i < outputs; i += LANES) {
        vfloat most = load_part(logits + i, outputs - i, NAN) + margin(model, i, x_size, x_error);
        store_part(logits + i, outputs - i, none);
        if (!any_at_least(most, least)) continue;
        if (count > CANDIDATES - LANES) return -1;
        count += chosen_ids(ids + count, most, least, i);
    }
    return count;
}

// Logits of the wanted tokens, whose activations, x, this thread has in float32; `room` is for more.
static void float32_head(const Model *model, const Call *call, const float *x, char *room, int thread,
                         Gate *gate)
{
    int64_t n = call->outputs, width = model->width;
    if (call->top_k == 0) {
        all_logits(model, call, 0, n, x, thread);
        return;
    }
    Model cheap = *model;
    cheap.kind = BF16;
    for (int64_t i = 0; i < n; i++) pack(BF16, x + i * width, width, room + 2 * width * i, NULL);
    apply(&cheap, call, &model->head, 0, n, (Packed){room, 2 * width, call->ranges}, thread, store_logits);
    meet(gate, call->threads);
    for (int64_t i = thread; i < n; i += call->threads)
        call->counts[i] = candidates_of(model, call, i, x + i * width, (uint16_t *)room + i * width);
    meet(gate, call->threads);
    for (int64_t i = 0; i < n; i++) {
        float *logits = call->logits + i * call->logits_stride;
        const int32_t *ids = call->candidates + i * CANDIDATES;
        if (call->counts[i] < 0) all_logits(model, call, i, 1, x + i * width, thread);
        for (int64_t j = thread; j < call->counts[i]; j += call->threads) {
            const float *w = model->wte + ids[j] * width;
            rows_by_tokens(1, 1, w, x + i * width, width, logits + ids[j], 0);
        }
    }
}
