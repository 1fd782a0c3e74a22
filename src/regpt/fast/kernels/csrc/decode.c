// GPT-2's forward pass for a few tokens at a time: one call a step, no library.
//
// Decoding is bound by reading every weight once per token, so the matrices are stored in the order
// they are read in: panels of 64 outputs, and in a panel, for each 32-bit step along the inputs
// (one float32, two bfloat16 or four int8), 64 outputs side by side. A step multiplies registers of
// weights by one broadcast step of each token's activations; up to six tokens share a pass over a
// panel, or sixteen where there is a matrix unit. Sums run along the inputs in one order whatever the number of tokens: a token
// has the same numbers to the last bit alone, among others, in a prompt, or decoded one by one.
//
// Threads split outputs, then (token, head) pairs; each prepares the activations for itself, which
// is cheaper than waiting once more. int8: activations of a token become bytes between their least
// and largest entry, x = step * (q - zero); sums in int32.
#include "gate.h"
#include "products.h"

enum {
    LARGEST_HEAD = 128,  // channels
    AT_ONCE = SUMS / 3,  // registers of a head whose sums over values are held, twice
};

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
    Linear head;  // of float32 models in bfloat16
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
    const int64_t *leaders, *shared;  // of each token: the row whose first positions equal its own, and how many; or null
} Call;

// Where one token's keys of a head are: some of its row's first positions are read from another row, which has the
// same there and is in the cache because others read it, too. Values are `value_stride` further on.
typedef struct {
    int64_t own, leader, shared;  // shared: a multiple of LANES
    int64_t size;
} Keys;

static inline int64_t place_of(const Keys *keys, int64_t position)
{
    return (position < keys->shared ? keys->leader : keys->own) + position * keys->size;
}

typedef struct {
    const char *x;       // packed activations, one token after the other
    int64_t stride;      // bytes of one
    const float *ranges; // int8: step and zero of each token
} Packed;

typedef void (*Store)(const Call *, const Model *, int64_t layer, int64_t token, int64_t output,
                      int64_t outputs, vfloat value);

// A token's 64 outputs from their sums: scales and biases, and where they go.
static inline void finish(const Model *model, const Call *call, const Linear *linear, int64_t layer, int64_t token,
                          int64_t output, const float *range, const float *sums, Store store_them)
{
    for (int i = 0; i < REGISTERS && output < linear->outputs; i++, output += LANES) {
        int64_t left = linear->outputs - output;
        vfloat v = load(sums + i * LANES);
        if (model->kind == INT8) {
            vfloat zero = range[1] * load_part(linear->sums + output, left, 0.0f);
            v = muladd(__builtin_convertvector((vint)v, vfloat), load_part(linear->scale + output, left, 0.0f), -zero);
            v *= range[0];
        }
        if (linear->bias) v += load_part(linear->bias + output, left, 0.0f);
        store_them(call, model, layer, token, output, left, v);
    }
}

// This thread's outputs of a layer for tokens 0 .. count-1.
static void apply(const Model *model, const Call *call, const Linear *linear, int64_t layer, int64_t count,
                  Packed in, int thread, Store store_them)
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
                finish(model, call, linear, layer, token, p * PANEL, in.ranges + 2 * token, sums[token - first],
                       store_them);
        }
}

static void store_qkv(const Call *call, const Model *model, int64_t layer, int64_t token, int64_t output,
                      int64_t left, vfloat v)
{
    int64_t width = model->width, size = width / model->heads, part = output / width;
    (void)left;
    output -= part * width;
    if (part == 0) {
        store(call->q + token * width + output, v);
        return;
    }
    int64_t place = layer * call->layer_stride + (part - 1) * call->value_stride +
                    call->rows[token] * call->row_stride + output / size * call->head_stride +
                    call->positions[token] * size + output % size;
    if (call->cache_is_bf16)
        store_bf16((uint16_t *)call->cache + place, v);
    else
        store((float *)call->cache + place, v);
}

