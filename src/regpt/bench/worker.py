"""A system under test in a process of its own: both ends of the pipe.

One process per system, because allocator settings, thread pools and peak memory belong to a
process. Orders go out on its stdin and answers come in on its stdout, one JSON object a line:

    {"load": "module:function", "settings": {...}, "ours": false}  ->  {"ready": true}
    {"job": {...}, "once": false}  ->  {"seconds": [...], "peak_memory_bytes": N, "facts": {...}}

`function(**settings)` loads the system and returns its `call(**job)`. `module` may be the path of a
script. A call may return facts, JSON values; its fact `parts`, seconds by name, is what it timed
itself. Time is taken in the worker, around each call, so no pipe is in it. Whatever fails is
answered as {"fault": "one line"}, a `WorkerFault` here. A worker that waits blocks in a read and
uses no processor; when its parent is gone it reads the end of the file and ends.
"""

import contextlib
import json
import os
import runpy
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import IO

from regpt.system.malloc import keep_pages
from regpt.system.memory import peak_memory, uses_cuda

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


# ---- in the worker ----

REPEAT_SECONDS = 1.0
"""A short job is done again until this time is over,"""
MOST_REPEATS = 8
"""but at most so often."""

Facts = Mapping[str, object]
Call = Callable[..., Facts | None]
"""One job of a system; returns facts that go into the answer, or None."""


def load(place: str, settings: Facts) -> Call:
    """Import `module:function` and let it load the system."""
    module, _, name = place.rpartition(":")
    if module.endswith(".py"):
        return runpy.run_path(module)[name](**settings)
    return getattr(import_module(module), name)(**settings)


def synchronize() -> None:
    if uses_cuda():
        sys.modules["torch"].cuda.synchronize()


def timed(call: Call, job: Facts, *, once: bool) -> dict[str, object]:
    """Do a job, once or for about a second; the answer, with the facts of the last time."""
    seconds, facts = [], {}
    while not seconds or not (
        once or sum(seconds) >= REPEAT_SECONDS or len(seconds) == MOST_REPEATS
    ):
        synchronize()
        clock = time.perf_counter()
        facts = dict(call(**job) or {})
        synchronize()
        seconds.append(time.perf_counter() - clock)
    return {"seconds": seconds, "peak_memory_bytes": peak_memory(), "facts": facts}


def in_one_line(error: BaseException) -> str:
    """What went wrong, for a table's footnote."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"the package {error.name.partition('.')[0]} is not installed"
    text = str(error).strip().partition("\n")[0]
    return text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}"


def serve() -> None:
    """Load what the first line names, then answer until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints must not come between the answers

    def answer(facts: Facts) -> None:
        answers.write(json.dumps(facts) + "\n")
        answers.flush()

    call: Call | None = None
    for line in sys.stdin:
        order = json.loads(line)
        try:
            if call is None:
                if order["ours"]:
                    keep_pages()  # as the command line does
                call = load(order["load"], order["settings"])
                answer({"ready": True})
            else:
                answer(timed(call, order["job"], once=order["once"]))
        except Exception as error:  # told to the parent, which leaves this system out
            answer({"fault": in_one_line(error)})
            return


if __name__ == "__main__":
    serve()
