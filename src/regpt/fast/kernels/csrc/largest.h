// The k-th largest of many numbers.
#pragma once
#include "vectors.h"

enum { GROUPS = 64 };  // registers of maxima: 1024 groups of a row

// Integers in the order of the floats.
static inline __m512i ordered(__m512 x)
{
    __m512i bits = _mm512_castps_si512(x);
    return _mm512_xor_si512(bits, _mm512_and_si512(_mm512_srai_epi32(bits, 31), _mm512_set1_epi32(0x7fffffff)));
}

// The k-th largest of n numbers, n a multiple of 16: by halving the range of integers.
static inline float kth_largest(const float *x, int64_t n, int64_t k)
{
    int64_t low = INT32_MIN, high = INT32_MAX;
    while (low < high) {
        int64_t middle = low + (high - low + 1) / 2, count = 0;
        __m512i bound = _mm512_set1_epi32((int32_t)middle);
        for (int64_t i = 0; i < n; i += LANES)
            count += __builtin_popcount(_mm512_cmpge_epi32_mask(ordered(_mm512_loadu_ps(x + i)), bound));
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

// Let a register of a row, the i-th in order, raise the maxima of its groups.
static inline void raise(float *maxima, int64_t i, __m512 v)
{
    float *place = maxima + i % GROUPS * LANES;
    _mm512_storeu_ps(place, _mm512_max_ps(v, _mm512_loadu_ps(place)));
}

static inline void lowest(float *maxima)
{
    for (int i = 0; i < GROUPS * LANES; i++) maxima[i] = -INFINITY;
}

// Write the numbers of the lanes in `chosen`, i and following, after one another.
static inline void compress_ids(int32_t *out, __mmask16 chosen, int64_t i)
{
    __m512i id = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    _mm512_mask_compressstoreu_epi32(out, chosen, _mm512_add_epi32(id, _mm512_set1_epi32((int32_t)i)));
}
