"""Systems under test, each in a worker process of its own (`worker.py`), seen from the parent.

One process per system, because allocator settings, thread pools and peak memory belong to a
process. What cannot load or breaks later is a `WorkerFault` in one line: a benchmark leaves that
system out and says so.
"""

import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import IO

PATIENCE_SECONDS = 900.0
"""What loading, or one call, may take."""
CLOSING_SECONDS = 5.0


class WorkerFault(Exception):
    """A system that cannot load or broke: the message is one line."""


@dataclass(frozen=True, kw_only=True)
class System:
    """Something to measure."""

    name: str
    dtype: str = ""
    engine: str = ""
    """How it computes, where it has several ways."""
    load: str
    """`module:function`, imported in the worker; called with `settings`, returns the call."""
    settings: Mapping[str, object] = field(default_factory=dict)
    """JSON values."""
    ours: bool = False
    """Give it the allocator settings that the command line gives itself."""

    @property
    def title(self) -> str:
        """For people: `regpt fast bf16`."""
        return " ".join(part for part in (self.name, self.engine, self.dtype) if part)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a call came to."""

    seconds: list[float]
    """One entry for each time that the job was done."""
    peak_memory_bytes: int | None
    """Of the worker's life so far."""
    facts: dict
    """What the system told, the last time."""


class Worker:
    """A system in its process: load it, call it, close it."""

    def __init__(self, system: System, *, threads: int | None = None) -> None:
        self.system = system
        self.seconds_per_token = 0.0
        """Of its last job; 0: not known."""
        self.ended = False
        """Whether it takes no further orders."""
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the worker)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "regpt.bench.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=os.environ | ({} if threads is None else {"OMP_NUM_THREADS": str(threads)}),
            text=True,
            encoding="utf-8",
        )

    def load(self, *, patience: float = PATIENCE_SECONDS) -> None:
        """Load the system; raises WorkerFault."""
        system = self.system
        order = {"load": system.load, "settings": dict(system.settings), "ours": system.ours}
        self._ask(order, patience)

    def call(
        self, job: Mapping[str, object], *, once: bool = True, patience: float = PATIENCE_SECONDS
    ) -> Answer:
        """Do a job, once or for a second; raises WorkerFault, after which the worker is ended."""
        return Answer(**self._ask({"job": dict(job), "once": once}, patience))

    def _ask(self, order: Mapping[str, object], patience: float) -> dict:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
        # one line is on its way at most, so that none waits in the reader's buffer
        if not select.select([self._process.stdout], [], [], patience)[0]:
            self.kill()
            raise WorkerFault(f"no answer within {patience:.0f} s")
        line = self._process.stdout.readline()
        answer = json.loads(line) if line else {"fault": self._last_words()}
        if "fault" in answer:
            self.ended = True
            raise WorkerFault(answer["fault"])
        return answer

    def _last_words(self) -> str:
        """Why the process is gone: its signal, or the end of what it wrote on stderr."""
        code = self._process.wait()
        if code < 0:
            often = ", as when memory runs out" if code == -9 else ""
            return f"its process was ended by signal {-code}{often}"
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        return f"its process ended with code {code}{': ' + lines[-1].strip() if lines else ''}"

    def kill(self) -> None:
        """End the process at once, whatever it is doing."""
        self.ended = True
        self._process.kill()

    def close(self) -> None:
        """End the process: kindly, then not."""
        try:
            self._process.communicate(timeout=CLOSING_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
        self._errors.close()


@contextlib.contextmanager
def started(system: System, *, threads: int | None = None) -> Iterator[Worker]:
    """A worker that is ended afterwards; at once if we are interrupted."""
    worker = Worker(system, threads=threads)
    try:
        yield worker
    except KeyboardInterrupt:  # nobody waits for what it is doing
        worker.kill()
        raise
    finally:
        worker.close()
