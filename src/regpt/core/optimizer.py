"""The optimizers, behind one small object: AdamW, or Muon for the hidden matrices beside it.

AdamW is torch's fused one, on a CPU piece by piece (adamw.py). Muon is torch's rule over stacks of
equal shapes (muon.py), or `torch.optim.Muon` itself; it orthogonalises the update of each matrix,
and `c_attn` is three matrices, so q, k and v are handed to it as three parameters that share the
storage of the one (orthogonalising it whole would tie their scales). Embeddings, LayerNorms and
biases stay with AdamW, as Muon's author has it.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from regpt.core.model import GPT
from regpt.fast.training.adamw import PiecewiseAdamW
from regpt.fast.training.bf16_weights import copy_of
from regpt.fast.training.muon import Rows, StackedMuon
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
    muon_iterations: int = 5
    """Newton-Schulz iterations: fewer are faster and leave the singular values farther from 1."""
    muon_polynomials: Literal["same", "falling"] = "same"
    """Newton-Schulz with Jordan's polynomial each time, or Polar Express's: steep ones first."""
    muon_stacked: bool = True
    """Matrices of one shape together; off: torch's Muon, one after the other."""

    def __post_init__(self) -> None:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"optimizer.betas must be in [0, 1), got {self.betas}")
        if self.weight_decay < 0:
            raise UserError(f"optimizer.weight_decay must not be negative, got {self.weight_decay}")
        if self.muon_weight_decay is not None and self.muon_weight_decay < 0:
            raise UserError(
                f"optimizer.muon_weight_decay must not be negative, got {self.muon_weight_decay}"
            )
        if not 1 <= self.muon_iterations < 100:
            raise UserError(
                f"optimizer.muon_iterations must be in 1 .. 99, got {self.muon_iterations}"
            )
        if self.muon_polynomials != "same" and not self.muon_stacked:
            raise UserError(
                f"optimizer.muon_polynomials {self.muon_polynomials} is not torch's: use same, or "
                "--optimizer.muon-stacked"
            )
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

    def __init__(self, model: GPT, config: OptimizerConfig, *, lr: float) -> None:
        hidden, decayed, plain = split_parameters(model, config)
        self._names = {parameter: name for name, parameter in model.named_parameters()}
        groups = [
            {"params": decayed, "weight_decay": config.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ]
        self.parameters = list(model.parameters())
        keeps = any(copy_of(parameter) is not None for parameter in self.parameters)
        adamw = PiecewiseAdamW if keeps else torch.optim.AdamW
        self.adamw = adamw(
            [group for group in groups if group["params"]],
            lr=lr,
            betas=config.betas,
            eps=config.epsilon,
            fused=True,
        )
        self._pieces = [(matrix, separate_qkv(matrix)) for matrix in hidden]
        for matrix, pieces in self._pieces:
            copy = copy_of(matrix)
            if copy is not None:
                for piece, low in zip(pieces, copy.tensor.split(len(pieces[0])), strict=True):
                    piece.kept_rows = Rows(copy, low)  # pyright: ignore
        self.muon = None
        if hidden:
            kind = StackedMuon if config.muon_stacked else torch.optim.Muon
            self.muon = kind(
                [piece for _, pieces in self._pieces for piece in pieces],
                lr=config.muon_lr,
                momentum=config.muon_momentum,
                nesterov=True,
                ns_steps=config.muon_iterations,
                weight_decay=(
                    config.weight_decay
                    if config.muon_weight_decay is None
                    else config.muon_weight_decay
                ),
            )
            if isinstance(self.muon, StackedMuon):
                self.muon.falling = config.muon_polynomials == "falling"
        for group in self._groups():
            group["peak_lr"] = group["lr"]

    def _groups(self) -> Iterator[dict]:
        for optimizer in (self.adamw, self.muon):
            if optimizer is not None:
                yield from optimizer.param_groups

    def set_factor(self, factor: float) -> None:
        """Set every learning rate to `factor` times its peak."""
        for group in self._groups():
            group["lr"] = group["peak_lr"] * factor

    @property
    def lr(self) -> float:
        """AdamW's learning rate now."""
        return self.adamw.param_groups[0]["lr"]

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    def step(self) -> None:
        """Apply the gradients."""
        if self.muon is not None:
            for matrix, pieces in self._pieces:
                assert matrix.grad is not None
                if len(pieces) > 1:
                    for piece, grad in zip(pieces, matrix.grad.split(len(pieces[0])), strict=True):
                        piece.grad = None  # of another dtype, if a resume put it there
                        if hasattr(piece, "grad_dtype"):  # since torch 2.13
                            piece.grad_dtype = grad.dtype
                        piece.grad = grad
            self.muon.step()
        self.adamw.step()

    def _moments(self) -> Iterator[tuple[str, torch.optim.Optimizer, nn.Parameter, slice]]:
        """Every tensor with a state: name, its optimizer, its parameter, its rows of the name."""
        for parameter in self.parameters:
            if parameter in self.adamw.state:
                yield self._names[parameter], self.adamw, parameter, slice(None)
        for matrix, pieces in self._pieces:
            for index, piece in enumerate(pieces):
                rows = len(piece)
                assert self.muon is not None
                yield (
                    self._names[matrix],
                    self.muon,
                    piece,
                    slice(index * rows, (index + 1) * rows),
                )

    def state_tensors(self, gather: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """What must survive a stop, by parameter name; `gather` makes a whole copy of a tensor."""
        tensors: dict[str, Tensor] = {}
        for name, optimizer, parameter, _ in self._moments():
            for key, value in optimizer.state[parameter].items():
                if key == "step":
                    tensors["step"] = gather(value)
                elif f"{key}.{name}" in tensors:  # q, k and v of one matrix
                    tensors[f"{key}.{name}"] = torch.cat([tensors[f"{key}.{name}"], gather(value)])
                else:
                    tensors[f"{key}.{name}"] = gather(value)
        return tensors

    def load_state_tensors(
        self, tensors: Mapping[str, Tensor], fill: Callable[[Tensor, Tensor], None]
    ) -> None:
        """Take back what `state_tensors` gave; `fill` copies a whole tensor into one of ours."""
        self._make_states()
        for name, optimizer, parameter, rows in self._moments():
            for key, value in optimizer.state[parameter].items():
                whole = tensors["step" if key == "step" else f"{key}.{name}"]
                part = whole if key == "step" else whole[rows]
                if key != "step" and len(part) < len(value):  # rows that pad the vocabulary
                    part = torch.cat(
                        [part, part.new_zeros(len(value) - len(part), *part.shape[1:])]
                    )
                fill(value, part)

    def _make_states(self) -> None:
        """Let the optimizers create their states, by a step of zero gradients at rate zero."""
        rates = [group["lr"] for group in self._groups()]
        self.set_factor(0.0)
        for parameter in self.parameters:
            parameter.grad = torch.zeros_like(parameter)
        self.step()
        self.zero_grad()
        for group, rate in zip(self._groups(), rates, strict=True):
            group["lr"] = rate

    def clip(self, limit: float | None) -> Tensor:
        """Scale the gradients down to norm `limit`; returns their norm before, a scalar.

        Gradients left in bfloat16 are scaled by the step, in float32, and stay as they are.
        """
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        if any(gradient.dtype == torch.bfloat16 for gradient in gradients):
            return self._clip_low(gradients, limit)
        norm = full(torch.nn.utils.get_total_norm(gradients))
        if limit is not None:
            # scaling by a norm that is not finite would smear it over every gradient, and the
            # incident's statistics could no longer say where it came from
            known = torch.where(norm.isfinite(), norm, torch.zeros_like(norm))
            torch.nn.utils.clip_grads_with_norm_(self.parameters, limit, known)
        return norm

    def _clip_low(self, gradients: list[Tensor], limit: float | None) -> Tensor:
        """`clip` where some gradients are in bfloat16 (on a CPU)."""
        assert isinstance(self.adamw, PiecewiseAdamW)
        norm = self.adamw.norm(gradients)
        scale = 1.0
        if limit is not None and norm.isfinite():
            scale = min(limit / (norm.item() + 1e-6), 1.0)  # as torch has it
        for optimizer in (self.adamw, self.muon):
            if isinstance(optimizer, PiecewiseAdamW | StackedMuon):
                optimizer.scale = scale
        if scale != 1.0:
            for gradient in gradients:
                if gradient.dtype != torch.bfloat16:
                    gradient.mul_(scale)
        return norm
