"""How much memory a device has left, of the machine or of the container we are in."""

import os
from pathlib import Path

import torch


def available_memory(device: torch.device) -> int:
    """Free bytes of a device; of the machine for a CPU, or of the container we are in."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused  # what torch keeps is for its next ask
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    return min(machine_memory(), container_memory())


def machine_memory() -> int:
    """Free bytes of the machine: what Linux calls available; elsewhere all it has."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvail"))
    except (OSError, StopIteration, ValueError):
        if hasattr(os, "sysconf"):
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return 1 << 62


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
        return 1 << 62
