"""A run's directory: everything a run leaves behind, and a model that anything can load.

    config.json, model.safetensors, tokenizer files   the model, in Hugging Face layout
    run.json        the resolved configuration, data fingerprint, versions, seed
    metrics.jsonl   one JSON object per step, and one per validation
    loss.png        the loss curve
    samples.txt     text written before and after training
    checkpoints/    what a resume needs (checkpoint.py), if any was asked for
    incidents/      steps whose numbers went wrong (incident.py), if any did

A directory that already holds a run is never written to.
"""

import contextlib
import json
import math
import platform
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from regpt import weights
from regpt.atomic import replace_files
from regpt.errors import UserError
from regpt.model import GPTConfig
from regpt.train.config import RunConfig

VERSIONS = ("regpt", "torch", "numpy", "tiktoken", "safetensors")


def free_name(preset: str, parent: Path = Path("runs")) -> Path:
    """runs/PRESET, or the first of runs/PRESET-2, -3, ... that does not exist."""
    path, number = parent / preset, 2
    while path.exists():
        path, number = parent / f"{preset}-{number}", number + 1
    return path


def finite(entry: dict[str, Any]) -> dict[str, Any]:
    """The entry with null for numbers JSON does not have."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in entry.items()
    }


class RunDirectory:
    """The one place that knows the files' names."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.record = path / "run.json"
        self.metrics = path / "metrics.jsonl"
        self.picture = path / "loss.png"
        self.samples = path / "samples.txt"
        self.checkpoints = path / "checkpoints"
        self.incidents = path / "incidents"

    @classmethod
    def create(cls, path: Path) -> "RunDirectory":
        """Make the directory; refuse one that holds a run or cannot be written."""
        directory = cls(path)
        taken = [name for name in ("run.json", "config.json") if (path / name).exists()]
        if taken:
            raise UserError(f"{path} already holds a run ({taken[0]}): name another with --out")
        try:
            path.mkdir(parents=True, exist_ok=True)
            directory.metrics.touch()
        except OSError as error:
            raise UserError(
                f"cannot write to {path} ({error.strerror}): name another with --out"
            ) from None
        return directory

    def write_record(self, config: RunConfig, data: dict[str, Any], place: str) -> None:
        """Write run.json: what was run, on what, with which versions."""
        record = {
            "config": config.to_json(),
            "data": data,
            "runtime": place,
            "versions": {"python": platform.python_version()}
            | {name: version(name) for name in VERSIONS},
        }
        replace_files(self.path, {self.record.name: (json.dumps(record, indent=2) + "\n").encode()})

    def read_record(self) -> dict[str, Any]:
        """What `write_record` wrote."""
        try:
            return json.loads(self.record.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(
                f"{self.path} holds no run (no run.json): name a run's directory"
            ) from None
        except ValueError:
            raise UserError(f"{self.record} is not JSON: restore it from a copy") from None

    def append_metrics(self, entry: dict[str, Any]) -> None:
        """Add one line to metrics.jsonl."""
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(finite(entry)) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """All sound lines of metrics.jsonl; a last line that a kill cut short is left out."""
        lines = self.metrics.read_text(encoding="utf-8").split("\n")
        entries = [json.loads(line) for line in lines[:-1]]
        with contextlib.suppress(ValueError):
            entries.append(json.loads(lines[-1]))
        return entries

    def rewind(self, step: int) -> None:
        """Forget what was recorded after `step`, so that a resumed run records it once."""
        entries = [entry for entry in self.read_metrics() if entry["step"] <= step]
        text = "".join(json.dumps(entry) + "\n" for entry in entries)
        replace_files(self.path, {self.metrics.name: text.encode()})

    def append_samples(self, title: str, texts: list[str]) -> None:
        """Add the texts to samples.txt under a title."""
        with self.samples.open("a", encoding="utf-8", newline="") as file:
            file.write(f"== {title}\n" + "".join(f"> {text}\n" for text in texts) + "\n")

    def write_model(self, tensors: Mapping[str, Tensor], config: GPTConfig) -> None:
        """Write the model's files beside the run's, config.json last."""
        weights.write_model_files(self.path, tensors, asdict(config))
