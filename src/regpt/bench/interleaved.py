"""Interleaved rounds: every system does the same job in turn, so load drift affects all equally.

A first round warms up, each system twice: memory that nothing has touched for long is slow to get
(seconds for the gigabytes of a training step, on a virtual machine whose host must find it first).
Then round after round, each system once, one at a time, while the others rest, and the machine's
limits beside them. A call repeats a short job, so that what is timed is a second or two. A first
call of `SLOW_SECONDS` or more is not repeated, and counts until there is a better one.
"""

import contextlib
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from regpt.bench.results import Row
from regpt.bench.session import Session
from regpt.bench.workers import (
    PATIENCE_SECONDS,
    Answer,
    System,
    Worker,
    WorkerFault,
    machine_seconds,
    started,
)
from regpt.system.errors import UserError

SLOW_SECONDS = 10.0
"""A first call this long is warm-up enough, and better than no figure."""
CALL_SECONDS = 2.0
"""A call repeats its job about this long,"""
MOST_REPEATS = 8
"""but at most so often."""
UNDISTURBED = 0.1
"""Processors that others may use before figures are doubted."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What all systems do."""

    name: str
    tokens: int | None = None
    """Tokens of one job: what the rate is counted in."""
    arguments: Mapping[str, object] = field(default_factory=dict)
    """Given to the system's call; JSON values."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Time for the calls of one job, all systems together."""

    seconds: float
    rounds: int
    strict: bool = False
    """What will not fit is left out and named, and a call that outlasts the budget is ended.
    Otherwise every system is timed once, however long that takes."""

    @classmethod
    def asked(cls, seconds: float | None, rounds: int, *, default: float) -> "Budget":
        """Strict if somebody asked for so many seconds; raises UserError for what is no budget."""
        if rounds < 1 or (seconds is not None and not 0 <= seconds < float("inf")):
            raise UserError(
                f"rounds must be at least 1 and seconds not negative: {rounds}, {seconds}"
            )
        return cls(
            seconds=default if seconds is None else seconds,
            rounds=rounds,
            strict=seconds is not None,
        )


@dataclass(kw_only=True)
class Measured:
    """One system's figures in one job."""

    system: System
    warm: list[float] = field(default_factory=list)
    """Seconds of the newest first call,"""
    timed: list[float] = field(default_factory=list)
    """and of each repeat after it."""
    parts: dict[str, list[float]] = field(default_factory=dict)
    """What a call timed itself, since its first."""
    typical: float = 0.0
    """Of one repeat, as the last call had it."""
    repeats: int = 1
    peak_memory_bytes: int | None = None
    facts: dict[str, object] = field(default_factory=dict)

    def take(self, answer: Answer, *, first: bool) -> None:
        """Add a call's answer."""
        self.typical = statistics.median(answer.seconds)
        self.repeats = max(1, min(MOST_REPEATS, round(CALL_SECONDS / max(self.typical, 1e-9))))
        self.peak_memory_bytes = answer.peak_memory_bytes
        if first:
            self.warm = answer.seconds
        else:
            self.timed += answer.seconds
        if first or len(self.timed) == len(answer.seconds):
            self.parts = {}
        for facts in answer.facts:
            for name, seconds in facts.pop("parts", {}).items():
                self.parts.setdefault(name, []).append(seconds)
            self.facts = facts

    def rows(self, job: Job) -> list[Row]:
        """The medians, of the whole job and then of its parts."""

        def row(name: str, seconds: Sequence[float], tokens: int | None) -> Row:
            middle = statistics.median(seconds)
            return Row(
                job=name,
                system=self.system.name,
                dtype=self.system.dtype,
                engine=self.system.engine,
                seconds=middle,
                tokens_per_second=tokens / middle if tokens else None,
                peak_memory_bytes=self.peak_memory_bytes,
                fastest_seconds=min(seconds),
                slowest_seconds=max(seconds),
                timed=len(seconds),
                first_call=not self.timed,
                facts=self.facts,
            )

        parts = [row(f"{job.name}: {name}", each, None) for name, each in self.parts.items()]
        return [row(job.name, self.timed or self.warm, job.tokens), *parts]


def measure_others(workers: Sequence[Worker]) -> Callable[[], float | None]:
    """A function that says how many processors anything but us and the workers has used since."""

    def used() -> float | None:
        seconds = [machine_seconds(), *(worker.processor_seconds() for worker in workers)]
        known = [value for value in seconds if value is not None]
        if len(known) < len(seconds):
            return None
        return known[0] - sum(known[1:]) - sum(os.times()[:4])

    clock, before = time.monotonic(), used()

    def processors() -> float | None:
        elapsed, now = time.monotonic() - clock, used()
        if before is None or now is None or elapsed < 1.0:  # the clocks count in 10 ms
            return None
        return (now - before) / elapsed

    return processors


