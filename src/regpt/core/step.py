"""One optimisation step: the lecture's order of things, over micro-batches and processes."""

from dataclasses import dataclass

import torch

from regpt.core.data import Batch
from regpt.core.loss import next_token_loss
from regpt.core.model import GPT
from regpt.core.optimizer import Optimizer
from regpt.fast.training.bf16_weights import gradients_in
from regpt.system.distributed import World
from regpt.system.runtime import Runtime
from regpt.training.distributed import GradientSum


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What the gradients of a step came to: means over the whole global batch, all processes."""

    loss: float
    """Nats per token."""
    grad_norm: float
    """Norm of the gradient before clipping."""


def compute_gradients(
    model: GPT,
    optimizer: Optimizer,
    batch: Batch,
    runtime: Runtime,
    world: World,
    gradient_sum: GradientSum,
    *,
    micro_batch: int,
    clip: float | None,
    multiplicity: int = 1,
) -> StepResult:
    """Zero the gradients, run forward and backward on every micro-batch, sum, clip.

    Each micro-batch's loss is a sum divided by the targets of the whole global batch, so any split
    over micro-batches and processes gives the same gradient. Nothing is applied yet: the caller
    looks at the numbers first. `multiplicity` is the loss's: tokens that share the last row.
    """
    optimizer.zero_grad()
    loss = torch.zeros((), device=runtime.device)
    pairs = list(zip(batch.x.split(micro_batch), batch.y.split(micro_batch), strict=True))
    gradients_in(model, bfloat16=len(pairs) == 1 and world.size == 1)
    for index, (x, y) in enumerate(pairs):
        with gradient_sum.collecting(last=index == len(pairs) - 1):
            with runtime.autocast():
                share = next_token_loss(
                    model, x, y, divisor=batch.num_targets, multiplicity=multiplicity
                )
            share.backward()
        loss += share.detach()
    loss = world.sum(loss)
    grad_norm = optimizer.clip(clip)
    return StepResult(loss=loss.item(), grad_norm=grad_norm.item())
