"""`regpt report`: runs as a page that opens from disk."""

import sys
from pathlib import Path

from regpt.report.history import read_history
from regpt.report.run_page import pictures, run_page
from regpt.system.errors import UserError
from regpt.system.files import make_directory, replace_files


def report(runs: tuple[str, ...], /, *, out: str | None = None) -> None:
    """Write a page of curves, samples and settings, and its pictures beside it.

    The page is one file, asks nobody for anything and opens without a network.

    Args:
        runs: Directories of runs; several are compared.
        out: The page's file; default: report.html in the run's directory, or here for several.
    """
    if not runs:
        raise UserError("name the directory of a run, or of several to compare")
    default = Path(runs[0]) / "report.html" if len(runs) == 1 else Path("report.html")
    page = Path(out) if out else default
    if page.is_dir() or page.suffix != ".html":
        raise UserError(f"--out {page} is not the name of an .html file: give one")
    histories = [read_history(Path(run)) for run in runs]
    drawn = {f"{page.stem}-{name}.png": png for name, png in pictures(histories).items()}
    make_directory(page.parent)
    replace_files(page.parent, drawn | {page.name: run_page(histories)})
    for history in histories:
        for note in history.notes:
            sys.stdout.write(f"note: {note}\n")
    for name in (page.name, *drawn):
        sys.stdout.write(f"{page.parent / name}\n")
