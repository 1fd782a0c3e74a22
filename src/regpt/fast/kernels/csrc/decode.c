// GPT-2's forward pass for a few tokens at a time, for AVX-512: one call a step, no library.
//
// Decoding is bound by reading every weight once per token, so the matrices are stored in the order
// they are read in: panels of 64 outputs, and in a panel, for each 32-bit step along the inputs
// (one float32, two bfloat16 or four int8), 64 outputs side by side. A step multiplies four
// registers of weights by one broadcast step of each token's activations; up to six tokens share a
// pass over a panel. Sums run along the inputs in one order whatever the number of tokens: a token
// has the same numbers to the last bit alone, among others, in a prompt, or decoded one by one.
//
// Threads split outputs, then (token, head) pairs; each prepares the activations for itself, which
// is cheaper than waiting once more. int8: activations of a token become bytes between their least
// and largest entry, x = step * (q - zero); sums in int32.
#include <omp.h>

#include "products.h"

typedef struct {
    const char *weight;  // panels of 64 outputs, padded with zeros
    const float *bias;   // or null
    const float *scale;  // int8: per output
    const float *sums;   // int8: scale * sum of the output's weights
    int64_t inputs, outputs;
} Linear;

typedef struct {
    const float *ln_1_weight, *ln_1_bias, *ln_2_weight, *ln_2_bias;
    Linear c_attn, attn_proj, c_fc, mlp_proj;
} Block;

typedef struct {
    int64_t kind, layers, heads, width;
    double epsilon;
    const float *wte, *wpe, *ln_f_weight, *ln_f_bias;
    const Block *blocks;
    Linear head;  // of float32 models in bfloat16, and null where the processor does not multiply it
    const float *head_error, *head_size;  // float32: how far each row is from that, and its length
} Model;

typedef struct {
    char *cache;  // keys and values; strides in elements; the positions of a head are adjacent
    int64_t cache_is_bf16, layer_stride, value_stride, row_stride, head_stride;
    int64_t tokens;
    const int64_t *ids, *rows, *positions;
    int64_t outputs;  // tokens whose logits are wanted
    const int64_t *wanted;
    float *logits;
    int64_t logits_stride;
    float *x, *q, *y, *h;   // (tokens, width), and h (tokens, 4 width)
    char *packed;           // per thread: tokens * 4 width * 4 bytes
    float *ranges, *scores; // per thread: 2 * tokens, and the longest row
    int64_t scores_stride, threads;
    int64_t top_k;          // float32: 0, or how many of the largest logits matter
    int32_t *candidates;    // (outputs, CANDIDATES)
    int64_t *counts;        // of each wanted token; -1: all its logits are there
} Call;

typedef struct {
    const char *x;       // packed activations, one token after the other
    int64_t stride;      // bytes of one
    const float *ranges; // int8: step and zero of each token
} Packed;

typedef void (*Store)(const Call *, const Model *, int64_t layer, int64_t token, int64_t output,
                      int64_t outputs, __m512 value);

// A token's 64 outputs from their sums: scales and biases, and where they go.
static inline void finish(const Model *model, const Call *call, const Linear *linear, int64_t layer, int64_t token,
                          int64_t output, const float *range, const float *sums, Store store)
{
    for (int i = 0; i < 4 && output < linear->outputs; i++, output += LANES) {
        int64_t left = linear->outputs - output;
        __mmask16 mask = tail(left);
        __m512 v = _mm512_loadu_ps(sums + i * LANES);
        if (model->kind == INT8) {
            __m512 sum = _mm512_cvtepi32_ps(_mm512_castps_si512(v));
            __m512 zero = _mm512_mul_ps(_mm512_set1_ps(range[1]), _mm512_maskz_loadu_ps(mask, linear->sums + output));
            v = _mm512_fmsub_ps(sum, _mm512_maskz_loadu_ps(mask, linear->scale + output), zero);
            v = _mm512_mul_ps(v, _mm512_set1_ps(range[0]));
        }
        if (linear->bias) v = _mm512_add_ps(v, _mm512_maskz_loadu_ps(mask, linear->bias + output));
        store(call, model, layer, token, output, left, v);
    }
}

// This thread's outputs of a layer for tokens 0 .. count-1.
static void apply(const Model *model, const Call *call, const Linear *linear, int64_t layer, int64_t count,
                  Packed in, int thread, Store store)
{
    int64_t panels = (linear->outputs + PANEL - 1) / PANEL;
    int64_t steps = in.stride / 4;
    int64_t last = panels * (thread + 1) / call->threads;
    float sums[TOGETHER][PANEL];
    for (int64_t p = panels * thread / call->threads; p < last; p++)
        for (int64_t first = 0; first < count; first += TOGETHER) {
            int64_t some = count - first < TOGETHER ? count - first : TOGETHER;
            some_tokens(model->kind, some, linear->weight + p * steps * 4 * PANEL, steps,
                        in.x + first * in.stride, in.stride, sums);
            for (int64_t token = first; token < first + some; token++)
                finish(model, call, linear, layer, token, p * PANEL, in.ranges + 2 * token, sums[token - first], store);
        }
}

