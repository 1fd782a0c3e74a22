"""AdamW piece by piece: everything a step does to a number while that number is in the cache.

On a CPU an AdamW step is memory traffic: 28 bytes for each parameter in float32, and 12 more where
gradients and weights are cast between float32 and bfloat16 in passes of their own. Here a matrix
that keeps a bfloat16 copy (`bf16_weights.py`) goes through in pieces of a few megabytes: the
gradient's piece is read in bfloat16, torch's fused kernel updates weight and averages, and the
copy's piece is written, before the next piece is touched. A large model goes through in one pass of
C (`adamw.c`), where that can be compiled.

Rule, state and hyperparameters are `torch.optim.AdamW`'s, which takes every other parameter.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor

from regpt.fast.kernels.build import NUMBER, fields, load_library, near, numbers, unavailable_reason
from regpt.fast.training.bf16_weights import Bf16Shadow, shadow_of

PIECE = 1 << 20
"""Numbers of one piece: weight, averages and gradient take 4 MB each."""
WORTH_COMPILING = 1 << 24
"""Numbers with a copy from which on the C kernel is asked for: it is compiled once, in seconds."""
LANES = 16
"""The C kernel works on so many numbers at once."""


class Rule(ctypes.Structure):
    """What a step does to every number; adamw.c says what each means."""

    _fields_ = fields(NUMBER, "scale keep beta1 beta2 step_size correction epsilon")


class PiecewiseAdamW(torch.optim.AdamW):
    """torch's fused AdamW with another `step`; `scale` multiplies gradients left in bfloat16."""

    scale: float = 1.0

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        parameters = (p for group in self.param_groups for p in group["params"])
        kept = sum(p.numel() for p in parameters if shadow_of(p) is not None)
        self.native = kept >= WORTH_COMPILING and unavailable_reason(*ADAMW) is None

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        aside: list[tuple[Tensor, Tensor]] = []
        for group in self.param_groups:
            for parameter in group["params"]:
                copy, gradient = shadow_of(parameter), parameter.grad
                if copy is not None and gradient is not None:
                    self._step_matrix(parameter, gradient, copy, group)
                    aside.append((parameter, gradient))
        for parameter, _ in aside:
            parameter.grad = None
        super().step()
        for parameter, gradient in aside:
            parameter.grad = gradient

    def _step_matrix(
        self, weight: Tensor, gradient: Tensor, copy: Bf16Shadow, group: dict[str, Any]
    ) -> None:
        state = self.state[weight]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"] = torch.zeros_like(weight)
            state["exp_avg_sq"] = torch.zeros_like(weight)
        state["step"] += 1
        low = copy.tensor[: len(weight)]
        moved = (weight, gradient, state["exp_avg"], state["exp_avg_sq"], low)
        if self.native and fits(gradient):
            step(*moved, native_rule(group, int(state["step"]), self.scale))
            torch.autograd.graph.increment_version(weight)
            copy.mark()
            return
        pieces = (tensor.reshape(-1).split(PIECE) for tensor in moved)
        for w, g, average, square, low in zip(*pieces, strict=True):
            if g.dtype != w.dtype:
                g = g.to(w.dtype).mul_(self.scale)
            torch._fused_adamw_(  # pyright: ignore[reportPrivateImportUsage]
                *([w], [g], [average], [square], [], [state["step"]]),
                lr=group["lr"],
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                amsgrad=False,
                maximize=False,
            )
            low.copy_(w)
        copy.mark()

    def norm(self, gradients: list[Tensor]) -> Tensor:
        """The norm over gradients, some in bfloat16.

        Without the C kernel the norm of each piece is summed in float32 and rounded to bfloat16
        (torch would cast whole gradients for more); over a large model that leaves four digits.
        """
        total = 0.0
        for gradient in gradients:
            if self.native and fits(gradient):
                total += squares(gradient)
            else:
                for piece in gradient.reshape(-1).split(PIECE):
                    total += torch.linalg.vector_norm(piece).item() ** 2
        return torch.tensor(total**0.5)


def native_rule(group: dict[str, Any], step: int, scale: float) -> Rule:
    """A step's numbers, worked out in float64."""
    rate, (beta1, beta2) = group["lr"], group["betas"]
    return Rule(
        scale=scale,
        keep=1.0 - rate * group["weight_decay"],
        beta1=beta1,
        beta2=beta2,
        step_size=rate / (1.0 - beta1**step),
        correction=(1.0 - beta2**step) ** -0.5,
        epsilon=group["eps"],
    )


def fits(gradient: Tensor) -> bool:
    """Whether the C kernel takes a gradient."""
    low = gradient.dtype == torch.bfloat16 and gradient.device.type == "cpu"
    return low and gradient.is_contiguous() and gradient.numel() % LANES == 0


def step(
    weight: Tensor, gradient: Tensor, average: Tensor, square: Tensor, low: Tensor, rule: Rule
) -> None:
    """Step float32 `weight` and averages in place, and write its bfloat16 copy into `low`.

    All are contiguous and of one size; `gradient` is one that `fits`.
    """
    moved, threads = (weight, gradient, average, square, low), torch.get_num_threads()
    load_library().regpt_adamw(weight.numel(), *moved, ctypes.byref(rule), threads)


def squares(gradient: Tensor) -> float:
    """The sum of the squares of a bfloat16 tensor that `fits`."""
    return load_library().regpt_squares(gradient.numel(), gradient, torch.get_num_threads())


def is_right() -> bool:
    """One step, and the sum of squares."""
    w, m, v = numbers(3, 48)
    v = v.abs()
    g = numbers(48, seed=1).bfloat16()
    first, second = m + (g.float() - m) * 0.1, v * 0.95 + g.float() ** 2 * 0.05
    expected = w * 0.99 - first * 0.01 / (second.sqrt() * 2.0 + 1e-8)
    low = torch.empty_like(g)
    step(w, g, m, v, low, Rule(1.0, 0.99, 0.9, 0.95, 0.01, 2.0, 1e-8))
    right = near(w, expected, 1e-6) and near(m, first, 1e-6) and near(v, second, 1e-6)
    sum_is_right = near(torch.tensor([squares(g)]), g.float().pow(2).sum(), 1e-5)
    return right and torch.equal(low, w.bfloat16()) and sum_is_right


ADAMW = ("AdamW", is_right)
"""What `unavailable_reason` is asked."""
