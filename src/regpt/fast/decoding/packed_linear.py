"""Matrices packed for decoding: the few private torch operators this project uses, in one file.

Decoding reads every weight once per token, so its speed is the bytes of the weights over the
memory's bandwidth, if the kernel keeps up. Three packings of a linear layer, for a CPU:

- fp32: float32 in oneDNN's blocked layout, `mkldnn::_linear_pointwise`. Another order of sums.
- bf16: bfloat16 in the same layout, the same operator. Products in bfloat16, sums in float32.
- int8: int8 with a scale per output channel. A row of x becomes 8-bit numbers between its own least
  and largest entry as it comes; sums in int32 (VNNI). One row goes to `quantized::linear_dynamic`
  (fbgemm), several to `onednn::qlinear_pointwise`, quantised here by the same rule, so that a row
  has the same numbers alone and among others.

(F.linear in float32 goes to MKL, which is slow on AMD's processors; in bfloat16 it packs the
weight anew each time.) The operators are what torch's own compiler and quantisation emit, but
private: `missing` tries each once on a small layer against plain arithmetic, and whoever asks falls
back to the plain path with its one line of reason.
"""

import warnings
from functools import lru_cache
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from regpt.system.errors import UserError
from regpt.system.runtime import DTYPES

Kind = Literal["fp32", "bf16", "int8"]
KINDS: tuple[Kind, ...] = ("fp32", "bf16", "int8")
EngineName = Literal["native", "torch"]
"""Who multiplies packed matrices: the C kernel, or torch's operators."""

EXPECTED_ROWS = 5
"""Rows that oneDNN chooses its blocked layout for; others work too (1 to 16 measured alike)."""
TOLERANCE: dict[Kind, float] = {"fp32": 1e-5, "bf16": 2e-2, "int8": 5e-2}
"""Relative error below which a probed operator counts as working."""


class PackedLinear(Protocol):
    """A linear layer on packed weights."""

    def __call__(self, x: Tensor) -> Tensor:
        """(M, K) in any float dtype to (M, N) in the layer's: bf16 packings give bfloat16."""
        ...

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """residual (M, N) float32 plus the layer's output, in place where that is cheaper."""
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
        self.operator_add = torch.ops.mkldnn._linear_pointwise.binary

    def __call__(self, x: Tensor) -> Tensor:
        """(M, K) to (M, N) in the weights' dtype."""
        return self.operator(x.to(self.dtype), self.weight, self.bias, *self.after)

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """(M, N) float32: where the dtypes are one, the sum is the product's last step."""
        if self.dtype == residual.dtype:
            return self.operator_add(x, residual, self.weight, self.bias, "add")
        return residual.add_(self(x))


def fbgemm_pack(weight: Tensor, scale: Tensor, bias: Tensor) -> torch.ScriptObject:
    """int8 (N, K) weights packed for `quantized::linear_dynamic`."""
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = "fbgemm"  # prepacking reads this global: leave it as it was
    try:
        with warnings.catch_warnings():  # torch announces that these move to another package
            warnings.simplefilter("ignore")
            zeros = torch.zeros(len(scale), dtype=torch.int64)
            quantized = torch.ops.aten._make_per_channel_quantized_tensor(
                weight, scale.double(), zeros, 0
            )
            return torch.ops.quantized.linear_prepack(quantized, bias)
    finally:
        torch.backends.quantized.engine = before


class Int8Linear:
    """int8 weights with a scale per output channel; rows of x are quantised as they come.

    A row's entries become bytes q = round(x / step) + zero, where step and zero map the range from
    its least entry (at most 0) to its largest (at least 0) onto 0 .. 255. So
    x @ w = step * (q @ w - zero * sum(w)).
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, *, gelu: bool = False) -> None:
        weight = weight.detach().float()
        scale = weight.abs().amax(dim=1).clamp(min=1e-12) / 127
        quantized = (weight / scale[:, None]).round_().clamp_(-127, 127).to(torch.int8)
        self.bias = torch.zeros(len(weight)) if bias is None else bias.detach().float()
        self.one_row = fbgemm_pack(quantized, scale, self.bias)
        self.rows = torch.ops.onednn.qlinear_prepack(quantized, [8, weight.shape[1]])
        self.scale = scale
        self.zero = torch.zeros(len(scale), dtype=torch.int64)
        self.sums = quantized.sum(dim=1) * scale
        self.gelu = gelu
        self.operator_one = torch.ops.quantized.linear_dynamic.default
        self.operator = torch.ops.onednn.qlinear_pointwise.default

    def several(self, x: Tensor) -> Tensor:
        """(M, K) to (M, N), every row by itself."""
        least, largest = torch.aminmax(x, dim=-1, keepdim=True)
        least = least.clamp_(max=0)
        step = largest.clamp_(min=0).sub_(least).div_(255).clamp_(min=1e-30)
        inverse = step.reciprocal()
        zero = (least * inverse).neg_().round_()
        q = torch.addcmul(zero, x, inverse).round_().clamp_(0, 255).to(torch.uint8)
        y = self.operator(
            q, 1.0, 0, self.rows, self.scale, self.zero, None, 1.0, 0, torch.float32, "none", [], ""
        )
        return torch.addcmul(self.bias, y.addcmul_(zero, self.sums, value=-1), step)

    def __call__(self, x: Tensor) -> Tensor:
        """(M, K) to (M, N) float32."""
        try:
            y = self.operator_one(x, self.one_row, False) if len(x) == 1 else self.several(x)
        except RuntimeError as error:  # torch's own operator refuses them, in words about its range
            if x.isfinite().all():
                raise
            raise UserError(
                "the model computes numbers that are not finite, which int8 cannot hold: its "
                "weights are damaged, or take --dtype fp32"
            ) from error
        return nn.functional.gelu(y, approximate="tanh") if self.gelu else y

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """(M, N) float32."""
        return residual.add_(self(x))


def pack(weight: Tensor, bias: Tensor | None, kind: Kind, *, gelu: bool = False) -> PackedLinear:
    """A linear layer (weight (N, K), bias (N,) or None), with a tanh-GELU behind it if asked."""
    if kind == "int8":
        return Int8Linear(weight, bias, gelu=gelu)
    return FloatLinear(weight, bias, DTYPES[kind], gelu=gelu)


@lru_cache(maxsize=3)
def missing(kind: Kind) -> str | None:
    """Why this packing cannot be used on this machine, in words; None if it can."""
    if kind == "int8" and not getattr(torch.cpu, "_is_vnni_supported", lambda: False)():
        return "int8 needs a CPU with VNNI dot products"
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(64, 32, generator=generator), torch.randn(64, generator=generator)
    try:
        for rows in (1, 3):
            x = torch.randn(rows, 32, generator=generator)
            plain = nn.functional.linear(x, weight, bias)
            y = torch.ones(rows, 64)
            found = [pack(weight, bias, kind, gelu=True)(x), pack(weight, bias, kind).add(x, y)]
            expected = [nn.functional.gelu(plain, approximate="tanh"), plain + 1]
            for a, b in zip(found, expected, strict=True):
                if not (a - b).norm() <= TOLERANCE[kind] * b.norm():
                    return f"this torch's packed {kind} product is wrong"
    except (RuntimeError, AttributeError, NotImplementedError, TypeError) as error:
        return f"this torch cannot pack {kind} ({str(error).splitlines()[0]})"
    return None
