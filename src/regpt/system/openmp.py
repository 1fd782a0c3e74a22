"""How long OpenMP's threads wait in a loop before they sleep.

GNU's runtime, which torch's wheels for Linux bring, spins for milliseconds at the end of each
parallel region. Alone that costs nothing; of two busy processes on the same cores, each then holds
the core that the other waits for. Some ten microseconds are enough for the gaps within an operator
(`benchmarks/two_processes.py`).
"""

import os

SPINS = 5_000


def spin_briefly() -> None:
    """Set it for this process, if torch is not loaded yet and the environment says nothing."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))
