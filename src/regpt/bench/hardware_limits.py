"""What this machine is, and what it can do at most: reading memory, multiplying matrices.

The limits are measured, each in about a second, the best of the repeats: they are what a program's
figures are a share of. A sum over an array far larger than the caches gives the read bandwidth; a
square matrix product gives the rate in bfloat16 and in float32 as torch runs them by default.
"""

import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from regpt.bench.workers import System, Worker
from regpt.system.errors import UserError

SECONDS_EACH = 0.8
CPU_MATRIX, GPU_MATRIX = 2048, 8192
"""Rows and columns of the matrices,"""
CPU_NUMBERS, GPU_NUMBERS = 1 << 27, 1 << 30
"""and float32 numbers that are read: 0.5 and 4 GB."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Facts and limits; a limit of None was not measured."""

    cpu: str
    cores: int
    """Processors this process may use."""
    threads: int
    """Threads torch computes with."""
    memory_bytes: int | None
    torch: str
    gpu: str | None
    device: str
    """Where the limits were measured: cpu or cuda."""
    read_bytes_per_second: float | None = None
    bf16_flops_per_second: float | None = None
    fp32_flops_per_second: float | None = None

    def to_json(self) -> dict[str, object]:
        """A JSON object."""
        return asdict(self)

    def at_best(self, again: "Machine") -> "Machine":
        """The same with the higher of each limit: what else ran can only have lowered one."""
        names = ("read_bytes_per_second", "bf16_flops_per_second", "fp32_flops_per_second")
        pairs = {name: (getattr(self, name), getattr(again, name)) for name in names}
        return replace(self, **{n: max(p) for n, p in pairs.items() if None not in p})

    def describe(self) -> str:
        """One line: what it is."""
        parts = [self.gpu] if self.gpu and self.device == "cuda" else []
        parts.append(f"{self.cpu}, {self.cores} cores, {self.threads} threads")
        if self.memory_bytes:
            parts.append(f"{self.memory_bytes / 2**30:.0f} GiB")
        return ", ".join([*parts, f"torch {self.torch}"])

    def describe_limits(self) -> str:
        """One line: what it can do."""

        def tell(value: float | None, unit: float, name: str) -> str:
            return "not measured" if value is None else f"{value / unit:,.0f} {name}"

        unit, name = (1e12, "TFLOP/s") if self.device == "cuda" else (1e9, "GFLOP/s")
        return (
            f"limits measured on {self.device}: memory read "
            f"{tell(self.read_bytes_per_second, 1e9, 'GB/s')}, matrix product bf16 "
            f"{tell(self.bf16_flops_per_second, unit, name)}, fp32 "
            f"{tell(self.fp32_flops_per_second, unit, name)}"
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


def best_seconds(work: Callable[[], object], synchronize: Callable[[], None]) -> float:
    """The shortest of the repeats that fit in `SECONDS_EACH`, after one to warm up."""
    work()
    synchronize()
    end = time.perf_counter() + SECONDS_EACH
    best = float("inf")
    while (clock := time.perf_counter()) < end:
        work()
        synchronize()
        best = min(best, time.perf_counter() - clock)
    return best


def load(device: str) -> Callable[[], Mapping[str, object]]:
    """In a worker: a call that looks at the machine and measures its limits."""
    import torch

    from regpt.system.runtime import find_runtime, gains_from_bf16

    runtime = find_runtime(device)
    place = runtime.device
    on_gpu = place.type == "cuda"
    size = GPU_MATRIX if on_gpu else CPU_MATRIX
    elements = GPU_NUMBERS if on_gpu else CPU_NUMBERS

    def product(dtype: torch.dtype) -> float:
        left, right = (torch.randn(size, size, device=place).to(dtype) for _ in range(2))
        out = torch.empty_like(left)
        taken = best_seconds(lambda: torch.mm(left, right, out=out), runtime.synchronize)
        return 2 * size**3 / taken

    def call() -> Mapping[str, object]:
        numbers = torch.ones(elements, device=place)
        read = 4 * elements / best_seconds(numbers.sum, runtime.synchronize)
        del numbers
        bf16 = product(torch.bfloat16) if gains_from_bf16(place) else None
        return Machine(
            cpu=cpu_name(),
            cores=usable_cores(),
            threads=runtime.threads,
            memory_bytes=memory_size(),
            torch=torch.__version__,
            gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            device=place.type,
            read_bytes_per_second=read,
            bf16_flops_per_second=bf16,
            fp32_flops_per_second=product(torch.float32),
        ).to_json()

    return call


def find_machine(device: str = "auto", *, threads: int | None = None) -> Machine:
    """Measure this machine in a process of its own, so that nothing of it stays in memory.

    Raises:
        UserError: the device is not there, or no threads are.
    """
    from regpt.bench.workers import WorkerFault

    if threads is not None and threads < 1:
        raise UserError(f"threads must be at least 1, got {threads}")
    system = System(
        name="machine",
        dtype="",
        load="regpt.bench.hardware_limits:load",
        settings={"device": device},
    )
    worker = Worker(system, threads=threads)
    try:
        worker.load()
        return Machine(**worker.call({}).facts)  # pyright: ignore[reportArgumentType]
    except WorkerFault as fault:
        raise UserError(str(fault)) from None
    finally:
        worker.close()
