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

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regpt.fast.kernels.build import (
    COUNT,
    NUMBER,
    PLACE,
    fields,
    load_library,
    near,
    numbers,
    unavailable_reason,
)
from regpt.fast.training.bf16_weights import Bf16Shadow

STACK_NUMBERS = 1 << 22
"""Numbers of one stack at most: 8 MB in bfloat16, so that a few copies stay in a CPU's cache."""
ALONE = 1 << 19
"""Matrices of more numbers than this keep two cores busy alone; stacked they are slower."""
WORTH_COMPILING = 1 << 20
"""Numbers from which on the C kernel is asked for: it is compiled once, in seconds."""
SIDE = 32
"""Sides of a matrix that the C kernel takes are multiples of this."""
LARGEST = 1 << 19
"""Numbers of a matrix that still goes into the cache of one core, a few copies beside it."""


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
            given = [matrix for matrix in group["params"] if matrix.grad is not None]
            taken = {m for m in given if hasattr(m, "shadow_rows") and fits(m, m.grad)}
            worth_it = sum(m.numel() for m in taken) >= WORTH_COMPILING
            if not worth_it or unavailable_reason(*MUON) is not None:
                taken = set()
            self._step_in_c([matrix for matrix in given if matrix in taken], group)
            stacks: dict[torch.Size, list[Tensor]] = {}
            for matrix in given:
                if matrix not in taken:
                    stacks.setdefault(matrix.shape, []).append(matrix)
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

    def _step_in_c(self, matrices: list[Any], group: dict[str, Any]) -> None:
        """Step matrices that have `shadow_rows` (`optimizer.py` gives them)."""
        if not matrices:
            return
        rows = [matrix.shadow_rows for matrix in matrices]
        steps = [
            Step(matrix, matrix.grad, self._average(matrix), low.tensor)
            for matrix, low in zip(matrices, rows, strict=True)
        ]
        step(steps, group, scale=self.scale)
        torch.autograd.graph.increment_version(matrices)
        for low in rows:
            low.copy.mark()

    def _step_stack(self, matrices: list[Any], shape: torch.Size, group: dict[str, Any]) -> None:
        averages = [self._average(matrix) for matrix in matrices]
        gradients = [
            matrix.grad
            if matrix.grad.dtype == matrix.dtype
            else matrix.grad.to(matrix.dtype).mul_(self.scale)
            for matrix in matrices
        ]
        torch._foreach_lerp_(averages, gradients, 1 - group["momentum"])  # pyright: ignore
        if group["nesterov"]:
            averages = torch._foreach_lerp(gradients, averages, group["momentum"])  # pyright: ignore
        polynomials = [group["ns_coefficients"]] * group["ns_steps"]
        updates = orthogonalize(averages, polynomials, group["eps"])
        if group["weight_decay"]:
            torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])  # pyright: ignore
        rate = group["lr"] * max(1.0, shape[0] / shape[1]) ** 0.5
        for matrix, update in zip(matrices, updates, strict=True):
            matrix.add_(update, alpha=-rate)


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


class Matrix(ctypes.Structure):
    """`Matrix` of muon.c."""

    _fields_ = (
        *fields(COUNT, "rows columns low"),
        *fields(PLACE, "gradient average weight copy"),
    )


class MuonRule(ctypes.Structure):
    """`MuonRule` of muon.c."""

    _fields_ = (
        *fields(NUMBER, "scale momentum keep rate epsilon"),
        *fields(COUNT, "nesterov iterations"),
        ("polynomials", PLACE),
    )


@dataclass(frozen=True)
class Step:
    """What the C kernel steps in one matrix, in place; all contiguous, on the CPU."""

    weight: Tensor
    """(rows, columns) float32."""
    gradient: Tensor
    """The same, float32 or bfloat16."""
    average: Tensor
    """The same, float32."""
    copy: Tensor | None = None
    """The same, bfloat16: takes the new weight too."""


def fits(weight: Tensor, gradient: Tensor) -> bool:
    """Whether the C kernel takes a matrix."""
    shaped = weight.numel() <= LARGEST and not any(side % SIDE for side in weight.shape)
    dense = weight.is_contiguous() and gradient.is_contiguous()
    known = gradient.dtype in (torch.float32, torch.bfloat16) and weight.dtype == torch.float32
    return shaped and dense and known and weight.device.type == "cpu"


def step(matrices: Sequence[Step], group: dict[str, Any], *, scale: float) -> None:
    """Step small matrices in C, one core each, the costly ones first.

    `group` is one of torch's; `scale` multiplies gradients in bfloat16.
    """
    order = sorted(matrices, key=lambda each: -each.weight.numel() * min(each.weight.shape))
    table = (Matrix * len(order))()
    for place, each in zip(table, order, strict=True):
        place.rows, place.columns = each.weight.shape
        place.low = each.gradient.dtype == torch.bfloat16
        place.gradient, place.average = each.gradient.data_ptr(), each.average.data_ptr()
        place.weight = each.weight.data_ptr()
        place.copy = None if each.copy is None else each.copy.data_ptr()
    coefficients = [*group["ns_coefficients"]] * group["ns_steps"]
    polynomials = (ctypes.c_float * len(coefficients))(*coefficients)
    rule = MuonRule(
        scale=scale,
        momentum=group["momentum"],
        keep=1.0 - group["lr"] * group["weight_decay"],
        rate=group["lr"],
        epsilon=group["eps"],
        nesterov=group["nesterov"],
        iterations=group["ns_steps"],
        polynomials=ctypes.addressof(polynomials),
    )
    most = max(each.weight.numel() for each in order)
    least = max(min(each.weight.shape) for each in order)
    threads = torch.get_num_threads()
    room = torch.empty(threads, 8 * most + 8 * least * least, dtype=torch.uint8)
    load_library().regpt_muon(len(order), table, ctypes.byref(rule), most, least, room, threads)


def is_right() -> bool:
    """One iteration, of a wide matrix."""
    w, g = torch.zeros(32, 64), numbers(32, 64, seed=1)
    average, x = torch.zeros_like(g), g / g.norm()
    square = x @ x.T
    expected = -0.1 * (3.0 * x - 2.0 * square @ x + 0.5 * square @ square @ x)
    group = {"ns_coefficients": (3.0, -2.0, 0.5), "ns_steps": 1, "momentum": 0.0, "lr": 0.1}
    group |= {"nesterov": False, "weight_decay": 0.0, "eps": 1e-7}
    step([Step(w, g, average)], group, scale=1.0)
    return near(average, g, 1e-6) and near(w, expected, 2e-2)


MUON = ("Muon", is_right)
"""What `unavailable_reason` is asked."""
