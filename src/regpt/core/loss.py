"""Next-token loss as a function over the model: chunked, so that all logits never stand in memory.

The logits of GPT-2 are its largest tensor by far: B=4, T=1024 makes 4096 x 50257 numbers, 0.8 GB in
float32, of which a plain cross-entropy keeps several copies. But the gradient of a summed
cross-entropy with respect to the logits is known as soon as they are: softmax minus one at the
target. So `ChunkedLoss` walks over the rows in chunks; each makes its logits, turns them in place
into their gradient, multiplies that into the gradients of hidden states and embedding, and reuses
the memory. The matrix products run in the autocast dtype, the softmax in float32.
`tests/core/test_loss.py` holds it together with a plain cross-entropy.

Losses are sums over targets, divided by `divisor`: a global batch cut into micro-batches, over any
number of processes, is normalised once by its own number of targets. The mean of unequal means is
the field's most repeated accumulation bug (transformers#34191, litgpt#1947).
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from regpt.core.data import IGNORE_INDEX
from regpt.core.model import GPT
from regpt.system.products import product
from regpt.system.runtime import compute_dtype

CHUNK_LOGITS = 1024 * 50304
"""Logits in memory at once: 0.1 GB in bfloat16, 1,024 rows of GPT-2's vocabulary."""
TILE = 64
"""Rows of a low-precision copy of the embedding are a multiple of this; matrix units like it."""
CACHED_ROWS = 32
"""Rows whose float32 softmax is worked on at once on a CPU: 32 x 50257 are 6.4 MB."""


def chunk_rows(columns: int) -> int:
    """Rows of logits in memory at once, of so many columns."""
    return max(1, CHUNK_LOGITS // columns)


ToGradient = Callable[[Tensor, Tensor, int, int], Tensor]
"""A function with the arguments and the result of `to_gradient`."""


def to_gradient(logits: Tensor, targets: Tensor, vocab_size: int, multiplicity: int = 1) -> Tensor:
    """Turn a chunk's logits, (n, rows) in any dtype, into their gradient; summed negative
    log-likelihood.

    Columns from vocab_size on only pad the matrix: they take no part and get no gradient. The last
    column of the vocabulary stands for `multiplicity` equal tokens; its gradient is one's of them.
    """
    rows = CACHED_ROWS if logits.device.type == "cpu" else len(logits)
    nll = torch.zeros((), device=logits.device)
    logits[:, vocab_size:] = 0
    for start in range(0, len(logits), rows):
        block, target = logits[start : start + rows, :vocab_size], targets[start : start + rows]
        real, column = target != IGNORE_INDEX, target.clamp(min=0)[:, None]
        p = block.float()
        if multiplicity != 1:
            p[:, -1] += math.log(multiplicity)
        at_target, largest = p.gather(1, column).squeeze(1), p.amax(dim=1)
        torch.softmax(p, dim=1, out=p)
        # log-sum-exp is max - log(largest probability), which is at least 1/V: nothing underflows
        nll += ((largest - p.amax(dim=1).log() - at_target) * real).sum()
        p.scatter_add_(1, column, torch.full_like(column, -1.0, dtype=torch.float32))
        if block.is_cuda or not bool(real.all()):
            p *= real[:, None]
        block.copy_(p)
    return nll


def next_token_loss(
    model: GPT,
    idx: Tensor,
    targets: Tensor,
    *,
    divisor: float = 1.0,
    tiles: Tensor | None = None,
    to_gradient: ToGradient = to_gradient,
) -> Tensor:
    """Summed cross-entropy in nats / divisor, float32 scalar, over the targets that are not -100.

    Args:
        model: the model.
        idx: (B, T) int64 token ids.
        targets: (B, T) int64, the token after each position, or -100 where there is none.
        divisor: what the sum is divided by, usually the targets of the whole global batch.
        tiles: `in_tiles` of the embedding, if it is at hand; the products run in its dtype.
        to_gradient: a faster function of the same numbers.
    """
    hidden, weight = model.hidden(idx).flatten(0, 1), model.wte.weight  # (B*T, C), (rows, C)
    tiles = in_tiles(weight, compute_dtype(idx.device)) if tiles is None else tiles
    return ChunkedLoss.apply(
        *(hidden, weight, tiles, targets.flatten(), model.config.vocab_size, divisor),
        *(model.multiplicity, to_gradient),
    )


def in_tiles(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight in `dtype`; a copy has rows of zeros up to a multiple of 64, which is faster."""
    weight = weight.detach()
    if weight.dtype == dtype:
        return weight
    tiled = weight.new_zeros(len(weight) + -len(weight) % TILE, weight.shape[1], dtype=dtype)
    tiled[: len(weight)] = weight
    return tiled


class ChunkedLoss(torch.autograd.Function):
    """Summed cross-entropy of hidden @ weight.T, gradients formed chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        tiles: Tensor,
        targets: Tensor,
        vocab_size: int,
        divisor: float,
        multiplicity: int,
        to_gradient: ToGradient,
    ) -> Tensor:
        """hidden (N, C), weight (rows, C), `in_tiles` of it, targets (N,); returns nll / divisor.

        The products run in the dtype of the tiles.
        """
        N = len(hidden)
        with_gradients = any(ctx.needs_input_grad)
        w, dtype = tiles, tiles.dtype
        h = hidden.to(dtype)
        chunk = min(chunk_rows(len(w)), N)
        buffer = h.new_empty(chunk, len(w))
        grad_hidden = torch.empty_like(h) if with_gradients else None
        grad_weight: Tensor | None = None
        nll = torch.zeros((), device=h.device)
        for start in range(0, N, chunk):
            part, target = h[start : start + chunk], targets[start : start + chunk]
            logits = buffer[: len(part)]
            product(part, w.t(), out=logits)
            nll += to_gradient(logits, target, vocab_size, multiplicity)
            if grad_hidden is None:
                continue
            product(logits, w, out=grad_hidden[start : start + chunk])
            scaled = (hidden[start : start + chunk] * (1 / divisor)).to(dtype)
            share = torch.mm(logits.t(), scaled)[: len(weight)]
            if grad_weight is None:
                # in one chunk the product is the gradient, and may stay as it was rounded
                grad_weight = share if chunk == N else share.float()
            else:
                grad_weight += share
        if grad_hidden is not None and grad_weight is not None:
            grad_hidden = (grad_hidden * (1 / divisor)).to(hidden.dtype)
            grad_weight[vocab_size - 1] /= multiplicity
            ctx.save_for_backward(grad_hidden, grad_weight)
        return nll / divisor

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        """The gradients formed in forward, times the gradient of the loss."""
        grad_hidden, grad_weight = ctx.saved_tensors
        nothing = (None,) * 6
        if grad_output.is_cpu and grad_output.item() == 1.0:  # as ever in training
            return grad_hidden, grad_weight, *nothing
        return grad_hidden * grad_output, grad_weight.mul_(grad_output), *nothing
