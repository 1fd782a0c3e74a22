"""A counter-based random generator: the number is a function of its place, not of a history.

Philox-4x32-10 (Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC'11;
the constants are the paper's) maps a 128-bit counter and a 64-bit key to 128 random bits. Here the
key is the seed and the counter is (token id, position, row, 0), so every candidate of every row has
its own number, the same on every device and in every batch. Torch has no unsigned 64-bit product
with a high half, so the 32-bit words live in int64 and the product is put together from 16-bit
halves; everything is exact integer arithmetic.
"""

import torch
from torch import Tensor

MASK = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10


def multiply(word: Tensor, constant: int) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of word * constant; word int64 in [0, 2**32)."""
    low_product = word * (constant & 0xFFFF)  # < 2**48: no overflow
    high_product = word * (constant >> 16) + (low_product >> 16)  # < 2**49
    high = high_product >> 16
    low = ((high_product & 0xFFFF) << 16) | (low_product & 0xFFFF)
    return high, low


def philox(
    key: tuple[int, int], counter: tuple[Tensor, Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four random 32-bit words (int64 tensors) from four 32-bit counter words, broadcast."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        high0, low0 = multiply(c0, MULTIPLIERS[0])
        high1, low1 = multiply(c2, MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + WEYL[0]) & MASK, (k1 + WEYL[1]) & MASK
    return c0, c1, c2, c3


def exponential(seed: int, rows: Tensor, positions: Tensor, ids: Tensor) -> Tensor:
    """Exp(1) noise, float64, a function of (seed, row, position, token id) alone.

    Args:
        seed: any integer; its low 64 bits are the key.
        rows, positions, ids: int64 tensors in [0, 2**32), broadcast against each other.
    """
    key = (seed & MASK, (seed >> 32) & MASK)
    zero = torch.zeros_like(ids)
    word0, word1, _, _ = philox(key, (ids, positions, rows, zero))
    # 52 random bits and a half: strictly inside (0, 1), so neither the logarithm nor its
    # logarithm is infinite
    bits = (word0 << 20) | (word1 >> 12)
    uniform = (bits.double() + 0.5) * 2.0**-52
    return -torch.log(uniform)
