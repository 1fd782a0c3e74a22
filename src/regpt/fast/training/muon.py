"""Muon over stacks: matrices of one shape are orthogonalised together.

`torch.optim.Muon` takes one matrix after the other, three small products an iteration each. Here
matrices of one shape go through Newton-Schulz in one batch of products (`baddbmm`), which saves
small models a seventh of the time on two CPU cores, and a GPU most of its launches. On a CPU whose
matrices keep bfloat16 copies (`regpt.fast.training.bf16_weights`) a C kernel takes those small
enough for a core's cache, whole, one on each core: it computes half of each symmetric product, and
nothing leaves the cache (`muon.c`).
Rule, state and hyperparameters are torch's, so a checkpoint of one continues with the other.

    momentum      M <- m M + (1 - m) G          N = (1 - m) G + m M  (Nesterov)
    iterate       X <- N / |N|                  X <- a X + (b A + c A A) X  with  A = X X'
    step          W <- (1 - lr wd) W - lr sqrt(max(1, rows / columns)) X
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regpt.fast.kernels import muon as native
from regpt.fast.kernels.build import unavailable_reason
from regpt.fast.training.bf16_weights import Bf16Shadow

STACK_NUMBERS = 1 << 22
"""Numbers of one stack at most: 8 MB in bfloat16, so that a few copies stay in a CPU's cache."""
ALONE = 1 << 19
"""Matrices of more numbers than this keep two cores busy alone; stacked they are slower."""


WORTH_COMPILING = 1 << 20
"""Numbers from which on the C kernel is asked for: it is compiled once, in seconds."""


@dataclass(frozen=True)
class ShadowRows:
    """Where a matrix lies in a bfloat16 shadow, bfloat16: the whole of it, or q, k or v."""

    copy: Bf16Shadow
    tensor: Tensor


class StackedMuon(torch.optim.Muon):
    """torch's Muon with another `step`; `scale` multiplies gradients left in bfloat16."""

    scale: float = 1.0

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Apply the gradients; those of another dtype are read in the parameter's."""
        for group in self.param_groups:
            stacks: dict[torch.Size, list[Tensor]] = {}
            given = [parameter for parameter in group["params"] if parameter.grad is not None]
            for parameter in self._step_natively(given, group):
                stacks.setdefault(parameter.shape, []).append(parameter)
            for shape, matrices in stacks.items():
                together = 1 if shape.numel() > ALONE else STACK_NUMBERS // shape.numel()
                for start in range(0, len(matrices), together):
                    self._step_stack(matrices[start : start + together], shape, group)

    def _average(self, matrix: Tensor) -> Tensor:
        """Its momentum, zero at first."""
        state = self.state[matrix]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(matrix)
        return state["momentum_buffer"]

    def _polynomials(self, group: dict[str, Any]) -> list[tuple[float, float, float]]:
        """One for each iteration."""
        return [group["ns_coefficients"]] * group["ns_steps"]

    def _step_natively(self, matrices: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        """Step those with a copy that the C kernel takes; returns the others."""
        taken = [
            m for m in matrices if shadow_rows_of(m) is not None and native.fits(m, gradient_of(m))
        ]
        if sum(m.numel() for m in taken) < WORTH_COMPILING or unavailable_reason() is not None:
            return matrices
        steps = []
        for matrix in taken:
            low = shadow_rows_of(matrix)
            average, gradient = self._average(matrix), gradient_of(matrix)
            assert low is not None
            steps.append(
                native.Step(
                    weight=matrix.detach(), gradient=gradient, average=average, copy=low.tensor
                )
            )
        native.step(
            steps,
            self._polynomials(group),
            scale=self.scale,
            momentum=group["momentum"],
            nesterov=group["nesterov"],
            rate=group["lr"],
            weight_decay=group["weight_decay"],
            epsilon=group["eps"],
        )
        torch.autograd.graph.increment_version(taken)
        for matrix in taken:
            low = shadow_rows_of(matrix)
            assert low is not None
            low.copy.mark()
        known = set(taken)
        return [matrix for matrix in matrices if matrix not in known]

    def _step_stack(self, matrices: list[Tensor], shape: torch.Size, group: dict[str, Any]) -> None:
        """Step a few matrices of one shape."""
        averages, gradients = [], []
        for matrix in matrices:
            averages.append(self._average(matrix))
            gradient = gradient_of(matrix)
            if gradient.dtype != matrix.dtype:
                gradient = gradient.to(matrix.dtype).mul_(self.scale)
            gradients.append(gradient)
        torch._foreach_lerp_(averages, gradients, 1 - group["momentum"])  # pyright: ignore
        if group["nesterov"]:
            averages = torch._foreach_lerp(gradients, averages, group["momentum"])  # pyright: ignore
        updates = orthogonalize(averages, self._polynomials(group), group["eps"])
        if group["weight_decay"]:
            torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])  # pyright: ignore
        rate = group["lr"] * max(1.0, shape[0] / shape[1]) ** 0.5
        for matrix, update in zip(matrices, updates, strict=True):
            matrix.add_(update, alpha=-rate)


def shadow_rows_of(matrix: Tensor) -> ShadowRows | None:
    """The rows of a bfloat16 shadow that a matrix has, if any (`optimizer.py` says so)."""
    return getattr(matrix, "shadow_rows", None)


def gradient_of(matrix: Tensor) -> Tensor:
    """The gradient of a matrix that has one."""
    assert matrix.grad is not None
    return matrix.grad


def orthogonalize(
    matrices: Sequence[Tensor],
    polynomials: Sequence[tuple[float, float, float]],
    epsilon: float,
) -> Tensor:
    """Matrices of one shape (r, c) to (n, r, c), bfloat16, singular values about 1."""
    X = torch.stack([matrix.bfloat16() for matrix in matrices])
    tall = X.shape[1] > X.shape[2]
    X = X.mT if tall else X
    X = X / torch.linalg.matrix_norm(X, keepdim=True).clamp(min=epsilon)
    multiply, multiply_add = torch.bmm, torch.baddbmm
    if len(X) == 1:  # a batch of one is slower than none
        X, multiply, multiply_add = X[0], torch.mm, torch.addmm
    for a, b, c in polynomials:
        A = multiply(X, X.mT)
        X = multiply_add(X, multiply_add(A, A, A, beta=b, alpha=c), X, beta=a)
    return (X.mT if tall else X).view(len(matrices), *matrices[0].shape)
