"""Causal attention for CPUs, forward and backward, out of batched matrix products.

torch's CPU kernel behind `F.scaled_dot_product_attention` walks over small tiles one by one, which
keeps the memory small and multiplies slowly. Here `bmm` hands oneDNN all heads at once, and a block
of queries sees only the keys up to its own end, so nearly half of the square is never computed and
scores stand in memory for one block only. In bfloat16 that is 1.6 (T=1024) to 6 times (T=64) as
fast, forward and backward; in float32 it is no faster.

In bfloat16 the softmax of a block's scores and its gradient are one pass each of the C kernel
(`training.c`), which skips the keys behind a query; elsewhere torch's, over scores and a mask.

Up to `BLOCK` positions the probabilities are kept for backward, (B * nh, T, T); in longer sequences
they are computed again, block by block, since what is kept would grow with T squared. Sums over
blocks are kept in float32.

With S = q k' / sqrt(hs), P = softmax(S), y = P v, and dX the gradient of X:

    dv = P' dy      dP = dy v'      dS = P * (dP - sum(dP * P))      dq = dS k      dk = dS' q

`attend_in_blocks(model)` swaps it in from outside; the plain path beside it is the model's own.
`tests/fast/test_blocked_attention.py` holds the two together.
"""

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from regpt.core.model import GPT, Attend, CausalSelfAttention
from regpt.fast.kernels import training as native
from regpt.fast.kernels.build import unavailable_reason

WORTH_COMPILING = 1 << 16
"""Scores from which on the C kernel is asked for."""
BLOCK = 256
"""Queries at once: fewer make the products too small, more compute too much of the upper half."""


def attend_in_blocks(model: GPT) -> GPT:
    """Let every block of a model attend by `causal_attention` where that can stand in.

    It cannot with a key-value cache, with dropout on the attention weights, or off the CPU: there
    the model's own attention goes on.
    """
    for module in model.modules():
        if isinstance(module, CausalSelfAttention):
            module.forward = partial(forward, module, module.forward)
    return model


def forward(
    attention: CausalSelfAttention, plain: Any, x: Tensor, attend: Attend | None = None
) -> Tensor:
    """`CausalSelfAttention.forward`: x and the result (B, T, C); `plain` is the module's own."""
    drops = attention.training and attention.dropout > 0
    if attend is not None or drops or x.device.type != "cpu":
        return plain(x, attend)
    return attention.c_proj(causal_attention(attention.c_attn(x), attention.n_head))


def causal_attention(qkv: Tensor, n_head: int) -> Tensor:
    """What `F.scaled_dot_product_attention(q, k, v, is_causal=True)` gives, heads side by side.

    Args:
        qkv: (B, T, 3C), float32 or bfloat16, on a CPU: what `c_attn` makes.
        n_head: heads, a divisor of C.

    Returns:
        (B, T, C), in the same dtype.
    """
    return CausalAttention.apply(qkv, n_head)  # pyright: ignore[reportReturnType]


@lru_cache(maxsize=8)
def future(length: int, dtype: torch.dtype) -> Tensor:
    """(length, length): -inf where the key comes after the query, else 0."""
    return torch.full((length, length), float("-inf"), dtype=dtype).triu_(1)


