"""One benchmark from its first word to its table: what it tells, the rows so far, the results.

    with benchmark("train", judge=judge, out=out) as session:
        measure(session, systems, job, budget)          # interleaved.py

Tells on stderr, in a log as on a terminal. The results file is written with every new figure, so an
interrupted benchmark (Ctrl-C, SIGTERM) loses none and still ends with its table.
"""

import argparse
import contextlib
import json
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
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
    table,
    usual_columns,
)
from regpt.bench.workers import Worker, WorkerFault, started
from regpt.system.console import Console
from regpt.system.errors import UserError
from regpt.system.files import replace_files, writing_to

SPREAD = "times are medians of n; spread is (slowest - fastest) / median"

Judge = Callable[[Machine, Sequence[Row]], tuple[Machine, list[Column]]]
"""The columns of a benchmark's table, and the machine's limits if the rows came to more."""


def plain(machine: Machine, rows: Sequence[Row]) -> tuple[Machine, list[Column]]:
    """The usual columns, no shares of limits."""
    return machine, usual_columns()


class Session:
    """A benchmark under way; `benchmark` makes it."""

    def __init__(
        self,
        name: str,
        *,
        judge: Judge = plain,
        definitions: Sequence[str] = (),
        out: Path | None = None,
        json: bool = False,
    ) -> None:
        self.name = name
        self.judge = judge
        self.definitions = definitions
        self.out = out
        self.json = json
        self.machine = Machine()
        self.threads: int | None = None
        self.limits: Worker | None = None
        """Measures the machine's limits, beside the systems."""
        self.picture: bytes | None = None
        """A PNG for the results file."""
        self.notes: list[str] = []
        self.console = Console(stderr=True)
        self.status = self.console.status("")
        self._rows: dict[tuple[str, ...], Row] = {}
        self._told: set[str] = set()

    @property
    def rows(self) -> list[Row]:
        """What was found so far."""
        return list(self._rows.values())

    def tell(self, text: str) -> None:
        """A line of its own, above what is being done."""
        self.console.say(text)

    def doing(self, text: str) -> None:
        """What is being done now; a log gets a line for each thing, not for each time."""
        if self.console.is_terminal:
            self.status.update(text)
        elif text not in self._told:
            self._told.add(text)
            self.tell(text)

    def note(self, text: str) -> None:
        """What is left out and why, or odd: told at once, and kept under the table."""
        if text not in self.notes:
            self.tell(f"note: {text}")
            self.notes.append(text)

    def found(self, row: Row) -> None:
        """A row, or a new figure for one; the first that is not a mere warm-up is told."""
        before = self._rows.get(row.key)
        self._rows[row.key] = row
        if not row.first_call and (before is None or before.first_call):
            speed = f", {rate(row.tokens_per_second)} tokens/s" if row.tokens_per_second else ""
            self.tell(f"  {row.job}: {row.title}: {duration(row.seconds)}{speed}")
        self.save()

    def measure_limits(self) -> None:
        """Measure the machine's limits once more and keep the best: others can only lower them."""
        if self.limits is None or self.limits.ended:
            return
        try:
            (facts,) = self.limits.call({}).facts
        except WorkerFault as fault:
            self.note(f"limits of the machine are no longer measured: {fault}")
        else:
            self.machine = self.machine.at_best(Machine(**facts))

    def results(self) -> tuple[dict[str, object], Machine, list[Column], list[str]]:
        """What `to_json`, `to_markdown` and `show` write."""
        machine, columns = self.judge(self.machine, self.rows)
        cold = [f"{row.job} {row.title}" for row in self.rows if row.first_call]
        notes = [machine.describe_limits(), *self.definitions, SPREAD, *self.notes]
        notes += [f"figures of a first call only: {', '.join(cold)}"] if cold else []
        found: dict[str, object] = {
            "benchmark": self.name,
            "rows": [row.to_json() for row in self.rows],
            "machine": machine.to_json(),
            "date": date.today().isoformat(),
            "commit": find_commit(),
            "command": command_line(),
            "notes": notes,
        }
        return found, machine, columns, notes

    def to_markdown(self) -> str:
        """The results file."""
        found, machine, columns, notes = self.results()
        source = f", commit {found['commit']}" if found["commit"] else ""
        return (
            f"# {self.name}, {found['date']}\n\n{machine.describe()}{source}.\n\n"
            f"```\n{found['command']}\n```\n\n{markdown(self.rows, columns)}\n"
            f"{''.join(f'- {note}{chr(10)}' for note in notes)}"
        )

    def save(self) -> None:
        """Write the results file, and the picture beside it, whole or not at all."""
        if self.out is None:
            return
        with writing_to(self.out):
            self.out.parent.mkdir(parents=True, exist_ok=True)
        text, files = self.to_markdown(), {}
        if self.picture is not None:
            beside = self.out.with_suffix(".png").name
            files[beside], text = self.picture, f"{text}\n![{self.name}]({beside})\n"
        replace_files(self.out.parent, {**files, self.out.name: text.encode()})

    def show(self) -> None:
        """Write the file, the notes and the table; with `json` on stderr, and JSON on stdout.

        Raises:
            UserError: nothing could be measured.
        """
        if not self.rows:
            raise UserError(f"nothing could be measured: {'; '.join(self.notes) or 'no time'}")
        self.save()
        found, machine, columns, notes = self.results()
        console, drawn = Console(stderr=self.json), table(self.rows, columns)
        # a pipe is 80 columns, and would cut figures
        console.width = max(console.width, Console(width=1000).measure(drawn).maximum)
        for line in (machine.describe(), *notes):
            console.say(line)
        console.print()
        console.print(drawn)
        if self.json:
            sys.stdout.write(json.dumps(found) + "\n")


@contextlib.contextmanager
def benchmark(
    name: str,
    *,
    judge: Judge = plain,
    definitions: Sequence[str] = (),
    device: str = "auto",
    threads: int | None = None,
    out: Path | None = None,
    json: bool = False,
) -> Iterator[Session]:
    """A benchmark under way, on a machine whose limits have been measured once; then its table.

    Args:
        name: Heads the results.
        judge: Makes the columns of the table.
        definitions: How figures are defined, one line each.
        device: Where limits are measured: auto, cpu or cuda.
        threads: CPU threads of every worker; default: each system's choice.
        out: The results file, Markdown.
        json: Print one JSON object, and the table on stderr.

    Raises:
        UserError: the device is not there, or nothing could be measured.
    """
    if threads is not None and threads < 1:
        raise UserError(f"threads must be at least 1, got {threads}")
    session = Session(name, judge=judge, definitions=definitions, out=out, json=json)
    session.threads = threads

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        with session.status, started(limits_system(device), threads=threads) as limits:
            session.doing("measuring the machine")
            try:
                limits.load()
                session.machine = Machine(**limits.call({}).facts[0])
            except WorkerFault as fault:
                raise UserError(str(fault)) from None
            session.limits = limits
            yield session
    except KeyboardInterrupt:
        if session.rows:
            session.note("interrupted: what was measured until then")
            session.show()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    session.show()


def run_script(main: Callable[[], None]) -> None:
    """Run a script of benchmarks/: errors and Ctrl-C end it with a line, as they end a command."""
    try:
        main()
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted\n")
        raise SystemExit(130) from None


def script_options(about: str | None, *, rounds: int) -> argparse.ArgumentParser:
    """The flags that the scripts in benchmarks/ share."""
    parser = argparse.ArgumentParser(description=(about or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=rounds, help=f"at most; default {rounds}")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--out", type=Path, help="write the table to this Markdown file")
    return parser
