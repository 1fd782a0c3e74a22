"""What goes through the layers: how large it is, and where it stops being finite.

`watching(model)` hooks the embeddings, every block with its parts, and the final LayerNorm, from
outside; while it is open, each forward and backward adds to one line per layer, in the order the
layers compute. The logits follow as a last line, a sequence at a time, so that all of them never
stand in memory at once. Sums run over all micro-batches. Compiled blocks run uncompiled meanwhile,
since hooks set after compilation are not seen.
"""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from regpt.core.model import GPT
from regpt.system.distributed import World

LOGITS = "logits"


@dataclass(kw_only=True)
class Size:
    """Of all the numbers of one kind that passed, the not finite ones only counted."""

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
        self.squares += float(numbers.double().square().sum().item()) if numbers.numel() else 0.0
        self.largest = max(self.largest, numbers.abs().max().item() if numbers.numel() else 0.0)

    @property
    def rms(self) -> float:
        """Root mean square of the finite ones."""
        return math.sqrt(self.squares / max(self.numbers - self.not_finite, 1))

    def to_json(self) -> dict[str, float | int]:
        """The three figures people look at."""
        return {"rms": self.rms, "max": self.largest, "not_finite": self.not_finite}


@dataclass(kw_only=True)
class Layer:
    """One layer's output, and the gradient of the loss with respect to it."""

    name: str
    output: Size
    gradient: Size

    def to_json(self) -> dict[str, Any]:
        """Name and figures; no gradient where no backward ran."""
        entry: dict[str, Any] = {"name": self.name, "output": self.output.to_json()}
        if self.gradient.numbers:
            entry["gradient"] = self.gradient.to_json()
        return entry


def watched(model: GPT) -> Iterator[tuple[str, nn.Module]]:
    """The modules that get a line, by their names in the model."""
    yield "wte", model.wte
    yield "wpe", model.wpe
    for index, block in enumerate(model.h):
        for part in ("ln_1", "attn", "ln_2", "mlp"):
            yield f"h.{index}.{part}", getattr(block, part)
        yield f"h.{index}", block
    yield "ln_f", model.ln_f


@contextlib.contextmanager
def watching(model: GPT) -> Iterator[dict[str, Layer]]:
    """Record every layer while open; the dictionary is in the order of computation."""
    layers: dict[str, Layer] = {}

    def line(name: str) -> Layer:
        return layers.setdefault(name, Layer(name=name, output=Size(), gradient=Size()))

    def seen(module: nn.Module, inputs: object, output: Tensor, *, name: str) -> None:
        line(name).output.add(output)
        if output.requires_grad:
            output.register_hook(line(name).gradient.add)
        if name == "ln_f":
            with torch.no_grad():
                for row in output.detach():
                    line(LOGITS).output.add(model.unembed(row))

    hooks = [
        module.register_forward_hook(partial(seen, name=name)) for name, module in watched(model)
    ]
    try:
        with torch.compiler.set_stance("force_eager"):
            yield layers
    finally:
        for hook in hooks:
            hook.remove()


def over_processes(layers: dict[str, Layer], world: World) -> dict[str, Layer]:
    """The same lines over the whole global batch; every process must ask."""
    if world.size == 1:
        return layers
    sizes = [size for layer in layers.values() for size in (layer.output, layer.gradient)]
    table = torch.zeros(len(sizes), 3 + world.size, dtype=torch.float64)
    for row, size in zip(table, sizes, strict=True):
        row[:3] = torch.tensor([size.numbers, size.squares, size.not_finite])
        row[3 + world.rank] = size.largest
    rows = world.sum(table.to(world.device)).tolist()
    summed = [
        Size(numbers=int(n), squares=squares, not_finite=int(bad), largest=max(largest))
        for n, squares, bad, *largest in rows
    ]
    pairs = zip(layers, summed[::2], summed[1::2], strict=True)
    return {name: Layer(name=name, output=out, gradient=grad) for name, out, grad in pairs}


def first_not_finite(layers: dict[str, Layer]) -> str | None:
    """The first layer, in the order of computation, whose output is not finite."""
    return next((name for name, layer in layers.items() if layer.output.not_finite), None)


def first_gradient_not_finite(layers: dict[str, Layer]) -> str | None:
    """The first layer, in the order of backward, whose gradient is not finite."""
    broken = [name for name, layer in layers.items() if layer.gradient.not_finite]
    return broken[-1] if broken else None
