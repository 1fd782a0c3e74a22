"""Memory that a checkpoint's numbers are copied into while training waits.

Copying 1.5 GB takes a twentieth of a second, but into memory the process has never touched it took
one and a half: the system finds and zeroes every page on its first use. So the memory is one piece,
asked for and touched behind the first steps, and kept for all checkpoints of the run. They are
written one at a time, so one piece is enough.
"""

import math

import torch
from torch import Tensor

ALIGNMENT = 64
PAGE_BYTES = 4096
TOUCHED_AT_ONCE = PAGE_BYTES << 14
"""Few enough pages that torch touches them in this one thread, and never in the training's."""


def aligned_size(tensor: Tensor) -> int:
    """The bytes a tensor takes up in the piece."""
    return -(-tensor.numel() * tensor.element_size() // ALIGNMENT) * ALIGNMENT


class HostMemory:
    """One piece of host memory, handed out in slices and all taken back at once."""

    def __init__(self) -> None:
        self._piece = torch.empty(0, dtype=torch.uint8)
        self._used = 0

    def make_room(self, size: int) -> None:
        """Have `size` bytes, every page touched."""
        piece = torch.empty(size, dtype=torch.uint8)
        for start in range(0, size, TOUCHED_AT_ONCE):
            piece[start : start + TOUCHED_AT_ONCE : PAGE_BYTES].zero_()
        self._piece = piece

    def take_back(self) -> None:
        """Whatever was handed out may be overwritten from now on."""
        self._used = 0

    def copy(self, tensor: Tensor) -> Tensor:
        """A contiguous copy, here as long as there is room and in memory of its own after that."""
        stop = self._used + aligned_size(tensor)
        if stop > len(self._piece):
            return torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor)
        size = math.prod(tensor.shape) * tensor.element_size()
        slot = self._piece[self._used : self._used + size]
        self._used = stop
        return slot.view(tensor.dtype).view(tensor.shape).copy_(tensor)
