"""The state of a run: copied into a snapshot, restored from a checkpoint."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

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
from regpt.training.training_data import Data

SPIKE_WINDOW = 128
"""Losses that a spike is measured against."""
SAVED = ("step", "tokens", "val_loss", "val_step", "recent_losses", "bad_steps")
"""The fields of a `TrainState` that state.json holds."""


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

    def copy(tensor: Tensor) -> Tensor:
        return full(tensor.detach()).to("cpu", copy=True)

    vocab_size = state.config.model.vocab_size
    whole = state.whole_model().state_dict()
    model = {name: copy(tensor) for name, tensor in whole.items()}
    optimizer = state_tensors(state.optimizer, copy)
    if state.vocabulary is not None:
        optimizer = map_embedding(optimizer, state.vocabulary.expand_rows)
    progress = {name: getattr(state, name) for name in SAVED}
    progress |= {"world_size": state.world.size, "seed": state.config.seed}
    return Snapshot(
        model=model,
        config=asdict(state.config.model),
        optimizer=map_embedding(optimizer, lambda tensor: tensor[:vocab_size]),
        progress=progress | {"data": state.data.record},
        val_loss=state.val_loss if state.val_step == state.step else None,
    )


def restore(state: TrainState, checkpoint: Checkpoint) -> None:
    """Put a checkpoint's numbers into a freshly built state; refuse, by name, what does not fit."""
    progress = checkpoint.progress
    check_data(progress["data"], state.data.record)
    steps, done = state.config.steps, progress["step"]
    if steps < done:
        raise UserError(
            f"steps {steps} is fewer than the {done} that are done: ask for --steps {done} or more"
        )
    load_model(state, checkpoint.path)
    try:
        tensors: Mapping[str, Tensor] = checkpoint.optimizer
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
    for name in SAVED:
        setattr(state, name, progress[name])


def map_embedding(
    tensors: Mapping[str, Tensor], change: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
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


def moments(optimizer: Optimizer) -> Iterator[tuple[str, slice, dict[str, Any]]]:
    """Every state: the parameter's name, the rows of it that are meant, torch's dictionary."""
    for parameter in optimizer.parameters:
        if parameter in optimizer.adamw.state:
            yield optimizer.names[parameter], slice(None), optimizer.adamw.state[parameter]
    for matrix, pieces in optimizer.pieces:
        assert optimizer.muon is not None
        for index, piece in enumerate(pieces):
            rows = slice(index * len(piece), (index + 1) * len(piece))
            yield optimizer.names[matrix], rows, optimizer.muon.state[piece]


def state_tensors(optimizer: Optimizer, gather: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """What must survive a stop, by parameter name; `gather` makes a whole copy of a tensor."""
    tensors: dict[str, Tensor] = {}
    for name, _, state in moments(optimizer):
        for key, value in state.items():
            if key == "step":
                tensors["step"] = gather(value)
            elif f"{key}.{name}" in tensors:  # q, k and v of one matrix
                tensors[f"{key}.{name}"] = torch.cat([tensors[f"{key}.{name}"], gather(value)])
            else:
                tensors[f"{key}.{name}"] = gather(value)
    return tensors


def load_state_tensors(
    optimizer: Optimizer, tensors: Mapping[str, Tensor], fill: Callable[[Tensor, Tensor], None]
) -> None:
    """Take back what `state_tensors` gave; `fill` copies a whole tensor into one of ours."""
    make_states(optimizer)
    for name, rows, state in moments(optimizer):
        for key, value in state.items():
            fill(value, tensors["step"] if key == "step" else tensors[f"{key}.{name}"][rows])


def make_states(optimizer: Optimizer) -> None:
    """Let the optimizers create their states, by a step of zero gradients at rate zero."""
    rates = [group["lr"] for group in optimizer.groups()]
    optimizer.set_factor(0.0)
    for parameter in optimizer.parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    for group, rate in zip(optimizer.groups(), rates, strict=True):
        group["lr"] = rate
