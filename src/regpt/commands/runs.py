"""`regpt runs`: what was trained here, and how well."""

import sys
from pathlib import Path

from rich.table import Table
from rich.text import Text

from regpt.report.history import History, find_runs, read_history, shown
from regpt.system.console import Console
from regpt.system.errors import UserError
from regpt.system.json_text import json_line
from regpt.system.plot import short

COLUMNS = ("run", "model", "steps", "tokens", "val loss", "bits/byte", "nats/char", "hellaswag",
           "tokens/s")  # fmt: skip


def row(run: History) -> list[str]:
    """The best figures, short; a validation loss with its step, an unfinished run with its goal."""
    figures, planned = run.figures(), run.settings.get("steps")
    parameters, step = figures["parameters"], figures["best_step"]
    return [
        run.name,
        "" if parameters is None else short(float(f"{parameters:.3g}")),
        str(run.step) if run.step == planned else f"{run.step} of {planned}",
        short(float(f"{run.tokens:.3g}")),
        shown(figures["val_loss"]) + ("" if step in (None, run.step) else f" @{step}"),
        shown(figures["val_bits_per_byte"]),
        shown(figures["val_nats_per_character"]),
        shown(figures["hellaswag_acc_norm"]),
        shown(figures["tokens_per_second"], ",.0f"),
    ]


def runs(folder: str = "runs", /, *, json: bool = False) -> None:
    """List the runs in a folder with their best figures.

    Args:
        folder: Where the runs are.
        json: Print one JSON object per run and nothing else.
    """
    histories, notes = [], []
    for path in find_runs(Path(folder)):
        try:
            histories.append(read_history(path))
        except UserError as error:  # one bad run does not hide the others
            notes.append(str(error))
    notes += [note for run in histories for note in run.notes]
    if json:
        sys.stdout.writelines(json_line(run.figures()) for run in histories)
        return
    rows = [row(run) for run in histories]
    used = [i for i in range(len(COLUMNS)) if any(cells[i] for cells in rows)]
    grid = Table(*(COLUMNS[i] for i in used), box=None, pad_edge=False)
    for column in grid.columns[1:]:
        column.justify, column.no_wrap = "right", True
    for cells in rows:
        grid.add_row(*(Text(cells[i]) for i in used))
    console = Console(file=sys.stdout)
    if histories:
        console.print(grid)
    for note in notes:
        console.say(f"note: {note}")
