"""A run's record and metrics, read for people; lines that a kill or a disk damaged are counted."""

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regpt.core.model import GPTConfig
from regpt.system.errors import UserError
from regpt.system.plot import Points
from regpt.training import loss_plot
from regpt.training.run_dir import RunDirectory, flatten

Samples = list[tuple[int, dict[str, list[str]]]]
BEST = ("val_loss", "val_bits_per_byte", "val_nats_per_character", "hellaswag_acc",
        "hellaswag_acc_norm")  # fmt: skip


def shown(value: float | None, form: str = ".4f") -> str:
    """A figure for people; nothing for what was not measured."""
    return "" if value is None else format(value, form)


@dataclass(frozen=True, kw_only=True)
class History:
    """A run's record and metrics."""

    path: Path
    record: dict[str, Any]
    entries: list[dict[str, Any]]
    """The sound lines of metrics.jsonl, in order."""
    notes: list[str]
    """What was dropped, a line each."""

    @property
    def name(self) -> str:
        """What the run is called: its directory."""
        return self.path.resolve().name

    @property
    def settings(self) -> dict[str, Any]:
        """The configuration by dotted names."""
        return flatten(self.record["config"])

    @property
    def step(self) -> int:
        """The last step recorded."""
        return max(entry["step"] for entry in self.entries)

    @property
    def tokens(self) -> int:
        """Trained on."""
        return max(entry.get("tokens") or 0 for entry in self.entries)

    @property
    def samples(self) -> Samples:
        """After so many steps: what was written to each prompt."""
        return [
            (entry["step"], {prompt: list(map(str, texts)) for prompt, texts in written.items()})
            for entry in self.entries
            if (written := entry.get("samples"))
        ]

    def points(self, name: str) -> Points:
        """(step, value) wherever a line has this number."""
        return loss_plot.points_of(self.entries, name)

    def best(self, name: str) -> tuple[float, float] | None:
        """The step and value of the smallest number of this name, the largest of HellaSwag's."""
        pick = max if name.startswith("hellaswag") else min
        return pick(self.points(name), key=lambda point: point[1], default=None)

    def figures(self) -> dict[str, Any]:
        """The run in numbers, the best of each; None for what was not measured."""
        best = {name: self.best(name) for name in BEST}
        speeds = [value for _, value in self.points("tokens_per_second")]
        return {
            "run": str(self.path),
            "preset": self.settings.get("preset"),
            "parameters": self.num_parameters(),
            "step": self.step,
            "tokens": self.tokens,
            "finished": bool(self.record.get("finished")),
            # without the first step, which warms up
            "tokens_per_second": statistics.median(speeds[1:] or speeds) if speeds else None,
            **{name: found and found[1] for name, found in best.items()},
            "best_step": best["val_loss"] and best["val_loss"][0],
        }

    def num_parameters(self) -> int | None:
        """By the shape, if the record has a sound one."""
        try:
            return GPTConfig(**self.record["config"]["model"]).num_parameters()
        except (KeyError, TypeError, ValueError):
            return None


def read_history(path: Path) -> History:
    """Read a run's directory.

    Raises:
        UserError: no run there, or a run without a single sound line of metrics.
    """
    directory = RunDirectory(path)
    record = directory.read_record()
    entries, notes = directory.read_metrics()
    if not entries:
        raise UserError(f"{path} has no metrics yet (no sound line in metrics.jsonl): train first")
    return History(path=path, record=record, entries=entries, notes=notes)


def find_runs(folder: Path) -> list[Path]:
    """The runs in a folder, by name; the folder itself if it is one."""
    if (folder / "run.json").is_file():
        return [folder]
    if not folder.is_dir():
        raise UserError(f"no such folder: {folder}; name one that holds runs")
    runs = sorted(path.parent for path in folder.glob("*/run.json"))
    if not runs:
        raise UserError(f"{folder} holds no runs: train one, or name the folder that holds them")
    return runs
