"""What a run left behind, read for people: whatever is sound, and a word on what was not.

A run that was killed leaves a last line of metrics.jsonl cut short; a damaged disk may leave worse.
Every line that is an object with a step is taken, the others are counted and named, never guessed.
"""

import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regpt.core.model import GPTConfig
from regpt.system.errors import UserError
from regpt.training.run_dir import RunDirectory, flatten, read_metrics

Points = list[tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class History:
    """A run's record, its metrics and its samples."""

    path: Path
    record: dict[str, Any]
    entries: list[dict[str, Any]]
    """The sound lines of metrics.jsonl, in order."""
    notes: list[str]
    """What was dropped, a line each."""
    samples: list[tuple[int, dict[str, list[str]]]]
    """After so many steps: what was written to each prompt."""

    @property
    def name(self) -> str:
        """What the run is called: its directory."""
        return self.path.resolve().name

    @property
    def settings(self) -> dict[str, Any]:
        """The configuration by dotted names."""
        return flatten(self.record.get("config", {}))

    @property
    def step(self) -> int:
        """The last step recorded."""
        return max((entry["step"] for entry in self.entries), default=0)

    @property
    def tokens(self) -> int:
        """Trained on."""
        return max((entry.get("tokens") or 0 for entry in self.entries), default=0)

    @property
    def is_finished(self) -> bool:
        """Whether the run came to its end."""
        return bool(self.record.get("finished"))

    def points(self, name: str) -> Points:
        """(step, value) wherever a line has this number."""
        return [
            (entry["step"], entry[name])
            for entry in self.entries
            if isinstance(entry.get(name), int | float) and math.isfinite(entry[name])
        ]

    def best(self, name: str, *, largest: bool = False) -> tuple[int, float] | None:
        """The step and value of the smallest number of this name, or of the largest."""
        points = self.points(name)
        if not points:
            return None
        step, value = (max if largest else min)(points, key=lambda point: point[1])
        return int(step), value

    def hellaswag(self) -> tuple[Points, tuple[float, ...], int]:
        """acc_norm over the steps, its standard errors, and how many examples there were."""
        name = "hellaswag_acc_norm"
        lines = [entry for entry in self.entries if isinstance(entry.get(name), int | float)]
        errors = tuple(float(entry.get(f"{name}_stderr") or 0.0) for entry in lines)
        points = [(float(entry["step"]), float(entry[name])) for entry in lines]
        return (
            points,
            errors,
            max((entry.get("hellaswag_examples", 0) for entry in lines), default=0),
        )

    def typical(self, name: str) -> float | None:
        """The median of a number, the first step (which warms up) left out."""
        values = [value for _, value in self.points(name)]
        return statistics.median(values[1:] or values) if values else None

    def quick_tokens(self) -> int:
        """Held-out tokens that its quick validations scored."""
        return int(max((value for _, value in self.points("quick_val_tokens")), default=0))

    def vocab_size(self) -> int | None:
        """By the shape, if the record has one."""
        found = self.settings.get("model.vocab_size")
        return found if isinstance(found, int) and found > 0 else None

    def num_parameters(self) -> int | None:
        """By the shape, if the record has one."""
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
    entries, notes = read_metrics(directory.metrics)
    if not entries:
        raise UserError(f"{path} has no metrics yet (no sound line in metrics.jsonl): train first")
    return History(
        path=path,
        record=record,
        entries=entries,
        notes=notes,
        samples=read_samples(entries),
    )


def read_samples(entries: list[dict[str, Any]]) -> list[tuple[int, dict[str, list[str]]]]:
    """The texts among the lines; one that is not of their form is passed over."""
    sections = []
    for entry in entries:
        written = entry.get("samples")
        if isinstance(written, dict) and all(isinstance(texts, list) for texts in written.values()):
            sections.append((entry["step"], {p: [str(t) for t in written[p]] for p in written}))
    return sections


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
