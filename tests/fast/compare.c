// Every kernel, compiled for some instructions, beside the same source compiled for none in particular.
//
// The kernels under test are part of this file; those beside them are linked in, their names starting with plain_.
// Prints a line for each comparison that fails, and how many there were; exit status 1 if one failed.
#include <stdio.h>
#include <stdlib.h>

#include "decode.c"
#include "draw.c"
#include "adamw.c"
#include "muon.c"
#include "pack.c"
#include "training.c"
#include "words.c"

void plain_decode(const Model *, const Call *);
void plain_draw(const Draw *);
void plain_words(Twister *, int64_t, int64_t *);
void plain_adamw(int64_t, float *, const uint16_t *, float *, float *, uint16_t *, const Rule *, int64_t);
double plain_squares(int64_t, const uint16_t *, int64_t);
void plain_muon(int64_t, const Matrix *, const MuonRule *, int64_t, int64_t, char *, int64_t);
void plain_pack_int8(const float *, int64_t, int64_t, char *, float *, float *, int64_t);
void plain_norm(int64_t, int64_t, const float *, const uint16_t *, float *, const float *, const float *, float,
                uint16_t *, float *, int64_t);
void plain_norm_again(int64_t, int64_t, const float *, const float *, const float *, const float *, uint16_t *, int64_t);
void plain_norm_backward(int64_t, int64_t, const uint16_t *, const float *, const float *, const float *,
                         const float *, float *, uint16_t *, float *, int64_t);
void plain_add(int64_t, const float *, const uint16_t *, float *, int64_t);
void plain_gelu(int64_t, const uint16_t *, uint16_t *, int64_t);
void plain_gelu_backward(int64_t, int64_t, const uint16_t *, uint16_t *, uint16_t *, float *, int64_t);
void plain_row_sums(int64_t, int64_t, const float *, uint16_t *, float *, int64_t);
void plain_loss(int64_t, int64_t, int64_t, uint16_t *, const int64_t *, int64_t, float, float *, int64_t, float *,
                int64_t);

enum { LAYERS = 2, HEADS = 2, VOCABULARY = 2000, TEXTS = 2, LENGTH = 11, TOKENS = TEXTS * LENGTH, THREADS = 2 };
static int compared, failed, width;

static void expect(int right, const char *what, double found, double bound)
{
    compared++;
    if (right) return;
    failed++;
    printf("%s: %g, at most %g\n", what, found, bound);
}

// The distance of two rows of numbers against the length of the second.
static void near(const char *what, const float *found, const float *expected, int64_t n, double bound)
{
    double error = 0, size = 0;
    for (int64_t i = 0; i < n; i++) {
        double d = (double)found[i] - expected[i];
        error += d * d, size += (double)expected[i] * expected[i];
    }
    double off = sqrt(error / size);
    expect(off <= bound, what, off, bound);
}

static void near_bf16(const char *what, const uint16_t *found, const uint16_t *expected, int64_t n)
{
    float *a = malloc(n * 4), *b = malloc(n * 4);
    for (int64_t i = 0; i < n; i++) {
        uint32_t x = (uint32_t)found[i] << 16, y = (uint32_t)expected[i] << 16;
        memcpy(a + i, &x, 4), memcpy(b + i, &y, 4);
    }
    near(what, a, b, n, 1e-3);
    free(a), free(b);
}

static void same(const char *what, const void *found, const void *expected, size_t bytes)
{
    expect(memcmp(found, expected, bytes) == 0, what, 1, 0);
}

static float number(void)  // between -1 and 1
{
    static uint64_t state = 88172645463325252ull;
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return (float)((double)(state >> 11) * 0x1p-52 - 1);
}

static void *zeros(size_t bytes) { return calloc(1, bytes); }

static float *numbers(int64_t n, float scale)
{
    float *x = zeros(n * 4);
    for (int64_t i = 0; i < n; i++) x[i] = scale * number();
    return x;
}

static uint16_t rounded(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return (uint16_t)((bits + ((bits >> 16) & 1) + 0x7fff) >> 16);
}

