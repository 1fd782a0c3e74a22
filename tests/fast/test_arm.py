"""The kernels for 64-bit ARM, cross-compiled and run by an emulator: each beside its plain C self.

`compare.c` says what is compared. On a machine without the tools (in Debian the packages
gcc-aarch64-linux-gnu and qemu-user) there is nothing to see.
"""

import shutil
import subprocess
from pathlib import Path

import pytest

from regpt.fast.kernels import build

COMPILER, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64"
FLAGS = ("-O2", "-ffp-contract=off", "-fopenmp", f"-I{build.SOURCES}")


def run(*command: object) -> str:
    """What a command prints; the test fails with it if the command does."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The kernels for no instructions in particular, their names starting with plain_."""
    for tool in (COMPILER, EMULATOR):
        if shutil.which(tool) is None:
            pytest.skip(f"there is no {tool}")
    folder = tmp_path_factory.mktemp("plain")
    names = [f"-D{name}={name.replace('regpt_', 'plain_')}" for name in build.SIGNATURES]
    units = sorted(build.SOURCES.glob("*.c"))
    objects = [folder / f"{unit.name}.o" for unit in units]
    for unit, place in zip(units, objects, strict=True):
        run(COMPILER, *FLAGS, "-DREGPT_PORTABLE", *names, "-c", unit, "-o", place)
    return objects


@pytest.mark.parametrize(
    ("architecture", "used"),
    [("armv8-a", "NEON"), ("armv8.6-a+dotprod+bf16", "NEON BF16 DOTPROD")],
)
def test_every_kernel(plain: list[Path], tmp_path: Path, architecture: str, used: str) -> None:
    program = tmp_path / "compare"
    source = Path(__file__).parent / "compare.c"
    march = f"-march={architecture}"
    run(COMPILER, *FLAGS, march, "-static", source, *plain, "-o", program, "-lm")
    printed = run(EMULATOR, "-cpu", "max", program).splitlines()
    assert printed == [used, "329 comparisons, 0 failed"]
