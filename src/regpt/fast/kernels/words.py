"""The generator's words many at a time: words.c, on the state of a torch.Generator.

torch keeps the state of its CPU generator as a few bytes with MT19937's 624 words in them, each in
64 bits (ATen's CPUGeneratorImpl.cpp). The words are read out, the C kernel goes on from them, and
what it leaves is written back, so the generator stands where `random_` would have left it. Whether
the running torch keeps its state so, `works` tries once.
"""

import ctypes
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from regpt.fast.kernels.build import load_library
from regpt.system.errors import UserError

WORDS = 624
STATE_BYTES = 5056
STATE = np.dtype(
    [("seed", "<u8"), ("left", "<i4"), ("seeded", "<i4"), ("next", "<u8"), ("words", "<u8", WORDS)]
)


class Twister(ctypes.Structure):
    """`Twister` of words.c."""

    _fields_ = (("words", ctypes.c_uint32 * WORDS), ("next", ctypes.c_int64))


def draw(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """What `random_` of (rows, columns) int64 draws from a CPU generator, and as it leaves it."""
    state = generator.get_state()
    place = state.numpy()[: STATE.itemsize].view(STATE)[0]
    # `left` counts down to 1, where new words are due; before the first of all, `next` is 0
    due = place["left"] == 1
    twister = Twister(next=WORDS if due else int(place["next"]))
    held = np.frombuffer(twister.words, dtype=np.uint32)
    held[:] = place["words"]
    drawn = torch.empty(rows, columns, dtype=torch.int64)
    library = load_library()
    library.regpt_words(ctypes.byref(twister), drawn.numel(), drawn.data_ptr())
    place["words"] = held
    place["next"] = twister.next
    place["left"] = WORDS + 1 - twister.next
    generator.set_state(state)
    return drawn


@lru_cache(maxsize=1)
def works() -> bool:
    """Whether there is a kernel here and it draws what this torch draws."""
    one, other = torch.Generator().manual_seed(7), torch.Generator().manual_seed(7)
    if one.get_state().numel() != STATE_BYTES:
        return False
    try:
        for rows, columns in ((1, 3), (3, 700), (1, 1), (2, 312)):
            expected = torch.empty(rows, columns, dtype=torch.int64).random_(generator=one)
            if not torch.equal(draw(rows, columns, other), expected):
                return False
            for generator in (one, other):  # not on an even place of the stream only
                torch.rand(1, generator=generator)
    except UserError:
        return False
    return torch.equal(one.get_state(), other.get_state())
