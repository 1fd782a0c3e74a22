"""Alternating rounds: every system does the same job in turn, so that a machine's moods hit all.

A first round warms up, each system twice: memory that nothing has touched for long is slow to get
(seconds for the gigabytes of a training step, on a virtual machine whose host must find it first).
Then round after round, each system once, one at a time, while the others rest. A call repeats a
short job, so that what is timed is a second or two. Two rules keep slow systems affordable:

- a first call of `SLOW_SECONDS` or more is not repeated, and stands in until there is a better one;
  so does a call during which something else kept the machine busy;
- a system that has a figure is passed over when its next call would go beyond the time budget.

A budget is a wish: every system is timed once, however long that takes. A strict one holds: what
will not fit in the rest of it is left out and named, a call that outlasts it is ended, and a system
that only warmed up is told by its first call.
"""

import contextlib
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from regpt.bench.rows import Finder, Observer, Row
from regpt.bench.workers import (
    PATIENCE_SECONDS,
    Answer,
    OutOfTime,
    System,
    Worker,
    WorkerFault,
    loaded,
    machine_seconds,
)

SLOW_SECONDS = 10.0
"""A first call this long is warm-up enough, and better than no figure."""
CALL_SECONDS = 2.0
"""A call repeats its job about this long,"""
MOST_REPEATS = 8
"""but at most so often."""
UNDISTURBED = 0.1
"""Processors that others may use before a figure is doubted,"""
SHORTEST = 0.2
"""and how long a call must be to say so: the clocks count in hundredths of a second."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What all systems do."""

    name: str
    tokens: int
    """Tokens of one job: what the rate is counted in."""
    arguments: Mapping[str, object] = field(default_factory=dict)
    """Given to the system's call; JSON values."""


@dataclass(kw_only=True)
class Measured:
    """One system's figures in one job."""

    system: System
    seconds: list[float] = field(default_factory=list)
    """Of each repeat that counts."""
    stands_in: bool = False
    """Whether that is only the first call of a slow system, or calls that were disturbed."""
    typical: float = 0.0
    """Of one repeat, as the last call had it."""
    repeats: int = 1
    warm: list[float] = field(default_factory=list)
    """Of the newest first call, which warms up."""
    peak_memory_bytes: int | None = None
    facts: dict[str, object] = field(default_factory=dict)

    def take(self, answer: Answer, *, first: bool, disturbed: bool) -> None:
        """Add a call's answer; what is not sound counts only as long as nothing sound is there."""
        self.typical = statistics.median(answer.seconds)
        self.repeats = max(1, min(MOST_REPEATS, round(CALL_SECONDS / max(self.typical, 1e-9))))
        slow = answer.seconds[0] >= SLOW_SECONDS
        if first and not slow:
            self.warm = answer.seconds
        elif not self.seconds:
            self.seconds, self.stands_in = answer.seconds, first or disturbed
        elif self.stands_in and not disturbed:
            self.seconds, self.stands_in = answer.seconds, False
        elif self.stands_in or not disturbed:
            self.seconds = self.seconds + answer.seconds
        if answer.peak_memory_bytes is not None:
            self.peak_memory_bytes = max(self.peak_memory_bytes or 0, answer.peak_memory_bytes)
        self.facts = answer.facts

    def row(self, job: Job) -> Row:
        """The medians as a row of the table."""
        middle = statistics.median(self.seconds)
        return Row(
            job=job.name,
            system=self.system.name,
            dtype=self.system.dtype,
            engine=self.system.engine,
            seconds=middle,
            tokens_per_second=job.tokens / middle,
            peak_memory_bytes=self.peak_memory_bytes,
            fastest_seconds=min(self.seconds),
            slowest_seconds=max(self.seconds),
            timed=len(self.seconds),
        )


class Others:
    """How busy the machine was, during calls, with anything but the worker that was called."""

    def __init__(self) -> None:
        self.elapsed = 0.0
        self.used = 0.0
        self.last = 0.0
        """Processors others used during the last call, as far as can be said."""

    @contextlib.contextmanager
    def while_working(self, worker: Worker) -> Iterator[None]:
        """Count what is used during this call."""
        clock, ours, all_of_it = time.monotonic(), worker.processor_seconds(), machine_seconds()
        self.last = 0.0
        yield
        ours_now, all_now = worker.processor_seconds(), machine_seconds()
        if ours is None or ours_now is None or all_of_it is None or all_now is None:
            return
        elapsed, used = time.monotonic() - clock, (all_now - all_of_it) - (ours_now - ours)
        self.elapsed += elapsed
        self.used += used
        if elapsed >= SHORTEST:
            self.last = used / elapsed

    def processors(self) -> float | None:
        """Mean number of processors; None: too short to say, or not known."""
        return self.used / self.elapsed if self.elapsed >= 1.0 else None


