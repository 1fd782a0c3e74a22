// The words of torch's CPU generator, many at a time: the Mersenne twister MT19937 (Matsumoto and
// Nishimura, 1998) in registers of sixteen. torch makes one word after the other, 2.7 ns each; a
// draw of five rows wants half a million of them. The recurrence looks 227 places back at the
// nearest, so sixteen neighbours can be made at once, in place.
#include "vectors.h"

enum { WORDS = 624, BACK = 397 };

typedef struct {
    uint32_t words[WORDS];
    int64_t next;  // the word to be handed out; at WORDS, new ones are due
} Twister;

static inline __m512i twist(__m512i here, __m512i after)
{
    __m512i high = _mm512_and_si512(here, _mm512_set1_epi32((int)0x80000000u));
    __m512i mixed = _mm512_or_si512(high, _mm512_and_si512(after, _mm512_set1_epi32(0x7fffffff)));
    __mmask16 odd = _mm512_test_epi32_mask(after, _mm512_set1_epi32(1));
    __m512i half = _mm512_srli_epi32(mixed, 1);
    return _mm512_mask_xor_epi32(half, odd, half, _mm512_set1_epi32((int)0x9908b0dfu));
}

static inline void renew(uint32_t *w, int first, int last, int back)
{
    for (int i = first; i < last; i += LANES) {
        __mmask16 mask = last - i >= LANES ? 0xffff : (__mmask16)((1 << (last - i)) - 1);
        __m512i here = _mm512_maskz_loadu_epi32(mask, w + i);
        __m512i after = _mm512_maskz_loadu_epi32(mask, w + i + 1);
        __m512i from = _mm512_maskz_loadu_epi32(mask, w + i + back);
        _mm512_mask_storeu_epi32(w + i, mask, _mm512_xor_si512(from, twist(here, after)));
    }
}

static void renew_all(uint32_t *w)
{
    renew(w, 0, WORDS - BACK, BACK);
    renew(w, WORDS - BACK, WORDS - 1, BACK - WORDS);
    uint32_t mixed = (w[WORDS - 1] & 0x80000000u) | (w[0] & 0x7fffffffu);
    w[WORDS - 1] = w[BACK - 1] ^ (mixed >> 1) ^ (w[0] & 1 ? 0x9908b0dfu : 0);
}

static inline __m512i temper(__m512i y)
{
    y = _mm512_xor_si512(y, _mm512_srli_epi32(y, 11));
    y = _mm512_xor_si512(y, _mm512_and_si512(_mm512_slli_epi32(y, 7), _mm512_set1_epi32((int)0x9d2c5680u)));
    y = _mm512_xor_si512(y, _mm512_and_si512(_mm512_slli_epi32(y, 15), _mm512_set1_epi32((int)0xefc60000u)));
    return _mm512_xor_si512(y, _mm512_srli_epi32(y, 18));
}

// `count` 64-bit numbers of 63 bits, each of two words, the higher first: torch's `random_` on int64.
void regpt_words(Twister *twister, int64_t count, int64_t *out)
{
    uint32_t *halves = (uint32_t *)out;
    int64_t left = 2 * count;
    while (left > 0) {
        if (twister->next == WORDS) {
            renew_all(twister->words);
            twister->next = 0;
        }
        int64_t some = WORDS - twister->next < left ? WORDS - twister->next : left;
        for (int64_t i = 0; i < some; i += LANES) {
            __mmask16 mask = some - i >= LANES ? 0xffff : (__mmask16)((1 << (some - i)) - 1);
            __m512i y = _mm512_maskz_loadu_epi32(mask, twister->words + twister->next + i);
            _mm512_mask_storeu_epi32(halves + i, mask, temper(y));
        }
        twister->next += some;
        halves += some;
        left -= some;
    }
    for (int64_t i = 0; i < count; i++) {
        uint64_t pair = (uint64_t)out[i];
        out[i] = (int64_t)(((pair << 32) | (pair >> 32)) & 0x7fffffffffffffffu);
    }
}
