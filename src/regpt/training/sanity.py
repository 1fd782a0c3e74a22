"""Does it learn? The first loss, and one small batch learnt by heart.

A sound model, loss, loader and optimizer bring the loss of a single small batch from ln(V) towards
zero in a few dozen steps. Where they do not, rates 10 and 100 times lower and higher are tried.
"""

import math
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from regpt.core.data import IGNORE_INDEX, Batch
from regpt.core.model import GPT
from regpt.core.train import StepSettings, compute_gradients
from regpt.fast.training.bf16_weights import gradients_in
from regpt.fast.training.fused_loss import next_token_loss
from regpt.fast.training.optimizer import FastOptimizer
from regpt.system.runtime import Runtime
from regpt.training.build import zero_projections
from regpt.training.config import RunConfig

STEPS, ROWS, TOKENS = 50, 4, 32
LEARNT = 0.5
"""The share of its first loss below which a batch counts as learnt."""
SCALES = (0.1, 10.0, 0.01, 100.0)
INITIAL_TOLERANCE = 0.3


@dataclass(frozen=True, kw_only=True)
class Check:
    """One question and its answer."""

    name: str
    passed: bool
    text: str


def check_first_loss(loss: float, config: RunConfig) -> Check:
    """Before training every token is about equally likely: ln(V), and a little for the spread.

    Logits of a fresh GPT-2 have variance 0.02² C (weights of deviation 0.02 on normalised inputs),
    which raises the expected cross-entropy by half of that.
    """
    uniform = math.log(config.model.vocab_size)
    spread = 0.02**2 * config.model.n_embd / 2
    text = f"{loss:.3f}; ln({config.model.vocab_size}) is {uniform:.3f}"
    low = loss < uniform - INITIAL_TOLERANCE
    passed = not low and loss <= uniform + spread + INITIAL_TOLERANCE
    if low:
        text += ": the model knows the answers before training"
    elif not passed:
        text += ": the initialisation is too wide, or the loss is not a mean of cross-entropies"
    return Check(name="first loss", passed=passed, text=text)


def learn_by_heart(
    model: GPT, config: RunConfig, runtime: Runtime, x: Tensor, y: Tensor, *, scale: float = 1.0
) -> list[float]:
    """The losses of some steps on one batch, from fresh weights, at `scale` times the rates."""
    torch.manual_seed(config.seed)
    model.init_weights()
    if config.zero_projections:
        zero_projections(model)
    optimizer_config = replace(config.optimizer, muon_lr=config.optimizer.muon_lr * scale)
    optimizer = FastOptimizer(model, optimizer_config, lr=config.lr * scale)
    batch = Batch(0, x, y, int((y != IGNORE_INDEX).sum()))
    settings = StepSettings(
        clip=config.optimizer.clip, loss_fn=next_token_loss, autocast=runtime.autocast
    )
    losses: list[float] = []
    with torch.compiler.set_stance("force_eager"):
        for step in range(STEPS):
            optimizer.set_factor(min(1.0, (step + 1) / 5))
            gradients_in(model, bfloat16=True)
            result = compute_gradients(model, optimizer, batch, settings)
            losses.append(result.loss)
            if not (math.isfinite(result.loss) and math.isfinite(result.grad_norm)):
                break
            optimizer.step()
    return losses


def is_learnt(losses: list[float]) -> bool:
    """Whether the batch is known by heart, or on the way."""
    return math.isfinite(losses[-1]) and losses[-1] < LEARNT * losses[0]


def check_one_batch(model: GPT, config: RunConfig, runtime: Runtime, x: Tensor, y: Tensor) -> Check:
    """Learn one batch by heart; where that fails, try other learning rates.

    x, y: (B, T) int64. The model's weights are not kept.
    """
    check = partial(Check, name="one batch")
    x, y = x[:ROWS, :TOKENS], y[:ROWS, :TOKENS]
    learn = partial(learn_by_heart, model, config, runtime, x, y)
    losses = learn()
    path = f"{losses[0]:.2f} to {losses[-1]:.2f} in {len(losses)} steps"
    if is_learnt(losses):
        return check(passed=True, text=f"learnt by heart: loss {path}")
    for scale in SCALES:
        other = learn(scale=scale)
        if is_learnt(other):
            word = "low" if scale > 1 else "high"
            text = (
                f"not learnt, loss {path}: the learning rate is too {word}; at {scale:g} times "
                f"({config.lr * scale:g}) the loss comes to {other[-1]:.2f}"
            )
            return check(passed=False, text=text)
    text = f"not learnt, loss {path}, nor at rates 100 times lower or higher: model, loss or data"
    return check(passed=False, text=text)