@dataclass(kw_only=True)
class Turns:
    """One job under way: who has which figures, and what is left of the budget."""

    job: Job
    seconds: float
    strict: bool
    observe: Observer
    found: Finder
    faults: list[str]
    table: dict[Worker, Measured]
    others: Others = field(default_factory=Others)
    start: float = field(default_factory=time.monotonic)

    def left(self) -> float:
        return self.seconds - (time.monotonic() - self.start)

    def expected(self, worker: Worker, *, first: bool) -> float:
        """Seconds the next call will take at least, as far as is known."""
        measured = self.table[worker]
        if not measured.typical:
            return worker.pace * self.job.tokens
        return measured.typical * (1 if first else measured.repeats)

    def fits(self, worker: Worker, *, first: bool) -> bool:  # in what is left of the budget
        return self.expected(worker, first=first) < self.left()

    def call(self, worker: Worker, *, first: bool) -> None:
        """Do the job; a worker that fails is left out."""
        measured, title = self.table[worker], worker.system.title
        self.observe(f"{self.job.name}: {title}")
        try:
            with self.others.while_working(worker):
                answer = worker.call(
                    self.job.arguments,
                    repeats=1 if first else measured.repeats,
                    patience=max(self.left(), 0.0) if self.strict else PATIENCE_SECONDS,
                )
        except WorkerFault as fault:
            if not isinstance(fault, OutOfTime) or not (measured.seconds or measured.warm):
                del self.table[worker]
            self.faults.append(f"{self.job.name}: {title} is left out: {fault}")
            return
        measured.take(answer, first=first, disturbed=self.others.last > UNDISTURBED)
        worker.pace = measured.typical / self.job.tokens
        if measured.seconds:
            self.found(measured.row(self.job))
        restless = f"{self.job.name}: {title} uses the processor while it waits"
        if not worker.settle() and restless not in self.faults:
            self.faults.append(restless)

    def warm_up(self) -> None:
        """The first round: every system twice, or what a strict budget has room for."""
        for worker in list(self.table):
            if self.strict and not self.fits(worker, first=True):
                expected, left = self.expected(worker, first=True), max(self.left(), 0.0)
                why = f"a call takes {expected:.0f} s or more, " if expected else ""
                why += f"{left:.0f} s are left of {self.seconds:g}"
                self.faults.append(f"{self.job.name}: {worker.system.title} is left out: {why}")
                del self.table[worker]
                continue
            self.call(worker, first=True)
            again = worker in self.table and not worker.ended and not self.table[worker].stands_in
            if again and (not self.strict or self.fits(worker, first=True)):
                self.call(worker, first=True)

    def go_round(self) -> bool:
        """Every system once that is due; whether any was."""
        due = False
        for worker in list(self.table):
            wanted = not self.table[worker].seconds and not self.strict
            if not worker.ended and (wanted or self.fits(worker, first=False)):
                self.call(worker, first=False)
                due = True
        return due

    def stand_in(self) -> None:
        """Let the first call of those stand in that came no further."""
        cold = [each for each in self.table.values() if each.warm and not each.seconds]
        for measured in cold:
            measured.seconds, measured.stands_in = measured.warm, True
            self.found(measured.row(self.job))
        if cold:
            names = ", ".join(each.system.title for each in cold)
            self.faults.append(f"{self.job.name}: figures of a first call only: {names}")


def alternate(
    workers: Sequence[Worker],
    job: Job,
    *,
    seconds: float,
    rounds: int,
    observe: Observer,
    faults: list[str],
    found: Finder = lambda row: None,
    strict: bool = False,
) -> list[Measured]:
    """Do the job on every worker in turn: at most so many rounds, within so many seconds.

    Every worker is timed at least once, unless the budget is `strict`. One that fails is added to
    `faults` and takes no further part. `found` gets a row whenever it has a new figure.
    """
    turns = Turns(
        job=job,
        seconds=seconds,
        strict=strict,
        observe=observe,
        found=found,
        faults=faults,
        table={worker: Measured(system=worker.system) for worker in workers if not worker.ended},
    )
    try:
        turns.warm_up()
        for _ in range(rounds):
            if not turns.go_round():
                break
        if strict:
            turns.stand_in()
    except KeyboardInterrupt:  # what is there is told
        turns.stand_in()
        raise
    measured = list(turns.table.values())
    if (busy := turns.others.processors()) is not None and busy > UNDISTURBED:
        doubtful = [each.system.title for each in measured if each.stands_in]
        figures = f"; figures too slow: {', '.join(doubtful)}" if doubtful else ""
        faults.append(f"{job.name}: something else kept {busy:.2f} processors busy{figures}")
    return measured


def measure(
    systems: Sequence[System],
    job: Job,
    *,
    seconds: float,
    rounds: int,
    observe: Observer,
    faults: list[str],
    found: Finder = lambda row: None,
    strict: bool = False,
    together: bool = True,
    threads: int | None = None,
) -> list[Measured]:
    """Start the systems, do the job, end them.

    `together`: all in memory at once, in alternating rounds; otherwise one after the other, for a
    GPU, whose memory would not hold them all and whose timings are steady.
    """
    groups = [list(systems)] if together else [[system] for system in systems]
    measured = []
    for group in groups:
        with loaded(group, observe=observe, faults=faults, threads=threads) as workers:
            measured += alternate(
                workers,
                job,
                seconds=seconds / len(groups),
                rounds=rounds,
                observe=observe,
                faults=faults,
                found=found,
                strict=strict,
            )
    return measured
