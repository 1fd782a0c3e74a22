"""Reading long texts fast: the model itself, or on a CPU the model on packed matrices.

Scoring needs two verbs of a model, `hidden` and `unembed`. `PackedReader` offers them over the
matrices that decoding packs too (fast.py): oneDNN multiplies float32 twice as fast as the library
that F.linear goes to, and bfloat16 without packing the weight anew for every batch. The residual
stream, the LayerNorms and the softmax over the vocabulary stay in float32.

In bfloat16 torch's CPU attention is the slowest part that is left: it multiplies small tiles one by
one. `attend_in_blocks` multiplies all heads at once, a block of queries against the keys up to its
own end.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regpt.fast import PackedModel, norm
from regpt.lowbit import Kind, missing
from regpt.model import GPT, GPTConfig
from regpt.runtime import Runtime

QUERIES = 256
"""Queries at once: fewer make the products too small, more compute too much of the upper half."""


class PackedReader(nn.Module):
    """A GPT's two halves over packed matrices; for a CPU, without gradients."""

    def __init__(self, model: GPT, kind: Kind) -> None:
        super().__init__()
        self.config: GPTConfig = model.config
        self.packed = PackedModel(model, kind)
        self.kind = kind
        self.eval()

    def hidden(self, idx: Tensor) -> Tensor:
        """Token ids (B, T), int64, to final hidden states (B, T, C), float32."""
        model, heads = self.packed.model, self.config.n_head
        B, T = idx.shape
        positions = torch.arange(T)
        x = (model.wte(idx) + model.wpe(positions)).view(B * T, -1)
        for block in self.packed.blocks:
            q, k, v = (
                block.c_attn(norm(block.ln_1, x)).view(B, T, 3, heads, -1).permute(2, 0, 3, 1, 4)
            )  # (B, nh, T, hs) each
            y = attend_in_blocks(q, k, v) if self.kind == "bf16" else attend(q, k, v)
            x = x + block.attn_proj(y.transpose(1, 2).reshape(B * T, -1))
            x = x + block.mlp_proj(block.c_fc(norm(block.ln_2, x)))
        return norm(model.ln_f, x).view(B, T, -1)

    def unembed(self, x: Tensor) -> Tensor:
        """Hidden states (n, C) to logits (n, V), float32."""
        return self.packed.head(x)


Reader = GPT | PackedReader
"""What a text can be scored with."""


def choose_reader(model: GPT, runtime: Runtime) -> tuple[Reader, str | None]:
    """The fastest reader for a machine, and a line to tell if it is not the packed one on a CPU."""
    if runtime.device.type != "cpu":
        return model, None
    kind: Kind = "fp32" if runtime.dtype == torch.float32 else "bf16"
    reason = missing(kind)
    if reason is None:
        return PackedReader(model, kind), None
    return model, f"{reason}; reading on the plain path"


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention, (B, nh, T, hs) each and the result."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def attend_in_blocks(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The same with products in bfloat16: float32 in, bfloat16 out."""
    B, nh, T, hs = q.shape
    q, k, v = (x.to(torch.bfloat16).reshape(B * nh, T, hs) for x in (q * hs**-0.5, k, v))
    future = torch.full((QUERIES, QUERIES), float("-inf"), dtype=q.dtype).triu_(1)
    blocks = []
    for start in range(0, T, QUERIES):
        stop = min(start + QUERIES, T)
        scores = torch.bmm(q[:, start:stop], k[:, :stop].mT)  # (B*nh, queries, keys)
        scores[:, :, start:] += future[: stop - start, : stop - start]
        blocks.append(torch.bmm(torch.softmax(scores, dim=-1), v[:, :stop]))
    return torch.cat(blocks, dim=1).view(B, nh, T, hs)
