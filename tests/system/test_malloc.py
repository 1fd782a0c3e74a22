"""A process that keeps its pages has them in sizes of 2 MB, where the system gives such."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import re
from pathlib import Path
from regpt.system.malloc import keep_pages
assert keep_pages()
import numpy
numbers = numpy.ones(16 << 20)
print(re.search("AnonHugePages: *([0-9]*)", Path("/proc/self/smaps_rollup").read_text())[1])
"""


def test_large_blocks_lie_in_huge_pages() -> None:
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not setting.is_file() or "[never]" in setting.read_text():
        pytest.skip("this system has no transparent huge pages")
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 64 << 10, "kilobytes in huge pages, of 128 MB"
