"""Keep freed memory: the C allocator's settings for a process that works on the CPU.

By default glibc gives every large block back to the kernel when it is freed, and takes fresh pages,
each zeroed on first touch, for the next one: a quarter of a training step goes into page faults.
Told to keep its pages, the process runs the same arithmetic on memory it already has; in pages of
2 MB the processor finds their addresses sooner. The command line applies it to every command,
before torch is loaded; a program that imports regpt keeps its own settings. Other C libraries have
no `mallopt`, and there nothing happens. `REGPT_KEEP_PAGES=0` switches it off.
"""

import ctypes
import mmap
import os
import sys

M_TRIM_THRESHOLD = -1
M_TOP_PAD = -2
M_MMAP_MAX = -4


def keep_pages() -> bool:
    """Never hand freed memory back to the kernel; True if the C library took the settings."""
    if not sys.platform.startswith("linux") or os.environ.get("REGPT_KEEP_PAGES") == "0":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # -1 switches trimming off (mallopt(3)); any threshold would be passed by a large step
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_TOP_PAD, 64 << 20))
    kept = all(mallopt(name, value) == 1 for name, value in settings)
    if kept:
        ask_for_huge_pages()
    return kept


def ask_for_huge_pages() -> None:
    """Let the heap consist of pages of 2 MB where the system has them for those who ask.

    Asked for is a quarter of the machine's memory, as addresses: nothing is taken until it is
    written to.
    """
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, (ctypes.c_size_t,)
    libc.free.argtypes = (ctypes.c_void_p,)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    size = os.sysconf("SC_PHYS_PAGES") // 4 * mmap.PAGESIZE
    block = libc.malloc(size)
    if block:
        libc.madvise(block + -block % mmap.PAGESIZE, size - mmap.PAGESIZE, mmap.MADV_HUGEPAGE)
        libc.free(block)
