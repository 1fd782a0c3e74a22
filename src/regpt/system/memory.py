"""Memory and processors: of this process, the machine, the container we are in, or a device.

Importing this loads nothing heavy; a worker of a benchmark may have no torch.
"""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

UNLIMITED = 1 << 62


def usable_cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def uses_cuda() -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized()


def peak_memory(device: "torch.device | None" = None) -> int | None:
    """The most bytes this process has held so far: on a CUDA device (by default the one in use, if
    any) torch's tensors, else its own pages; None where the system does not say."""
    if uses_cuda() if device is None else device.type == "cuda":
        return sys.modules["torch"].cuda.max_memory_allocated(device)
    # getrusage would remember the parent's pages too
    return linux_bytes(Path("/proc/self/status"), "VmHWM:")


def available_memory(device: "torch.device") -> int:
    """Free bytes of a device; of the machine for a CPU, or of the container we are in."""
    import torch

    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused  # what torch keeps is for its next ask
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    machine = linux_bytes(Path("/proc/meminfo"), "MemAvailable:")
    return min(machine or total_memory(), container_memory())


def total_memory() -> int:
    if not hasattr(os, "sysconf"):
        return UNLIMITED
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def linux_bytes(file: Path, name: str) -> int | None:
    """A size that Linux tells in kB, by its name; None on other systems."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))
    except (OSError, StopIteration, ValueError):
        return None


def container_memory(group: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes left in a container's limit (control groups, version 2); without one, no limit."""
    try:
        limit = int((group / "memory.max").read_text())
        held = int((group / "memory.current").read_text())
        for line in (group / "memory.stat").read_text().splitlines():
            name, _, size = line.partition(" ")
            held -= int(size) if name == "inactive_file" else 0  # given up when it is wanted
        return limit - held
    except (OSError, ValueError):  # "max" is no number
        return UNLIMITED
