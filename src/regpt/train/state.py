"""What a run is made of: built from its configuration, taken down into a snapshot and put back."""

import dataclasses
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from regpt import weights
from regpt.data.corpora import Corpus, load_corpus
from regpt.data.loader import ArrayDataset, BatchPlan, Dataset, Loader
from regpt.errors import UserError
from regpt.model import GPT
from regpt.parallel import (
    GradientSum,
    World,
    checkpoint_activations,
    fill,
    full,
    pad_vocabulary,
    shard,
)
from regpt.runtime import Runtime
from regpt.tokenizer import get_tokenizer
from regpt.train.checkpoint import Checkpoint, Snapshot, to_host, without_padding
from regpt.train.config import RunConfig
from regpt.train.optimizer import Optimizer

SPIKE_WINDOW = 128
"""Losses that a spike is measured against."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """The tokens of a run."""

    loader: Loader
    validation: Dataset | None
    facts: dict[str, Any]
    """What run.json says of them; a resume compares it."""


@dataclass(kw_only=True)
class TrainState:
    """A run under way."""

    config: RunConfig
    runtime: Runtime
    world: World
    data: Data
    model: GPT
    optimizer: Optimizer
    gradient_sum: GradientSum
    step: int = 0
    """Steps done."""
    tokens: int = 0
    """Tokens trained on."""
    val_loss: float | None = None
    """The newest validation loss."""
    recent_losses: list[float] = field(default_factory=list)
    """The last losses, newest last."""
    bad_steps: int = 0
    """Steps skipped so far."""


def read_data(config: RunConfig, world: World) -> Data:
    """The training tokens behind a loader, and the validation tokens if any are held out."""
    corpus = load_corpus(config.data)
    training, held_out = split(corpus, config)
    plan = BatchPlan(
        num_tokens=len(training),
        block_size=config.block_size,
        sequences=config.sequences(world.size),
        order=config.order,
        seed=config.seed,
    )
    plan.rows(world.rank, world.size)  # refuses a batch that cannot be shared out
    facts = {
        "sources": corpus.name,
        "fingerprint": corpus.fingerprint,
        "train_tokens": len(training),
        "validation_tokens": len(held_out) if held_out else 0,
        "tokenizer": get_tokenizer().digest,
    }
    return Data(loader=Loader(training, plan), validation=held_out, facts=facts)


def split(corpus: Corpus, config: RunConfig) -> tuple[ArrayDataset, ArrayDataset | None]:
    """Training and validation tokens of a text."""
    tokenizer = get_tokenizer()
    if not config.validation_fraction:
        return ArrayDataset(corpus.tokens(tokenizer)), None
    training, rest = corpus.split(config.validation_fraction)
    held_out = ArrayDataset(rest.tokens(tokenizer))
    if len(held_out) < 2:
        raise UserError(
            f"the validation text, the last {config.validation_fraction:g} of {corpus.name}, "
            f"has {len(held_out)} tokens, but 2 are needed: give more text"
        )
    return ArrayDataset(training.tokens(tokenizer)), held_out


def build(config: RunConfig, runtime: Runtime, world: World) -> TrainState:
    """Everything a run needs, from its configuration; touches no file but the data."""
    data = read_data(config, world)
    torch.manual_seed(config.seed)
    model = GPT(config.model).to(runtime.device).train()
    pads = config.pad_vocabulary
    if pads or (pads is None and runtime.device.type == "cuda"):
        pad_vocabulary(model)
    if config.checkpoint_activations:
        checkpoint_activations(model)
    if config.compile:
        for block in model.h:
            block.compile()
    summing = world
    if config.shard:
        shard(model, world, replicas=config.replicas)
        summing = World(device=runtime.device)  # FSDP sums by itself
    return TrainState(
        config=config,
        runtime=runtime,
        world=world,
        data=data,
        model=model,
        optimizer=Optimizer(model, config.optimizer, lr=config.lr),
        gradient_sum=GradientSum(model, summing),
    )


def take_snapshot(state: TrainState) -> Snapshot:
    """A copy in host memory; with a sharded model every process must ask."""

    def copy(tensor: torch.Tensor) -> torch.Tensor:
        return to_host(full(tensor.detach()))

    vocab_size = state.config.model.vocab_size
    model = {name: copy(tensor) for name, tensor in state.model.state_dict().items()}
    optimizer = state.optimizer.state_tensors(copy)
    return Snapshot(
        step=state.step,
        model=without_padding(model, vocab_size),
        config=asdict(state.config.model),
        optimizer=without_padding(optimizer, vocab_size),
        progress={
            "step": state.step,
            "tokens": state.tokens,
            "val_loss": state.val_loss,
            "recent_losses": state.recent_losses,
            "bad_steps": state.bad_steps,
            "world_size": state.world.size,
            "seed": state.config.seed,
            "data": state.data.facts,
        },
        val_loss=state.val_loss,
    )


def restore(state: TrainState, checkpoint: Checkpoint) -> None:
    """Put a checkpoint's numbers into a freshly built state; refuse, by name, what does not fit."""
    check_facts(checkpoint.progress["data"], state.data.facts)
    shape = weights.read_config(checkpoint.path)
    for name, value in asdict(state.config.model).items():
        if shape.get(name) != value:
            raise UserError(
                f"model.{name} is {value}, the checkpoint's is {shape.get(name)}: resume with the "
                "run's own configuration"
            )
    shapes = {name: tuple(t.shape) for name, t in state.model.state_dict().items()}
    shapes["wte.weight"] = (state.config.model.vocab_size, state.config.model.n_embd)
    tensors = weights.read_tensors(checkpoint.path, shapes)
    for name, parameter in state.model.named_parameters():
        whole = tensors[name]
        if len(whole) < len(parameter):  # the vocabulary's padding is zero
            whole = torch.cat([whole, whole.new_zeros(len(parameter) - len(whole), whole.shape[1])])
        fill(parameter, whole)
    state.optimizer.load_state_tensors(checkpoint.optimizer, fill)
    progress = checkpoint.progress
    state.step, state.tokens = progress["step"], progress["tokens"]
    state.val_loss, state.bad_steps = progress["val_loss"], progress["bad_steps"]
    state.recent_losses = list(progress["recent_losses"])


def check_facts(saved: dict[str, Any], found: dict[str, Any]) -> None:
    """Refuse to go on with another text, split or tokenizer."""
    words = {
        "fingerprint": "the data has changed",
        "tokenizer": "the tokenizer has changed",
        "train_tokens": "the training split has changed",
        "validation_tokens": "the validation split has changed",
    }
    for name, text in words.items():
        if saved.get(name) != found.get(name):
            raise UserError(
                f"{text} since the run began ({name} {saved.get(name)}, now {found.get(name)}): "
                "resume with the data it was started on, or start a new run"
            )


def with_out(config: RunConfig, path: Path) -> RunConfig:
    """The configuration with its directory named."""
    return dataclasses.replace(config, out=str(path))
