"""AdamW on bfloat16 gradients in one pass over memory: adamw.c, called on torch's tensors."""

import ctypes

import torch
from torch import Tensor

from regpt.fast.kernels.build import load_library

LANES = 16
"""The kernel works on so many numbers at once."""


class Rule(ctypes.Structure):
    """What a step does to every number; adamw.c says what each means."""

    _fields_ = tuple(
        (name, ctypes.c_float)
        for name in ("scale", "keep", "beta1", "beta2", "step_size", "correction", "epsilon")
    )


def fits(gradient: Tensor) -> bool:
    """Whether the kernel takes a gradient."""
    low = gradient.dtype == torch.bfloat16 and gradient.device.type == "cpu"
    return low and gradient.is_contiguous() and gradient.numel() % LANES == 0


def step(
    weight: Tensor, gradient: Tensor, average: Tensor, square: Tensor, low: Tensor, rule: Rule
) -> None:
    """Step float32 `weight` and averages in place, and write its bfloat16 copy into `low`.

    All are contiguous and of one size, a multiple of 16; `gradient` is bfloat16.
    """
    places = (tensor.data_ptr() for tensor in (weight, gradient, average, square, low))
    threads = torch.get_num_threads()
    load_library().regpt_adamw(weight.numel(), *places, ctypes.byref(rule), threads)


def squares(gradient: Tensor) -> float:
    """The sum of the squares of a bfloat16 tensor that `fits`."""
    return load_library().regpt_squares(
        gradient.numel(), gradient.data_ptr(), torch.get_num_threads()
    )
