"""Reading long texts fast: the model itself, or on a CPU the model on packed matrices.

Scoring needs two verbs of a model, `hidden` and `unembed`. `PackedReader` offers them over the
matrices that decoding packs too (fast.py): oneDNN multiplies float32 twice as fast as the library
that F.linear goes to, and bfloat16 without packing the weight anew for every batch. The residual
stream, the LayerNorms and the softmax over the vocabulary stay in float32.

In bfloat16 attention goes block by block (attention.py), as in training; in float32 torch's own is
as fast.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regpt.core.model import GPT, GPTConfig
from regpt.fast.decoding.decoders import PackedModel, norm
from regpt.fast.decoding.packed_linear import Kind, missing
from regpt.fast.training.blocked_attention import causal_attention
from regpt.system.runtime import Runtime


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
            qkv = block.c_attn(norm(block.ln_1, x)).view(B, T, -1)
            y = (
                causal_attention(qkv.bfloat16(), heads)
                if self.kind == "bf16"
                else attend(qkv, heads)
            )
            x = x + block.attn_proj(y.view(B * T, -1))
            x = x + block.mlp_proj(block.c_fc(norm(block.ln_2, x)))
        return norm(model.ln_f, x).view(B, T, -1)

    def unembed(self, x: Tensor) -> Tensor:
        """Hidden states (n, C) to logits (n, V), float32."""
        return self.packed.head(x).float()


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


def attend(qkv: Tensor, n_head: int) -> Tensor:
    """Causal attention by torch's own kernel: (B, T, 3C) to (B, T, C)."""
    B, T, width = qkv.shape
    q, k, v = qkv.view(B, T, 3, n_head, -1).permute(2, 0, 3, 1, 4)  # (B, nh, T, hs) each
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return y.transpose(1, 2).reshape(B, T, width // 3)
