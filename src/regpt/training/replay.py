"""One step of a run again, in float32, with every layer recorded: where did the numbers go wrong?

The weights are those that met the step: from its report if it was not finite; else from the newest
sound checkpoint before it (or the beginning), with the steps between computed again as the run did,
in its own dtype. The batch needs no file: it is a function of (data, seed, step). Nothing is
written. One process computes the whole global batch; of a run on many, dropout masks differ.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict

import torch

from regpt.core.schedule import factor
from regpt.core.train import StepResult
from regpt.datasets.corpus import Say
from regpt.system.distributed import World
from regpt.system.errors import UserError
from regpt.system.json_text import check_types, read_json
from regpt.system.runtime import find_runtime
from regpt.training.activation_stats import LayerStats, record_activations
from regpt.training.build import build, gradients_of
from regpt.training.checkpoint import load_newest
from regpt.training.config import RunConfig
from regpt.training.nonfinite import nonfinite_reason, report_directory
from regpt.training.run_dir import RunDirectory
from regpt.training.state import TrainState, check_data, load_model, restore


class Report(TypedDict):
    """What is read again of a step's report.json."""

    loss: float | None
    grad_norm: float | None
    fault: str


@dataclass(frozen=True, kw_only=True)
class Replay:
    """A step, computed again."""

    step: int
    """From 1, as in metrics.jsonl."""
    source: str
    """Where the weights came from."""
    place: str
    """Device and dtype of this computation."""
    loss: float
    grad_norm: float
    recorded: dict[str, Any] | None
    """The run's own line or report; None if it left neither."""
    fault: str | None
    """What the run found wrong."""
    layers: dict[str, LayerStats]

    @property
    def is_finite(self) -> bool:
        """Whether loss and gradient norm are."""
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


def replay(directory: Path, step: int, *, device: str | None, note: Say) -> Replay:
    """Compute a step of a run again in float32; `device` default: the run's own.

    Raises:
        UserError: no such run or step, changed data, or no sound checkpoint to start from.
    """
    run = RunDirectory(directory)
    record = run.read_record()
    saved = RunConfig.from_json(record["config"])
    if not 1 <= step <= saved.steps:
        raise UserError(f"step {step} is not one of the run's 1 to {saved.steps}")
    config = replace(
        saved,
        device=device or saved.device,
        shard=False,
        compile=False,
        checkpoint_activations=False,
        pad_vocabulary=False,
    )
    runtime = find_runtime(config.device, dtype=config.dtype, threads=config.threads)
    if runtime.world_size > 1:
        raise UserError("replay runs as one process: start it without torchrun")
    state = build(config, runtime, World(device=runtime.device), say=note)
    check_data(record["data"], state.data.record)
    source = restore_before(state, run, step, note)
    state.runtime = replace(runtime, dtype=torch.float32)
    state.settings = replace(state.settings, autocast=state.runtime.autocast)
    with record_activations(state.model) as layers:
        result = next_gradients(state)
    recorded, fault = recorded_of(run, step)
    return Replay(
        step=step,
        source=source,
        place=state.runtime.describe(),
        loss=result.loss,
        grad_norm=result.grad_norm,
        recorded=recorded,
        fault=fault,
        layers=layers,
    )


def restore_before(state: TrainState, run: RunDirectory, step: int, note: Say) -> str:
    """Bring a fresh state to the weights that met `step`; says where they came from."""
    model = report_directory(run, step) / "model"
    if model.is_dir():
        load_model(state, model)
        state.step = step - 1
        return str(model)
    source = "the beginning"
    if checkpoint := load_newest(run.checkpoints, note=note, at_most=step - 1):
        restore(state, checkpoint)
        source = str(checkpoint.path)
    between = step - 1 - state.step
    if not between:
        return source
    note(f"{between} steps lie between {source} and this")
    for _ in range(between):
        advance(state)
    return f"{source} and {between} steps"


def next_gradients(state: TrainState) -> StepResult:
    """The gradients of the state's next step, on the whole batch, at its learning rate."""
    step, config = state.step, state.config
    (batch,) = state.data.loader.batches(step, step + 1, device=state.runtime.device)
    state.optimizer.set_factor(factor(step, config.steps, config.schedule))
    return gradients_of(state, batch)


def advance(state: TrainState) -> None:
    """One step as the run did it: applied unless its numbers were not finite."""
    if nonfinite_reason(next_gradients(state)) is None:
        state.optimizer.step()
    state.step += 1


def recorded_of(run: RunDirectory, step: int) -> tuple[dict[str, Any] | None, str | None]:
    """What the run wrote of a step, and what it found wrong with it."""
    path = report_directory(run, step) / "report.json"
    if path.exists():
        try:
            report = check_types(Report, read_json(path))
            return {name: report[name] for name in ("loss", "grad_norm")}, report["fault"]
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(f"{path} is damaged: remove {path.parent} to replay without") from None
    for entry in run.read_metrics()[0]:
        if entry["step"] == step and "loss" in entry:
            return entry, None
    return None, None
