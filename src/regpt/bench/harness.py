"""A benchmark, from its first word to its table: systems take turns at the same jobs.

    with Benchmark("train", seconds=60, rounds=8, out=out).running() as bench:
        bench.measure(systems, job)

In the first round each system warms up; then round after round each does the job, one at a time
while the others rest, so that load drift affects all alike. What does not fit into the seconds is
left out and named. Progress goes to stderr. The results file is written with every new figure, so
an interrupted benchmark (Ctrl-C, SIGTERM) loses none and still ends with its table.
"""

import contextlib
import json
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path

from regpt.bench.hardware_limits import Machine, limits_system
from regpt.bench.results import (
    Column,
    Row,
    command_line,
    duration,
    find_commit,
    markdown,
    rate,
    usual_columns,
)
from regpt.bench.worker import (
    PATIENCE_SECONDS,
    REPEAT_SECONDS,
    Answer,
    System,
    Worker,
    WorkerFault,
    started,
)
from regpt.system.errors import UserError
from regpt.system.files import replace_files, writing_to

SPREAD = "times are medians of n; spread is (slowest - fastest) / median"
PAUSE_SECONDS = 0.2
"""After a call: the worker's threads may spin for a while."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What all systems do."""

    name: str
    tokens: int | None = None
    """Tokens of one job: what the rate is counted in."""
    arguments: Mapping[str, object] = field(default_factory=dict)
    """Given to the system's call; JSON values."""


def rows_of(system: System, job: Job, answers: Sequence[Answer]) -> list[Row]:
    """The medians of a system's calls, of the whole job and then of the parts it timed itself.

    The first call warmed up, and counts only where it is the only one.
    """
    kept = answers[1:] or answers
    times = {job.name: [seconds for answer in kept for seconds in answer.seconds]}
    for answer in kept:
        for part, seconds in answer.facts.get("parts", {}).items():
            times.setdefault(f"{job.name}: {part}", []).append(seconds)
    facts = {name: value for name, value in kept[-1].facts.items() if name != "parts"}
    rows = []
    for name, seconds in times.items():
        median = statistics.median(seconds)
        row = Row(
            job=name,
            system=system.name,
            dtype=system.dtype,
            engine=system.engine,
            seconds=median,
            tokens_per_second=job.tokens / median if job.tokens and not rows else None,
            peak_memory_bytes=kept[-1].peak_memory_bytes,
            fastest_seconds=min(seconds),
            slowest_seconds=max(seconds),
            timed=len(seconds),
            first_call=len(answers) == 1,
            facts=facts,
        )
        rows.append(row)
    return rows