static uint16_t *low_numbers(int64_t n, float scale)
{
    uint16_t *x = zeros(n * 2);
    for (int64_t i = 0; i < n; i++) x[i] = rounded(scale * number());
    return x;
}

static void *copied(const void *from, size_t bytes) { return memcpy(zeros(bytes), from, bytes); }

// A matrix in panels.
static Linear packed(int kind, const float *w, int64_t inputs, int64_t outputs, int with_bias)
{
    int64_t padded = (outputs + PANEL - 1) / PANEL * PANEL, group = kind == FP32 ? 1 : kind == BF16 ? 2 : 4;
    char *panels = zeros(padded * inputs * 4);
    float *scale = zeros(outputs * 4), *sums = zeros(outputs * 4);
    if (kind == INT8) {
        char *other = zeros(padded * inputs);
        float *others = zeros(outputs * 8);
        regpt_pack_int8(w, outputs, inputs, panels, scale, sums, THREADS);
        plain_pack_int8(w, outputs, inputs, other, others, others + outputs, THREADS);
        same("int8 panels", panels, other, padded * inputs);
        same("int8 scales", scale, others, outputs * 4);
        same("int8 sums", sums, others + outputs, outputs * 4);
    }
    for (int64_t n = 0; n < outputs && kind != INT8; n++)
        for (int64_t k = 0; k < inputs; k++) {
            int64_t place = ((n / PANEL * (inputs / group) + k / group) * PANEL + n % PANEL) * group + k % group;
            if (kind == FP32)
                ((float *)panels)[place] = w[n * inputs + k];
            else
                ((uint16_t *)panels)[place] = rounded(w[n * inputs + k]);
        }
    return (Linear){panels, with_bias ? numbers(outputs, 0.1f) : NULL, scale, sums, inputs, outputs};
}

static Linear linear(int kind, int64_t inputs, int64_t outputs)
{
    return packed(kind, numbers(inputs * outputs, 0.3f), inputs, outputs, 1);
}

static Model a_model(int kind)
{
    Block *blocks = zeros(LAYERS * sizeof *blocks);
    for (int i = 0; i < LAYERS; i++) {
        blocks[i] = (Block){numbers(width, 1), numbers(width, 1), numbers(width, 1), numbers(width, 1),
                            linear(kind, width, 3 * width), linear(kind, width, width),
                            linear(kind, width, 4 * width), linear(kind, 4 * width, width)};
    }
    float *wte = numbers(VOCABULARY * width, 1), *error = zeros(VOCABULARY * 4), *size = zeros(VOCABULARY * 4);
    for (int64_t n = 0; n < VOCABULARY; n++) {
        for (int k = 0; k < width; k++) size[n] += wte[n * width + k] * wte[n * width + k];
        size[n] = 1.01f * sqrtf(size[n]), error[n] = 0x1p-8f * size[n];
    }
    Linear head = packed(kind == FP32 ? BF16 : kind, wte, width, VOCABULARY, 0);
    return (Model){kind, LAYERS, HEADS, width, 1e-5, wte, numbers(LENGTH * width, 1), numbers(width, 1),
                   numbers(width, 1), blocks, head, error, size};
}

typedef int (*Decode)(const Model *, const Call *);

// Logits after `count` tokens at `places` of a text of several rows.
static void decode(Decode with, const Model *model, char *cache, const int64_t *places, int64_t count, int64_t top_k,
                   int64_t threads, float *logits)
{
    int64_t ids[TOKENS], rows[TOKENS], positions[TOKENS], wanted[TOKENS], n = TOKENS, counts[TOKENS];
    for (int64_t i = 0; i < count; i++) {
        ids[i] = places[i] * 7919 % VOCABULARY, rows[i] = places[i] / LENGTH, positions[i] = places[i] % LENGTH;
        wanted[i] = i;
    }
    int64_t size = width / HEADS, half = TEXTS * LENGTH * width;
    Call call = {cache, model->kind != FP32, 2 * half, half, LENGTH * width, LENGTH * size, count, ids, rows,
                 positions, count, wanted, logits, VOCABULARY,
                 zeros(4 * n * width), zeros(4 * n * width), zeros(4 * n * width), zeros(16 * n * width),
                 zeros(threads * (16 * n * width + 4 * width)), zeros(threads * 8 * n), zeros(threads * 4 * LENGTH),
                 LENGTH, threads, top_k, zeros(4 * n * CANDIDATES), counts};
    with(model, &call);
    free(call.x), free(call.q), free(call.y), free(call.h), free(call.packed), free(call.ranges), free(call.scores);
    free(call.candidates);
}

