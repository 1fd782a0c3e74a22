// The words of torch's CPU generator, many at a time: the Mersenne twister MT19937 (Matsumoto and
// Nishimura, 1998). torch makes one word after the other, 2.7 ns each; a draw of five rows wants half
// a million of them. The recurrence looks 227 places back at the nearest, so many neighbours can be
// made at once, in place: these loops are written for the compiler to do that.
#include <stdint.h>

enum { WORDS = 624, BACK = 397 };

typedef struct {
    uint32_t words[WORDS];
    int64_t next;  // the word to be handed out; at WORDS, new ones are due
} Twister;

typedef uint32_t __attribute__((may_alias)) Half;  // of a 64-bit number

static inline uint32_t twist(uint32_t here, uint32_t after)
{
    return (((here & 0x80000000u) | (after & 0x7fffffffu)) >> 1) ^ (-(after & 1) & 0x9908b0dfu);
}

static void renew_all(uint32_t *w)
{
    for (int i = 0; i < WORDS - BACK; i++) w[i] = w[i + BACK] ^ twist(w[i], w[i + 1]);
    for (int i = WORDS - BACK; i < WORDS - 1; i++) w[i] = w[i + BACK - WORDS] ^ twist(w[i], w[i + 1]);
    w[WORDS - 1] = w[BACK - 1] ^ twist(w[WORDS - 1], w[0]);
}

static inline uint32_t temper(uint32_t y)
{
    y ^= y >> 11;
    y ^= (y << 7) & 0x9d2c5680u;
    y ^= (y << 15) & 0xefc60000u;
    return y ^ (y >> 18);
}

// `count` 64-bit numbers of 63 bits, each of two words, the higher first: torch's `random_` on int64.
void regpt_words(Twister *twister, int64_t count, int64_t *out)
{
    Half *halves = (Half *)out;
    int64_t left = 2 * count;
    while (left > 0) {
        if (twister->next == WORDS) {
            renew_all(twister->words);
            twister->next = 0;
        }
        int64_t some = WORDS - twister->next < left ? WORDS - twister->next : left;
        const uint32_t *words = twister->words + twister->next;
        for (int64_t i = 0; i < some; i++) halves[i] = temper(words[i]);
        twister->next += some;
        halves += some;
        left -= some;
    }
    for (int64_t i = 0; i < count; i++) {
        uint64_t pair = (uint64_t)out[i];
        out[i] = (int64_t)(((pair << 32) | (pair >> 32)) & 0x7fffffffffffffffu);
    }
}
