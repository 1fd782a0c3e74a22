"""Muon's step of many small matrices, one core each: muon.c, called on torch's tensors."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from regpt.fast.kernels.build import load_library

SIDE = 32
"""Sides of a matrix are multiples of this."""
LARGEST = 1 << 19
"""Numbers of a matrix that still goes into the cache of one core, a few copies beside it."""


class Matrix(ctypes.Structure):
    """`Matrix` of muon.c."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("rows", "columns", "low")),
        *((name, ctypes.c_void_p) for name in ("gradient", "average", "weight", "copy")),
    )


class MuonRule(ctypes.Structure):
    """`MuonRule` of muon.c."""

    _fields_ = (
        *((name, ctypes.c_float) for name in ("scale", "momentum", "keep", "rate", "epsilon")),
        ("nesterov", ctypes.c_int64),
        ("iterations", ctypes.c_int64),
        ("polynomials", ctypes.c_void_p),
    )


@dataclass(frozen=True, kw_only=True)
class Step:
    """What is stepped in one matrix, in place; all contiguous, on the CPU."""

    weight: Tensor
    """(rows, columns) float32."""
    gradient: Tensor
    """The same, float32 or bfloat16."""
    average: Tensor
    """The same, float32."""
    copy: Tensor | None = None
    """The same, bfloat16: takes the new weight too."""


def fits(weight: Tensor, gradient: Tensor) -> bool:
    """Whether the kernel takes a matrix."""
    shaped = weight.numel() <= LARGEST and not any(side % SIDE for side in weight.shape)
    dense = weight.is_contiguous() and gradient.is_contiguous()
    known = gradient.dtype in (torch.float32, torch.bfloat16) and weight.dtype == torch.float32
    return shaped and dense and known and weight.device.type == "cpu"


def step(
    matrices: Sequence[Step],
    polynomials: Sequence[tuple[float, float, float]],
    *,
    scale: float,
    momentum: float,
    nesterov: bool,
    rate: float,
    weight_decay: float,
    epsilon: float,
) -> None:
    """Step all matrices, the costly ones first; `scale` multiplies gradients in bfloat16."""
    order = sorted(matrices, key=lambda each: -each.weight.numel() * min(each.weight.shape))
    table = (Matrix * len(order))(
        *(
            Matrix(
                *each.weight.shape,
                each.gradient.dtype == torch.bfloat16,
                each.gradient.data_ptr(),
                each.average.data_ptr(),
                each.weight.data_ptr(),
                None if each.copy is None else each.copy.data_ptr(),
            )
            for each in order
        )
    )
    numbers = [number for polynomial in polynomials for number in polynomial]
    coefficients = (ctypes.c_float * len(numbers))(*numbers)
    rule = MuonRule(
        scale=scale,
        momentum=momentum,
        keep=1.0 - rate * weight_decay,
        rate=rate,
        epsilon=epsilon,
        nesterov=nesterov,
        iterations=len(polynomials),
        polynomials=ctypes.addressof(coefficients),
    )
    most = max(each.weight.numel() for each in order)
    least = max(min(each.weight.shape) for each in order)
    threads = torch.get_num_threads()
    room = torch.empty(threads, 8 * most + 8 * least * least, dtype=torch.uint8)
    load_library().regpt_muon(
        len(order),
        ctypes.byref(table),
        ctypes.byref(rule),
        most,
        least,
        room.data_ptr(),
        threads,
    )
