"""A weight matrix in the order the C kernel reads it, in one of its three formats;
and the structures that decode.c is handed.

fp32 is exact. bf16 is bfloat16, with products in bfloat16 and sums in float32. int8 has a scale per
output channel; a row of activations becomes 8-bit numbers between its own least and largest entry
as it comes, with sums in int32.
"""

import ctypes
from typing import Literal

import torch
from torch import Tensor

from regpt.fast.kernels.build import COUNT, PLACE, fields, load_library

WeightFormat = Literal["fp32", "bf16", "int8"]
WEIGHT_FORMATS: tuple[WeightFormat, ...] = ("fp32", "bf16", "int8")
"""In the order in which vectors.h numbers them."""
PANEL = 64


class CLinear(ctypes.Structure):
    """`Linear` of decode.c."""

    _fields_ = (*fields(PLACE, "weight bias scale sums"), *fields(COUNT, "inputs outputs"))


class CBlock(ctypes.Structure):
    """`Block` of decode.c."""

    _fields_ = (
        *fields(PLACE, "ln_1_weight ln_1_bias ln_2_weight ln_2_bias"),
        *fields(CLinear, "c_attn attn_proj c_fc mlp_proj"),
    )


class CModel(ctypes.Structure):
    """`Model` of decode.c."""

    _fields_ = (
        *fields(COUNT, "kind layers heads width"),
        ("epsilon", ctypes.c_double),
        *fields(PLACE, "wte wpe ln_f_weight ln_f_bias blocks"),
        ("head", CLinear),
        *fields(PLACE, "head_error head_size"),
    )


class CCall(ctypes.Structure):
    """`Call` of decode.c."""

    _fields_ = (
        ("cache", PLACE),
        *fields(COUNT, "cache_is_bf16 layer_stride value_stride row_stride head_stride tokens"),
        *fields(PLACE, "ids rows positions"),
        ("outputs", COUNT),
        *fields(PLACE, "wanted logits"),
        ("logits_stride", COUNT),
        *fields(PLACE, "x q y h packed ranges scores"),
        *fields(COUNT, "scores_stride threads top_k"),
        *fields(PLACE, "candidates counts leaders shared"),
    )


class Panels:
    """A matrix (N, K) in the kernel's order, with its bias; keeps the memory alive."""

    def __init__(self, weight: Tensor, bias: Tensor | None, kind: WeightFormat) -> None:
        weight = weight.detach().float()
        N, K = weight.shape
        rows = -(-N // PANEL) * PANEL
        self.scale = self.sums = None
        if kind == "int8":
            self.scale, self.sums = torch.empty(N), torch.empty(N)
            self.weight = torch.empty(rows, K, dtype=torch.int8)
            threads = torch.get_num_threads()
            load_library().regpt_pack_int8(
                *(weight.contiguous(), N, K, self.weight, self.scale, self.sums, threads)
            )
        else:
            weight = weight.bfloat16() if kind == "bf16" else weight
            padded = weight
            if rows != N:
                padded = weight.new_zeros(rows, K)
                padded[:N] = weight
            group = 2 if kind == "bf16" else 1  # inputs that one 32-bit step holds
            # (panels, steps, outputs of a panel, inputs of a step)
            self.weight = padded.view(-1, PANEL, K // group, group).transpose(1, 2).contiguous()
        self.bias = None if bias is None else bias.detach().float().contiguous()
        parts = (self.weight, self.bias, self.scale, self.sums)
        self.structure = CLinear(*(None if p is None else p.data_ptr() for p in parts), K, N)
