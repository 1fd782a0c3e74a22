"""A token of each row from its logits and random words: draw.c, called on torch's tensors."""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from regpt.fast.kernels.build import load_library, unavailable_reason

LARGEST_K = 512
"""The top k the kernel is made for: half of its groups of logits."""


class CDraw(ctypes.Structure):
    """`Draw` of draw.c."""

    _fields_ = (
        ("logits", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("rows", "columns", "stride")),
        ("words", ctypes.c_void_p),
        ("top_k", ctypes.c_int64),
        ("temperature", ctypes.c_float),
        ("close", ctypes.c_double),
        ("tokens", ctypes.c_void_p),
        ("open", ctypes.c_void_p),
        ("threads", ctypes.c_int64),
    )


def works(top_k: int) -> bool:
    """Whether there is a kernel for so large a k."""
    return top_k <= LARGEST_K and unavailable_reason() is None


def draw(
    logits: Tensor,
    words: Tensor | Sequence[Tensor],
    *,
    top_k: int,
    temperature: float,
    close: float,
) -> tuple[Tensor, Tensor]:
    """Draw among the k most likely tokens of each row.

    Args:
        logits: (B, V) float32 on the CPU, the entries of a row adjacent.
        words: B times (V,) int64, adjacent: `noise.draw_words`.
        top_k: at most `LARGEST_K`; logits equal to the k-th take part.
        temperature: divides the logits.
        close: relative distance below which two candidates count as equal.

    Returns:
        tokens (B,) int64, and which rows are not decided (B,) bool: their tokens mean nothing.
    """
    assert logits.stride(1) == 1
    rows = len(logits)
    tokens, undecided = torch.empty(rows, dtype=torch.int64), torch.empty(rows, dtype=torch.bool)
    places = (ctypes.c_void_p * rows)(*(row.data_ptr() for row in words))
    call = CDraw(
        logits.data_ptr(),
        rows,
        logits.shape[1],
        logits.stride(0),
        ctypes.addressof(places),
        top_k,
        temperature,
        close,
        tokens.data_ptr(),
        undecided.data_ptr(),
        torch.get_num_threads(),
    )
    load_library().regpt_draw(ctypes.byref(call))
    return tokens, undecided
