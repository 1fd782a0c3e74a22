"""The training loop, whole: the lecture's order of things, with accumulation, clipping, a schedule.

    for batch in batches:
        zero the gradients; forward and backward on each micro-batch; clip; step

What a run adds (checkpoints, validation, progress, many processes, a guard against numbers that are
not finite) hangs on the loop as `Hooks`; `regpt.training` has them. The loss function, the
optimizer and the batches are arguments, so a faster one of the same numbers takes their place.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from regpt.core.data import Batch
from regpt.core.loss import next_token_loss
from regpt.core.model import GPT
from regpt.core.optimizer import Optimizer
from regpt.core.schedule import ScheduleConfig, factor


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What the gradients of a step came to: means over the whole global batch, all processes."""

    loss: float
    """Nats per token."""
    grad_norm: float
    """Norm of the gradient before clipping."""


class Hooks:
    """What a run hangs on the loop. These do nothing, and apply every step."""

    def before_backward(self, num_micro_batches: int) -> None:
        """The gradients are zero, the first micro-batch is next."""

    def backward(self, *, last: bool) -> AbstractContextManager[None]:
        """Around forward and backward of a micro-batch; `last` of this step."""
        return nullcontext()

    def sum(self, loss: Tensor) -> Tensor:
        """The sum of a scalar over all processes."""
        return loss

    def accept(self, batch: Batch, result: StepResult) -> bool:
        """Whether to apply the gradients."""
        return True

    def after_step(self, batch: Batch, result: StepResult) -> bool:
        """The step is done, or passed over; whether to go on."""
        return True


NO_HOOKS = Hooks()


@dataclass(frozen=True, kw_only=True)
class StepSettings:
    """How a batch becomes gradients."""

    micro_batch: int | None = None
    """Sequences per forward pass; None: all at once."""
    clip: float | None = None
    """Gradients above this norm are scaled down to it; None: never."""
    loss_fn: Callable[..., Tensor] = next_token_loss
    """`loss.next_token_loss`, or a faster function of the same numbers."""
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext
    """The context of forward passes: mixed precision, or nothing."""


def compute_gradients(
    model: GPT,
    optimizer: Optimizer,
    batch: Batch,
    settings: StepSettings,
    hooks: Hooks = NO_HOOKS,
) -> StepResult:
    """Zero the gradients, run forward and backward on every micro-batch, sum, clip.

    Each micro-batch's loss is a sum divided by the targets of the whole global batch, so any split
    over micro-batches and processes gives the same gradient. Nothing is applied yet.
    """
    optimizer.zero_grad()
    size = settings.micro_batch or len(batch.x)
    pairs = list(zip(batch.x.split(size), batch.y.split(size), strict=True))
    hooks.before_backward(len(pairs))
    loss = torch.zeros((), device=batch.x.device)
    for index, (x, y) in enumerate(pairs):
        with hooks.backward(last=index == len(pairs) - 1):
            with settings.autocast():
                share = settings.loss_fn(model, x, y, divisor=batch.num_targets)
            share.backward()
        loss += share.detach()
    loss = hooks.sum(loss)
    grad_norm = optimizer.clip(settings.clip)
    return StepResult(loss=loss.item(), grad_norm=grad_norm.item())


def train(
    model: GPT,
    batches: Iterable[Batch],
    optimizer: Optimizer,
    *,
    steps: int,
    schedule: ScheduleConfig | None = None,
    settings: StepSettings | None = None,
    hooks: Hooks = NO_HOOKS,
) -> None:
    """Take a step on each batch, until there is none left or a hook says so.

    Args:
        model: trained in place.
        batches: of the steps to take, in order; `batch.step` counts from 0.
        optimizer: of the model's parameters.
        steps: of the whole run, for the schedule.
        schedule: of the learning rate; default: constant.
        settings: micro-batches, clipping, loss function, mixed precision.
        hooks: what happens around a step.
    """
    for batch in batches:
        optimizer.set_factor(factor(batch.step, steps, schedule or ScheduleConfig()))
        result = compute_gradients(model, optimizer, batch, settings or StepSettings(), hooks)
        if hooks.accept(batch, result):
            optimizer.step()
        if not hooks.after_step(batch, result):
            return
