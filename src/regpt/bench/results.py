"""A finished benchmark: shown to people, printed for programs, written to a file to keep."""

import functools
import json
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from regpt.bench.hardware_limits import Machine
from regpt.bench.rows import Column, Row, markdown, table, wide_enough
from regpt.system.console import Console
from regpt.system.errors import UserError
from regpt.system.files import Content, replace_files, writing_to

SPREAD = "times are medians of n; spread is (slowest - fastest) / median"


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


def collect(
    benchmark: str,
    machine: Machine,
    rows: Sequence[Row],
    *,
    notes: Sequence[str],
    faults: list[str],
) -> Results:
    """A finished benchmark; `notes` say how its figures are defined, `faults` what went wrong.

    Raises:
        UserError: nothing could be measured.
    """
    if not rows:
        raise UserError(f"nothing could be measured: {'; '.join(faults) or 'no time'}")
    return Results(
        benchmark=benchmark,
        rows=rows,
        machine=machine.to_json(),
        place=machine.describe(),
        date=date.today().isoformat(),
        commit=find_commit(),
        command=command_line(),
        notes=[machine.describe_limits(), *notes, SPREAD, *faults],
    )


def show(results: Results, columns: Sequence[Column], console: Console) -> None:
    """The machine, the notes and the table."""
    drawn = table(results.rows, columns)
    wide_enough(console, drawn)
    for line in (results.place, *results.notes):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print()
    console.print(drawn)


def write_results(path: Path, text: str, *, picture: bytes | None = None) -> None:
    """Write a results file, and its picture beside it, whole or not at all; the folder is made."""
    with writing_to(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    files: dict[str, Content] = {path.name: text.encode()}
    if picture is not None:
        files = {path.with_suffix(".png").name: picture, **files}
    replace_files(path.parent, files)


def command_line() -> str:
    """What was typed, without the place that results go to, and files by their names alone."""
    arguments = list(sys.argv[1:])
    if "--out" in arguments:
        place = arguments.index("--out")
        del arguments[place : place + 2]
    words = (word for word in arguments if not word.startswith("--out="))
    return shlex.join(["regpt", *(Path(word).name if word[:1] == "/" else word for word in words)])


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
