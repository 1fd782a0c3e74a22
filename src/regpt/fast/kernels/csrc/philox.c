// The uniform numbers of the portable stream for all tokens of one draw: Philox-4x32-10 as in
// philox.py, (token, position, row, 0) under the seed, for tokens 0 .. count-1. Plain C that a
// compiler turns into vectors: torch, without a product of 32 bits by 32, takes a hundred times as
// long.
#include <stdint.h>

enum { BLOCK = 16, ROUNDS = 10 };

void regpt_philox(uint64_t seed, int64_t row, int64_t position, int64_t count, double *out, int64_t threads)
{
    (void)threads;
#pragma omp parallel for num_threads((int)threads) schedule(static)
    for (int64_t first = 0; first < count; first += BLOCK) {
        uint32_t c0[BLOCK], c1[BLOCK], c2[BLOCK], c3[BLOCK];
        uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
        for (int i = 0; i < BLOCK; i++)
            c0[i] = (uint32_t)(first + i), c1[i] = (uint32_t)position, c2[i] = (uint32_t)row, c3[i] = 0;
        for (int round = 0; round < ROUNDS; round++) {
            for (int i = 0; i < BLOCK; i++) {
                uint64_t one = (uint64_t)c0[i] * 0xD2511F53u, other = (uint64_t)c2[i] * 0xCD9E8D57u;
                c0[i] = (uint32_t)(other >> 32) ^ c1[i] ^ k0, c1[i] = (uint32_t)other;
                c2[i] = (uint32_t)(one >> 32) ^ c3[i] ^ k1, c3[i] = (uint32_t)one;
            }
            k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
        }
        int64_t some = count - first < BLOCK ? count - first : BLOCK;
        for (int i = 0; i < some; i++) {
            uint64_t bits = ((uint64_t)c0[i] << 20) | (c1[i] >> 12);
            out[first + i] = ((double)bits + 0.5) * 0x1p-52;
        }
    }
}