static void store_qkv(const Call *call, const Model *model, int64_t layer, int64_t token, int64_t output,
                      int64_t left, __m512 v)
{
    int64_t width = model->width, size = width / model->heads, part = output / width;
    (void)left;
    output -= part * width;
    if (part == 0) {
        _mm512_storeu_ps(call->q + token * width + output, v);
        return;
    }
    int64_t place = layer * call->layer_stride + (part - 1) * call->value_stride +
                    call->rows[token] * call->row_stride + output / size * call->head_stride +
                    call->positions[token] * size + output % size;
    if (call->cache_is_bf16)
        _mm256_storeu_si256((__m256i *)(call->cache + 2 * place), to_bf16(v));
    else
        _mm512_storeu_ps((float *)call->cache + place, v);
}

static void store_residual(const Call *call, const Model *model, int64_t layer, int64_t token,
                           int64_t output, int64_t left, __m512 v)
{
    float *x = call->x + token * model->width + output;
    (void)layer, (void)left;
    _mm512_storeu_ps(x, _mm512_add_ps(_mm512_loadu_ps(x), v));
}

static void store_gelu(const Call *call, const Model *model, int64_t layer, int64_t token, int64_t output,
                       int64_t left, __m512 v)
{
    (void)layer, (void)left;
    _mm512_storeu_ps(call->h + token * 4 * model->width + output, gelu(v));
}

static void store_logits(const Call *call, const Model *model, int64_t layer, int64_t token, int64_t output,
                         int64_t left, __m512 v)
{
    (void)model, (void)layer;
    _mm512_mask_storeu_ps(call->logits + token * call->logits_stride + output, tail(left), v);
}

#include "head.h"

static inline __m512 element(const Call *call, int64_t place)
{
    return call->cache_is_bf16 ? from_bf16((const uint16_t *)call->cache + place)
                               : _mm512_loadu_ps((const float *)call->cache + place);
}

// y of one token and head: softmax(q k / sqrt(size)) v over the row so far.
static inline __attribute__((always_inline)) void attend_head(const Model *model, const Call *call, int64_t layer,
                                                              int64_t token, int64_t head, float *scores, int registers)
{
    int64_t size = registers * LANES, count = call->positions[token] + 1;
    int64_t keys = layer * call->layer_stride + call->rows[token] * call->row_stride + head * call->head_stride;
    int64_t values = keys + call->value_stride;
    const float *q = call->q + token * model->width + head * size;
    __m512 query[8], sum[8], odd[8], scale = _mm512_set1_ps(1.0f / sqrtf((float)size));
    for (int i = 0; i < registers; i++) {
        query[i] = _mm512_mul_ps(_mm512_loadu_ps(q + i * LANES), scale);
        sum[i] = odd[i] = _mm512_setzero_ps();
    }
    __m512 most = _mm512_set1_ps(-INFINITY);
    for (int64_t p = 0; p < count; p += LANES) {
        __m512 dots[LANES];
        for (int j = 0; j < LANES; j++) {
            dots[j] = _mm512_setzero_ps();
            if (p + j >= count) continue;
            for (int i = 0; i < registers; i++)
                dots[j] = _mm512_fmadd_ps(query[i], element(call, keys + (p + j) * size + i * LANES), dots[j]);
        }
        __m512 score = sums_of(dots);
        _mm512_mask_storeu_ps(scores + p, tail(count - p), score);
        most = _mm512_mask_max_ps(most, tail(count - p), most, score);
    }
    float largest = _mm512_reduce_max_ps(most);
    __m512 total = _mm512_setzero_ps();
    for (int64_t p = 0; p < count; p += LANES) {
        __mmask16 mask = tail(count - p);
        __m512 e = exponential(_mm512_sub_ps(_mm512_maskz_loadu_ps(mask, scores + p), _mm512_set1_ps(largest)));
        total = _mm512_mask_add_ps(total, mask, total, e);
        _mm512_mask_storeu_ps(scores + p, mask, e);
    }
    for (int64_t p = 0; p + 1 < count; p += 2) {  // two chains of sums: one would wait for itself
        __m512 weight = _mm512_set1_ps(scores[p]), next = _mm512_set1_ps(scores[p + 1]);
        for (int i = 0; i < registers; i++) {
            sum[i] = _mm512_fmadd_ps(weight, element(call, values + p * size + i * LANES), sum[i]);
            odd[i] = _mm512_fmadd_ps(next, element(call, values + (p + 1) * size + i * LANES), odd[i]);
        }
    }
    if (count % 2) {
        __m512 weight = _mm512_set1_ps(scores[count - 1]);
        for (int i = 0; i < registers; i++)
            sum[i] = _mm512_fmadd_ps(weight, element(call, values + (count - 1) * size + i * LANES), sum[i]);
    }
    __m512 inverse = _mm512_set1_ps(1.0f / _mm512_reduce_add_ps(total));
    float *y = call->y + token * model->width + head * size;
    for (int i = 0; i < registers; i++) _mm512_storeu_ps(y + i * LANES, _mm512_mul_ps(_mm512_add_ps(sum[i], odd[i]), inverse));
}

