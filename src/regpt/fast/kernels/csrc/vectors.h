// Rows of numbers, a register at a time, for every processor.
//
// The kernels are written once: vfloat and vint are registers of LANES numbers (16 with AVX-512, 8 with
// AVX2, 4 elsewhere), and what C's operators do on them, GCC's and Clang's vector extensions do. What they
// cannot say, one header for each set of instructions does:
//
//     muladd(a, b, c)       a b + c, rounded once where there is such an instruction
//     larger, smaller       of two; the second where one is no number
//     root, nearest         square root; the nearest integer, ties to even
//     sum_of, largest_of, least_of   over the lanes of a register
//     sums_of(x[LANES])     the sum of each of LANES registers, side by side
//     any_at_least(x, y)    whether x >= y in some lane
//     wide, narrow          16 bits to the lower half of each lane's 32, and back
//     store_bytes(place, x) the lowest byte of each lane
//
// and, each behind a macro, since some processors have them and the others go the long way below:
//     HAS_POWER   power(p, n)            p 2^n
//     HAS_BF16    dot_bf16(sum, x, w)    pairs of bfloat16, multiplied and added to float32
//     HAS_INT8    dot_int8(sum, x, w)    fours of int8, x unsigned unless LEAST_BYTE < 0, added to int32
//     HAS_PAIRS   dot_pairs(x, w)        pairs of int16, multiplied and added
//
// SUMS registers of a product can hold sums. Any order of sums is fixed by LANES alone.
#pragma once
#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(REGPT_PORTABLE)
#define INSTRUCTIONS "plain.h"
enum { LANES = 4, SUMS = 12 };
#elif defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define INSTRUCTIONS "avx512.h"
enum { LANES = 16, SUMS = 24 };
#elif defined(__AVX2__) && defined(__FMA__)
#define INSTRUCTIONS "avx2.h"
enum { LANES = 8, SUMS = 12 };
#elif defined(__aarch64__) && defined(__ARM_NEON)
#define INSTRUCTIONS "neon.h"
enum { LANES = 4, SUMS = 24 };
#else
#define INSTRUCTIONS "plain.h"
enum { LANES = 4, SUMS = 12 };
#endif

enum { FP32, BF16, INT8 };
enum { DONE, OUTSIDE };  // what a call returns; OUTSIDE: a token id is not in the vocabulary
enum { PANEL = 64 };  // outputs of a panel of weights

typedef float vfloat __attribute__((vector_size(4 * LANES)));
typedef int32_t vint __attribute__((vector_size(4 * LANES)));
typedef uint32_t vbits __attribute__((vector_size(4 * LANES)));
typedef int16_t vshort __attribute__((vector_size(4 * LANES)));  // two in each lane
typedef uint16_t vhalf __attribute__((vector_size(2 * LANES)));

// 32 bits of weights or activations, as products want them: whole in `even`, or the halves of each pair.
typedef struct {
    vint even, odd;
} Operand;

static inline vfloat all(float x) { return x - (vfloat){0}; }
static inline vint all_bits(int32_t x) { return x - (vint){0}; }

static inline vfloat load(const float *place)
{
    vfloat x;
    memcpy(&x, place, sizeof x);
    return x;
}

static inline vint whole(vfloat x) { return __builtin_convertvector(x, vint); }

static inline void store(float *place, vfloat x) { memcpy(place, &x, sizeof x); }

#include INSTRUCTIONS

#ifdef HAS_BF16
#define BF16_USED HAS_BF16
#else
#define BF16_USED ""
#endif
#ifdef HAS_INT8
#define INSTRUCTIONS_USED INSTRUCTIONS_NAME BF16_USED HAS_INT8
#else
#define INSTRUCTIONS_USED INSTRUCTIONS_NAME BF16_USED
#endif
#ifndef LEAST_BYTE
#define LEAST_BYTE 0
#endif

// The first `left` numbers, and `fill` after them.
static inline vfloat load_part(const float *place, int64_t left, float fill)
{
    if (left >= LANES) return load(place);
    vfloat x = all(fill);
    memcpy(&x, place, left * sizeof *place);
    return x;
}

static inline void store_part(float *place, int64_t left, vfloat x)
{
    if (left >= LANES)
        store(place, x);
    else
        memcpy(place, &x, left * sizeof *place);
}

static inline vfloat widened(vhalf x) { return (vfloat)(wide(x) << 16); }

static inline vfloat from_bf16(const uint16_t *place)
{
    vhalf x;
    memcpy(&x, place, sizeof x);
    return widened(x);
}

static inline vhalf to_bf16(vfloat x)  // to the nearest, ties to even
{
    vbits bits = (vbits)x;
    return narrow((bits + ((bits >> 16) & 1) + 0x7fff) >> 16);
}

static inline void store_bf16(uint16_t *place, vfloat x)
{
    vhalf low = to_bf16(x);
    memcpy(place, &low, sizeof low);
}

static inline void add_to(float *place, vfloat x) { store(place, load(place) + x); }

