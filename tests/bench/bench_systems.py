"""Small systems for the workers of the tests: no torch, next to no work."""

import os
import signal
import sys
import time
from collections.abc import Callable


def load(*, log: str, sign: str) -> Callable[..., dict[str, object]]:
    """Appends its sign to a file, and prints where answers must not go."""
    print("a library that prints")

    def call(*, job: str, sleep: float = 0.0) -> dict[str, object]:
        time.sleep(sleep)
        print("and again")
        with open(log, "a", encoding="utf-8") as file:
            file.write(sign)
        return {"job": job, "sign": sign}

    return call


def needs_a_package(**settings: object) -> Callable[..., None]:
    """A system whose package is nowhere."""
    import no_such_package.inner  # noqa: F401  # pyright: ignore

    raise AssertionError


def breaks(*, at: int, how: str) -> Callable[..., None]:
    """Fails in its call number `at`."""
    count = 0

    def call(**job: object) -> None:
        nonlocal count
        count += 1
        if count < at:
            return
        if how == "raise":
            raise RuntimeError("no operator\nand a long story")
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        sys.stderr.write("first\nout of luck\n")
        sys.stderr.flush()
        os._exit(3)

    return call


def holds(*, megabytes: int) -> Callable[..., None]:
    """Touches so much memory and lets it go again."""
    held = bytearray(megabytes << 20)
    del held

    def call(**job: object) -> None:
        return None

    return call


def quick_limits(device: str) -> Callable[[], object]:
    """The machine's limits as they are measured, over little memory and small matrices."""
    from regpt.bench import hardware_limits

    hardware_limits.SECONDS_EACH, hardware_limits.CPU_MATRIX = 0.01, 64
    hardware_limits.buffer_bytes = lambda device: 1 << 20
    return hardware_limits.load(device)


def limits() -> Callable[[], dict[str, object]]:
    """A machine that is not measured."""
    return lambda: {"cpu": "a chip", "fp32_flops_per_second": 1e15}
