"""What this machine is, and what it can do at most: reading memory, multiplying matrices.

The limits are what a program's figures are a share of, so they must be upper bounds. They are
measured in a process of their own, beside the systems, in every round, and the best ever seen
counts: whatever else runs can only lower one. Reading is a sum and a matrix-vector product, with
all threads, over a buffer four times as large as the last cache; multiplying is a square product in
bfloat16 and in float32 as torch runs them by default. A system that still comes to more (its
matrices may stay in a large cache) raises the limit, which then says "at least".
"""

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from regpt.bench.workers import System

SECONDS_EACH = 0.3
CPU_MATRIX, GPU_MATRIX = 2048, 8192
"""Rows and columns of the matrices."""
ROW = 4096
"""Numbers in a row of the buffer that is read."""

Limit = Literal["read_bytes_per_second", "bf16_flops_per_second", "fp32_flops_per_second"]
LIMITS: tuple[Limit, ...] = (
    "read_bytes_per_second",
    "bf16_flops_per_second",
    "fp32_flops_per_second",
)


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
    exceeded: tuple[Limit, ...] = ()
    """Limits that a system went beyond: they are its figures, not a measurement of the limit."""

    def to_json(self) -> dict[str, object]:
        """A JSON object."""
        return asdict(self)

    def at_best(self, again: "Machine") -> "Machine":
        """The same with the higher of each limit."""
        pairs = {name: (getattr(self, name), getattr(again, name)) for name in LIMITS}
        return replace(self, **{n: max(p) for n, p in pairs.items() if None not in p})

    def reached(self, name: Limit, values: list[float]) -> "Machine":
        """The same with a limit that is not below what systems came to."""
        limit, best = getattr(self, name), max(values, default=0.0)
        if limit is None or best <= limit:
            return self
        return replace(self, **{name: best, "exceeded": (*self.exceeded, name)})

    def describe(self) -> str:
        """One line: what it is."""
        parts = [self.gpu] if self.gpu and self.device == "cuda" else []
        parts.append(f"{self.cpu}, {self.cores} cores, {self.threads} threads")
        if self.memory_bytes:
            parts.append(f"{self.memory_bytes / 2**30:.0f} GiB")
        return ", ".join([*parts, f"torch {self.torch}"])

    def describe_limits(self) -> str:
        """One line: what it can do."""

        def tell(name: Limit, scale: float, unit: str) -> str:
            value = getattr(self, name)
            least = "at least " if name in self.exceeded else ""
            return "not measured" if value is None else f"{least}{value / scale:,.0f} {unit}"

        flops = (1e12, "TFLOP/s") if self.device == "cuda" else (1e9, "GFLOP/s")
        return (
            f"limits measured on {self.device}: "
            f"memory read {tell('read_bytes_per_second', 1e9, 'GB/s')}, "
            f"matrix product bf16 {tell('bf16_flops_per_second', *flops)}, "
            f"fp32 {tell('fp32_flops_per_second', *flops)}"
        )


def cpu_name() -> str:
    """The processor's name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model na"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def memory_size() -> int | None:
    """Bytes of memory in the machine."""
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def usable_cores() -> int:
    """Processors this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def buffer_bytes(device: str) -> int:
    """Four times the last cache, 512 MB to an eighth of the memory; on a GPU 4 GB."""
    if device == "cuda":
        return 4 << 30
    try:
        cache = Path("/sys/devices/system/cpu/cpu0/cache/index3/size").read_text(encoding="utf-8")
        largest = 4 * 1024 * int(cache.strip().removesuffix("K"))
    except (OSError, ValueError):
        largest = 0
    return min(max(largest, 512 << 20), (memory_size() or 1 << 62) // 8)


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
    size = GPU_MATRIX if place.type == "cuda" else CPU_MATRIX
    shape = (buffer_bytes(place.type) // (4 * ROW), ROW)
    on_cpu = torch.ones(shape) if place.type == "cpu" else None  # fresh memory is slow to get

    def read() -> float:
        numbers = torch.ones(shape, device=place) if on_cpu is None else on_cpu
        ones, sums = torch.ones(ROW, device=place), torch.empty(shape[0], device=place)
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
            memory_bytes=memory_size(),
            torch=torch.__version__,
            gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            device=place.type,
            read_bytes_per_second=read(),
            bf16_flops_per_second=product(torch.bfloat16) if gains_from_bf16(place) else None,
            fp32_flops_per_second=product(torch.float32),
        )
        if on_cpu is None:
            torch.cuda.empty_cache()  # the systems want it
        return measured.to_json()

    return call


def limits_system(device: str) -> System:
    """What measures the limits, as a worker's system."""
    return System(name="limits", load=f"{__name__}:load", settings={"device": device})