static void store_residual(const Call *call, const Model *model, int64_t layer, int64_t token,
                           int64_t output, int64_t left, vfloat v)
{
    (void)layer, (void)left;
    add_to(call->x + token * model->width + output, v);
}

static void store_gelu(const Call *call, const Model *model, int64_t layer, int64_t token, int64_t output,
                       int64_t left, vfloat v)
{
    (void)layer, (void)left;
    store(call->h + token * 4 * model->width + output, gelu(v));
}

static void store_logits(const Call *call, const Model *model, int64_t layer, int64_t token, int64_t output,
                         int64_t left, vfloat v)
{
    (void)model, (void)layer;
    store_part(call->logits + token * call->logits_stride + output, left, v);
}

#include "head.h"

static inline vfloat element(const Call *call, int64_t place)
{
    return call->cache_is_bf16 ? from_bf16((const uint16_t *)call->cache + place)
                               : load((const float *)call->cache + place);
}

// Sums over a row's values, weighted: a few registers of a head at once, in two chains: one would wait for itself.
static inline __attribute__((always_inline)) void weigh(const Call *call, const Keys *keys, int64_t offset, int64_t count,
                                                        const float *weights, int registers, float inverse, float *y)
{
    vfloat sum[AT_ONCE], odd[AT_ONCE];
    for (int i = 0; i < registers; i++) sum[i] = odd[i] = all(0.0f);
    for (int64_t p = 0; p + 1 < count; p += 2) {
        vfloat weight = all(weights[p]), next = all(weights[p + 1]);
        int64_t place = place_of(keys, p) + offset;  // the next one is in the same row
        for (int i = 0; i < registers; i++) {
            sum[i] = muladd(weight, element(call, place + i * LANES), sum[i]);
            odd[i] = muladd(next, element(call, place + keys->size + i * LANES), odd[i]);
        }
    }
    if (count % 2) {
        vfloat weight = all(weights[count - 1]);
        for (int i = 0; i < registers; i++)
            sum[i] = muladd(weight, element(call, place_of(keys, count - 1) + offset + i * LANES), sum[i]);
    }
    for (int i = 0; i < registers; i++) store(y + i * LANES, (sum[i] + odd[i]) * inverse);
}

// y of one token and head: softmax(q k / sqrt(size)) v over the row so far.
static inline __attribute__((always_inline)) void attend_head(const Model *model, const Call *call, int64_t layer,
                                                              int64_t token, int64_t head, float *scores, int64_t size)
{
    const int registers = (int)size / LANES, some = registers < AT_ONCE ? registers : AT_ONCE;
    int64_t count = call->positions[token] + 1;
    int64_t base = layer * call->layer_stride + head * call->head_stride;
    Keys keys = {.own = base + call->rows[token] * call->row_stride, .size = size};
    if (call->shared) {
        keys.leader = base + call->leaders[token] * call->row_stride;
        keys.shared = call->shared[token] / LANES * LANES;
    }
    const float *q = call->q + token * model->width + head * size;
    vfloat query[LARGEST_HEAD / LANES], most = all(-INFINITY), total = {0};
    for (int i = 0; i < registers; i++) query[i] = load(q + i * LANES) * (1.0f / sqrtf((float)size));
    for (int64_t p = 0; p < count; p += LANES) {
        vfloat dots[LANES];
        int64_t place = place_of(&keys, p);  // the others of the register are in the same row
        for (int j = 0; j < LANES; j++) {
            dots[j] = all(0.0f);
            if (p + j >= count) continue;
            for (int i = 0; i < registers; i++)
                dots[j] = muladd(query[i], element(call, place + j * size + i * LANES), dots[j]);
        }
        store_part(scores + p, count - p, sums_of(dots));
        most = larger(most, load_part(scores + p, count - p, -INFINITY));
    }
    float largest = largest_of(most);
    for (int64_t p = 0; p < count; p += LANES) {
        store_part(scores + p, count - p, exponential(load_part(scores + p, count - p, 0.0f) - largest));
        total += load_part(scores + p, count - p, 0.0f);
    }
    float inverse = 1.0f / sum_of(total), *y = call->y + token * model->width + head * size;
    for (int i = 0; i < registers; i += some) {
        int64_t values = call->value_stride + i * LANES;
        if (i + some <= registers)
            weigh(call, &keys, values, count, scores, some, inverse, y + i * LANES);
        else
            weigh(call, &keys, values, count, scores, registers - i, inverse, y + i * LANES);
    }
}