@dataclass(kw_only=True)
class Benchmark:
    """The rows so far, and what was told."""

    name: str
    seconds: float
    """For the calls of one job, all systems together."""
    rounds: int
    """At most so many, after the one that warms up."""
    columns: Callable[[Machine, Sequence[Row]], Sequence[Column]] = lambda *_: usual_columns()
    """Makes the columns of the table."""
    definitions: Sequence[str] = ()
    """How figures are defined, one line each."""
    device: str = "auto"
    """Where the machine's limits are measured: auto, cpu or cuda."""
    threads: int | None = None
    """CPU threads of every worker; None: each system's choice."""
    out: Path | None = None
    """The results file, Markdown."""
    json: bool = False
    """Print one JSON object, and the table on stderr."""
    machine: Machine = field(default_factory=Machine)
    notes: list[str] = field(default_factory=list)
    _rows: dict[tuple[str, ...], Row] = field(default_factory=dict)
    _told: set[str] = field(default_factory=set)

    @property
    def rows(self) -> list[Row]:
        return list(self._rows.values())

    def tell(self, text: str) -> None:
        """A line on stderr, the first time."""
        if text not in self._told:
            self._told.add(text)
            sys.stderr.write(f"{text}\n")
            sys.stderr.flush()

    def note(self, text: str) -> None:
        """What is left out and why: told at once, and kept under the table."""
        self.tell(f"note: {text}")
        if text not in self.notes:
            self.notes.append(text)

    def found(self, row: Row) -> None:
        """A row, or a new figure for one; the first that is not a mere warm-up is told."""
        before = self._rows.get(row.key)
        self._rows[row.key] = row
        if not row.first_call and (before is None or before.first_call):
            speed = f", {rate(row.tokens_per_second)} tokens/s" if row.tokens_per_second else ""
            self.tell(f"  {row.job}: {row.title}: {duration(row.seconds)}{speed}")
        self.save()

    @contextlib.contextmanager
    def running(self) -> Iterator["Benchmark"]:
        """Measure the machine's limits first, and end with the table, also when interrupted.

        Raises:
            UserError: a number is none, the device is not there, or nothing could be measured.
        """
        if self.rounds < 1 or not 0 <= self.seconds < float("inf"):
            raise UserError(
                f"rounds must be at least 1 and seconds not negative: {self.rounds}, {self.seconds}"
            )
        if self.threads is not None and self.threads < 1:
            raise UserError(f"threads must be at least 1, got {self.threads}")

        def stop(number: int, frame: object) -> None:
            raise KeyboardInterrupt

        before = signal.signal(signal.SIGTERM, stop)
        try:
            self.tell("measuring the machine")
            with started(limits_system(self.device), threads=self.threads) as limits:
                try:
                    limits.load()
                    self.machine = Machine(**limits.call({}).facts)
                except WorkerFault as fault:
                    raise UserError(str(fault)) from None
            yield self
        except KeyboardInterrupt:
            if self.rows:
                self.note("interrupted: what was measured until then")
                self.show()
            raise
        finally:
            signal.signal(signal.SIGTERM, before)
        self.show()

    @contextlib.contextmanager
    def loaded(
        self, systems: Sequence[System], *, deadline: float | None = None
    ) -> Iterator[list[Worker]]:
        """Workers of the systems that load; what has not by the deadline, not ours, is left out."""
        with contextlib.ExitStack() as stack:
            workers = []
            for system in systems:
                patience = PATIENCE_SECONDS
                if deadline is not None and not system.ours:
                    patience = max(deadline - time.monotonic(), 0.0)
                self.tell(f"loading {system.title}")
                worker = stack.enter_context(started(system, threads=self.threads))
                try:
                    worker.load(patience=patience)
                except WorkerFault as fault:
                    self.note(f"{system.title} is left out: {fault}")
                else:
                    workers.append(worker)
            yield workers

    def run(self, workers: Sequence[Worker], job: Job, *, seconds: float | None = None) -> None:
        """Do the job on every worker in turn, as long as there is time: so many seconds for all
        calls together, by default the benchmark's. A worker that fails takes no further part."""
        budget = self.seconds if seconds is None else seconds
        end = time.monotonic() + budget
        answers: dict[Worker, list[Answer]] = {worker: [] for worker in workers}
        for number in range(1 + self.rounds):
            for worker in workers:
                before, title = answers[worker], worker.system.title
                if worker.ended or (number and not before):
                    continue
                left = end - time.monotonic()
                expected = worker.seconds_per_token * (job.tokens or 0)
                if before:
                    expected = 2 * max(before[-1].seconds[-1], REPEAT_SECONDS)
                if expected < left:
                    self._call(worker, job, before, patience=min(left, PATIENCE_SECONDS))
                elif not before:
                    takes = f"a call takes {expected:.0f} s or more, " if expected else ""
                    budgeted = f"{max(left, 0):.0f} s are left of {budget:g}"
                    self.note(f"{job.name}: {title} is left out: {takes}{budgeted}")

    def _call(self, worker: Worker, job: Job, answers: list[Answer], *, patience: float) -> None:
        """One call; a worker that fails takes no further part."""
        title = worker.system.title
        self.tell(f"{job.name}: {title}")
        try:
            answer = worker.call(job.arguments, once=not answers, patience=patience)
        except WorkerFault as fault:
            out = "takes no further part" if answers else "is left out"
            self.note(f"{job.name}: {title} {out}: {fault}")
            return
        answers.append(answer)
        worker.seconds_per_token = answer.seconds[-1] / (job.tokens or 1)
        for row in rows_of(worker.system, job, answers):
            self.found(row)
        time.sleep(PAUSE_SECONDS)

    def measure(self, systems: Sequence[System], job: Job, *, seconds: float | None = None) -> None:
        """Start the systems, do the job in interleaved rounds, end them."""
        with self.loaded(systems) as workers:
            self.run(workers, job, seconds=seconds)

    def all_notes(self) -> list[str]:
        """What stands under the table."""
        cold = [f"{row.job} {row.title}" for row in self.rows if row.first_call]
        notes = [self.machine.describe_limits(), *self.definitions, SPREAD, *self.notes]
        return notes + ([f"figures of a first call only: {', '.join(cold)}"] if cold else [])

    def table(self) -> str:
        return markdown(self.rows, self.columns(self.machine, self.rows))

    def save(self) -> None:
        """Write the results file, whole or not at all."""
        if self.out is None:
            return
        source = f", commit {find_commit()}" if find_commit() else ""
        notes = "".join(f"- {note}\n" for note in self.all_notes())
        text = (
            f"# {self.name}, {date.today().isoformat()}\n\n{self.machine.describe()}{source}.\n\n"
            f"```\n{command_line()}\n```\n\n{self.table()}\n{notes}"
        )
        with writing_to(self.out):
            self.out.parent.mkdir(parents=True, exist_ok=True)
        replace_files(self.out.parent, {self.out.name: text.encode()})

    def show(self) -> None:
        """Write the file, the notes and the table; with `json` on stderr, and JSON on stdout.

        Raises:
            UserError: nothing could be measured.
        """
        if not self.rows:
            raise UserError(f"nothing could be measured: {'; '.join(self.notes) or 'no time'}")
        self.save()
        lines = [self.machine.describe(), *self.all_notes(), "", self.table()]
        (sys.stderr if self.json else sys.stdout).write("\n".join(lines))
        if self.json:
            found: dict[str, object] = {
                "benchmark": self.name,
                "rows": [row.to_json() for row in self.rows],
                "machine": asdict(self.machine),
                "date": date.today().isoformat(),
                "commit": find_commit(),
                "command": command_line(),
                "notes": self.all_notes(),
            }
            sys.stdout.write(json.dumps(found) + "\n")