@dataclass(kw_only=True)
class Turns:
    """One job under way: who has which figures, and what is left of the budget."""

    session: Session
    job: Job
    budget: Budget
    table: dict[Worker, Measured]
    start: float = field(default_factory=time.monotonic)

    def left(self) -> float:
        return max(self.budget.seconds - (time.monotonic() - self.start), 0.0)

    def expected(self, worker: Worker, *, first: bool) -> float:
        """Seconds the next call will take at least, as far as is known."""
        measured = self.table[worker]
        if not measured.typical:
            return worker.seconds_per_token * (self.job.tokens or 0)
        return measured.typical * (1 if first else measured.repeats)

    def fits(self, worker: Worker, *, first: bool) -> bool:
        return self.expected(worker, first=first) < self.left()

    def call(self, worker: Worker, *, first: bool) -> None:
        """Do the job; a worker that fails takes no further part."""
        measured, title = self.table[worker], worker.system.title
        self.session.doing(f"{self.job.name}: {title}")
        try:
            answer = worker.call(
                self.job.arguments,
                repeats=1 if first else measured.repeats,
                patience=self.left() if self.budget.strict else PATIENCE_SECONDS,
            )
        except WorkerFault as fault:
            out = "takes no further part" if measured.typical else "is left out"
            self.session.note(f"{self.job.name}: {title} {out}: {fault}")
            return
        measured.take(answer, first=first)
        worker.seconds_per_token = measured.typical / (self.job.tokens or 1)
        for row in measured.rows(self.job):
            self.session.found(row)
        if not worker.settle():
            self.session.note(f"{self.job.name}: {title} uses the processor while it waits")

    def warm_up(self) -> None:
        """The first round: every system twice, or what a strict budget has room for."""
        strict = self.budget.strict
        for worker, measured in self.table.items():
            if strict and not self.fits(worker, first=True):
                expected = self.expected(worker, first=True)
                why = f"a call takes {expected:.0f} s or more, " if expected else ""
                why += f"{self.left():.0f} s are left of {self.budget.seconds:g}"
                self.session.note(f"{self.job.name}: {worker.system.title} is left out: {why}")
                continue
            self.call(worker, first=True)
            again = not worker.ended and measured.typical < SLOW_SECONDS
            if again and (not strict or self.fits(worker, first=True)):
                self.call(worker, first=True)

    def go_round(self) -> bool:
        """Every system once that is due; whether any was."""
        due = False
        for worker, measured in self.table.items():
            if worker.ended or not measured.typical:
                continue
            has_figure = measured.timed or measured.typical >= SLOW_SECONDS or self.budget.strict
            if not has_figure or self.fits(worker, first=False):
                self.call(worker, first=False)
                due = True
        if due:
            self.session.measure_limits()
        return due


def alternate(session: Session, workers: Sequence[Worker], job: Job, budget: Budget) -> None:
    """Do the job on every worker in turn; the session gets the rows as they come, and faults."""
    table = {worker: Measured(system=worker.system) for worker in workers if not worker.ended}
    turns = Turns(session=session, job=job, budget=budget, table=table)
    limits = [session.limits] if session.limits else []
    others = measure_others([*table, *limits])
    turns.warm_up()
    for _ in range(budget.rounds):
        if not turns.go_round():
            break
    if (busy := others()) is not None and busy > UNDISTURBED:
        session.note(f"{job.name}: something else kept {busy:.2f} processors busy")


@contextlib.contextmanager
def loaded(
    session: Session, systems: Sequence[System], *, deadline: float | None = None
) -> Iterator[list[Worker]]:
    """Workers of the systems that load, one after the other; the session is told of the rest.

    Others' systems that have not loaded by the `deadline` (`time.monotonic`) are of the rest.
    """
    with contextlib.ExitStack() as stack:
        workers = []
        for system in systems:
            patience = PATIENCE_SECONDS
            if deadline is not None and not system.ours:
                patience = deadline - time.monotonic()
                if patience <= 0:
                    session.note(f"{system.title} is left out: the time for loading is over")
                    continue
            session.doing(f"loading {system.title}")
            worker = stack.enter_context(started(system, threads=session.threads))
            try:
                worker.load(patience=patience)
            except WorkerFault as fault:
                session.note(f"{system.title} is left out: {fault}")
                continue
            worker.settle()
            workers.append(worker)
        yield workers


def measure(session: Session, systems: Sequence[System], job: Job, budget: Budget) -> None:
    """Start the systems, do the job in interleaved rounds, end them."""
    with loaded(session, systems) as workers:
        alternate(session, workers, job, budget)