static void check_decoding(int kind, const char *name, double bound)
{
    Model model = a_model(kind);
    size_t bytes = 8 * LAYERS * TEXTS * LENGTH * width;
    char *cache = zeros(bytes), *other = zeros(bytes), *alone = zeros(bytes);
    float *found = numbers(TOKENS * VOCABULARY, 0), *expected = numbers(TOKENS * VOCABULARY, 0);
    float *one = numbers(VOCABULARY, 0), *few = numbers(TOKENS * VOCABULARY, 0);
    int64_t places[TOKENS];
    for (int64_t i = 0; i < TOKENS; i++) places[i] = i;
    decode(regpt_decode, &model, cache, places, TOKENS, 0, THREADS, found);
    decode(plain_decode, &model, other, places, TOKENS, 0, THREADS, expected);
    near(name, found, expected, TOKENS * VOCABULARY, bound);
    for (int64_t i = 0; i < TOKENS; i++) {
        decode(regpt_decode, &model, alone, places + i, 1, 0, i % 3 + 1, one);
        same("a token alone", one, found + i * VOCABULARY, VOCABULARY * 4);
    }
    if (kind != FP32) return;
    decode(regpt_decode, &model, cache, places, TOKENS, 50, THREADS, few);
    for (int64_t i = 0; i < TOKENS; i++) {
        int64_t there = 0, missing = 0;
        float kth = kth_largest(found + i * VOCABULARY, VOCABULARY, 50);
        for (int64_t n = i * VOCABULARY; n < (i + 1) * VOCABULARY; n++) {
            there += few[n] == found[n];
            missing += few[n] != found[n] && (few[n] != -INFINITY || found[n] >= kth);
        }
        expect(missing == 0, "the 50 largest logits, missing", missing, 0);
        expect(there < VOCABULARY / 2, "logits that are not left out", there, VOCABULARY / 2);
    }
}

static void check_drawing(void)
{
    enum { ROWS = 6, COLUMNS = 5003 };
    Twister one = {.next = WORDS}, other;
    for (int i = 0; i < WORDS; i++) one.words[i] = (uint32_t)(number() * 2e9f);
    other = one;
    int64_t *words = zeros(8 * COLUMNS), *others = zeros(8 * COLUMNS);
    for (int64_t count = 1; count < COLUMNS; count = 3 * count + 1) {
        regpt_words(&one, count, words), plain_words(&other, count, others);
        same("words", words, others, 8 * count);
    }
    regpt_words(&one, COLUMNS, words);
    float *logits = numbers(ROWS * COLUMNS, 5);
    logits[3 * COLUMNS + 5] = NAN;
    const int64_t *each[ROWS] = {words, words, words, words, words, words};
    int64_t tokens[2][ROWS];
    uint8_t open[2][ROWS];
    for (int k = 1; k <= 512; k *= 8) {
        Draw draw = {logits, ROWS, COLUMNS, COLUMNS, each, k, 0.7f, 1e-5, tokens[0], open[0], THREADS};
        regpt_draw(&draw);
        draw.tokens = tokens[1], draw.open = open[1];
        plain_draw(&draw);
        same("tokens drawn", tokens[0], tokens[1], sizeof tokens[0]);
        same("rows not decided", open[0], open[1], sizeof open[0]);
        expect(open[0][3] && !open[0][0], "a row with a logit that is no number", open[0][3], 1);
    }
}

