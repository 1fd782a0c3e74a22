// The portable draw over a whole vocabulary: the tokens that can win it, with their numbers.
//
// The winner has the largest logit - log(-log u), where u is Philox-4x32-10's number for (token, position, row, 0)
// under the seed, as in philox.py. Here every token's score is computed in float32, and those near the largest are
// handed back with their u in float64, for the exact comparison. Torch, without a product of 32 bits by 32, takes a
// hundred times as long for the numbers alone.
#include "vectors.h"

enum { PIECE = 4096, ROUNDS = 10 };
enum { TOKENS = 32 };  // at once: with 16 or fewer gcc unrolls the loops, and multiplies one by one

static const float MARGIN = 1e-3f;  // beside which the float32 scores' error, 1e-5 and some of a large logit, is small

// One draw: `found` of its `most` candidates, none or more than `most` if nothing can be said.
typedef struct {
    uint64_t seed;
    int64_t row, position;
    const float *logits;
    float *scores, *bests;  // room for as many as there are logits, and pieces of them
    int64_t *ids;           // of the candidates, ascending
    double *uniform;
    int64_t found;
} Portable;

// The first two words of Philox for the tokens from `first` on: u is (high 2^20 + low / 2^12 + 1/2) / 2^52.
static inline void draw_words(const Portable *draw, int64_t first, uint32_t *high, uint32_t *low)
{
    uint32_t c0[TOKENS], c1[TOKENS], c2[TOKENS], c3[TOKENS];
    uint32_t k0 = (uint32_t)draw->seed, k1 = (uint32_t)(draw->seed >> 32);
    for (int i = 0; i < TOKENS; i++)
        c0[i] = (uint32_t)(first + i), c1[i] = (uint32_t)draw->position, c2[i] = (uint32_t)draw->row, c3[i] = 0;
    for (int round = 0; round < ROUNDS; round++) {
        for (int i = 0; i < TOKENS; i++) {
            uint64_t one = (uint64_t)c0[i] * 0xD2511F53u, other = (uint64_t)c2[i] * 0xCD9E8D57u;
            c0[i] = (uint32_t)(other >> 32) ^ c1[i] ^ k0, c1[i] = (uint32_t)other;
            c2[i] = (uint32_t)(one >> 32) ^ c3[i] ^ k1, c3[i] = (uint32_t)one;
        }
        k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
    memcpy(high, c0, sizeof c0), memcpy(low, c1, sizeof c1);
}

// The natural logarithm of normal numbers, to 1e-7 of it or of 1: x is 2^power times a number m around 1.
static inline vfloat logarithm(vfloat x)
{
    vbits bits = (vbits)x;
    vint power = (vint)(bits - 0x3f3504f3u) >> 23;
    vfloat m = (vfloat)(bits - ((vbits)power << 23)), s = (m - 1.0f) / (m + 1.0f), z = s * s;
    vfloat p = muladd(z, all(1.0f / 9), all(1.0f / 7));  // log m = 2 artanh s
    p = muladd(p, z, all(0.2f));
    p = muladd(p, z, all(1.0f / 3));
    p = muladd(p, z, all(1.0f));
    return muladd(__builtin_convertvector(power, vfloat), all(0.69314718f), 2.0f * s * p);
}

static inline vfloat fraction(vbits high, vbits low)
{
    vfloat more = (__builtin_convertvector(low >> 12, vfloat) + 0.5f) * 0x1p-52f;
    return muladd(__builtin_convertvector(high, vfloat), all(0x1p-32f), more);
}

// -log(-log u): near u = 1, where the winners lie, from what is missing to 1.
static inline vfloat gumbel(const uint32_t *high, const uint32_t *low)
{
    vbits h, l;
    memcpy(&h, high, sizeof h), memcpy(&l, low, sizeof l);
    vfloat missing = fraction(~h, ~l), p = all(1.0f / 6);
    p = muladd(p, missing, all(0.2f));
    p = muladd(p, missing, all(0.25f));
    p = muladd(p, missing, all(1.0f / 3));
    p = muladd(p, missing, all(0.5f));
    p = muladd(p, missing, all(1.0f));
    vint near = missing < 0.0625f;
    vint either = (near & (vint)(missing * p)) | (~near & (vint)-logarithm(fraction(h, l)));
    return -logarithm((vfloat)either);
}

// Scores of a piece of the tokens, and the best of them.
static float score_piece(const Portable *draw, int64_t start, int64_t stop)
{
    vfloat best = all(-INFINITY);
    for (int64_t first = start; first < stop; first += TOKENS) {
        uint32_t high[TOKENS], low[TOKENS];
        draw_words(draw, first, high, low);
        for (int64_t i = 0; i < TOKENS && first + i < stop; i += LANES) {
            int64_t left = stop - first - i;
            vfloat score = load_part(draw->logits + first + i, left, -INFINITY) + gumbel(high + i, low + i);
            store_part(draw->scores + first + i, left, score);
            best = larger(best, score);
        }
    }
    return largest_of(best);
}

// The tokens of a piece that can win.
static void gather(Portable *draw, int64_t start, int64_t stop, float bound, int64_t most)
{
    for (int64_t i = start; i < stop; i++) {
        if (!(draw->scores[i] >= bound)) continue;
        if (draw->found < most) {
            uint32_t high[TOKENS], low[TOKENS];
            draw_words(draw, i, high, low);
            draw->ids[draw->found] = i;
            draw->uniform[draw->found] = ((double)(((uint64_t)high[0] << 20) | (low[0] >> 12)) + 0.5) * 0x1p-52;
        }
        draw->found++;
    }
}

// Candidates of several draws, each over `count` logits, in pieces of PIECE.
void regpt_portable(int64_t draws, Portable *each, int64_t count, int64_t most, int64_t threads)
{
    int64_t pieces = (count + PIECE - 1) / PIECE;
    (void)threads;
#pragma omp parallel for num_threads((int)threads) schedule(static)
    for (int64_t i = 0; i < draws * pieces; i++) {
        Portable *draw = each + i / pieces;
        int64_t start = i % pieces * PIECE, stop = start + PIECE < count ? start + PIECE : count;
        draw->bests[i % pieces] = score_piece(draw, start, stop);
    }
    for (Portable *draw = each; draw < each + draws; draw++) {
        float largest = -INFINITY;
        for (int64_t i = 0; i < pieces; i++) largest = draw->bests[i] > largest ? draw->bests[i] : largest;
        float bound = largest - MARGIN - 1e-6f * fabsf(largest);
        draw->found = 0;
        for (int64_t i = 0; i < pieces; i++)
            if (draw->bests[i] >= bound)
                gather(draw, i * PIECE, (i + 1) * PIECE < count ? (i + 1) * PIECE : count, bound, most);
    }
}
