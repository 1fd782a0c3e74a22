"""What a benchmark found: rows, and the Markdown table that is made of them.

A row is one system in one job. Figures of different systems are compared as ratios within a job,
never as bare seconds from different runs.
"""

import functools
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from operator import attrgetter
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Row:
    """One system in one job, or in a part of it."""

    job: str
    system: str
    dtype: str = ""
    engine: str = ""
    seconds: float
    """Median of one job."""
    tokens_per_second: float | None = None
    peak_memory_bytes: int | None = None
    """Of the system's process; on a GPU of the device. None: not known."""
    fastest_seconds: float
    slowest_seconds: float
    timed: int
    """How many times the job was timed."""
    first_call: bool = False
    """Whether that is a first call, which warms up as well: there was no time for more."""
    facts: Mapping[str, object] = field(default_factory=dict)
    """What the system told of its last repeat; JSON values."""

    @property
    def key(self) -> tuple[str, str, str, str]:
        return self.job, self.system, self.engine, self.dtype

    @property
    def title(self) -> str:
        return " ".join(part for part in self.key[1:] if part)

    def to_json(self) -> dict[str, object]:
        """A JSON object, without what does not apply."""
        optional = ("dtype", "engine", "first_call", "facts")
        return {
            name: value for name, value in asdict(self).items() if value or name not in optional
        }


@dataclass(frozen=True, kw_only=True)
class Column:
    heading: str
    cell: Callable[[Row], str]
    right: bool = True


def duration(seconds: float) -> str:
    """Three digits, in ms below a second."""
    return f"{seconds * 1e3:.3g} ms" if abs(seconds) < 0.9995 else f"{seconds:.3g} s"


def gigabytes(size: int | None) -> str:
    return "not measured" if size is None else f"{size / 1e9:.2f} GB"


def rate(value: float | None) -> str:
    """Three digits, thousands apart."""
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def spread(row: Row) -> str:
    """(slowest - fastest) / median, and of how many."""
    return f"{(row.slowest_seconds - row.fastest_seconds) / abs(row.seconds):.0%} of {row.timed}"


def against(rows: Sequence[Row], system: str, dtype: str) -> Column:
    """How many times as fast as a system in the same job."""

    def cell(row: Row) -> str:
        other = find_row(rows, row.job, system, dtype)
        return f"{other.seconds / row.seconds:.2f}x" if other else ""

    return Column(heading=f"against {system} {dtype}".rstrip(), cell=cell)


def find_row(rows: Sequence[Row], job: str, system: str, dtype: str) -> Row | None:
    wanted = job, system, dtype
    return next((row for row in rows if (row.job, row.system, row.dtype) == wanted), None)


def usual_columns(*, memory: bool = True) -> list[Column]:
    """What every benchmark has; no `memory` where programs that the worker starts do the work."""
    columns = [
        Column(heading=name, cell=attrgetter(name), right=False)
        for name in ("job", "system", "dtype", "engine")
    ]
    columns += [
        Column(heading="seconds", cell=lambda row: duration(row.seconds)),
        Column(heading="spread of n", cell=spread),
        Column(heading="tokens/s", cell=lambda row: rate(row.tokens_per_second)),
    ]
    if memory:
        peak = Column(heading="peak memory", cell=lambda row: gigabytes(row.peak_memory_bytes))
        columns.append(peak)
    return columns


def markdown(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """The rows as a Markdown table that is aligned to be read; columns of nothing are left out."""
    columns = [column for column in columns if any(map(column.cell, rows))]
    cells = [[column.heading, *map(column.cell, rows)] for column in columns]
    widths = [max(map(len, column)) for column in cells]
    rules = ["-" * (w - 1) + ":" if c.right else ":" + "-" * (w - 1)
             for c, w in zip(columns, widths, strict=True)]  # fmt: skip
    lines = [
        [cell.rjust(w) if c.right else cell.ljust(w)
         for c, w, cell in zip(columns, widths, line, strict=True)]
        for line in zip(*cells, strict=True)
    ]  # fmt: skip
    return "".join(f"| {' | '.join(line)} |\n" for line in [lines[0], rules, *lines[1:]])


def command_line() -> str:
    """What was typed, without the place that results go to, and files by their names alone."""
    program, *arguments = sys.argv
    if "--out" in arguments:
        place = arguments.index("--out")
        del arguments[place : place + 2]
    words = [word for word in arguments if not word.startswith("--out=")]
    words = [Path(word).name if word[:1] == "/" else word for word in words]
    script = Path(program)
    if script.suffix == ".py" and script.name != "__main__.py":
        return shlex.join(["python", f"{script.absolute().parent.name}/{script.name}", *words])
    return shlex.join(["regpt", *words])


@functools.cache
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
