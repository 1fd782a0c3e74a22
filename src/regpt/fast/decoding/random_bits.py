"""The random numbers of a draw, apart from the draw: cheap, and there to be used again.

`torch.multinomial` for one draw takes q ~ Exp(1) of the shape of the probabilities and returns the
argmax of p / q. With 50,257 entries a row the logarithms of q cost more than the rest of sampling,
though a top-k of 50 looks at 50 of them. On a CPU, torch makes each q of one 64-bit word of the
generator,

    u = (word mod 2^53) / 2^53,    q = -log1p(-u) in float64, rounded to float32

(at::native distribution_templates: uniform_real and exponential transformations), and `random_` on
int64 hands out the same words and leaves the generator in the same state. So the words are drawn
for the whole row and q is computed for the candidates alone: the same numbers to the last bit.
`words_are_exponential` proves it on the running torch before it is relied on.

The C kernel (words.c) makes the words seven times as fast. torch keeps the state of its generator
as a few bytes with MT19937's 624 words in them, each in 64 bits (ATen's CPUGeneratorImpl.cpp): they
are read out and written back, if `words_are_known` finds that the running torch keeps them so.
"""

import ctypes
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from regpt.fast.kernels.build import load_library, unavailable_reason

MANTISSA = (1 << 53) - 1
MANY = 1 << 12
"""Words from which on reading the generator's state out and in again pays."""
WORDS = 624
STATE_BYTES = 5056
STATE = np.dtype(
    [("seed", "<u8"), ("left", "<i4"), ("seeded", "<i4"), ("next", "<u8"), ("words", "<u8", WORDS)]
)


class Twister(ctypes.Structure):
    """`Twister` of words.c."""

    _fields_ = (("words", ctypes.c_uint32 * WORDS), ("next", ctypes.c_int64))


def draw_words(rows: int, columns: int, generator: torch.Generator | None) -> Tensor:
    """What `exponential_` of (rows, columns) would consume, (rows, columns) int64, on the CPU."""
    if rows * columns >= MANY and words_are_known():
        return draw_in_c(rows, columns, generator or torch.default_generator)
    return torch.empty(rows, columns, dtype=torch.int64).random_(generator=generator)


def draw_in_c(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """What `random_` of (rows, columns) int64 draws from a CPU generator, and as it leaves it."""
    state = generator.get_state()
    place = state.numpy()[: STATE.itemsize].view(STATE)[0]
    # `left` counts down to 1, where new words are due; before the first of all, `next` is 0
    due = place["left"] == 1
    twister = Twister(next=WORDS if due else int(place["next"]))
    held = np.frombuffer(twister.words, dtype=np.uint32)
    held[:] = place["words"]
    drawn = torch.empty(rows, columns, dtype=torch.int64)
    load_library().regpt_words(ctypes.byref(twister), drawn.numel(), drawn)
    place["words"] = held
    place["next"] = twister.next
    place["left"] = WORDS + 1 - twister.next
    generator.set_state(state)
    return drawn


def exponential_of(words: Tensor) -> Tensor:
    """The Exp(1) numbers, float32, that `exponential_` makes of these words."""
    uniform = words.bitwise_and(MANTISSA).double().mul_(2.0**-53)
    return torch.log1p(uniform.neg_()).neg_().float()


@lru_cache(maxsize=1)
def words_are_known() -> bool:
    """Whether there is a C kernel here and it draws what this torch draws."""
    one, other = torch.Generator().manual_seed(7), torch.Generator().manual_seed(7)
    if one.get_state().numel() != STATE_BYTES or unavailable_reason() is not None:
        return False
    for rows, columns in ((1, 3), (3, 700), (1, 1), (2, 312)):
        expected = torch.empty(rows, columns, dtype=torch.int64).random_(generator=one)
        if not torch.equal(draw_in_c(rows, columns, other), expected):
            return False
        for generator in (one, other):  # not on an even place of the stream only
            torch.rand(1, generator=generator)
    return torch.equal(one.get_state(), other.get_state())


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