static void attend(const Model *model, const Call *call, int64_t layer, int thread, float *scores)
{
    int64_t pairs = call->tokens * model->heads, last = pairs * (thread + 1) / call->threads;
    int64_t size = model->width / model->heads;
    for (int64_t pair = pairs * thread / call->threads; pair < last; pair++) {
        int64_t head = pair / call->tokens, token = pair % call->tokens;  // what tokens share is read once
        if (size == 64)
            attend_head(model, call, layer, token, head, scores, 64);
        else
            attend_head(model, call, layer, token, head, scores, size);
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
            float mean, inverse;
            moments(x, width, (float)model->epsilon, &mean, &inverse);
            for (int64_t c = 0; c < width; c += LANES) store(row + c, normed(x + c, mean, inverse, weight + c, bias + c));
            x = row;
        }
        pack(model->kind, x, width, out + i * stride, ranges + 2 * i);
    }
    return (Packed){out, stride, ranges};
}

static void work(const Model *model, const Call *call, int thread, Gate *gate)
{
    int64_t n = call->tokens, width = model->width, last = n * (thread + 1) / call->threads;
    float *scores = call->scores + thread * call->scores_stride;
    for (int64_t i = n * thread / call->threads; i < last; i++)
        for (int64_t c = 0; c < width; c++)
            call->x[i * width + c] = model->wte[call->ids[i] * width + c] + model->wpe[call->positions[i] * width + c];
    meet(gate, call->threads);
    for (int64_t layer = 0; layer < model->layers; layer++) {
        const Block *b = model->blocks + layer;
        Packed in = prepare(model, call, call->x, width, n, NULL, b->ln_1_weight, b->ln_1_bias, thread);
        apply(model, call, &b->c_attn, layer, n, in, thread, store_qkv);
        meet(gate, call->threads);
        attend(model, call, layer, thread, scores);
        meet(gate, call->threads);
        in = prepare(model, call, call->y, width, n, NULL, NULL, NULL, thread);
        apply(model, call, &b->attn_proj, layer, n, in, thread, store_residual);
        meet(gate, call->threads);
        in = prepare(model, call, call->x, width, n, NULL, b->ln_2_weight, b->ln_2_bias, thread);
        apply(model, call, &b->c_fc, layer, n, in, thread, store_gelu);
        meet(gate, call->threads);
        in = prepare(model, call, call->h, 4 * width, n, NULL, NULL, NULL, thread);
        apply(model, call, &b->mlp_proj, layer, n, in, thread, store_residual);
        meet(gate, call->threads);
    }
    Packed in = prepare(model, call, call->x, width, call->outputs, call->wanted, model->ln_f_weight,
                        model->ln_f_bias, thread);
    if (model->kind == FP32)
        float32_head(model, call, (const float *)in.x, (char *)in.x + call->outputs * in.stride, thread, gate);
    else
        apply(model, call, &model->head, 0, call->outputs, in, thread, store_logits);
}

// Append the tokens to the cache; logits of those that are wanted.
int regpt_decode(const Model *model, const Call *call)
{
    for (int64_t i = 0; i < call->tokens; i++)
        if (call->ids[i] < 0 || call->ids[i] >= model->head.outputs) return OUTSIDE;
    Gate gate = {0};
#pragma omp parallel num_threads((int)call->threads)
    {
        Call mine = *call;
        mine.threads = team();  // the system may grant fewer
        work(model, &mine, member(), &gate);
        put_tiles_away();
    }
    return DONE;
}

// To be called once, before the others: which instructions these kernels use.
const char *regpt_start(void) { return ask_for_tiles() ? "AMX, " INSTRUCTIONS_USED : INSTRUCTIONS_USED; }
