"""Rows and their table: what a benchmark has found.

A row is one system in one job. Figures of different systems are compared as ratios against a named
baseline of the same job, never as bare seconds from different runs.
"""

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from rich.table import Table
from rich.text import Text

from regpt.system.console import Console

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


Finder = Callable[[Row], None]
"""Told a row whenever there is a new figure for it."""


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


def speedups(baselines: Sequence[Baseline], rows: Sequence[Row]) -> list[Column]:
    """`faster_than` for each of the baselines that took part."""
    there = [base for base in baselines if any(base.find(rows, row.job) for row in rows)]
    return [faster_than(baseline, rows) for baseline in there]


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
