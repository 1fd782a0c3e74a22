// The k-th largest of many numbers.
#pragma once
#include "vectors.h"

enum { GROUPS = 1024 };  // of the numbers of a row, each with its maximum

// Integers in the order of the floats.
static inline vint ordered(vfloat x) { return (vint)x ^ (((vint)x >> 31) & 0x7fffffff); }

// The k-th largest of n numbers, n a multiple of LANES: by halving the range of integers.
static inline float kth_largest(const float *x, int64_t n, int64_t k)
{
    int64_t low = INT32_MIN, high = INT32_MAX;
    while (low < high) {
        int64_t middle = low + (high - low + 1) / 2, count = 0;
        vint bound = all_bits((int32_t)middle), found = {0};
        for (int64_t i = 0; i < n; i += LANES) found -= ordered(load(x + i)) >= bound;
        for (int lane = 0; lane < LANES; lane++) count += found[lane];
        if (count >= k)
            low = middle;
        else
            high = middle - 1;
    }
    int32_t bits = (int32_t)low ^ (((int32_t)low >> 31) & 0x7fffffff);
    float found;
    memcpy(&found, &bits, 4);
    return found;
}

// Let LANES numbers of a row, from the i-th on, raise the maxima of their groups.
static inline void raise_maxima(float *maxima, int64_t i, vfloat v)
{
    float *place = maxima + i % GROUPS;
    store(place, larger(v, load(place)));
}

static inline void lowest(float *maxima)
{
    for (int i = 0; i < GROUPS; i++) maxima[i] = -INFINITY;
}

// Write the numbers of the lanes where x >= least, i and following, after one another; how many.
static inline int64_t chosen_ids(int32_t *out, vfloat x, vfloat least, int64_t i)
{
    int64_t count = 0;
    for (int lane = 0; lane < LANES; lane++)
        if (x[lane] >= least[lane]) out[count++] = (int32_t)(i + lane);
    return count;
}

static inline int any(vint x)
{
    int32_t found = 0;
    for (int lane = 0; lane < LANES; lane++) found |= x[lane];
    return found != 0;
}
