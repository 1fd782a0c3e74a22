"""The state of a run: copied into a snapshot, restored from a checkpoint."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from regpt import weights
from regpt.core.model import GPT
from regpt.core.optimizer import Optimizer
from regpt.core.train import StepSettings
from regpt.fast.training.compact_vocabulary import CompactVocabulary, expand
from regpt.system.distributed import World, full
from regpt.system.errors import UserError
from regpt.system.runtime import Runtime
from regpt.training.checkpoint import Checkpoint, Snapshot
from regpt.training.config import RunConfig
from regpt.training.distributed import GradientSum, fill
from regpt.training.optimizer_state import load_state_tensors, state_tensors
from regpt.training.training_data import Data

SPIKE_WINDOW = 128
"""Losses that a spike is measured against."""


@dataclass(kw_only=True)
class TrainState:
    """A run under way."""

    config: RunConfig
    runtime: Runtime
    world: World
    data: Data
    model: GPT
    """What is trained; with a compact vocabulary, `whole_model` is what is saved and read."""
    vocabulary: CompactVocabulary | None
    optimizer: Optimizer
    gradient_sum: GradientSum
    settings: StepSettings
    step: int = 0
    """Steps done."""
    tokens: int = 0
    """Tokens trained on."""
    val_loss: float | None = None
    """The newest validation loss,"""
    val_step: int | None = None
    """and after which step it was measured."""
    recent_losses: list[float] = field(default_factory=list)
    """The last losses of steps that were applied, newest last; at most SPIKE_WINDOW."""
    bad_steps: int = 0
    """Steps skipped so far."""

    def whole_model(self) -> GPT:
        """The model over the whole vocabulary."""
        return self.model if self.vocabulary is None else expand(self.model, self.vocabulary)


def take_snapshot(state: TrainState) -> Snapshot:
    """A copy in host memory; with a sharded model every process must ask."""

    def copy(tensor: torch.Tensor) -> torch.Tensor:
        return full(tensor.detach()).to("cpu", copy=True)

    vocab_size = state.config.model.vocab_size
    whole = state.whole_model().state_dict()
    model = {name: copy(tensor) for name, tensor in whole.items()}
    optimizer = state_tensors(state.optimizer, copy)
    if state.vocabulary is not None:
        optimizer = map_embedding(optimizer, state.vocabulary.expand_rows)
    return Snapshot(
        step=state.step,
        model=model,
        config=asdict(state.config.model),
        optimizer=map_embedding(optimizer, lambda tensor: tensor[:vocab_size]),
        progress={
            "step": state.step,
            "tokens": state.tokens,
            "val_loss": state.val_loss,
            "val_step": state.val_step,
            "recent_losses": state.recent_losses,
            "bad_steps": state.bad_steps,
            "world_size": state.world.size,
            "seed": state.config.seed,
            "data": state.data.record,
        },
        val_loss=state.val_loss if state.val_step == state.step else None,
    )


def restore(state: TrainState, checkpoint: Checkpoint) -> None:
    """Put a checkpoint's numbers into a freshly built state; refuse, by name, what does not fit."""
    progress = checkpoint.progress
    check_data(progress["data"], state.data.record)
    if state.config.steps < checkpoint.step:
        raise UserError(
            f"steps {state.config.steps} is fewer than the {checkpoint.step} that are done: ask "
            f"for --steps {checkpoint.step} or more"
        )
    load_model(state, checkpoint.path)
    try:
        tensors: Mapping[str, torch.Tensor] = checkpoint.optimizer
        if state.vocabulary is not None:
            tensors = map_embedding(tensors, state.vocabulary.compact_rows)
        if tensors:  # none if every step so far was skipped
            load_state_tensors(state.optimizer, tensors, fill)
    except KeyError as error:
        raise UserError(
            f"{checkpoint.path} has no optimizer state {error}: resume with the run's own "
            "--optimizer.name"
        ) from None
    except RuntimeError as error:  # torch, of shapes
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{checkpoint.path / 'optimizer.safetensors'} does not fit the model ({reason}): "
            "remove this checkpoint and resume again"
        ) from None
    state.step, state.tokens = progress["step"], progress["tokens"]
    state.val_loss, state.bad_steps = progress["val_loss"], progress["bad_steps"]
    state.val_step = progress["val_step"]
    state.recent_losses = list(progress["recent_losses"])


def map_embedding(
    tensors: Mapping[str, torch.Tensor], change: Callable[[torch.Tensor], torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The tensors, with the token embedding's (and its averages') rows changed."""
    return {
        name: change(tensor) if name.endswith("wte.weight") else tensor
        for name, tensor in tensors.items()
    }


def load_model(state: TrainState, directory: Path) -> None:
    """Put the weights of a model directory into a freshly built state, if they fit."""
    shape = weights.read_config(directory)
    for name, value in asdict(state.config.model).items():
        if shape.get(name) != value:
            raise UserError(
                f"model.{name} is {value}, {directory} has {shape.get(name)}: use the "
                "run's own configuration"
            )
    shapes = {name: tuple(t.shape) for name, t in state.model.state_dict().items()}
    shapes["wte.weight"] = (state.config.model.vocab_size, state.config.model.n_embd)
    tensors = weights.read_tensors(directory, shapes)
    if state.vocabulary is not None:
        tensors = map_embedding(tensors, state.vocabulary.compact_rows)
    for name, parameter in state.model.named_parameters():
        fill(parameter, tensors[name])


def check_data(saved: dict[str, Any], found: dict[str, Any]) -> None:
    """Refuse to go on with another text, split or tokenizer."""
    changed = {
        "fingerprint": "the data has changed",
        "tokenizer": "the tokenizer has changed",
        "train_tokens": "the training split has changed",
        "validation_tokens": "the validation split has changed",
    }
    for name, text in changed.items():
        before, now = saved.get(name), found.get(name)
        if before != now:
            raise UserError(
                f"{text} since the run began ({name} {before!s:.12}, now {now!s:.12}): "
                "resume with the data it was started on, or start a new run"
            )
