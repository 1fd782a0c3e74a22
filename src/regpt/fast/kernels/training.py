"""What stands between the matrix products of a training step: training.c on torch's tensors.

All tensors are contiguous and on the CPU; rows have a width that is a multiple of `LANES`. bfloat16
in and out, float32 within: each result is rounded once, where torch rounds after each operator.
"""

import torch
from torch import Tensor

from regpt.fast.kernels.build import load_library

LANES = 16
"""The kernels work on so many numbers at once."""


def threads() -> int:
    """As many as torch's operators take."""
    return torch.get_num_threads()


def summed(*shape: int) -> Tensor:
    """Zeros, (threads, *shape) float32: each thread adds up its own share of the rows."""
    return torch.zeros(threads(), *shape)


def low(x: Tensor) -> Tensor:
    """An empty bfloat16 tensor of the same shape."""
    return torch.empty(x.shape, dtype=torch.bfloat16)


def norm(
    x: Tensor, weight: Tensor, bias: Tensor, epsilon: float, *, delta: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """LayerNorm of x, or of x + delta; what it was taken of, its value, and its statistics.

    Args:
        x: (rows, C) float32.
        weight: (C,) float32, as is bias.
        bias: see weight.
        epsilon: added to the variance.
        delta: (rows, C) bfloat16.

    Returns:
        x or x + delta, (rows, C) float32; the value, bfloat16; mean and 1 / deviation, (rows, 2).
    """
    rows, C = x.shape
    value, stats = low(x), torch.empty(rows, 2)
    total = x if delta is None else torch.empty_like(x)
    load_library().regpt_norm(
        rows,
        C,
        x.data_ptr(),
        None if delta is None else delta.data_ptr(),
        total.data_ptr(),
        weight.data_ptr(),
        bias.data_ptr(),
        epsilon,
        value.data_ptr(),
        stats.data_ptr(),
        threads(),
    )
    return total, value, stats


def norm_again(x: Tensor, stats: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The value of `norm` once more, to the last bit."""
    value = low(x)
    places = (tensor.data_ptr() for tensor in (x, stats, weight, bias, value))
    load_library().regpt_norm_again(*x.shape, *places, threads())
    return value


def norm_backward(
    dy: Tensor, x: Tensor, stats: Tensor, weight: Tensor, past: Tensor, *, into: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of x + f(norm(x)), where the gradient of the sum is `past` and of the norm `dy`.

    Args:
        dy: (rows, C) bfloat16.
        x: what the norm was taken of, (rows, C) float32.
        stats: its statistics.
        weight: (C,) float32.
        past: (rows, C) float32.
        into: takes the gradient of x; may be `past`.

    Returns:
        The same gradient in bfloat16; and (3, C): the gradients of weight and bias, and the
        gradient of x summed over rows.
    """
    rows, C = x.shape
    rounded, sums = low(x), summed(3, C)
    places = (t.data_ptr() for t in (dy, x, stats, weight, past, into, rounded, sums))
    load_library().regpt_norm_backward(rows, C, *places, threads())
    return rounded, sums.sum(0)


def add(x: Tensor, delta: Tensor) -> Tensor:
    """x + delta, float32 and bfloat16 of one shape, float32."""
    total = torch.empty_like(x)
    places = (tensor.data_ptr() for tensor in (x, delta, total))
    load_library().regpt_add(x.numel(), *places, threads())
    return total


def gelu(x: Tensor) -> Tensor:
    """GELU in its tanh form, of bfloat16."""
    value = low(x)
    load_library().regpt_gelu(x.numel(), x.data_ptr(), value.data_ptr(), threads())
    return value


def gelu_backward(x: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    """Turn dy, the gradient at `gelu(x)`, into that at x; gelu(x) again, and dx summed over rows.

    x and dy: (rows, n) bfloat16.
    """
    value, sums = low(x), summed(x.shape[1])
    places = (tensor.data_ptr() for tensor in (x, dy, value, sums))
    load_library().regpt_gelu_backward(*x.shape, *places, threads())
    return value, sums.sum(0)


def rounded_and_summed(x: Tensor) -> tuple[Tensor, Tensor]:
    """(rows, n) float32 in bfloat16, and its sum over rows, (n,) float32."""
    rounded, sums = low(x), summed(x.shape[1])
    places = (tensor.data_ptr() for tensor in (x, rounded, sums))
    load_library().regpt_row_sums(*x.shape, *places, threads())
    return rounded, sums.sum(0)


def row_sum(x: Tensor) -> Tensor:
    """The sum of (rows, n) bfloat16 over rows, (n,) float32."""
    sums = summed(x.shape[1])
    load_library().regpt_row_sums(*x.shape, None, x.data_ptr(), sums.data_ptr(), threads())
    return sums.sum(0)


def loss(
    logits: Tensor, targets: Tensor, vocab_size: int, *, ignored: int, more: float, gradient: bool
) -> Tensor:
    """Nats of each target, (rows,) float32; with `gradient`, logits become theirs.

    Args:
        logits: (rows, columns) bfloat16; columns from vocab_size on only pad, and become 0.
        targets: (rows,) int64.
        vocab_size: logits that take part.
        ignored: a target that counts nothing.
        more: added to the last logit.
        gradient: whether logits are turned into the gradient of the summed nats.
    """
    rows, columns = logits.shape
    nats, room = torch.empty(rows), torch.empty(threads(), vocab_size + LANES)
    load_library().regpt_loss(
        rows,
        vocab_size,
        columns,
        logits.data_ptr(),
        targets.data_ptr(),
        ignored,
        more,
        nats.data_ptr(),
        gradient,
        room.data_ptr(),
        threads(),
    )
    return nats
