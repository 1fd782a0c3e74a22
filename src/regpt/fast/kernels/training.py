"""What stands between the matrix products of a training step: training.c on torch's tensors.

All tensors are contiguous and on the CPU; rows have a width that is a multiple of `LANES`. bfloat16
in and out, float32 within: each result is rounded once, where torch rounds after each operator.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, get_num_threads

from regpt.fast.kernels.build import load_library, near, numbers

LANES = 16
"""The kernels work on so many numbers at once."""


def summed(*shape: int) -> Tensor:
    """Zeros, (threads, *shape) float32: each thread adds up its own share of the rows."""
    return torch.zeros(get_num_threads(), *shape)


def low(x: Tensor) -> Tensor:
    """An empty bfloat16 tensor of the same shape."""
    return torch.empty(x.shape, dtype=torch.bfloat16)


def norm(
    x: Tensor, weight: Tensor, bias: Tensor, epsilon: float, *, delta: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """LayerNorm of x, or of x + delta; what it was taken of, its value, and its statistics.

    Args:
        x: (rows, C) float32.
        weight, bias: (C,) float32.
        epsilon: added to the variance.
        delta: (rows, C) bfloat16.

    Returns:
        x or x + delta, (rows, C) float32; the value, bfloat16; mean and 1 / deviation, (rows, 2).
    """
    value, stats = low(x), torch.empty(len(x), 2)
    total = x if delta is None else torch.empty_like(x)
    load_library().regpt_norm(
        *x.shape, x, delta, total, weight, bias, epsilon, value, stats, get_num_threads()
    )
    return total, value, stats


def norm_again(x: Tensor, stats: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The value of `norm` once more, to the last bit."""
    value = low(x)
    load_library().regpt_norm_again(*x.shape, x, stats, weight, bias, value, get_num_threads())
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
    rounded, sums = low(x), summed(3, x.shape[1])
    load_library().regpt_norm_backward(
        *x.shape, dy, x, stats, weight, past, into, rounded, sums, get_num_threads()
    )
    return rounded, sums.sum(0)


def add(x: Tensor, delta: Tensor) -> Tensor:
    """x + delta, float32 and bfloat16 of one shape, float32."""
    total = torch.empty_like(x)
    load_library().regpt_add(x.numel(), x, delta, total, get_num_threads())
    return total


def gelu(x: Tensor) -> Tensor:
    """GELU in its tanh form, of bfloat16."""
    value = low(x)
    load_library().regpt_gelu(x.numel(), x, value, get_num_threads())
    return value


def gelu_backward(x: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    """Turn dy, the gradient at `gelu(x)`, into that at x; gelu(x) again, and dx summed over rows.

    x and dy: (rows, n) bfloat16.
    """
    value, sums = low(x), summed(x.shape[1])
    load_library().regpt_gelu_backward(*x.shape, x, dy, value, sums, get_num_threads())
    return value, sums.sum(0)


def rounded_and_summed(x: Tensor) -> tuple[Tensor, Tensor]:
    """(rows, n) float32 in bfloat16, and its sum over rows, (n,) float32."""
    rounded, sums = low(x), summed(x.shape[1])
    load_library().regpt_row_sums(*x.shape, x, rounded, sums, get_num_threads())
    return rounded, sums.sum(0)


def row_sum(x: Tensor) -> Tensor:
    """The sum of (rows, n) bfloat16 over rows, (n,) float32."""
    sums = summed(x.shape[1])
    load_library().regpt_row_sums(*x.shape, None, x, sums, get_num_threads())
    return sums.sum(0)


def causal_softmax(scores: Tensor, start: int) -> Tensor:
    """Turn scores (N, queries, keys), bfloat16, into the weights of causal attention.

    The first of the queries is at position `start`; keys behind a query get 0.
    """
    N, queries, keys = scores.shape
    arguments = (N * queries, queries, keys, start, scores, get_num_threads())
    load_library().regpt_causal_softmax(*arguments)
    return scores


def causal_softmax_backward(P: Tensor, dP: Tensor, start: int) -> Tensor:
    """Turn dP, the gradient at `P = causal_softmax(scores, start)`, into that at the scores."""
    N, queries, keys = P.shape
    arguments = (N * queries, queries, keys, start, P, dP, get_num_threads())
    load_library().regpt_causal_softmax_backward(*arguments)
    return dP


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
    (rows, columns), threads = logits.shape, get_num_threads()
    nats, room = torch.empty(rows), torch.empty(threads, vocab_size + LANES)
    load_library().regpt_loss(
        *(rows, vocab_size, columns, logits, targets, ignored, more, nats, gradient, room, threads)
    )
    return nats


def norm_is_right() -> bool:
    """LayerNorm and its gradient."""
    x, weight, bias = numbers(3, 48), numbers(48, seed=1), numbers(48, seed=2)
    dy, past = numbers(3, 48, seed=3).bfloat16(), numbers(3, 48, seed=4)
    _, value, stats = norm(x, weight, bias, 1e-5)
    expected, mean, inverse = torch.native_layer_norm(x, [48], weight, bias, 1e-5)
    dx, dw, db = torch.ops.aten.native_layer_norm_backward(
        dy.float(), x, [48], mean, inverse, weight, bias, [True, True, True]
    )
    into = torch.empty_like(past)
    _, sums = norm_backward(dy, x, stats, weight, past, into=into)
    right = near(value, expected, 3e-3) and near(into, dx + past, 1e-5)
    return right and near(sums, torch.stack([dw, db, into.sum(0)]), 1e-5)


def gelu_is_right() -> bool:
    """GELU, its gradient, and sums over rows."""
    x, dy = (numbers(3, 48) * 3).bfloat16(), numbers(3, 48, seed=1).bfloat16()
    slope = torch.ops.aten.gelu_backward(dy.float(), x.float(), approximate="tanh")
    expected = F.gelu(x.float(), approximate="tanh")
    value, sums = gelu_backward(x, dy)
    right = near(value, expected, 3e-3) and torch.equal(value, gelu(x))
    right = right and near(dy, slope, 3e-3) and near(sums, slope.sum(0), 1e-5)
    return right and near(row_sum(value), value.float().sum(0), 1e-5)


def softmax_is_right() -> bool:
    """Attention's weights, and their gradient."""
    scores, dP = numbers(2, 20, 37).bfloat16(), numbers(2, 20, 37, seed=1).bfloat16()
    future = torch.ones(20, 37, dtype=torch.bool).triu(18)
    expected = scores.float().masked_fill(future, -torch.inf).softmax(-1)
    P = causal_softmax(scores, 17)
    slope = torch.ops.aten._softmax_backward_data(dP.float(), P.float(), -1, torch.float32)
    return near(P, expected, 3e-3) and near(causal_softmax_backward(P, dP, 17), slope, 3e-3)


def loss_is_right() -> bool:
    """Nats, and their gradient."""
    logits, targets = numbers(3, 48).bfloat16(), torch.tensor([0, 40, 7])
    p = logits[:, :41].float().softmax(1)
    expected = -p.gather(1, targets[:, None]).log().squeeze(1)
    nats = loss(logits, targets, 41, ignored=-100, more=0.0, gradient=True)
    gradient = p - F.one_hot(targets, 41)
    return near(nats, expected, 1e-5) and near(logits[:, :41], gradient, 3e-3)


NORM, GELU, LOSS = ("LayerNorm", norm_is_right), ("GELU", gelu_is_right), ("loss", loss_is_right)
SOFTMAX = ("causal softmax", softmax_is_right)
"""What `unavailable_reason` is asked."""
