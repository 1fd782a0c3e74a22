"""The usual fast way to decode on a GPU, written here to compare with: gpt-fast's recipe.

Weights in bfloat16, a cache of a fixed length whose keys and values are the module's own buffers,
attention over all of it with a mask, the draw inside of the step, and the step compiled with
`mode="reduce-overhead"`, which records it as a CUDA graph. Buffers, because a recorded graph may
write to a module's own tensors but to no other of its inputs.
"""

from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regpt.core.model import GPT, Block

Step = Callable[["StaticGPT", Tensor, Tensor, int], Tensor]


class StaticAttention(nn.Module):
    """A block's attention, and the keys and values it has seen."""

    def __init__(self, block: Block, rows: int, length: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.attn, self.heads = block.attn, block.attn.n_head
        C, device = block.attn.c_proj.in_features, block.attn.c_proj.weight.device
        shape = (rows, self.heads, length, C // self.heads)
        self.register_buffer("keys", torch.zeros(shape, dtype=dtype, device=device))
        self.register_buffer("values", torch.zeros(shape, dtype=dtype, device=device))

    def forward(self, x: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """x (B, T, C) at positions (T,); mask (T, length) of what each may look at."""
        B, T, C = x.shape
        q, k, v = (
            part.view(B, T, self.heads, C // self.heads).transpose(1, 2)
            for part in self.attn.c_attn(x).split(C, dim=2)
        )
        keys, values = cast(Tensor, self.keys), cast(Tensor, self.values)
        keys.index_copy_(2, positions, k)
        values.index_copy_(2, positions, v)
        y = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
        return self.attn.c_proj(y.transpose(1, 2).reshape(B, T, C))


class StaticGPT(nn.Module):
    """A GPT-2 for so many rows of at most so many tokens."""

    def __init__(self, model: GPT, *, rows: int, length: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = model.to(dtype).eval()
        self.rows = rows
        self.attention = nn.ModuleList(
            StaticAttention(cast(Block, block), rows, length, dtype) for block in model.h
        )
        mask = torch.ones(length, length, dtype=torch.bool, device=model.device).tril()
        self.register_buffer("mask", mask)

    def forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        """Ids (B, T) at positions (T,) to the logits (B, V) after the last."""
        model, mask = self.model, cast(Tensor, self.mask)[positions]
        x = model.wte(ids) + model.wpe(positions)
        for block, attention in zip(model.h, self.attention, strict=True):
            block = cast(Block, block)
            x = x + attention(block.ln_1(x), positions, mask)
            x = x + block.mlp(block.ln_2(x))
        return model.unembed(model.ln_f(x[:, -1]))


def draw(logits: Tensor, top_k: int) -> Tensor:
    """(B, V) logits to (B, 1) tokens among the k likeliest, by exponential noise: no host waits."""
    largest, ids = logits.float().topk(top_k)
    noise = torch.empty_like(largest).exponential_(1.0)
    return ids.gather(1, (largest.softmax(dim=-1) / noise).argmax(dim=-1, keepdim=True))


def next_tokens(net: StaticGPT, ids: Tensor, positions: Tensor, top_k: int) -> Tensor:
    """One step: (B, T) tokens in, (B, 1) out."""
    return draw(net(ids, positions), top_k)


def compile_step(device: str) -> Step:
    """The step, compiled for each shape: for a GPU as above, on a CPU traced and run as it is."""
    if torch.device(device).type == "cuda":
        return torch.compile(next_tokens, mode="reduce-overhead", fullgraph=True, dynamic=False)
    return torch.compile(next_tokens, backend="aot_eager", fullgraph=True, dynamic=False)


@torch.no_grad()
def write(net: StaticGPT, step: Step, prompt: Sequence[int], new: int, *, top_k: int) -> Tensor:
    """`new` tokens after the prompt in each of the net's rows, (rows, new)."""
    device = net.model.device
    ids = torch.tensor([list(prompt)] * net.rows, device=device)
    token = next_tokens(net, ids, torch.arange(len(prompt), device=device), top_k)
    tokens = [token]
    position = torch.tensor([len(prompt)], device=device)
    for _ in range(new - 1):
        torch.compiler.cudagraph_mark_step_begin()
        token = step(net, token, position, top_k).clone()  # the next replay writes over it
        tokens.append(token)
        position += 1
    return torch.cat(tokens, dim=1)
