"""AdamW piece by piece: everything a step does to a number while that number is in the cache.

On a CPU an AdamW step is memory traffic: 28 bytes for each parameter in float32, and 12 more where
gradients and weights are cast between float32 and bfloat16 in passes of their own. Here a matrix
that keeps a bfloat16 copy (`regpt.fast.training.bf16_weights`) goes through in pieces of a few
megabytes: the gradient's piece is read in bfloat16, torch's fused kernel updates weight and
averages, and the copy's piece is written, before the next piece is touched. Where the C kernel can
be compiled (`regpt.fast.kernels`), a large model goes through in one pass, without the float32
piece of the gradient.

Rule, state and hyperparameters are `torch.optim.AdamW`'s, which takes every other parameter.
"""

from typing import Any

import torch
from torch import Tensor

from regpt.fast.kernels import adamw as native
from regpt.fast.kernels.build import unavailable_reason
from regpt.fast.training.bf16_weights import Bf16Shadow, shadow_of

PIECE = 1 << 20
"""Numbers of one piece: weight, averages and gradient take 4 MB each."""
WORTH_COMPILING = 1 << 24
"""Numbers with a copy from which on the C kernel is asked for: it is compiled once, in seconds."""


class PiecewiseAdamW(torch.optim.AdamW):
    """torch's fused AdamW with another `step`; `scale` multiplies gradients left in bfloat16."""

    scale: float = 1.0

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        kept = [
            p for group in self.param_groups for p in group["params"] if shadow_of(p) is not None
        ]
        large = sum(parameter.numel() for parameter in kept) >= WORTH_COMPILING
        self.native = large and unavailable_reason() is None

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Apply the gradients."""
        buffer: Tensor | None = None
        aside: list[Tensor] = []
        for group in self.param_groups:
            for parameter in group["params"]:
                copy, gradient = shadow_of(parameter), parameter.grad
                if copy is None or gradient is None:
                    continue
                if buffer is None:
                    buffer = torch.empty(PIECE, dtype=parameter.dtype)
                self._step_matrix(parameter, gradient, copy, group, buffer)
                aside.append(parameter)
        gradients = [parameter.grad for parameter in aside]
        for parameter in aside:
            parameter.grad = None
        super().step()
        for parameter, gradient in zip(aside, gradients, strict=True):
            parameter.grad = gradient

    def _step_matrix(
        self,
        weight: Tensor,
        gradient: Tensor,
        copy: Bf16Shadow,
        group: dict[str, Any],
        buffer: Tensor,
    ) -> None:
        """One matrix."""
        state = self.state[weight]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"] = torch.zeros_like(weight)
            state["exp_avg_sq"] = torch.zeros_like(weight)
        state["step"] += 1
        if self.native and native.fits(gradient):
            rule = native_rule(group, int(state["step"]), self.scale)
            low = copy.tensor[: len(weight)]
            native.step(weight.detach(), gradient, state["exp_avg"], state["exp_avg_sq"], low, rule)
            torch.autograd.graph.increment_version(weight)
            copy.mark()
            return
        flat = (weight, gradient, state["exp_avg"], state["exp_avg_sq"])
        pieces = (tensor.reshape(-1).split(PIECE) for tensor in flat)
        copies = copy.tensor[: len(weight)].view(-1).split(PIECE)
        scaled = self.scale != 1.0 and gradient.dtype != weight.dtype
        for w, g, average, square, low in zip(*pieces, copies, strict=True):
            if g.dtype != w.dtype:
                g = buffer[: len(g)].copy_(g)
                if scaled:
                    g.mul_(self.scale)
            torch._fused_adamw_(  # pyright: ignore[reportPrivateImportUsage]
                [w],
                [g],
                [average],
                [square],
                [],
                [state["step"]],
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
            if self.native and native.fits(gradient):
                total += native.squares(gradient)
            else:
                for piece in gradient.reshape(-1).split(PIECE):
                    total += torch.linalg.vector_norm(piece).item() ** 2
        return torch.tensor(total**0.5)


def native_rule(group: dict[str, Any], step: int, scale: float) -> native.Rule:
    """A step's numbers, worked out in float64."""
    rate, (beta1, beta2) = group["lr"], group["betas"]
    return native.Rule(
        scale=scale,
        keep=1.0 - rate * group["weight_decay"],
        beta1=beta1,
        beta2=beta2,
        step_size=rate / (1.0 - beta1**step),
        correction=(1.0 - beta2**step) ** -0.5,
        epsilon=group["eps"],
    )
