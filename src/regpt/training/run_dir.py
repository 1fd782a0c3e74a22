"""A run's directory: everything a run leaves behind, and a model that anything can load.

    config.json, model.safetensors, tokenizer files   the model, in Hugging Face layout
    run.json        the resolved configuration, data fingerprint, versions, seed
    metrics.jsonl   one JSON object per step, and one per validation, HellaSwag, samples
    loss.png        the loss curve
    samples.txt     text written before, during and after training
    events.out.*    the figures for TensorBoard (tensorboard.py), if asked for
    checkpoints/    what a resume needs (checkpoint.py), if any was asked for
    incidents/      steps that were not finite (nonfinite.py), if any
    lock            held by the process that trains; the system frees it when that ends

A directory that already holds a run is never written to but by its resume, one at a time.
"""

import os
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Required, TypedDict

from filelock import FileLock, Timeout

from regpt.system.errors import UserError
from regpt.system.files import replace_files, writing_to
from regpt.system.json_text import check_types, json_bytes, json_line, read_json, read_lines
from regpt.training.config import RunConfig

NAMED_LINES = 5
LARGEST_COUNT, LARGEST_NUMBER = 1 << 53, 1e100
"""Above any step and any figure of a run: a line with more is damaged."""
VERSIONS = ("regpt", "torch", "numpy", "tiktoken", "safetensors")


def free_name(preset: str, parent: Path = Path("runs")) -> Path:
    """runs/PRESET, or the first of runs/PRESET-2, -3, ... that does not exist."""
    path, number = parent / preset, 2
    while path.exists():
        path, number = parent / f"{preset}-{number}", number + 1
    return path


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested configuration values by their dotted names, tuples as lists."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = list(value) if isinstance(value, tuple) else value
    return flat


def is_sound(entry: dict[str, Any]) -> bool:
    """Whether a line is one a run writes: a step, numbers or null, and texts where they belong."""
    if type(entry.get("step")) is not int or not 0 <= entry["step"] < LARGEST_COUNT:
        return False
    samples, scoring = entry.get("samples", {}), entry.get("hellaswag_scoring", "")
    return (
        all(
            value is None or (type(value) in (int, float) and abs(value) < LARGEST_NUMBER)
            for name, value in entry.items()
            if name not in ("samples", "hellaswag_scoring")
        )
        and isinstance(samples, dict)
        and all(isinstance(text, list) for text in samples.values())
        and isinstance(scoring, str)
    )


def sample_section(step: int, samples: Mapping[str, list[str]]) -> str:
    """A part of samples.txt."""
    texts = [text for written in samples.values() for text in written]
    return f"== after {step} steps\n" + "".join(f"> {text}\n" for text in texts) + "\n"


class RunRecord(TypedDict, total=False):
    """What every reader of run.json relies on; more may stand there."""

    config: Required[dict[str, Any]]
    data: Required[dict[str, Any]]
    runtime: str
    versions: dict[str, str]


class ConfigRecord(TypedDict, total=False):
    """Of `config`, what is read without building a `RunConfig` of it."""

    preset: str
    data: list[str]
    steps: int
    model: dict[str, Any]


class DataRecord(TypedDict, total=False):
    """Of `data`: what was read."""

    sources: str
    fingerprint: str
    train_tokens: int
    validation_tokens: int


