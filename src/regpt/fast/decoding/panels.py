"""A weight matrix in the order the C kernel reads it, in one of its three formats.

fp32 is exact. bf16 is bfloat16, with products in bfloat16 and sums in float32. int8 has a scale per
output channel; a row of activations becomes 8-bit numbers between its own least and largest entry
as it comes, with sums in int32.
"""

from typing import Literal

import torch
from torch import Tensor

from regpt.fast.kernels.bindings import BF16, FP32, INT8, CLinear
from regpt.fast.kernels.build import load_library

WeightFormat = Literal["fp32", "bf16", "int8"]
WEIGHT_FORMATS: tuple[WeightFormat, ...] = ("fp32", "bf16", "int8")
TOLERANCE: dict[WeightFormat, float] = {"fp32": 1e-5, "bf16": 2e-2, "int8": 5e-2}
"""Relative error of the logits below which a probed kernel counts as working."""
FORMAT_NUMBERS: dict[WeightFormat, int] = {"fp32": FP32, "bf16": BF16, "int8": INT8}
GROUPED: dict[WeightFormat, int] = {"fp32": 1, "bf16": 2, "int8": 4}
"""Inputs that one 32-bit step holds."""
PANEL = 64


class Panels:
    """A matrix (N, K) in the kernel's order, with its bias; keeps the memory alive."""

    def __init__(self, weight: Tensor, bias: Tensor | None, kind: WeightFormat) -> None:
        weight = weight.detach().float()
        N, K = weight.shape
        self.scale = self.sums = None
        if kind == "int8":
            self._pack_int8(weight.contiguous())
        else:
            weight = weight.bfloat16() if kind == "bf16" else weight
            padded = weight
            if N % PANEL:
                padded = weight.new_zeros(-(-N // PANEL) * PANEL, K)
                padded[:N] = weight
            group = GROUPED[kind]
            # (panels, steps, outputs of a panel, inputs of a step)
            self.weight = padded.view(-1, PANEL, K // group, group).transpose(1, 2).contiguous()
        self.bias = None if bias is None else bias.detach().float().contiguous()
        self.structure = CLinear(
            *(None if part is None else part.data_ptr()
              for part in (self.weight, self.bias, self.scale, self.sums)),
            K,
            N,
        )  # fmt: skip

    def _pack_int8(self, weight: Tensor) -> None:
        N, K = weight.shape
        self.scale, self.sums = torch.empty(N), torch.empty(N)
        self.weight = torch.empty(-(-N // PANEL) * PANEL, K, dtype=torch.int8)
        places = (part.data_ptr() for part in (self.weight, self.scale, self.sums))
        load_library().regpt_pack_int8(weight.data_ptr(), N, K, *places, torch.get_num_threads())
