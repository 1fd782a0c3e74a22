"""A run's directory: everything a run leaves behind, and a model that anything can load.

    config.json, model.safetensors, tokenizer files   the model, in Hugging Face layout
    run.json        the resolved configuration, data fingerprint, versions, seed
    metrics.jsonl   one JSON object per step, and one per validation
    loss.png        the loss curve
    samples.txt     text written before and after training

A directory that already holds a run is never written to.
"""

import json
import os
import platform
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from regpt import weights
from regpt.errors import UserError
from regpt.model import GPT
from regpt.train.config import RunConfig

VERSIONS = ("regpt", "torch", "numpy", "tiktoken", "safetensors")


def free_name(preset: str, parent: Path = Path("runs")) -> Path:
    """runs/PRESET, or the first of runs/PRESET-2, -3, ... that does not exist."""
    path, number = parent / preset, 2
    while path.exists():
        path, number = parent / f"{preset}-{number}", number + 1
    return path


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all: beside it, then renamed into place."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(text, encoding="utf-8", newline="")
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


class RunDirectory:
    """The one place that knows the files' names."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.record = path / "run.json"
        self.metrics = path / "metrics.jsonl"
        self.picture = path / "loss.png"
        self.samples = path / "samples.txt"

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
        write_text(self.record, json.dumps(record, indent=2) + "\n")

    def append_metrics(self, entry: dict[str, Any]) -> None:
        """Add one line to metrics.jsonl."""
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """All lines of metrics.jsonl."""
        with self.metrics.open(encoding="utf-8") as file:
            return [json.loads(line) for line in file]

    def append_samples(self, title: str, texts: list[str]) -> None:
        """Add the texts to samples.txt under a title."""
        with self.samples.open("a", encoding="utf-8", newline="") as file:
            file.write(f"== {title}\n" + "".join(f"> {text}\n" for text in texts) + "\n")

    def write_model(self, model: GPT) -> None:
        """Write the model's files beside the run's, config.json last."""
        weights.write_model_files(self.path, model.state_dict(), asdict(model.config))
