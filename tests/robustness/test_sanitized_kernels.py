"""The C kernels under AddressSanitizer and UBSan, called at random."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from regpt.fast.kernels import build

HARNESS = Path(__file__).parent / "sanitized.py"
LEAST_CALLS = 2000


def sanitizer() -> str:
    """AddressSanitizer's library, which must be loaded before Python; skips where there is none."""
    if (reason := build.unavailable_reason()) is not None:
        pytest.skip(reason)
    compiler = next(filter(None, map(shutil.which, build.COMPILERS)))
    command = [compiler, "-print-file-name=libasan.so"]
    found = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    if not Path(found).is_file():
        pytest.skip(f"{compiler} has no shared AddressSanitizer")
    return found


def run(folder: Path, code: list[str]) -> subprocess.CompletedProcess[str]:
    """Python with the sanitizer loaded."""
    environment = os.environ | {
        "LD_PRELOAD": sanitizer(),
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "OMP_NUM_THREADS": "2",
        "OMP_WAIT_POLICY": "passive",
    }
    command = [sys.executable, *code]
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=folder, check=False
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the sanitized kernels are compiled, once."""
    return tmp_path_factory.mktemp("sanitized")


def test_no_kernel_leaves_its_buffers(folder: Path) -> None:
    done = run(folder, [str(HARNESS), str(folder), "1"])
    assert done.returncode == 0, done.stderr[-4000:]
    assert int(done.stdout.split()[-1]) >= LEAST_CALLS


def test_the_sanitizer_is_awake(folder: Path) -> None:
    """A buffer one row too short, given on purpose, is found out."""
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1])\n"
        "import sanitized, torch\n"
        "sanitized.use_sanitizers(Path(sys.argv[2]))\n"
        "x, delta, total = torch.zeros(3, 32), sanitized.low(4, 32), torch.zeros(4, 32)\n"
        "places = (tensor.data_ptr() for tensor in (x, delta, total))\n"
        "sanitized.build.load_library().regpt_add(128, *places, 1)\n"
    )
    done = run(folder, ["-c", code, str(HARNESS.parent), str(folder)])
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr
