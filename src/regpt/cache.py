"""The key-value cache, owned by the caller: what attention has seen, so that it is computed once.

One tensor (n_layer, 2, rows, n_head, length, head size) holds keys and values of every row, each
row filled from its first place. `GPT.hidden(idx, cache)` asks it for positions and lets each layer
attend through it; the model knows nothing else of it.

Rows may have different lengths. A row's own tokens are all it attends to: shorter rows are masked,
never padded, and prompts are read in one by one (`read_prompts`), so a row's numbers are those it
would have alone, to the rounding of the kernels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from regpt.errors import UserError
from regpt.model import GPT, GPTConfig


class KeyValueCache:
    """Keys and values of `rows` sequences of up to `length` tokens."""

    def __init__(
        self,
        config: GPTConfig,
        *,
        rows: int,
        length: int,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        head_size = config.n_embd // config.n_head
        shape = (config.n_layer, 2, rows, config.n_head, length, head_size)
        try:
            # zeros, not empty: what is masked still takes part in the sums, times nothing
            self.tensor = torch.zeros(shape, device=device, dtype=dtype)
        except (RuntimeError, MemoryError):
            size = shape[0] * 2 * config.n_embd * length * dtype.itemsize / 1e6
            raise UserError(
                f"no memory for the cache of {rows} rows of {length} tokens, {size:.0f} MB each: "
                "ask for fewer samples or a shorter text"
            ) from None
        self.lengths = [0] * rows
        """Tokens each row has."""
        self._rows: Tensor | None = None  # where the next token of each row goes, if they differ
        self._mask: Tensor | None = None
        self._start = self._stop = 0

    @property
    def capacity(self) -> int:
        """The longest row there is room for."""
        return self.tensor.shape[4]

    def positions(self, T: int) -> Tensor:
        """Make room for T more tokens in every row; their positions, (T,) or (B, 1) int64."""
        device = self.tensor.device
        if max(self.lengths) + T > self.capacity:
            raise UserError(
                f"{max(self.lengths) + T} tokens do not fit in a cache of {self.capacity}"
            )
        if len(set(self.lengths)) == 1:
            self._rows = self._mask = None
            self._start, self._stop = self.lengths[0], self.lengths[0] + T
            self.lengths = [self._stop] * len(self.lengths)
            return torch.arange(self._start, self._stop, device=device)
        assert T == 1, "rows of different lengths grow by one token at a time"
        self._rows = torch.tensor(self.lengths, device=device)
        self.lengths = [length + 1 for length in self.lengths]
        self._stop = max(self.lengths)
        places = torch.arange(self._stop, device=device)
        self._mask = (places <= self._rows[:, None])[:, None, None, :]  # (B, 1, 1, longest)
        return self._rows[:, None]

    def layer(self, index: int) -> "LayerCache":
        """The cache of block `index`."""
        return LayerCache(self, self.tensor[index])

    def keep(self, rows: Tensor) -> None:
        """Keep only these rows, (n,) int64, in this order; repeat a row to branch it."""
        self.tensor = self.tensor.index_select(2, rows.to(self.tensor.device))
        self.lengths = [self.lengths[row] for row in rows.tolist()]


class LayerCache:
    """One layer's keys and values."""

    def __init__(self, cache: KeyValueCache, tensor: Tensor) -> None:
        self.cache = cache
        self.tensor = tensor  # (2, rows, nh, length, hs)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Store k and v, (B, nh, T, hs), at the end of each row; attend q to the whole row."""
        cache, T = self.cache, q.shape[2]
        keys, values = self.tensor[0], self.tensor[1]
        if cache._rows is not None:
            rows = torch.arange(len(q), device=q.device)
            keys[rows, :, cache._rows] = k[:, :, 0].to(keys.dtype)
            values[rows, :, cache._rows] = v[:, :, 0].to(values.dtype)
        else:
            keys[:, :, cache._start : cache._stop] = k
            values[:, :, cache._start : cache._stop] = v
        keys, values = keys[:, :, : cache._stop], values[:, :, : cache._stop]
        keys, values = keys.to(q.dtype), values.to(q.dtype)
        if T == 1 or cache._start == 0:
            return F.scaled_dot_product_attention(
                q, keys, values, attn_mask=cache._mask, is_causal=T > 1
            )
        # several tokens after others: each sees all before it
        places = torch.arange(cache._stop, device=q.device)
        mask = places <= torch.arange(cache._start, cache._stop, device=q.device)[:, None]
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)


class PlainDecoder:
    """Decoding through the model itself and a key-value cache: the plain path of `generate`."""

    def __init__(self, model: GPT, *, length: int) -> None:
        self.model = model
        self.length = length
        self.cache: KeyValueCache | None = None

    def read(self, idx: Tensor, cache: KeyValueCache) -> Tensor:
        """Append (B, T) tokens to a cache; logits (B, V) of the token after the last only."""
        return self.model.unembed(self.model.hidden(idx, cache)[:, -1])

    def prefill(self, prompts: list[list[int]]) -> Tensor:
        """Read the prompts in; logits of the token after each, (B, V).

        Equal prompts are computed once. Each is read alone, so no prompt is padded.
        """
        model = self.model
        unique = sorted(set(map(tuple, prompts)))
        dtype = torch.float32
        if torch.is_autocast_enabled(model.device.type):
            dtype = torch.get_autocast_dtype(model.device.type)
        caches: list[KeyValueCache] = []
        logits: list[Tensor] = []
        for prompt in unique:
            cache = KeyValueCache(
                model.config, rows=1, length=self.length, device=model.device, dtype=dtype
            )
            idx = torch.tensor([prompt], device=model.device)
            logits.append(self.read(idx, cache))
            caches.append(cache)
        order = [unique.index(tuple(prompt)) for prompt in prompts]
        joined = caches[0]
        if len(unique) > 1:
            joined.tensor = torch.cat([cache.tensor for cache in caches], dim=2)
            joined.lengths = [len(prompt) for prompt in unique]
        if order != list(range(len(unique))):
            joined.keep(torch.tensor(order))
        self.cache = joined
        return torch.cat(logits)[order]

    def step(self, tokens: Tensor) -> Tensor:
        """Append one token to every row, (B,) int64; logits of the next, (B, V)."""
        assert self.cache is not None, "prefill comes first"
        return self.read(tokens[:, None], self.cache)

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only."""
        assert self.cache is not None, "prefill comes first"
        self.cache.keep(rows)