def scaled_product(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """scale * a @ b, batched, in one pass."""
    return torch.baddbmm(a.new_empty(()), a, b, beta=0, alpha=scale)


def fits_kernel(scores: Tensor) -> bool:
    """Whether the C kernel takes them, compiled now if it never was and they are many."""
    many = scores.dtype == torch.bfloat16 and scores.numel() >= WORTH_COMPILING
    return many and unavailable_reason(*native.SOFTMAX) is None


def probabilities(q: Tensor, k: Tensor, start: int) -> Tensor:
    """Attention of the queries start .. start+n-1, (N, n, hs), to the keys 0 .. start+n-1."""
    scores = scaled_product(q, k.mT, q.shape[-1] ** -0.5)
    if fits_kernel(scores):
        return native.causal_softmax(scores, start)
    scores[:, :, start:] += future(q.shape[1], q.dtype)
    return torch.softmax(scores, dim=-1)


class CausalAttention(torch.autograd.Function):
    """Attention with its backward pass written out."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, n_head: int) -> Tensor:
        """qkv (B, T, 3C); returns (B, T, C)."""
        with torch.autocast("cpu", enabled=False):
            y, kept = attention_forward(qkv, n_head)
        ctx.save_for_backward(*kept)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:  # pyright: ignore
        return attention_backward(dy, ctx.saved_tensors), None


def attention_forward(qkv: Tensor, n_head: int) -> tuple[Tensor, list[Tensor]]:
    """Attention of qkv (B, T, 3C), (B, T, C); and what its gradients are made from.

    All heads of all rows are one batch, N.
    """
    B, T, width = qkv.shape
    C = width // 3
    split = qkv.view(B, T, 3, n_head, C // n_head).permute(2, 0, 3, 1, 4)
    q, k, v = heads = split.reshape(3, B * n_head, T, C // n_head)
    y = qkv.new_empty(B, T, n_head, C // n_head)
    kept = [heads]
    for start in range(0, T, BLOCK):
        stop = min(start + BLOCK, T)
        P = probabilities(q[:, start:stop], k[:, :stop], start)
        block = torch.bmm(P, v[:, :stop])
        y[:, start:stop] = block.view(B, n_head, stop - start, -1).transpose(1, 2)
        if T <= BLOCK:
            kept.append(P)
    return y.view(B, T, C), kept


def attention_backward(dy: Tensor, saved: Sequence[Tensor]) -> Tensor:
    """The gradient of qkv, (B, T, 3C), from that of the result, (B, T, C), and what was kept.

    Of longer sequences it is the sum over blocks of queries, in float32.
    """
    heads, *kept = saved
    (B, T, C), (_, N, _, hs) = dy.shape, heads.shape
    dy = dy.view(B, T, C // hs, hs).transpose(1, 2).reshape(N, T, hs)
    gradients = torch.empty_like(heads) if kept else torch.zeros(heads.shape)
    if kept:
        block_gradients(heads, dy, kept[0], gradients)
    for start in () if kept else range(0, T, BLOCK):
        stop = min(start + BLOCK, T)
        seen = (heads[0, :, start:stop], heads[1, :, :stop], heads[2, :, :stop])
        dq, dk, dv = (torch.empty_like(x) for x in seen)
        block_gradients(seen, dy[:, start:stop], probabilities(*seen[:2], start), (dq, dk, dv))
        gradients[0, :, start:stop] = dq
        gradients[1, :, :stop] += dk
        gradients[2, :, :stop] += dv
    together = gradients.view(3, B, C // hs, T, hs).permute(1, 3, 0, 2, 4)
    return together.reshape(B, T, 3 * C).to(heads.dtype)


Three = Tensor | tuple[Tensor, Tensor, Tensor]
"""Three tensors (N, positions, hs), or one with them as its first dimension."""


def block_gradients(qkv: Three, dy: Tensor, P: Tensor, out: Three) -> None:
    """Write dq, dk, dv of one block of queries; P (N, queries, keys) are its probabilities."""
    (q, k, v), (dq, dk, dv) = qkv, out
    scale = q.shape[-1] ** -0.5
    torch.bmm(P.mT, dy, out=dv)
    dP = torch.bmm(dy, v.mT)
    # P * (dP - sum(dP * P)) in one pass
    if fits_kernel(P):
        dS = native.causal_softmax_backward(P, dP, P.shape[2] - P.shape[1])
    else:
        dS = torch._softmax_backward_data(dP, P, -1, P.dtype)  # pyright: ignore
    torch.baddbmm(dq, dS, k, beta=0, alpha=scale, out=dq)
    torch.baddbmm(dk, dS.mT, q, beta=0, alpha=scale, out=dk)
