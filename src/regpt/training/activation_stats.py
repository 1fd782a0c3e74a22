"""Activations and gradients of every layer: how large they are, and which is not finite.

One entry per layer, in the order they compute, over all micro-batches; the logits are the last, a
sequence at a time, so that all of them never stand in memory at once. Compiled blocks run
uncompiled meanwhile, since hooks set after compilation are not seen.
"""

import contextlib
import math
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from regpt.core.model import GPT

RECORDED = re.compile(r"wte|wpe|ln_f|h\.\d+(\.(ln_1|attn|ln_2|mlp))?")
"""Names of the modules that get an entry."""


@dataclass(kw_only=True)
class TensorStats:
    """Root mean square and maximum of the finite numbers; of the others the count."""

    numbers: int = 0
    squares: float = 0.0
    largest: float = 0.0
    not_finite: int = 0

    def add(self, tensor: Tensor) -> None:
        """Take a tensor in."""
        numbers = tensor.detach().float()
        finite = numbers.isfinite()
        self.numbers += numbers.numel()
        self.not_finite += int((~finite).sum())
        numbers = numbers.where(finite, torch.zeros_like(numbers))
        self.squares += numbers.double().square().sum().item()
        self.largest = max(self.largest, numbers.abs().max().item())

    @property
    def rms(self) -> float:
        """Root mean square of the finite ones."""
        return math.sqrt(self.squares / max(self.numbers - self.not_finite, 1))

    def to_json(self) -> dict[str, float | int]:
        """The three figures people look at."""
        return {"rms": self.rms, "max": self.largest, "not_finite": self.not_finite}


@dataclass(kw_only=True)
class LayerStats:
    """One layer's output, and the gradient of the loss with respect to it."""

    output: TensorStats = field(default_factory=TensorStats)
    gradient: TensorStats = field(default_factory=TensorStats)

    def to_json(self) -> dict[str, Any]:
        """The figures of both; no gradient where no backward ran."""
        return {name: stats.to_json() for name, stats in vars(self).items() if stats.numbers}


@contextlib.contextmanager
def record_activations(model: GPT) -> Iterator[dict[str, LayerStats]]:
    """Record every layer while open; the dictionary is in the order of computation."""
    layers: dict[str, LayerStats] = defaultdict(LayerStats)

    def record(module: nn.Module, inputs: object, output: Tensor, *, name: str) -> None:
        layers[name].output.add(output)
        if output.requires_grad:
            output.register_hook(layers[name].gradient.add)
        if name == "ln_f":
            with torch.no_grad():
                for row in output.detach():
                    layers["logits"].output.add(model.unembed(row))

    hooks = [
        module.register_forward_hook(partial(record, name=name))
        for name, module in model.named_modules()
        if RECORDED.fullmatch(name)
    ]
    try:
        with torch.compiler.set_stance("force_eager"):
            yield layers
    finally:
        for hook in hooks:
            hook.remove()


def first_not_finite(layers: dict[str, LayerStats]) -> str | None:
    """The first layer, in the order of computation, whose output is not finite."""
    return next((name for name, layer in layers.items() if layer.output.not_finite), None)


def first_gradient_not_finite(layers: dict[str, LayerStats]) -> str | None:
    """The first layer, in the order of backward, whose gradient is not finite."""
    backward = reversed(layers.items())
    return next((name for name, layer in backward if layer.gradient.not_finite), None)
