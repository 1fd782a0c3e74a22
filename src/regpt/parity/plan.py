"""What is compared, and in which order: cheap and fundamental things first."""

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from regpt import weights
from regpt.parity import tensors, text
from regpt.parity.model_pair import (
    FULL_SHAPE,
    SMALL_SHAPES,
    Pair,
    Tokenizer,
    load_pair,
    load_tokenizer,
    need_transformers,
    random_pair,
)
from regpt.parity.report import Check
from regpt.system.errors import UserError
from regpt.system.files import writing_to


@dataclass(frozen=True)
class Comparison:
    """The models to compare, read on both sides, and transformers' tokenizer for their texts."""

    model: str
    """What was asked for: random, a directory or a hub name."""
    pairs: Sequence[Pair]
    tokenizer: Tokenizer


@contextlib.contextmanager
def open_pairs(
    model: str = "random", *, device: torch.device, small: bool = False
) -> Iterator[Comparison]:
    """Read a model (a directory or hub name) on both sides; or, for `random`, draw some here, write
    them, and read those: several small shapes and, unless `small`, the 124M's.

    Raises UserError where transformers is not installed, or the model cannot be found or read.
    """
    need_transformers()
    with tempfile.TemporaryDirectory() as folder:
        spare = Path(folder)
        if model == "random":
            shapes = SMALL_SHAPES if small else (*SMALL_SHAPES, FULL_SHAPE)
            with writing_to(spare):
                pairs = [
                    random_pair(shape, spare / f"model-{seed}", seed=seed, device=device)
                    for seed, shape in enumerate(shapes, start=4)
                ]
        else:
            pairs = [load_pair(model, weights.locate(model), device=device)]
        yield Comparison(model, pairs, load_tokenizer(pairs[0].directory, spare))


def run(comparison: Comparison, *, seeds: int = 5) -> Iterator[Check]:
    """Every check, as soon as it is made. `seeds` is of random streams per model and text; the most
    of the time goes there."""
    if seeds < 1:
        raise UserError(f"seeds must be at least 1, got {seeds}")
    pairs = comparison.pairs
    yield tensors.check_tokens(comparison.tokenizer)
    yield tensors.check_weights(pairs)
    yield tensors.check_logits(pairs, torch.float32)
    yield tensors.check_logits(pairs, torch.bfloat16)
    yield tensors.check_loss(pairs)
    yield tensors.check_gradients(pairs)
    yield tensors.check_training(pairs)
    yield text.check_greedy(pairs)
    yield from text.check_sampled(pairs, comparison.tokenizer, seeds=seeds)
    yield text.check_lecture(pairs, seeds=seeds)
    yield text.check_published(comparison.model, pairs[0])
