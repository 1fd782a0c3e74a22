"""Systems under test, each in a worker process of its own (`worker.py`), seen from the parent.

One process per system, because allocator settings, thread pools and peak memory belong to a
process. Our own is started through regpt's command line and gets its allocator settings; the others
are plain Python processes. What cannot load or breaks later is a `WorkerFault` in one line: a
benchmark leaves that system out and says so.
"""

import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
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
    """Start it as `regpt` starts; otherwise a plain Python process."""

    @property
    def title(self) -> str:
        """For people: `regpt fast bf16`."""
        return " ".join(part for part in (self.name, self.engine, self.dtype) if part)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a call came to."""

    seconds: list[float]
    """One entry per repeat."""
    peak_memory_bytes: int | None
    """Of the worker's life so far."""
    facts: list[dict]
    """What the system told, per repeat."""


def machine_seconds() -> float | None:
    """Processor time everything on this machine has used since it started; None without /proc.

    Time that a virtual machine was denied (steal) counts: something else had it.
    """
    try:
        words = Path("/proc/stat").read_text(encoding="utf-8").split("\n", 1)[0].split()
    except OSError:
        return None
    user, nice, system, _idle, _waiting, *interrupts_and_steal = map(int, words[1:9])
    return (user + nice + system + sum(interrupts_and_steal)) / os.sysconf("SC_CLK_TCK")


class Worker:
    """A system in its process: load it, call it, close it."""

    def __init__(self, system: System, *, threads: int | None = None) -> None:
        self.system = system
        self.seconds_per_token = 0.0
        """Of its last job; 0: not known."""
        module = ("regpt", "bench", "worker") if system.ours else ("regpt.bench.worker",)
        environment = dict(os.environ)
        if threads is not None:
            environment["OMP_NUM_THREADS"] = str(threads)
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the worker)
        self._process = subprocess.Popen(
            [sys.executable, "-m", *module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment,
            text=True,
            encoding="utf-8",
        )
        self.ended = False
        """Whether it takes no further orders."""
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put("")

    def load(self, *, patience: float = PATIENCE_SECONDS) -> None:
        """Load the system; raises WorkerFault."""
        self._ask({"load": self.system.load, "settings": dict(self.system.settings)}, patience)

    def call(
        self,
        job: Mapping[str, object],
        *,
        repeats: int = 1,
        patience: float = PATIENCE_SECONDS,
    ) -> Answer:
        """Do a job, so many times in a row; raises WorkerFault, after which the worker is ended."""
        return Answer(**self._ask({"job": dict(job), "repeats": repeats}, patience))

    def _ask(self, order: Mapping[str, object], patience: float) -> dict:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
        try:
            line = self._answers.get(timeout=patience)
        except queue.Empty:
            self.kill()
            raise WorkerFault(f"no answer within {patience:.0f} s") from None
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

    def processor_seconds(self) -> float | None:
        """Processor time used so far, of all threads and of children that ended.

        In steps of 10 ms; None where Linux's /proc isn't, or the process is gone.
        """
        try:
            text = Path(f"/proc/{self._process.pid}/stat").read_text(encoding="utf-8")
        except OSError:
            return None
        return sum(map(int, text.rpartition(")")[2].split()[11:15])) / os.sysconf("SC_CLK_TCK")

    def settle(self) -> bool:
        """Wait until the worker rests: its threads may spin for a while after a call.

        True once it used no processor for 50 ms; False if it still does after a second.
        """
        deadline = time.monotonic() + 1.0
        before = self.processor_seconds()
        if before is None:
            time.sleep(0.25)
            return True
        while time.monotonic() < deadline:
            time.sleep(0.05)
            now = self.processor_seconds()
            if now is None or now == before:
                return True
            before = now
        return False

    def kill(self) -> None:
        """End the process at once, whatever it is doing."""
        self.ended = True
        self._process.kill()

    def close(self) -> None:
        """End the process: kindly, then not."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(CLOSING_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        with contextlib.suppress(OSError, ValueError):
            self._process.stdout.close()
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