#ifndef HAS_POWER
static inline vfloat power(vfloat p, vfloat n)  // in two steps: 2^-150 is no float, and 2^128 neither
{
    vint k = whole(smaller(n, all(256.0f))), half = k >> 1;
    return p * (vfloat)((half + 127) << 23) * (vfloat)((k - half + 127) << 23);
}
#endif

static inline vfloat exponential(vfloat z)
{
    z = larger(z, all(-104.0f));
    vfloat n = nearest(z * 1.44269504f);
    vfloat r = muladd(n, all(-0.693145752f), z);
    r = muladd(n, all(-1.42860677e-6f), r);
    vfloat p = all(1.0f / 720);
    p = muladd(p, r, all(1.0f / 120));
    p = muladd(p, r, all(1.0f / 24));
    p = muladd(p, r, all(1.0f / 6));
    p = muladd(p, r, all(0.5f));
    p = muladd(p, r, all(1.0f));
    p = muladd(p, r, all(1.0f));
    return power(p, n);
}

static inline vfloat gelu(vfloat x)  // the tanh form: x * sigmoid(2 sqrt(2/pi) (x + 0.044715 x^3))
{
    vfloat cubic = muladd(x * x, all(0.044715f), all(1.0f));
    return x / (1.0f + exponential(x * cubic * -1.5957691216f));
}

// LayerNorm's mean and 1 / deviation of a row.
static inline void moments(const float *x, int64_t n, float epsilon, float *mean, float *inverse)
{
    vfloat sum = {0}, square = {0};
    for (int64_t i = 0; i < n; i += LANES) sum += load(x + i);
    *mean = sum_of(sum) / n;
    for (int64_t i = 0; i < n; i += LANES) {
        vfloat d = load(x + i) - *mean;
        square = muladd(d, d, square);
    }
    *inverse = 1.0f / sqrtf(sum_of(square) / n + epsilon);
}

static inline vfloat normed(const float *x, float mean, float inverse, const float *weight, const float *bias)
{
    return muladd((load(x) - mean) * inverse, load(weight), load(bias));
}

// One token's activations in the form the weights are multiplied with.
static inline void pack(int64_t kind, const float *x, int64_t n, char *out, float *range)
{
    if (kind == FP32) {
        memcpy(out, x, n * sizeof(float));
    } else if (kind == BF16) {
        for (int64_t i = 0; i < n; i += LANES) store_bf16((uint16_t *)out + i, load(x + i));
    } else {
        vfloat low = {0}, high = {0};
        for (int64_t i = 0; i < n; i += LANES) low = smaller(low, load(x + i)), high = larger(high, load(x + i));
        float least = least_of(low), step = (largest_of(high) - least) / 255;
        step = step > 1e-30f ? step : 1e-30f;
        float zero = nearbyintf(-least / step) + LEAST_BYTE, inverse = 1.0f / step;
        for (int64_t i = 0; i < n; i += LANES) {
            vfloat q = nearest(load(x + i) * inverse) + zero;
            store_bytes(out + i, whole(smaller(larger(q, all(LEAST_BYTE)), all(LEAST_BYTE + 255))));
        }
        range[0] = step, range[1] = zero;
    }
}

static inline Operand halves(vint x, int with_sign)
{
    if (with_sign) return (Operand){(vint)((vshort)((vshort)x << 8) >> 8), (vint)((vshort)x >> 8)};
    return (Operand){x & 0x00ff00ff, (x >> 8) & 0x00ff00ff};
}

static inline Operand operand(int kind, vint x, int with_sign)
{
#ifndef HAS_BF16
    if (kind == BF16) return (Operand){x << 16, x & (int32_t)0xffff0000u};
#endif
#ifndef HAS_INT8
    if (kind == INT8) return halves(x, with_sign);
#endif
    (void)kind, (void)with_sign;
    return (Operand){x, x};
}

static inline Operand weights(int kind, const char *place)
{
    vint x;
    memcpy(&x, place, sizeof x);
    return operand(kind, x, 1);
}

static inline Operand inputs(int kind, const char *place)  // the same in each lane
{
    int32_t x;
    memcpy(&x, place, sizeof x);
    return operand(kind, all_bits(x), LEAST_BYTE < 0);
}

#ifndef HAS_PAIRS
static inline vint dot_pairs(vint x, vint w) { return (x << 16 >> 16) * (w << 16 >> 16) + (x >> 16) * (w >> 16); }
#endif
#ifndef HAS_BF16
static inline vfloat dot_bf16(vfloat sum, Operand x, Operand w)
{
    return muladd((vfloat)x.odd, (vfloat)w.odd, muladd((vfloat)x.even, (vfloat)w.even, sum));
}
#endif
#ifndef HAS_INT8
static inline vint dot_int8(vint sum, Operand x, Operand w)
{
    return sum + (dot_pairs(x.even, w.even) + dot_pairs(x.odd, w.odd));
}
#endif

// What a step of 32 bits of float32 or bfloat16 adds.
static inline vfloat dot(int kind, vfloat sum, Operand x, Operand w)
{
    return kind == BF16 ? dot_bf16(sum, x, w) : muladd((vfloat)x.even, (vfloat)w.even, sum);
}
