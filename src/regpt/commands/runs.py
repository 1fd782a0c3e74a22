"""`regpt runs`: what was trained here, and how well."""

import json as json_text
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from regpt.report.chart import short
from regpt.report.history import History, find_runs, read_history
from regpt.system.errors import UserError

COLUMNS = ("run", "model", "steps", "tokens", "val loss", "bits/byte", "nats/char", "hellaswag",
           "tokens/s")  # fmt: skip


def row(run: History) -> list[str]:
    """The best figures, short; a validation loss with its step, an unfinished run with its goal."""

    def best(name: str, *, largest: bool = False) -> str:
        found = run.best(name, largest=largest)
        return "" if found is None else f"{found[1]:.4f}"

    parameters, speed, where = run.num_parameters(), run.typical("tokens_per_second"), ""
    if (found := run.best("val_loss")) is not None and found[0] != run.step:
        where = f" @{found[0]}"
    planned = run.settings.get("steps")
    return [
        run.name,
        "" if parameters is None else short(float(f"{parameters:.3g}")),
        str(run.step) if run.step == planned else f"{run.step} of {planned}",
        short(float(f"{run.tokens:.3g}")),
        best("val_loss") + where,
        best("val_bits_per_byte"),
        best("val_nats_per_character"),
        best("hellaswag_acc_norm", largest=True),
        "" if speed is None else f"{speed:,.0f}",
    ]


def as_json(run: History) -> str:
    """One line."""
    names = ("val_loss", "val_bits_per_byte", "val_nats_per_character")
    best = {name: run.best(name) for name in names}
    return json_text.dumps(
        {
            "run": str(run.path),
            "preset": run.settings.get("preset"),
            "parameters": run.num_parameters(),
            "step": run.step,
            "tokens": run.tokens,
            "finished": run.is_finished,
            "tokens_per_second": run.typical("tokens_per_second"),
        }
        | {name: None if found is None else found[1] for name, found in best.items()}
        | {
            name: None if (found := run.best(name, largest=True)) is None else found[1]
            for name in ("hellaswag_acc", "hellaswag_acc_norm")
        }
        | {"best_step": None if best["val_loss"] is None else best["val_loss"][0]}
    )


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
        sys.stdout.write("".join(as_json(run) + "\n" for run in histories))
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
        console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
