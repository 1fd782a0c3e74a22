"""A block of the model as one step of autograd, for training on a CPU in bfloat16.

Operator by operator, a block's forward pass leaves 36 bytes per token and channel for backward, and
half of the time between the matrix products goes into passes over memory: a cast, a LayerNorm, a
sum for a bias. Here a block is one `autograd.Function` whose passes between the products are C
(`training.c`), each reading and writing once, and whose backward pass is written out:

- kept are the two inputs of the LayerNorms (float32), q, k and v, attention's result and the MLP
  before GELU, 24 bytes per token and channel; LayerNorm's and GELU's values are made again;
- the gradient of the residual stream stays in float32 and is added up in place; the bfloat16 that
  the products want of it, and its sum over rows that a bias wants, are written in the same pass.

`fuse_blocks(model)` swaps it in from outside, over the copies of `bf16_weights.py`. With a cache,
with dropout, without autograd's bfloat16, or where the kernels cannot be compiled, the block's own
forward goes on. `tests/fast/test_fused_block.py` holds the two together.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from regpt.core.model import GPT, Attend, Block
from regpt.fast.kernels import training as native
from regpt.fast.kernels.build import unavailable_reason
from regpt.fast.training.bf16_weights import shadow_of
from regpt.fast.training.blocked_attention import attention_backward, attention_forward
from regpt.system.products import product

WORTH_COMPILING = 1 << 16
"""Channels times tokens of a block's input from which on the C kernels are asked for."""


def fuse_blocks(model: GPT) -> GPT:
    """Let every block of a model with bfloat16 shadows run as one step where that can stand in."""
    if model.config.n_embd % native.LANES:
        return model
    for block in model.h:
        assert isinstance(block, Block)
        block.forward = partial(forward, block, block.forward)
    return model


def forward(block: Block, plain: Any, x: Tensor, attend: Attend | None = None) -> Tensor:
    """`Block.forward`: x and the result (B, T, C); `plain` is the block's own."""
    drops = block.training and block.drop.p > 0
    low = torch.is_autocast_enabled("cpu") and x.dtype == torch.float32
    if attend is not None or drops or not low or x.device.type != "cpu" or not is_worth_it(x):
        return plain(x, attend)
    return FusedBlock.apply(x, block, *parameters(block))  # pyright: ignore[reportReturnType]


def is_worth_it(x: Tensor) -> bool:
    """Whether the kernels are there, compiled now if they never were and the input is large."""
    if x.numel() < WORTH_COMPILING:
        return False
    return not (unavailable_reason(*native.NORM) or unavailable_reason(*native.GELU))


def parameters(block: Block) -> tuple[Tensor, ...]:
    """In the order of `FusedBlock`: weight and bias of ln_1, c_attn, c_proj, ln_2, c_fc, c_proj."""
    attn, mlp = block.attn, block.mlp
    layers = (block.ln_1, attn.c_attn, attn.c_proj, block.ln_2, mlp.c_fc, mlp.c_proj)
    return tuple(p for layer in layers for p in (layer.weight, layer.bias))


def matrix(weight: Tensor) -> Tensor:
    """Its copy in bfloat16."""
    copy = shadow_of(weight)
    assert copy is not None
    return copy.fresh()


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x W' + b, bfloat16."""
    return product(x, weight.t(), bias=bias.bfloat16())


class FusedBlock(torch.autograd.Function):
    """x + attention(ln_1(x)), then + MLP(ln_2(that))."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, block: Block, *given: Tensor) -> Tensor:
        """x (B, T, C) float32; `given`: `parameters(block)`."""
        B, T, C = x.shape
        w1, b1, _, attn_bias, _, proj_bias, w2, b2, _, fc_bias, _, out_bias = given
        matrices = [matrix(given[i]) for i in (2, 4, 8, 10)]
        attn, proj, fc, out = matrices
        with torch.autocast("cpu", enabled=False):
            first, h, stats_1 = native.norm(x.reshape(-1, C).contiguous(), w1, b1, block.ln_1.eps)
            qkv = linear(h, attn, attn_bias)
            del h
            y, kept = attention_forward(qkv.view(B, T, 3 * C), block.attn.n_head)
            del qkv
            y = y.view(-1, C)
            delta = linear(y, proj, proj_bias)
            second, h, stats_2 = native.norm(first, w2, b2, block.ln_2.eps, delta=delta)
            u = linear(h, fc, fc_bias)
            delta = linear(native.gelu(u), out, out_bias)
            result = native.add(second, delta)
        ctx.save_for_backward(
            first, stats_1, y, second, stats_2, u, w1, b1, w2, b2, *matrices, *kept
        )
        return result.view(B, T, C)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dx: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        """The gradients of x and of the parameters; matrices' in bfloat16."""
        first, stats_1, y, second, stats_2, u, w1, b1, w2, b2, *rest = ctx.saved_tensors
        (attn, proj, fc, out), kept = rest[:4], rest[4:]
        B, T, C = dx.shape
        past = dx.reshape(-1, C).contiguous()
        low, d_out_bias = native.rounded_and_summed(past)
        du = product(low, out)
        value, d_fc_bias = native.gelu_backward(u, du)
        d_out = torch.mm(low.t(), value)
        del value
        d_fc = torch.mm(du.t(), native.norm_again(second, stats_2, w2, b2))
        dh = product(du, fc)
        del du
        into = torch.empty_like(past)  # the gradient handed in may be someone else's too
        low, sums_2 = native.norm_backward(dh, second, stats_2, w2, past, into=into)
        d_proj = torch.mm(low.t(), y)
        dqkv = attention_backward(product(low, proj).view(B, T, C), kept).view(-1, 3 * C)
        d_attn = torch.mm(dqkv.t(), native.norm_again(first, stats_1, w1, b1))
        dh = product(dqkv, attn)
        _, sums_1 = native.norm_backward(dh, first, stats_1, w1, into, into=into)
        gradients = (
            *(sums_1[0], sums_1[1]),
            *(d_attn, native.row_sum(dqkv)),
            *(d_proj, sums_2[2]),
            *(sums_2[0], sums_2[1]),
            *(d_fc, d_fc_bias),
            *(d_out, d_out_bias),
        )
        return into.view(B, T, C), None, *gradients
