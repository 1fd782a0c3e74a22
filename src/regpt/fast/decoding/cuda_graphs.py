"""Decoding on a GPU: a step recorded once as a CUDA graph, and replayed for every token.

A step of one token a row is some 150 small kernels, and Python takes longer to launch them than a
large GPU to run them. So nothing in the step may change from token to token: the cache has its full
length from the start, where each row stands is a tensor on the device, attention runs over the next
multiple of 128 positions with the rest masked, and weights are cast once. Then the launches are
recorded, and one call replays them all; a graph for each number of rows and each such multiple.

Prompts go through the model itself. Off a GPU the same step runs unrecorded, which is how
`tests/fast/test_cuda_graphs.py` holds it to the plain path. Only asked for by name (`--engine
fast`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regpt.core.kv_cache import KeyValueCache, PlainDecoder
from regpt.core.model import GPT, Block
from regpt.system.errors import UserError

BUCKET = 128
"""Positions attended to at once: fewer waste less, and want more graphs."""


def cast_once(
    weight: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Callable[[Tensor], Tensor]:
    """A linear layer with its numbers in one dtype: (B, K) in any float dtype to (B, N) in it."""
    weight = weight.detach().to(dtype)
    bias = None if bias is None else bias.detach().to(dtype)
    return lambda x: F.linear(x.to(dtype), weight, bias)


class StaticStep:
    """A GPT's step for one token a row, with nothing in it that Python decides."""

    def __init__(self, model: GPT, dtype: torch.dtype) -> None:
        def linear(layer: nn.Linear) -> Callable[[Tensor], Tensor]:
            return cast_once(layer.weight, layer.bias, dtype)

        self.model = model
        self.blocks = [
            (block, *map(linear, (block.attn.c_attn, block.attn.c_proj)),
             *map(linear, (block.mlp.c_fc, block.mlp.c_proj)))
            for block in (cast(Block, block) for block in model.h)
        ]  # fmt: skip
        self.head = cast_once(model.wte.weight[: model.config.vocab_size], None, dtype)

    def __call__(self, ids: Tensor, positions: Tensor, cache: Tensor, stop: int) -> Tensor:
        """Put a token of each row at its position; logits of the next.

        Args:
            ids: (B,) int64.
            positions: (B,) int64, all below `stop`.
            cache: (n_layer, 2, B, nh, length, hs), written to.
            stop: positions attended to, those after a row's own masked.

        Returns:
            (B, V) float32.
        """
        model = self.model
        B, heads = len(ids), model.config.n_head
        rows = torch.arange(B, device=ids.device)
        seen = (torch.arange(stop, device=ids.device) <= positions[:, None])[:, None, None]
        x = model.wte.weight[ids] + model.wpe.weight[positions]
        for index, (block, c_attn, attn_proj, c_fc, mlp_proj) in enumerate(self.blocks):
            q, k, v = c_attn(block.ln_1(x)).view(B, 3, heads, -1).unbind(1)
            keys, values = cache[index]
            keys[rows, :, positions] = k.to(cache.dtype)
            values[rows, :, positions] = v.to(cache.dtype)
            y = F.scaled_dot_product_attention(
                q[:, :, None].to(cache.dtype), keys[:, :, :stop], values[:, :, :stop], seen
            )
            x = x + attn_proj(y.flatten(1))
            x = x + mlp_proj(F.gelu(c_fc(block.ln_2(x)), approximate="tanh"))
        return self.head(model.ln_f(x)).float()


@dataclass
class Recording:
    """A recorded step: fill the inputs, replay, read the logits."""

    graph: "torch.cuda.CUDAGraph"
    ids: Tensor
    positions: Tensor
    logits: Tensor


class GraphDecoder(PlainDecoder):
    """Decoding by replaying recorded steps; on a device without graphs, by running them."""

    def __init__(self, model: GPT, *, dtype: torch.dtype) -> None:
        super().__init__(model)
        self.dtype = dtype
        self.static = StaticStep(model, dtype)
        self._recordings: dict[tuple[int, int, int], Recording] = {}
        self._buffers: dict[tuple[int, int], Tensor] = {}

    def new_cache(self, length: int) -> KeyValueCache:
        return KeyValueCache(
            self.model.config,
            rows=1,
            length=length,
            device=self.model.device,
            dtype=self.dtype,
        )

    def step(self, tokens: Tensor) -> Tensor:
        """Append one token to every row, (B,) int64; logits of the next, (B, V)."""
        cache = self.cache
        assert cache is not None, "prefill comes first"
        positions = cache.positions(1).expand(len(tokens), 1)[:, 0]
        stop = min(-(-max(cache.lengths) // BUCKET) * BUCKET, cache.capacity)
        with torch.autocast(self.model.device.type, enabled=False):
            if self.model.device.type != "cuda":
                return self.static(tokens, positions, cache.tensor, stop)
            return self._replay(tokens, positions, cache, stop)

    def _replay(self, tokens: Tensor, positions: Tensor, cache: KeyValueCache, stop: int) -> Tensor:
        """The step by its graph, over a cache that stays in its place."""
        place = len(tokens), cache.capacity
        buffer = self._buffers.setdefault(place, cache.tensor)
        if buffer.data_ptr() != cache.tensor.data_ptr():
            cache.tensor = buffer.copy_(cache.tensor)
        recording = self._recordings.get((*place, stop))
        if recording is None:
            try:
                recording = record(self.static, tokens, positions, buffer, stop)
            except RuntimeError as error:
                line = str(error).splitlines()[0]
                raise UserError(
                    f"this GPU does not record a step ({line}): use --engine plain"
                ) from None
            self._recordings[*place, stop] = recording
        recording.ids.copy_(tokens)
        recording.positions.copy_(positions)
        recording.graph.replay()
        return recording.logits.clone()


def record(
    static: StaticStep, tokens: Tensor, positions: Tensor, cache: Tensor, stop: int
) -> Recording:
    """Record a step. It runs a few times, each time writing the same numbers in the same place."""
    ids, positions = tokens.clone(), positions.clone()
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):  # libraries set themselves up outside of the recording
        for _ in range(2):
            static(ids, positions, cache, stop)
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = static(ids, positions, cache, stop)
    return Recording(graph=graph, ids=ids, positions=positions, logits=logits)
