"""One optimisation step: the lecture's order of things, for any number of micro-batches."""

from dataclasses import dataclass

import torch
from torch import Tensor

from regpt.data.loader import Batch
from regpt.loss import next_token_loss
from regpt.model import GPT
from regpt.runtime import Runtime
from regpt.train.optimizer import Optimizer


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What a step measured, still on the device: reading it waits for the device."""

    loss: Tensor
    """Mean loss over the global batch, nats per token."""
    grad_norm: Tensor
    """Norm of the gradient before clipping."""


def train_step(
    model: GPT,
    optimizer: Optimizer,
    batch: Batch,
    runtime: Runtime,
    *,
    micro_batch: int,
    clip: float | None,
) -> StepResult:
    """Zero the gradients, run forward and backward on every micro-batch, step.

    Each micro-batch's loss is a sum divided by the targets of the whole batch, so any split gives
    the same gradient.
    """
    optimizer.zero_grad()
    loss = torch.zeros((), device=runtime.device)
    micro_batches = zip(batch.x.split(micro_batch), batch.y.split(micro_batch), strict=True)
    for x, y in micro_batches:
        with runtime.autocast():
            share = next_token_loss(model, x, y) / batch.num_targets
        share.backward()
        loss += share.detach()
    grad_norm = optimizer.clip(clip)
    optimizer.step()
    return StepResult(loss=loss, grad_norm=grad_norm)
