"""Checkpoints: a directory each, complete or absent, verified before it is trusted.

    RUN/checkpoints/step-00000200/
        config.json, model.safetensors, tokenizer files    the model, in Hugging Face layout
        optimizer.safetensors                              averages and momenta, by parameter name
        state.json                                         step, tokens, fingerprints
        manifest.json                                      sha256 of every file above
    RUN/checkpoints/latest, best                           the names of two of them

There is no pickle and no random state: the data order and the dropout masks are functions of (seed,
step), so the step is the state. Tensors are whole (never cut over processes) and without padding,
so any number of processes reads what any other number wrote.

A checkpoint is filled under a hidden name, forced to the disk, renamed, and only then named by
`latest`. Removing one hides it first. Loading recomputes every digest; a checkpoint that fails is
passed over for the newest sound one before it, and the caller is told.
"""

import hashlib
import re
import secrets
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from regpt import weights
from regpt.datasets.corpus import Say
from regpt.system.errors import UserError
from regpt.system.files import new_directory, replace_files, writing_to
from regpt.system.json_text import check_types, json_bytes, read_json

MANIFEST, LATEST, BEST = "manifest.json", "latest", "best"
FILES = {"config.json", "model.safetensors", "optimizer.safetensors", "state.json"}
"""What a manifest must name for a checkpoint to be one."""
NAME = re.compile(r"step-\d+")


class Progress(TypedDict):
    """What state.json says."""

    step: int
    tokens: int
    val_loss: float | None
    val_step: int | None
    recent_losses: list[float]
    bad_steps: int
    world_size: int
    seed: int
    data: dict[str, Any]
    """`Data.record` of the run."""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """Everything a checkpoint holds, in host memory, apart from what training goes on to change."""

    model: Mapping[str, Tensor]
    config: Mapping[str, Any]
    """The fields of GPTConfig."""
    optimizer: Mapping[str, Tensor]
    progress: Mapping[str, Any]
    """The fields of `Progress`."""
    val_loss: float | None
    """Of these very weights; None if they were not validated."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A verified checkpoint on disk."""

    path: Path
    optimizer: dict[str, Tensor]
    progress: Progress


def name_of(step: int) -> str:
    """The directory name of a step's checkpoint; names sort as steps do."""
    return f"step-{step:08d}"


def digest(path: Path) -> str:
    """sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_checkpoint(folder: Path, snapshot: Snapshot, *, keep: int) -> Path:
    """Write a checkpoint, move `latest` (and `best`), remove what is no longer kept."""
    step = snapshot.progress["step"]
    path = folder / name_of(step)
    remove(path)  # one that was passed over when the run was resumed
    with new_directory(path) as hidden, writing_to(path):
        weights.write_model_files(hidden, snapshot.model, snapshot.config)
        optimizer = partial(weights.write_safetensors, tensors=snapshot.optimizer)
        state = json_bytes(snapshot.progress)
        replace_files(hidden, {"optimizer.safetensors": optimizer, "state.json": state})
        files = {file.name: digest(file) for file in sorted(hidden.iterdir())}
        manifest = {"step": step, "val_loss": snapshot.val_loss, "sha256": files}
        replace_files(hidden, {MANIFEST: json_bytes(manifest)})
    names = {LATEST: path.name}
    if is_best(folder, snapshot.val_loss):
        names[BEST] = path.name
    replace_files(folder, {file: f"{name}\n".encode() for file, name in names.items()})
    prune(folder, keep)
    return path


class CheckpointWriter:
    """Writes a run's checkpoints in a thread, one at a time, while training goes on."""

    def __init__(self, folder: Path, *, keep: int) -> None:
        self.folder = folder
        self.keep = keep
        self.pool = ThreadPoolExecutor(1, "checkpoint")
        self.pending: Future[Path] | None = None

    def save(self, take: Callable[[], Snapshot]) -> None:
        """Take a snapshot now, once the save before has ended; write it in the thread."""
        self.wait()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.pending = self.pool.submit(write_checkpoint, self.folder, take(), keep=self.keep)

    def check(self) -> None:
        """Raise what the save under way met, if it has ended; does not wait."""
        if self.pending is not None and self.pending.done():
            self.wait()

    def wait(self) -> None:
        """Wait for the save under way; raises what it met."""
        if self.pending is not None:
            pending, self.pending = self.pending, None
            pending.result()

    def close(self) -> None:
        """Wait, and end the thread."""
        with self.pool:
            self.wait()


def read_pointer(folder: Path, pointer: str) -> str | None:
    """The checkpoint name that `latest` or `best` holds, if there is one."""
    try:
        text = (folder / pointer).read_text(encoding="utf-8", errors="replace")
        return text.strip() or None
    except OSError:  # none, or not to be read: the checkpoints themselves are what counts
        return None


def is_best(folder: Path, val_loss: float | None) -> bool:
    """Whether a validation loss is below the best checkpoint's."""
    if val_loss is None:
        return False
    best = read_pointer(folder, BEST)
    if best is None:
        return True
    try:
        held = read_json(folder / best / MANIFEST)["val_loss"]
    except (OSError, ValueError, KeyError, TypeError):
        return True
    return held is None or val_loss < held


def prune(folder: Path, keep: int) -> None:
    """Remove all checkpoints but the newest `keep` up to the latest, and the best.

    Any after the latest were passed over by a resume: they are no sound ones to count, and are
    replaced when training comes to their step again.
    """
    names = sorted(path.name for path in folder.glob("step-*"))
    latest = read_pointer(folder, LATEST) or ""
    counted = [name for name in names if name <= latest]
    for name in counted[:-keep]:
        if name != read_pointer(folder, BEST):
            remove(folder / name)
    for leftover in folder.glob(".step-*.tmp"):  # of a save that was killed
        shutil.rmtree(leftover, ignore_errors=True)


def remove(path: Path) -> None:
    """Remove a checkpoint, if it is there, so that a kill leaves no half of it under its name."""
    hidden = path.parent / f".{path.name}.{secrets.token_hex(4)}.tmp"
    try:
        path.rename(hidden)
    except FileNotFoundError:
        return
    shutil.rmtree(hidden, ignore_errors=True)


def verify(path: Path) -> str | None:
    """What is wrong with a checkpoint, in words; None if it is sound."""
    try:
        manifest = read_json(path / MANIFEST)
        if missing := FILES - set(manifest["sha256"]):
            return f"{MANIFEST} does not name {', '.join(sorted(missing))}"
        for file, expected in manifest["sha256"].items():
            if digest(path / file) != expected:
                return f"{file} does not match its sha256"
    except FileNotFoundError as error:
        return f"{Path(error.filename or MANIFEST).name} is missing"
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    except (ValueError, KeyError, AttributeError, TypeError):
        return f"{MANIFEST} is damaged"
    return None


def load_newest(folder: Path, *, note: Say, at_most: int | None = None) -> Checkpoint | None:
    """The newest sound checkpoint (of step `at_most` or before); tells `note` of others."""
    for path in sorted(folder.glob("step-*"), reverse=True):
        if not NAME.fullmatch(path.name) or (at_most is not None and path.name > name_of(at_most)):
            continue
        fault = verify(path)
        if fault is None:
            return load(path)
        note(f"checkpoint {path.name} is not sound ({fault}): passed over")
    return None


def load(path: Path) -> Checkpoint:
    """Read a checkpoint that was verified."""
    try:
        progress = check_types(Progress, read_json(path / "state.json"))
        optimizer = load_file(path / "optimizer.safetensors")
    except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read ({error}): remove it and resume again") from None
    return Checkpoint(path=path, optimizer=optimizer, progress=progress)
