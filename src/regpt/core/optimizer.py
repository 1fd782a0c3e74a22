"""The optimizers, behind one small object: AdamW, or Muon for the hidden matrices beside it.

Both are torch's own here; `regpt.fast.training.optimizer` puts faster classes of the same rules in
their place. Muon orthogonalises the update of each matrix, and `c_attn` is three matrices, so q, k
and v are handed to it as three parameters that share the storage of the one (orthogonalising it
whole would tie their scales). Embeddings, LayerNorms and biases stay with AdamW, as Muon's author
has it.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from regpt.core.model import GPT
from regpt.system.distributed import full
from regpt.system.errors import UserError


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """What turns gradients into steps."""

    name: Literal["adamw", "muon"] = "adamw"
    """adamw; or muon for the blocks' matrices and adamw for the rest."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's averaging of the gradient and of its square."""
    epsilon: float = 1e-8
    """AdamW's floor of the denominator."""
    weight_decay: float = 0.1
    """Decoupled weight decay, times the learning rate."""
    decay: Literal["matrices", "all"] = "matrices"
    """Which parameters decay: matrices and embeddings, or biases and LayerNorms too."""
    clip: float | None = 1.0
    """Gradients above this norm are scaled down to it; None: never."""
    muon_lr: float = 0.02
    """Muon's learning rate for the blocks' matrices."""
    muon_weight_decay: float | None = None
    """Muon's weight decay, times its learning rate; default: weight_decay."""
    muon_momentum: float = 0.95
    """Muon's momentum (Nesterov's form)."""

    def __post_init__(self) -> None:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"optimizer.betas must be in [0, 1), got {self.betas}")
        if not 0 <= self.muon_momentum < 1:
            raise UserError(f"optimizer.muon_momentum must be in [0, 1), got {self.muon_momentum}")
        for name in ("weight_decay", "muon_weight_decay", "epsilon", "muon_lr"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise UserError(f"optimizer.{name} must not be negative, got {value}")
        if self.clip is not None and not self.clip > 0:
            raise UserError(f"optimizer.clip must be positive or None, got {self.clip}")


def split_parameters(
    model: GPT, config: OptimizerConfig
) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
    """(Muon's matrices, decayed, not decayed): every parameter in exactly one list."""
    hidden, decayed, plain = [], [], []
    for name, parameter in model.named_parameters():
        if config.name == "muon" and parameter.ndim == 2 and name.startswith("h."):
            hidden.append(parameter)
        elif parameter.ndim >= 2 or config.decay == "all":
            decayed.append(parameter)
        else:
            plain.append(parameter)
    return hidden, decayed, plain


def separate_qkv(matrix: nn.Parameter) -> list[nn.Parameter]:
    """A (3C, C) c_attn matrix as three (C, C) parameters on the same storage; others alone."""
    rows, columns = matrix.shape
    if rows != 3 * columns:
        return [matrix]
    return [nn.Parameter(part) for part in matrix.detach().split(columns)]


class Optimizer:
    """What the training step needs: zero_grad, set_factor, step."""

    def __init__(
        self,
        model: GPT,
        config: OptimizerConfig,
        *,
        lr: float,
        adamw: type[torch.optim.AdamW] = torch.optim.AdamW,
        muon: type[torch.optim.Muon] = torch.optim.Muon,
    ) -> None:
        hidden, decayed, plain = split_parameters(model, config)
        self.names = {parameter: name for name, parameter in model.named_parameters()}
        self.parameters = list(model.parameters())
        groups = [
            {"params": decayed, "weight_decay": config.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ]
        self.adamw = adamw(
            [group for group in groups if group["params"]],
            lr=lr,
            betas=config.betas,
            eps=config.epsilon,
            fused=True,
        )
        self.pieces = [(matrix, separate_qkv(matrix)) for matrix in hidden]
        self.muon = None
        if hidden:
            decay = config.muon_weight_decay
            self.muon = muon(
                [piece for _, pieces in self.pieces for piece in pieces],
                lr=config.muon_lr,
                momentum=config.muon_momentum,
                nesterov=True,
                weight_decay=config.weight_decay if decay is None else decay,
            )
        for group in self.groups():
            group["peak_lr"] = group["lr"]

    def groups(self) -> Iterator[dict[str, Any]]:
        for optimizer in (self.adamw, self.muon):
            if optimizer is not None:
                yield from optimizer.param_groups

    def set_factor(self, factor: float) -> None:
        """Set every learning rate to `factor` times its peak."""
        for group in self.groups():
            group["lr"] = group["peak_lr"] * factor

    @property
    def lr(self) -> float:
        """AdamW's learning rate now."""
        return self.adamw.param_groups[0]["lr"]

    def zero_grad(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def step(self) -> None:
        if self.muon is not None:
            for matrix, pieces in self.pieces:
                assert matrix.grad is not None
                if len(pieces) > 1:
                    for piece, grad in zip(pieces, matrix.grad.split(len(pieces[0])), strict=True):
                        piece.grad = None  # of another dtype, if a resume put it there
                        if hasattr(piece, "grad_dtype"):  # since torch 2.13
                            piece.grad_dtype = grad.dtype
                        piece.grad = grad
            self.muon.step()
        self.adamw.step()

    def clip(self, limit: float | None) -> Tensor:
        """Scale the gradients down to norm `limit`; returns their norm before, a scalar."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = full(torch.nn.utils.get_total_norm(gradients))
        if limit is not None:
            # scaling by a norm that is not finite would smear it over every gradient, and the
            # incident's statistics could no longer say where it came from
            known = torch.where(norm.isfinite(), norm, torch.zeros_like(norm))
            torch.nn.utils.clip_grads_with_norm_(self.parameters, limit, known)
        return norm
