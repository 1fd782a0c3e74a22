"""Matrices packed for decoding: the few private torch operators this project uses, in one file.

Decoding reads every weight once per token, so its speed is the bytes of the weights over the
memory's bandwidth, if the kernel keeps up. Three packings of a linear layer, for a CPU:

- fp32: float32 in oneDNN's blocked layout, `mkldnn::_linear_pointwise`. Another order of sums.
- bf16: bfloat16 in the same layout, the same operator. Products in bfloat16, sums in float32.
- int8: int8 with a scale per output channel, `onednn::qlinear_pointwise` (VNNI). Rows of x become
  8-bit numbers by their largest entry as they come; sums in int32.

(F.linear in float32 goes to MKL, which is slow on AMD's processors; in bfloat16 it packs the
weight anew each time.) The operators are what torch's own compiler emits, but private: `missing`
tries each once on a small layer against plain arithmetic, and whoever asks falls back to the plain
path with its one line of reason.
"""

from functools import lru_cache
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

Kind = Literal["fp32", "bf16", "int8"]
KINDS: tuple[Kind, ...] = ("fp32", "bf16", "int8")

EXPECTED_ROWS = 5
"""Rows that oneDNN chooses its blocked layout for; others work too."""
TOLERANCE: dict[Kind, float] = {"fp32": 1e-5, "bf16": 2e-2, "int8": 5e-2}
"""Relative error below which a probed operator counts as working."""


class PackedLinear(Protocol):
    """A linear layer on packed weights."""

    def __call__(self, x: Tensor) -> Tensor:
        """(M, K) float32 to (M, N) float32."""
        ...


class FloatLinear:
    """Blocked float32 or bfloat16 weights."""

    def __init__(
        self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, *, gelu: bool = False
    ) -> None:
        weight = weight.detach().to(dtype).contiguous()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, EXPECTED_ROWS)
        self.bias = None if bias is None else bias.detach().to(dtype)
        self.dtype = dtype
        self.after = ("gelu", [], "tanh") if gelu else ("none", [], "")
        self.operator = torch.ops.mkldnn._linear_pointwise.default

    def __call__(self, x: Tensor) -> Tensor:
        """(M, K) float32 to (M, N) float32."""
        y = self.operator(x.to(self.dtype), self.weight, self.bias, *self.after)
        return y.float()


class Int8Linear:
    """int8 weights with a scale per output channel; rows of x are quantised as they come.

    x becomes unsigned bytes around 128, so the operator's zero point is 128; its sums, in int32,
    are scaled by the channel and then by the row.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, *, gelu: bool = False) -> None:
        weight = weight.detach().float()
        scale = weight.abs().amax(dim=1).clamp(min=1e-12) / 127
        quantized = (weight / scale[:, None]).round_().clamp_(-127, 127).to(torch.int8)
        self.weight = torch.ops.onednn.qlinear_prepack(quantized, [8, weight.shape[1]])
        self.scale = scale / 127
        self.zero = torch.zeros(len(scale), dtype=torch.int64)
        self.bias = None if bias is None else bias.detach().float()
        self.half = torch.tensor(128.5)  # 128, and a half so that cutting off rounds
        self.gelu = gelu
        self.operator = torch.ops.onednn.qlinear_pointwise.default

    def __call__(self, x: Tensor) -> Tensor:
        """(M, K) float32 to (M, N) float32."""
        largest = torch.linalg.vector_norm(x, float("inf"), -1, True).clamp_(min=1e-30)
        rows = torch.addcmul(self.half, x, largest.reciprocal(), value=127.0).to(torch.uint8)
        y = self.operator(
            rows, 1.0, 128, self.weight, self.scale, self.zero, None, 1.0, 0,
            torch.float32, "none", [], "",
        )  # fmt: skip
        y = y.mul_(largest) if self.bias is None else torch.addcmul(self.bias, y, largest)
        return nn.functional.gelu(y, approximate="tanh") if self.gelu else y


def pack(weight: Tensor, bias: Tensor | None, kind: Kind, *, gelu: bool = False) -> PackedLinear:
    """A linear layer (weight (N, K), bias (N,) or None), with a tanh-GELU behind it if asked."""
    if kind == "int8":
        return Int8Linear(weight, bias, gelu=gelu)
    return FloatLinear(weight, bias, torch.float32 if kind == "fp32" else torch.bfloat16, gelu=gelu)


@lru_cache(maxsize=3)
def missing(kind: Kind) -> str | None:
    """Why this packing cannot be used on this machine, in words; None if it can."""
    if kind == "int8" and not getattr(torch.cpu, "_is_vnni_supported", lambda: False)():
        return "int8 needs a CPU with VNNI dot products"
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(64, 32, generator=generator), torch.randn(64, generator=generator)
    x = torch.randn(3, 32, generator=generator)
    expected = nn.functional.gelu(nn.functional.linear(x, weight, bias), approximate="tanh")
    try:
        found = pack(weight, bias, kind, gelu=True)(x)
    except (RuntimeError, AttributeError, NotImplementedError, TypeError) as error:
        return f"this torch cannot pack {kind} ({str(error).splitlines()[0]})"
    if not (found - expected).norm() <= TOLERANCE[kind] * expected.norm():
        return f"this torch's packed {kind} product is wrong"
    return None