static void check_optimizers(void)
{
    enum { N = 96 * 160 };
    float *w = numbers(N, 1), *m = numbers(N, 0.1f), *v = numbers(N, 0.1f);
    for (int i = 0; i < N; i++) v[i] = fabsf(v[i]);
    uint16_t *g = low_numbers(N, 1), *low = zeros(2 * N), *other_low = zeros(2 * N);
    float *other = copied(w, 4 * N), *other_m = copied(m, 4 * N), *other_v = copied(v, 4 * N);
    Rule rule = {0.5f, 0.99f, 0.9f, 0.95f, 0.01f, 1.5f, 1e-8f};
    regpt_adamw(N, w, g, m, v, low, &rule, THREADS);
    plain_adamw(N, other, g, other_m, other_v, other_low, &rule, THREADS);
    near("AdamW's weight", w, other, N, 1e-6), near("its average", m, other_m, N, 1e-6);
    near("its square", v, other_v, N, 1e-6), near_bf16("its copy", low, other_low, N);
    float squares = (float)regpt_squares(N, g, THREADS), exact = (float)plain_squares(N, g, THREADS);
    near("squares", &squares, &exact, 1, 1e-5);
    for (int wide = 0; wide < 2; wide++) {
        int64_t rows = wide ? 96 : 160, columns = wide ? 160 : 96;
        float polynomials[] = {3.4445f, -4.775f, 2.0315f, 3.4445f, -4.775f, 2.0315f};
        MuonRule muon = {0.5f, 0.95f, 0.99f, 0.1f, 1e-7f, 1, 2, polynomials};
        float *one = numbers(N, 0.01f), *two = copied(one, 4 * N);
        Matrix matrix = {rows, columns, 1, g, zeros(4 * N), one, low};
        regpt_muon(1, &matrix, &muon, N, 96, zeros(THREADS * (8 * N + 8 * 96 * 96)), THREADS);
        matrix.average = zeros(4 * N), matrix.weight = two, matrix.copy = other_low;
        plain_muon(1, &matrix, &muon, N, 96, zeros(THREADS * (8 * N + 8 * 96 * 96)), THREADS);
        near("Muon", one, two, N, 5e-3);
    }
}

