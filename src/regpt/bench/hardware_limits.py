"""What this machine is, and what it can do at most: reading memory, multiplying matrices.

Measured in a process of its own, before the systems: a sum and a matrix-vector product, with all
threads, over a buffer that no cache holds; a square product in bfloat16 and in float32 as torch
runs them by default. A system that still comes to more (its matrices may stay in a large cache) is
its own limit.
"""

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from regpt.bench.worker import System
from regpt.system.memory import total_memory, usable_cores

SECONDS_EACH = 0.5
CPU_MATRIX, GPU_MATRIX = 2048, 8192
"""Rows and columns of the matrices."""
CPU_BUFFER, GPU_BUFFER = 1 << 30, 4 << 30
"""Bytes that are read."""
ROW = 4096
"""Numbers in a row of the buffer that is read."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Facts and limits; a limit of None was not measured."""

    cpu: str = ""
    cores: int = 0
    """Processors this process may use."""
    threads: int = 0
    """Threads torch computes with."""
    memory_bytes: int | None = None
    torch: str = ""
    gpu: str | None = None
    device: str = "cpu"
    """Where the limits were measured: cpu or cuda."""
    read_bytes_per_second: float | None = None
    bf16_flops_per_second: float | None = None
    fp32_flops_per_second: float | None = None

    def describe(self) -> str:
        parts = [self.gpu] if self.gpu and self.device == "cuda" else []
        parts.append(f"{self.cpu}, {self.cores} cores, {self.threads} threads")
        if self.memory_bytes:
            parts.append(f"{self.memory_bytes / 2**30:.0f} GiB")
        return ", ".join([*parts, f"torch {self.torch}"])

    def describe_limits(self) -> str:
        def tell(value: float | None, scale: float, unit: str) -> str:
            return "not measured" if value is None else f"{value / scale:,.0f} {unit}"

        flops = (1e12, "TFLOP/s") if self.device == "cuda" else (1e9, "GFLOP/s")
        return (
            f"limits measured on {self.device}: "
            f"memory read {tell(self.read_bytes_per_second, 1e9, 'GB/s')}, "
            f"matrix product bf16 {tell(self.bf16_flops_per_second, *flops)}, "
            f"fp32 {tell(self.fp32_flops_per_second, *flops)}"
        )


def share(value: float, limit: float | None, values: Sequence[float]) -> str:
    """A share of a limit, which is not below what any system came to; empty if it is not known."""
    return "" if limit is None else f"{value / max(limit, *values):.0%}"


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model na"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def best_seconds(works: Sequence[Callable[[], object]], synchronize: Callable[[], None]) -> float:
    """The shortest time of any of the works, each done in turn for `SECONDS_EACH`, after one."""
    best = float("inf")
    for work in works:
        work()
        synchronize()
        end = time.perf_counter() + SECONDS_EACH / len(works)
        while True:
            clock = time.perf_counter()
            work()
            synchronize()
            best = min(best, time.perf_counter() - clock)
            if time.perf_counter() >= end:
                break
    return best


def load(device: str) -> Callable[[], Mapping[str, object]]:
    """In a worker: a call that looks at the machine and measures its limits."""
    import torch

    from regpt.system.runtime import find_runtime, gains_from_bf16

    runtime = find_runtime(device)
    place = runtime.device
    on_gpu = place.type == "cuda"
    size = GPU_MATRIX if on_gpu else CPU_MATRIX
    memory = total_memory()

    def read() -> float:
        rows = (GPU_BUFFER if on_gpu else min(CPU_BUFFER, memory // 8)) // (4 * ROW)
        numbers = torch.ones(rows, ROW, device=place)
        ones, sums = torch.ones(ROW, device=place), torch.empty(rows, device=place)
        works = [numbers.sum, lambda: torch.mv(numbers, ones, out=sums)]
        return 4 * numbers.numel() / best_seconds(works, runtime.synchronize)

    def product(dtype: torch.dtype) -> float:
        left, right = (torch.randn(size, size, device=place).to(dtype) for _ in range(2))
        out = torch.empty_like(left)
        works = [lambda: torch.mm(left, right, out=out)]
        return 2 * size**3 / best_seconds(works, runtime.synchronize)

    def call() -> Mapping[str, object]:
        measured = Machine(
            cpu=cpu_name(),
            cores=usable_cores(),
            threads=runtime.threads,
            memory_bytes=memory,
            torch=torch.__version__,
            gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            device=place.type,
            read_bytes_per_second=read(),
            bf16_flops_per_second=product(torch.bfloat16) if gains_from_bf16(place) else None,
            fp32_flops_per_second=product(torch.float32),
        )
        if on_gpu:
            torch.cuda.empty_cache()  # the systems want it
        return asdict(measured)

    return call


def limits_system(device: str) -> System:
    return System(name="limits", load=f"{__name__}:load", settings={"device": device})
