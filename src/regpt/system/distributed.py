"""The processes of a run: torchrun starts them, torch.distributed connects them.

Alone, every verb of a `World` does nothing, so there is one code path for one process and many.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from regpt.system.errors import UserError
from regpt.system.runtime import Runtime


@dataclass(frozen=True, kw_only=True)
class World:
    rank: int = 0
    size: int = 1
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this process prints and writes."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over all processes, on every process."""
        if self.size > 1:
            tensor = tensor.clone()
            dist.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:
        """Whether the flag is up on any process: how all of them stop at the same step."""
        if self.size == 1:
            return flag
        return bool(self.sum(torch.tensor(float(flag), device=self.device)).item())

    @contextlib.contextmanager
    def fail_together(self) -> Iterator[None]:
        """A UserError of one process within is one of all: none is left waiting for it."""
        error = None
        try:
            yield
        except UserError as found:
            error = found
        failed = self.any(error is not None)
        if error is not None:
            raise error
        if failed:
            raise UserError("another process stopped with an error: see the first one's message")

    def barrier(self) -> None:
        self.any(False)


TORCHRUN = ("RANK", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun tells its processes, beside WORLD_SIZE."""


@contextlib.contextmanager
def open_world(runtime: Runtime) -> Iterator[World]:
    """Join the processes torchrun started: gloo between CPUs, nccl between CUDA devices."""
    if runtime.world_size == 1:
        yield World(device=runtime.device)
        return
    if runtime.device.type == "cuda":
        torch.cuda.set_device(runtime.device)  # what nccl and FSDP take for this process's own
    ours = not dist.is_initialized()
    unset = [name for name in TORCHRUN if name not in os.environ]
    if ours and unset:
        raise UserError(
            f"WORLD_SIZE is {runtime.world_size}, but {', '.join(unset)} not set: start the "
            "processes with torchrun, or unset WORLD_SIZE"
        )
    if ours:
        dist.init_process_group("nccl" if runtime.device.type == "cuda" else "gloo")
    try:
        yield World(rank=runtime.rank, size=runtime.world_size, device=runtime.device)
    finally:
        if ours:
            dist.destroy_process_group()


def full(tensor: Tensor) -> Tensor:
    """A whole tensor from a sharded one (every process must ask); others as they are."""
    gather = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather()
