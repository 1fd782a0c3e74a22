"""bfloat16 shadows of the weights, kept from step to step, for training on a CPU.

Autocast casts every weight anew in each forward and every gradient back to float32 in each
backward, and the token embedding's gradient is a matrix of zeros with a few rows in it, added to
the head's. On a CPU all of that is memory traffic, a good part of a step of few tokens. Here

- a matrix has a bfloat16 shadow that is made again only when the matrix has changed; the optimizer
  writes it while the new numbers are still in the cache (`adamw.py`);
- a gradient may stay in the bfloat16 that its product was rounded to anyway (`gradients_in`): the
  same numbers at half the traffic. Sums over micro-batches and processes take float32;
- the token embedding adds its few rows to the gradient the head has left, in place.

`keep_bf16_weights(model)` swaps this in from outside; without autocast, and off the CPU, the
model's own layers go on. `tests/fast/test_bf16_weights.py` holds the two together.
"""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from regpt.core.loss import TILE
from regpt.core.model import GPT

MAY_BE_LOW = hasattr(torch.Tensor, "grad_dtype")
"""Whether torch lets a parameter's gradient have another dtype; before 2.13 it does not, and
autograd casts what a product left in bfloat16."""


class Bf16Shadow:
    """A weight matrix in bfloat16; rows that fill up the last tile are zero."""

    def __init__(self, parameter: nn.Parameter, *, tile: int = 1) -> None:
        rows, columns = parameter.shape
        rows += -rows % tile
        self.parameter = parameter
        self.tensor = parameter.detach().new_zeros(rows, columns, dtype=torch.bfloat16)
        self.version: int | None = None

    def fresh(self) -> Tensor:
        """The copy, made again if the matrix was written to since."""
        if self.version != self.parameter._version:
            self.tensor[: len(self.parameter)].copy_(self.parameter.detach())
            self.mark()
        return self.tensor

    def mark(self) -> None:
        self.version = self.parameter._version


def shadow_of(parameter: Tensor) -> Bf16Shadow | None:
    """The copy that a parameter keeps, if any."""
    return getattr(parameter, "bf16_shadow", None)


def keep_bf16_weights(model: GPT) -> GPT:
    """Let a model on a CPU keep copies of its matrices; for one process that holds it whole."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.weight.bf16_shadow = Bf16Shadow(module.weight)  # pyright: ignore
            module.forward = partial(linear, module, module.forward)  # pyright: ignore
    model.wte.weight.bf16_shadow = Bf16Shadow(model.wte.weight, tile=TILE)  # pyright: ignore
    model.wte.forward = partial(embed, model.wte, model.wte.forward)  # pyright: ignore
    return model


def gradients_in(model: GPT, *, bfloat16: bool) -> None:
    """Which dtype the gradients of matrices with a copy are left in; before any is formed."""
    if not MAY_BE_LOW:
        return
    dtype = torch.bfloat16 if bfloat16 else torch.float32
    for parameter in model.parameters():
        if shadow_of(parameter) is not None and parameter.grad_dtype != dtype:
            parameter.grad_dtype = dtype


def linear(module: nn.Linear, plain: Any, x: Tensor) -> Tensor:
    """`nn.Linear.forward`: x (..., inputs) to (..., outputs); `plain` is the module's own."""
    copy = shadow_of(module.weight)
    if copy is None or not torch.is_autocast_enabled("cpu"):
        return plain(x)
    return Bf16Linear.apply(x, module.weight, module.bias, copy.fresh())  # pyright: ignore


class Bf16Linear(torch.autograd.Function):
    """x W' + b in bfloat16, over W's copy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, copy: Tensor) -> Tensor:
        """x (..., inputs), weight and copy (outputs, inputs), bias (outputs,)."""
        with torch.autocast("cpu", enabled=False):
            rows = x.to(torch.bfloat16).flatten(0, -2)
            y = torch.addmm(bias.to(torch.bfloat16), rows, copy.t())
        ctx.save_for_backward(rows, copy)
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:  # pyright: ignore
        """The gradients of x, weight and bias; autograd casts them as their owners want."""
        rows, copy = ctx.saved_tensors
        flat = dy.flatten(0, -2)
        dx = torch.mm(flat, copy).view(*dy.shape[:-1], -1)
        return dx, torch.mm(flat.t(), rows), flat.sum(0, dtype=torch.float32), None


def embed(module: nn.Embedding, plain: Any, idx: Tensor) -> Tensor:
    """`nn.Embedding.forward`: ids (B, T) to (B, T, C); `plain` is the module's own."""
    if not (torch.is_grad_enabled() and module.weight.requires_grad):
        return plain(idx)
    rows = F.embedding(idx, module.weight.detach()).requires_grad_()
    rows.register_hook(partial(add_rows, module.weight, idx))
    return rows


@torch.no_grad()
def add_rows(weight: Tensor, idx: Tensor, gradient: Tensor) -> None:
    """Add the gradient of looked-up rows, (B, T, C), to the matrix's, rounding each row once."""
    if weight.grad is None:  # the head has left none yet
        weight.grad = torch.zeros_like(weight, dtype=getattr(weight, "grad_dtype", None))
    ids, place = idx.unique(return_inverse=True)
    rows = weight.grad[ids].float()
    rows.index_add_(0, place.flatten(), gradient.flatten(0, 1).float())
    weight.grad[ids] = rows.to(weight.grad.dtype)