static void attend(const Model *model, const Call *call, int64_t layer, int thread, float *scores)
{
    int64_t pairs = call->tokens * model->heads, last = pairs * (thread + 1) / call->threads;
    int registers = (int)(model->width / model->heads / LANES);
    for (int64_t pair = pairs * thread / call->threads; pair < last; pair++) {
        int64_t token = pair / model->heads, head = pair % model->heads;
        if (registers == 4)
            attend_head(model, call, layer, token, head, scores, 4);
        else
            attend_head(model, call, layer, token, head, scores, registers);
    }
}

// Activations of all tokens, packed by this thread for itself; with a LayerNorm first, if given.
static Packed prepare(const Model *model, const Call *call, const float *from, int64_t width, int64_t count,
                      const int64_t *which, const float *weight, const float *bias, int thread)
{
    static const int64_t bytes[] = {4, 2, 1};
    int64_t stride = width * bytes[model->kind], room = call->tokens * 4 * model->width * 4;
    char *out = call->packed + thread * (room + 4 * model->width);
    float *ranges = call->ranges + thread * 2 * call->tokens, *row = (float *)(out + room);
    for (int64_t i = 0; i < count; i++) {
        const float *x = from + (which ? which[i] : i) * width;
        if (weight) {
            layer_norm(x, weight, bias, width, (float)model->epsilon, row);
            x = row;
        }
        pack(model->kind, x, width, out + i * stride, ranges + 2 * i);
    }
    return (Packed){out, stride, ranges};
}

static void work(const Model *model, const Call *call, int thread)
{
    int64_t n = call->tokens, width = model->width, last = n * (thread + 1) / call->threads;
    float *scores = call->scores + thread * call->scores_stride;
    for (int64_t i = n * thread / call->threads; i < last; i++)
        for (int64_t c = 0; c < width; c++)
            call->x[i * width + c] = model->wte[call->ids[i] * width + c] + model->wpe[call->positions[i] * width + c];
#pragma omp barrier
    for (int64_t layer = 0; layer < model->layers; layer++) {
        const Block *b = model->blocks + layer;
        Packed in = prepare(model, call, call->x, width, n, NULL, b->ln_1_weight, b->ln_1_bias, thread);
        apply(model, call, &b->c_attn, layer, n, in, thread, store_qkv);
#pragma omp barrier
        attend(model, call, layer, thread, scores);
#pragma omp barrier
        in = prepare(model, call, call->y, width, n, NULL, NULL, NULL, thread);
        apply(model, call, &b->attn_proj, layer, n, in, thread, store_residual);
#pragma omp barrier
        in = prepare(model, call, call->x, width, n, NULL, b->ln_2_weight, b->ln_2_bias, thread);
        apply(model, call, &b->c_fc, layer, n, in, thread, store_gelu);
#pragma omp barrier
        in = prepare(model, call, call->h, 4 * width, n, NULL, NULL, NULL, thread);
        apply(model, call, &b->mlp_proj, layer, n, in, thread, store_residual);
#pragma omp barrier
    }
    Packed in = prepare(model, call, call->x, width, call->outputs, call->wanted, model->ln_f_weight,
                        model->ln_f_bias, thread);
    if (model->kind == FP32)
        float32_head(model, call, (const float *)in.x, (char *)in.x + call->outputs * in.stride, thread);
    else
        apply(model, call, &model->head, 0, call->outputs, in, thread, store_logits);
}

// Append the tokens to the cache; logits of those that are wanted.
int regpt_decode(const Model *model, const Call *call)
{
    for (int64_t i = 0; i < call->tokens; i++)
        if (call->ids[i] < 0 || call->ids[i] >= model->head.outputs) return OUTSIDE;
#pragma omp parallel num_threads((int)call->threads)
    {
        Call mine = *call;
        mine.threads = omp_get_num_threads();  // the system may grant fewer
        work(model, &mine, omp_get_thread_num());
    }
    return DONE;
}
