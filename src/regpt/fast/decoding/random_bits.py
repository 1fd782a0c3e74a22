"""The random numbers of a draw, apart from the draw: cheap, and there to be used again.

`torch.multinomial` for one draw takes q ~ Exp(1) of the shape of the probabilities and returns the
argmax of p / q. With 50,257 entries a row the logarithms of q cost more than the rest of sampling,
though a top-k of 50 looks at 50 of them. On a CPU, torch makes each q of one 64-bit word of the
generator,

    u = (word mod 2^53) / 2^53,    q = -log1p(-u) in float64, rounded to float32

(at::native distribution_templates: uniform_real and exponential transformations), and `random_` on
int64 hands out the same words and leaves the generator in the same state. So the words are drawn
for the whole row and q is computed for the candidates alone: the same numbers to the last bit.
`words_are_exponential` proves it on the running torch before it is relied on. Where there is a C
kernel it makes the words too, seven times as fast (`words.py`).
"""

from functools import lru_cache

import torch
from torch import Tensor

from regpt.fast.kernels import words

MANTISSA = (1 << 53) - 1
MANY = 1 << 12
"""Words from which on reading the generator's state out and in again pays."""


def draw_words(rows: int, columns: int, generator: torch.Generator | None) -> Tensor:
    """What `exponential_` of (rows, columns) would consume, (rows, columns) int64, on the CPU."""
    if rows * columns >= MANY and words.works():
        return words.draw(rows, columns, generator or torch.default_generator)
    return torch.empty(rows, columns, dtype=torch.int64).random_(generator=generator)


def exponential_of(words: Tensor) -> Tensor:
    """The Exp(1) numbers, float32, that `exponential_` makes of these words."""
    uniform = words.bitwise_and(MANTISSA).double().mul_(2.0**-53)
    return torch.log1p(uniform.neg_()).neg_().float()


@lru_cache(maxsize=1)
def words_are_exponential() -> bool:
    """Whether this torch makes its exponential numbers as this file says."""
    shape, odd = (2, 40_001), 3  # above every size at which torch changes its method
    one, other = torch.Generator().manual_seed(7), torch.Generator().manual_seed(7)
    for _ in range(2):
        for generator in (one, other):  # not on an even place of the stream only
            torch.rand(odd, generator=generator)
        expected = torch.empty(shape).exponential_(generator=one)
        if not torch.equal(exponential_of(draw_words(*shape, other)), expected):
            return False
    return torch.equal(one.get_state(), other.get_state())