static void check_passes(void)
{
    enum { ROWS = 5, WIDE = 80, N = ROWS * WIDE };
    float *x = numbers(N, 1), *weight = numbers(WIDE, 1), *bias = numbers(WIDE, 1), *past = numbers(N, 1);
    float *total[2], *stats[2], *dx[2], *sums[2];
    uint16_t *delta = low_numbers(N, 1), *dy = low_numbers(N, 2), *out[2], *again[2], *low[2], *d[2];
    for (int i = 0; i < 2; i++) {
        total[i] = zeros(4 * N), stats[i] = zeros(8 * ROWS), dx[i] = zeros(4 * N), sums[i] = zeros(12 * WIDE);
        out[i] = zeros(2 * N), again[i] = zeros(2 * N), low[i] = zeros(2 * N), d[i] = copied(dy, 2 * N);
    }
    regpt_norm(ROWS, WIDE, x, delta, total[0], weight, bias, 1e-5f, out[0], stats[0], 1);
    plain_norm(ROWS, WIDE, x, delta, total[1], weight, bias, 1e-5f, out[1], stats[1], 1);
    near("x + delta", total[0], total[1], N, 0), near_bf16("LayerNorm", out[0], out[1], N);
    near("its statistics", stats[0], stats[1], 2 * ROWS, 1e-6);
    regpt_norm_again(ROWS, WIDE, total[0], stats[0], weight, bias, again[0], 1);
    plain_norm_again(ROWS, WIDE, total[1], stats[1], weight, bias, again[1], 1);
    same("LayerNorm again", again[0], out[0], 2 * N), same("plain again", again[1], out[1], 2 * N);
    regpt_norm_backward(ROWS, WIDE, dy, total[0], stats[0], weight, past, dx[0], low[0], sums[0], 1);
    plain_norm_backward(ROWS, WIDE, dy, total[1], stats[1], weight, past, dx[1], low[1], sums[1], 1);
    near("LayerNorm's gradient", dx[0], dx[1], N, 1e-6), near_bf16("in bfloat16", low[0], low[1], N);
    near("its sums", sums[0], sums[1], 3 * WIDE, 1e-6);
    regpt_add(N, x, delta, dx[0], 1), plain_add(N, x, delta, dx[1], 1);
    near("sum", dx[0], dx[1], N, 0);
    uint16_t *z = low_numbers(N, 6);
    z[0] = rounded(-1e4f), z[1] = rounded(1e4f), z[2] = 0;
    regpt_gelu(N, z, again[0], 1), plain_gelu(N, z, again[1], 1);
    near_bf16("GELU", again[0], again[1], N);
    memset(sums[0], 0, 12 * WIDE), memset(sums[1], 0, 12 * WIDE);
    regpt_gelu_backward(ROWS, WIDE, z, d[0], out[0], sums[0], 1);
    plain_gelu_backward(ROWS, WIDE, z, d[1], out[1], sums[1], 1);
    same("GELU again", out[0], again[0], 2 * N), near_bf16("GELU's gradient", d[0], d[1], N);
    near("its sums", sums[0], sums[1], WIDE, 1e-5);
    memset(sums[0], 0, 12 * WIDE), memset(sums[1], 0, 12 * WIDE);
    regpt_row_sums(ROWS, WIDE, x, low[0], sums[0], 1), plain_row_sums(ROWS, WIDE, x, low[1], sums[1], 1);
    same("rounded", low[0], low[1], 2 * N), near("row sums", sums[0], sums[1], WIDE, 1e-6);
    regpt_row_sums(ROWS, WIDE, NULL, low[0], sums[0] + WIDE, 1), plain_row_sums(ROWS, WIDE, NULL, low[1], sums[1] + WIDE, 1);
    near("bfloat16 row sums", sums[0] + WIDE, sums[1] + WIDE, WIDE, 1e-6);
    enum { QUERIES = 19, KEYS = 37 };
    uint16_t *scores[2], *slope[2];
    scores[0] = low_numbers(2 * QUERIES * KEYS, 6), slope[0] = low_numbers(2 * QUERIES * KEYS, 1);
    scores[1] = copied(scores[0], 4 * QUERIES * KEYS), slope[1] = copied(slope[0], 4 * QUERIES * KEYS);
    regpt_causal_softmax(2 * QUERIES, QUERIES, KEYS, 18, scores[0], 1);
    plain_causal_softmax(2 * QUERIES, QUERIES, KEYS, 18, scores[1], 1);
    near_bf16("causal softmax", scores[0], scores[1], 2 * QUERIES * KEYS);
    regpt_causal_softmax_backward(2 * QUERIES, QUERIES, KEYS, 18, scores[0], slope[0], 1);
    plain_causal_softmax_backward(2 * QUERIES, QUERIES, KEYS, 18, scores[1], slope[1], 1);
    near_bf16("its gradient", slope[0], slope[1], 2 * QUERIES * KEYS);
    int64_t targets[ROWS] = {0, 70, -100, 3, 69};
    for (int64_t n = 64; n < 72; n += 7) {
        float nats[2][ROWS];
        uint16_t *one = copied(z, 2 * N), *two = copied(z, 2 * N);
        targets[1] = n - 1, targets[4] = n - 2;
        regpt_loss(ROWS, n, WIDE, one, targets, -100, 0.7f, nats[0], 1, zeros(4 * (n + 16)), 1);
        plain_loss(ROWS, n, WIDE, two, targets, -100, 0.7f, nats[1], 1, zeros(4 * (n + 16)), 1);
        near("loss", nats[0], nats[1], ROWS, 1e-6), near_bf16("its gradient", one, two, N);
    }
}

int main(void)
{
    printf("%s\n", regpt_start());
    for (width = 64; width <= 256; width *= 4) {  // heads of 32 and of 128 channels
        check_decoding(FP32, "logits in float32", 1e-5);
        check_decoding(BF16, "logits in bfloat16", 1e-2);
        check_decoding(INT8, "logits in int8", 1e-2);
    }
    check_drawing();
    check_optimizers();
    check_passes();
    printf("%d comparisons, %d failed\n", compared, failed);
    return failed != 0;
}
