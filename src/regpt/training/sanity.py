"""Does it learn? One small batch, learnt by heart.

A sound model, loss, loader and optimizer bring the loss of a single small batch from ln(V) towards
zero in a few dozen steps. Where they do not, rates 10 and 100 times lower and higher are tried.
"""

import math
from dataclasses import dataclass, replace

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


@dataclass(frozen=True, kw_only=True)
class Check:
    """One question and its answer."""

    name: str
    passed: bool
    text: str


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
    x, y = x[:ROWS, :TOKENS], y[:ROWS, :TOKENS]
    losses = learn_by_heart(model, config, runtime, x, y)
    path = f"{losses[0]:.2f} to {losses[-1]:.2f} in {len(losses)} steps"
    if is_learnt(losses):
        return Check(name="one batch", passed=True, text=f"learnt by heart: loss {path}")
    text = f"not learnt, loss {path}"
    for scale in SCALES:
        other = learn_by_heart(model, config, runtime, x, y, scale=scale)
        if is_learnt(other):
            text += (
                f": the learning rate is too {'low' if scale > 1 else 'high'}; at {scale:g} times "
                f"({config.lr * scale:g}) the loss comes to {other[-1]:.2f}"
            )
            break
    else:
        text += ", nor at rates 100 times lower or higher: model, loss or data"
    return Check(name="one batch", passed=False, text=text)