class RunDirectory:
    """The one place that knows the files' names."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.run_json = path / "run.json"
        self.metrics = path / "metrics.jsonl"
        self.picture = path / "loss.png"
        self.samples = path / "samples.txt"
        self.checkpoints = path / "checkpoints"
        self.nonfinite = path / "incidents"
        self._lock = FileLock(path / "lock")

    def lock(self) -> None:
        """Be the one process that writes here, until `release` or the process ends."""
        with writing_to(self.path / "lock"):
            try:
                self._lock.acquire(blocking=False)
            except Timeout:
                raise UserError(
                    f"{self.path} is being trained by another process: wait for it or end it, or "
                    "name another directory with --out"
                ) from None

    def release(self) -> None:
        """Let another process write here."""
        self._lock.release()

    @classmethod
    def create(cls, path: Path) -> "RunDirectory":
        """Make and lock the directory; refuse one that holds a run or cannot be written."""
        directory = cls(path)
        directory.refuse_a_run()
        try:
            path.mkdir(parents=True, exist_ok=True)
            directory.lock()
            directory.refuse_a_run()  # of another process, begun between the look and the lock
            directory.metrics.touch()
        except (OSError, UserError) as error:
            directory.release()
            if isinstance(error, UserError):
                raise
            reason = f"cannot write to {path} ({error.strerror})"
            raise UserError(f"{reason}: name another with --out") from None
        return directory

    def refuse_a_run(self) -> None:
        """Raise UserError if there is a run or a model here."""
        for name in ("run.json", "config.json"):
            if (self.path / name).exists():
                raise UserError(
                    f"{self.path} already holds a run ({name}): name another with --out"
                )

    def write_record(self, config: RunConfig, data: dict[str, Any], place: str) -> None:
        """Write run.json: what was run, on what, with which versions."""
        versions = {"python": platform.python_version()} | {
            name: version(name) for name in VERSIONS
        }
        self.replace_record(
            {"config": config.to_json(), "data": data, "runtime": place, "versions": versions}
        )

    def replace_record(self, record: dict[str, Any]) -> None:
        """Write run.json, whole."""
        replace_files(self.path, {self.run_json.name: json_bytes(record)})

    def is_complete(self, steps: int) -> bool:
        """Whether the run came to its end with at least so many steps."""
        return self.read_record().get("finished", 0) >= steps

    def change_record(self, config: RunConfig, step: int) -> list[str]:
        """Take a resumed run's configuration into run.json; the changes, in words.

        run.json then holds the configuration that a next resume starts from, and under `changes`
        what each resume changed and after which step.
        """
        record = self.read_record()
        before, now = flatten(record["config"]), flatten(config.to_json())
        changed = {
            name: [before.get(name), value]
            for name, value in now.items()
            if name != "out" and before.get(name) != value
        }
        if changed:
            record["config"] = config.to_json()
            record.setdefault("changes", []).append({"after_step": step, "fields": changed})
            self.replace_record(record)
        return [f"{name} {new} (was {old})" for name, (old, new) in changed.items()]

    def mark_finished(self, step: int) -> None:
        """The last thing a run does: say in run.json that it came to its end."""
        self.replace_record(self.read_record() | {"finished": step})

    def read_record(self) -> dict[str, Any]:
        """What `write_record` wrote."""
        try:
            record = read_json(self.run_json)
            check_types(RunRecord, record)
            check_types(ConfigRecord, record["config"])
            check_types(DataRecord, record["data"])
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(
                f"{self.path} holds no run (no run.json): name a run's directory"
            ) from None
        except OSError as error:
            raise UserError(f"cannot read {self.run_json}: {error.strerror or error}") from None
        except (ValueError, TypeError, KeyError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else error
            raise UserError(
                f"{self.run_json} is damaged ({reason}): restore it from a copy"
            ) from None
        return record

    def append_metrics(self, entry: dict[str, Any]) -> None:
        """Add one line to metrics.jsonl; samples to samples.txt as well, for people."""
        with writing_to(self.metrics), self.metrics.open("a", encoding="utf-8") as file:
            file.write(json_line(entry))
        if "samples" in entry:
            with writing_to(self.samples), self.samples.open("a", encoding="utf-8") as file:
                file.write(sample_section(entry["step"], entry["samples"]))

    def sync_metrics(self) -> None:
        """Force metrics.jsonl to the disk, before a checkpoint that must not be ahead of it."""
        with writing_to(self.metrics), self.metrics.open("rb+") as file:
            os.fsync(file.fileno())

    def read_metrics(self) -> tuple[list[dict[str, Any]], list[str]]:
        """The sound lines of metrics.jsonl, and in words what a kill or a disk damaged."""
        try:
            data = self.metrics.read_bytes()
        except FileNotFoundError:
            return [], []
        except OSError as error:
            raise UserError(f"cannot read {self.metrics}: {error.strerror or error}") from None
        entries, dropped = [], []
        for number, entry in read_lines(data):
            if entry is not None and is_sound(entry):
                entries.append(entry)
            else:
                dropped.append(number)
        if not dropped:
            return entries, []
        numbers = ", ".join(map(str, dropped[:NAMED_LINES]))
        more = ", ..." if len(dropped) > NAMED_LINES else ""
        lines = "1 line" if len(dropped) == 1 else f"{len(dropped)} lines"
        note = f"{self.metrics}: {lines} dropped that are not whole (line {numbers}{more})"
        return entries, [note]

    def rewind(self, step: int) -> list[str]:
        """Forget what was recorded after `step`, so that a resumed run records it once.

        Returns what else had to be dropped, in words: lines that were not whole.
        """
        found, notes = self.read_metrics()
        entries = [entry for entry in found if step and entry["step"] <= step]
        samples = (entry for entry in entries if "samples" in entry)
        sections = (sample_section(entry["step"], entry["samples"]) for entry in samples)
        files = {
            self.metrics.name: "".join(map(json_line, entries)).encode(),
            self.samples.name: "".join(sections).encode(),
        }
        replace_files(self.path, files)
        return notes
