"""Checkpoints written behind the training's back, from a copy in host memory.

Copying 1.5 GB takes a twentieth of a second, but into memory the process has never touched it took
one and a half: the system finds and zeroes every page on its first use. So the memory is one
buffer, allocated and touched behind the first steps, and kept for all checkpoints of the run. They
are written one at a time, so one buffer is enough.
"""

import math
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regpt.training.checkpoint import Snapshot, write_checkpoint

ALIGNMENT = 64
PAGE_BYTES = 4096
TOUCHED_AT_ONCE = PAGE_BYTES << 14
"""Few enough pages that torch touches them in this one thread, and never in the training's."""


def aligned_size(tensor: Tensor) -> int:
    """The bytes a tensor takes up in the buffer."""
    return -(-tensor.numel() * tensor.element_size() // ALIGNMENT) * ALIGNMENT


class HostMemory:
    """A buffer of host memory, handed out in slices and all taken back at once."""

    def __init__(self) -> None:
        self._buffer = torch.empty(0, dtype=torch.uint8)
        self._used = 0

    def allocate(self, size: int) -> None:
        """Have `size` bytes, every page touched."""
        buffer = torch.empty(size, dtype=torch.uint8)
        for start in range(0, size, TOUCHED_AT_ONCE):
            buffer[start : start + TOUCHED_AT_ONCE : PAGE_BYTES].zero_()
        self._buffer = buffer

    def reset(self) -> None:
        """Whatever was handed out may be overwritten from now on."""
        self._used = 0

    def copy(self, tensor: Tensor) -> Tensor:
        """A contiguous copy, in the buffer as long as there is room, then in memory of its own."""
        stop = self._used + aligned_size(tensor)
        if stop > len(self._buffer):
            return torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor)
        size = math.prod(tensor.shape) * tensor.element_size()
        place = self._buffer[self._used : self._used + size]
        self._used = stop
        return place.view(tensor.dtype).view(tensor.shape).copy_(tensor)


def lower_priority() -> None:
    """Let the threads that compute go first: each step ends with the last of them, and one that
    shares its core with the writing would hold up all. A priority per thread is Linux's."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)


class CheckpointWriter:
    """Writes a run's checkpoints in a thread, one at a time."""

    def __init__(self, folder: Path, *, keep: int) -> None:
        self.folder = folder
        self.keep = keep
        self.pool = ThreadPoolExecutor(1, "checkpoint", initializer=lower_priority)
        self.pending: Future[Any] | None = None
        self.memory = HostMemory()

    def allocate(self, size: int) -> None:
        """Prepare the memory of the copies; without it the first save takes longer."""
        self.pending = self.pool.submit(self.memory.allocate, size)

    def save(self, take: Callable[[HostMemory], Snapshot]) -> float:
        """Copy now, write in the thread; returns the seconds training stood still.

        `take` copies into the memory given. It is called here, after the previous save has ended;
        that one's failure is raised here.
        """
        started = time.perf_counter()
        self.wait()
        self.memory.reset()
        snapshot = take(self.memory)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.pending = self.pool.submit(write_checkpoint, self.folder, snapshot, keep=self.keep)
        return time.perf_counter() - started

    def check(self) -> None:
        """Raise what the save under way met, if it has ended; does not wait."""
        if self.pending is not None and self.pending.done():
            self.wait()

    def wait(self) -> None:
        """Wait for the save under way; raises what it met."""
        if self.pending is not None:
            pending, self.pending = self.pending, None
            pending.result()

    def close(self) -> None:
        """Wait, and end the thread."""
        try:
            self.wait()
        finally:
            self.pool.shutdown()
