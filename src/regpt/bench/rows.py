"""Results: rows, the table for people, the line for programs, the file to keep.

A row is one system in one job. Figures of different systems are compared as ratios against a named
baseline of the same job, never as bare seconds from different runs.
"""

import json
import subprocess
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from regpt.atomic import Content, replace_files, writing_to

SPREAD = "times are medians of n; spread is (slowest - fastest) / median"

Observer = Callable[[str], None]
"""Told, in a few words, what is being done."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One system in one job."""

    job: str
    system: str
    dtype: str
    engine: str | None = None
    """How it computes, where a system has several ways; absent in JSON otherwise."""
    seconds: float
    """Median of one job."""
    tokens_per_second: float
    peak_memory_bytes: int | None
    """Of the system's process; on a GPU of the device. None: not known."""
    fastest_seconds: float
    slowest_seconds: float
    timed: int
    """How many times the job was timed."""

    def to_json(self) -> dict[str, object]:
        """A JSON object; without `engine` where there is none."""
        values = asdict(self)
        if self.engine is None:
            del values["engine"]
        return values

    @property
    def spread(self) -> float:
        """(slowest - fastest) / median."""
        return (self.slowest_seconds - self.fastest_seconds) / self.seconds


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """The system that others are compared with."""

    system: str
    dtype: str | None = None
    """None: any; the first row of the system counts."""

    @property
    def title(self) -> str:
        """For a heading."""
        return " ".join(part for part in (self.system, self.dtype) if part)

    def find(self, rows: Sequence[Row], job: str) -> Row | None:
        """The baseline's row of a job, if it was measured."""
        for row in rows:
            if (row.job, row.system) == (job, self.system) and self.dtype in (None, row.dtype):
                return row
        return None


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of the table."""

    heading: str
    cell: Callable[[Row], str]
    right: bool = True


def duration(seconds: float) -> str:
    """Three digits, in ms below a second."""
    return f"{seconds * 1e3:.3g} ms" if seconds < 0.9995 else f"{seconds:.3g} s"


def gigabytes(size: int | None) -> str:
    """GB with one decimal, or that it is not known."""
    return "not measured" if size is None else f"{size / 1e9:.2f} GB"


def rate(value: float) -> str:
    """Three digits, thousands apart."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def faster_than(baseline: Baseline, rows: Sequence[Row]) -> Column:
    """How many times as fast as the baseline in the same job."""

    def cell(row: Row) -> str:
        other = baseline.find(rows, row.job)
        return "" if other is None else f"{other.seconds / row.seconds:.2f}x"

    return Column(heading=f"against {baseline.title}", cell=cell)


def memory_against(baseline: Baseline, rows: Sequence[Row]) -> Column:
    """Peak memory as a share of the baseline's in the same job."""

    def cell(row: Row) -> str:
        other = baseline.find(rows, row.job)
        if other is None or not other.peak_memory_bytes or row.peak_memory_bytes is None:
            return ""
        return f"{row.peak_memory_bytes / other.peak_memory_bytes:.0%}"

    return Column(heading=f"memory of {baseline.title}'s", cell=cell)


def usual_columns(rows: Sequence[Row], *, per: str = "seconds") -> list[Column]:
    """Job, system, dtype, engine if any, time, spread, rate, memory; `per` heads the time."""
    columns = [
        Column(heading="job", cell=lambda row: row.job, right=False),
        Column(heading="system", cell=lambda row: row.system, right=False),
        Column(heading="dtype", cell=lambda row: row.dtype, right=False),
    ]
    if any(row.engine for row in rows):
        columns.append(Column(heading="engine", cell=lambda row: row.engine or "", right=False))
    return [
        *columns,
        Column(heading=per, cell=lambda row: duration(row.seconds)),
        Column(heading="spread of n", cell=lambda row: f"{row.spread:.0%} of {row.timed}"),
        Column(heading="tokens/s", cell=lambda row: rate(row.tokens_per_second)),
        Column(heading="peak memory", cell=lambda row: gigabytes(row.peak_memory_bytes)),
    ]


def table(rows: Sequence[Row], columns: Sequence[Column]) -> Table:
    """The rows for a terminal, a line between jobs; headings fold, figures do not."""
    drawn = Table(box=None, pad_edge=False)
    for column in columns:
        words = [*column.heading.split(), *(column.cell(row) for row in rows)]
        heading = textwrap.fill(column.heading, max(len(word) for word in words))
        drawn.add_column(heading, justify="right" if column.right else "left", no_wrap=True)
    for index, row in enumerate(rows):
        last_of_job = index + 1 == len(rows) or rows[index + 1].job != row.job
        cells = (Text(column.cell(row)) for column in columns)
        drawn.add_row(*cells, end_section=last_of_job)
    return drawn


def wide_enough(console: Console, drawn: Table) -> Console:
    """The console, as wide as the table needs: a pipe is 80 columns, and would cut figures."""
    console.width = max(console.width, Console(width=1000).measure(drawn).maximum)
    return console


def markdown(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """The rows as a Markdown table."""
    lines = [
        [column.heading for column in columns],
        ["--:" if column.right else ":--" for column in columns],
        *([column.cell(row) for column in columns] for row in rows),
    ]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


@dataclass(frozen=True, kw_only=True)
class Results:
    """A finished benchmark."""

    benchmark: str
    """Its name, as in `regpt bench NAME`."""
    rows: Sequence[Row]
    machine: Mapping[str, object]
    """`Machine.to_json`."""
    place: str
    """The machine in one line."""
    date: str
    commit: str | None
    """Of the source tree; None if it is not in one."""
    command: str
    notes: Sequence[str]
    """What was left out and why; how figures are defined."""

    def to_json(self) -> str:
        """One line for programs."""
        return json.dumps(
            {
                "benchmark": self.benchmark,
                "rows": [row.to_json() for row in self.rows],
                "machine": dict(self.machine),
                "date": self.date,
                "commit": self.commit,
                "command": self.command,
                "notes": list(self.notes),
            }
        )

    def to_markdown(self, columns: Sequence[Column], *, more: str = "") -> str:
        """The file to keep; `more` comes after the table."""
        source = f", commit {self.commit}" if self.commit else ""
        notes = "".join(f"- {note}\n" for note in self.notes)
        return (
            f"# {self.benchmark}, {self.date}\n\n{self.place}{source}.\n\n"
            f"```\n{self.command}\n```\n\n{markdown(self.rows, columns)}"
            f"{f'{chr(10)}{notes}' if notes else ''}{f'{chr(10)}{more}' if more else ''}"
        )


def write_results(path: Path, text: str, *, picture: bytes | None = None) -> None:
    """Write a results file, and its picture beside it, whole or not at all; the folder is made."""
    with writing_to(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    files: dict[str, Content] = {path.name: text.encode()}
    if picture is not None:
        files = {path.with_suffix(".png").name: picture, **files}
    replace_files(path.parent, files)


def today() -> str:
    """The date as in file names."""
    return date.today().isoformat()


def find_commit() -> str | None:
    """The commit of the source tree this file is in, with a mark if the tree has changes."""

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # an installed copy may lie inside somebody else's tree
    if git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None
    commit = git("rev-parse", "--short", "HEAD")
    return f"{commit} with changes" if commit and git("status", "--porcelain", "-uno") else commit
