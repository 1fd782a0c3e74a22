"""The key-value cache, owned by the caller: what attention has seen, so that it is computed once.

One tensor (n_layer, 2, rows, n_head, length, head size) holds keys and values of every row, each
row filled from its first place. `GPT.hidden(idx, cache)` asks it for positions and lets each layer
attend through it; the model knows nothing else of it.

Rows may have different lengths. A row attends to its own tokens only: shorter rows are masked,
never padded, and prompts are read in one by one, so a row's numbers are those it would have alone,
to the rounding of the kernels.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from regpt.core.model import GPT, GPTConfig
from regpt.system.errors import UserError
from regpt.system.memory import available_memory
from regpt.system.runtime import compute_dtype


def check_memory(rows: int, bytes_each: int, device: torch.device) -> None:
    """Refuse what will not fit, before a system that promises everything ends the process."""
    free = available_memory(device)
    if rows * bytes_each > free:
        raise UserError(
            f"no memory for the cache of {rows} rows, {bytes_each / 1e6:,.0f} MB each, with "
            f"{free / 1e6:,.0f} MB free: ask for at most {free // bytes_each} samples, or for a "
            "shorter text"
        )


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
        clean: bool = True,
    ) -> None:
        """`clean`: begin with zeros, for attention that multiplies what it masks by nothing."""
        self.clean = clean
        head_size = config.n_embd // config.n_head
        shape = (config.n_layer, 2, rows, config.n_head, length, head_size)
        device = device or torch.device("cpu")
        check_memory(rows, config.n_layer * 2 * config.n_embd * length * dtype.itemsize, device)
        self.tensor = (torch.zeros if clean else torch.empty)(shape, device=device, dtype=dtype)
        self.lengths = [0] * rows
        """Tokens each row has."""
        self.places: Tensor | None = None
        """(B, T) int64, where the newest tokens of each row are, if rows differ in length."""
        self.start = self.stop = 0
        """The newest tokens' places if rows are equally long; `stop` is the longest row's end."""

    @property
    def capacity(self) -> int:
        """The longest row there is room for."""
        return self.tensor.shape[4]

    def positions(self, T: int) -> Tensor:
        """Make room for T more tokens in every row; their positions, (T,) or (B, T) int64."""
        device = self.tensor.device
        longest = max(self.lengths)
        if longest + T > self.capacity:
            raise UserError(f"{longest + T} tokens do not fit in a cache of {self.capacity}")
        self.start, self.stop = self.lengths[0], longest + T
        positions = torch.arange(self.start, self.start + T, device=device)
        self.places = None
        if min(self.lengths) < longest:
            lengths = torch.tensor(self.lengths, device=device)
            self.places = positions = lengths[:, None] + torch.arange(T, device=device)
        self.lengths = [length + T for length in self.lengths]
        return positions

    def attend(self, index: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Store k and v, (B, nh, T, hs), at the end of each row; attend q to the whole row.

        index: of the layer. Returns the shape of q.
        """
        layer, device = self.tensor[index], self.tensor.device  # (2, rows, nh, length, hs)
        B, _, T, _ = q.shape
        newest = torch.stack((k, v))
        if self.places is None:
            layer[:, :, :, self.start : self.stop].copy_(newest)
        else:
            rows = torch.arange(B, device=device)[:, None]
            # (B, T, 2, nh, hs): the two index tensors come first
            layer[:, rows, :, self.places] = newest.permute(1, 3, 0, 2, 4).to(layer.dtype)
        keys, values = layer[:, :, :, : self.stop].to(q.dtype)
        places = self.places
        if places is None and (self.start == 0 or T == 1):
            return F.scaled_dot_product_attention(q, keys, values, is_causal=T > 1)
        if places is None:
            places = torch.arange(self.start, self.stop, device=device)[None]
        seen = torch.arange(self.stop, device=device) <= places[:, :, None]
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=seen[:, None])

    def join(self, others: "Sequence[KeyValueCache]") -> None:
        """Take in the rows of other caches, after one's own."""
        self.tensor = torch.cat([self.tensor, *(other.tensor for other in others)], dim=2)
        self.lengths += [length for other in others for length in other.lengths]

    def cut(self, lengths: list[int]) -> None:
        """Forget the tokens of each row from these lengths on."""
        assert all(new <= old for new, old in zip(lengths, self.lengths, strict=True))
        self.lengths = list(lengths)

    def keep(self, rows: Tensor) -> None:
        """Keep only these rows, (n,) int64, in this order; repeat a row to branch it."""
        old, stop = self.tensor, max(self.lengths)
        shape = (*old.shape[:2], len(rows), *old.shape[3:])
        if len(rows) > old.shape[2]:
            check_memory(len(rows), old[:, :, 0].numel() * old.itemsize, old.device)
        self.tensor = old.new_zeros(shape) if self.clean else old.new_empty(shape)
        self.tensor[..., :stop, :] = old[..., :stop, :].index_select(2, rows.to(old.device))
        self.lengths = [self.lengths[row] for row in rows.tolist()]


class PlainDecoder:
    """Decoding through the model itself and a key-value cache: the plain path of `generate`."""

    def __init__(self, model: GPT) -> None:
        self.model = model
        self.top_k: int | None = None
        self.cache: KeyValueCache | None = None

    def new_cache(self, length: int) -> KeyValueCache:
        """An empty cache of one row."""
        device = self.model.device
        dtype = compute_dtype(device)
        return KeyValueCache(self.model.config, rows=1, length=length, device=device, dtype=dtype)

    def read(self, idx: Tensor, cache: KeyValueCache) -> Tensor:
        """Append (B, T) tokens to a cache; logits (B, V) of the token after the last only."""
        return self.model.unembed(self.model.hidden(idx, cache)[:, -1])

    def read_all(self, idx: Tensor, cache: KeyValueCache) -> Tensor:
        """Append (B, T) tokens to a cache; logits (B, T, V) after each of them."""
        return self.model.unembed(self.model.hidden(idx, cache))

    def prefill(self, prompts: list[list[int]], *, length: int, top_k: int | None = None) -> Tensor:
        """Read the prompts in; logits of the token after each, (B, V).

        Equal prompts are computed once. Each is read alone, so no prompt is padded.

        Args:
            prompts: token ids of each row.
            length: room for so many tokens a row.
            top_k: from now on only so many of the largest logits matter; the others may be -inf.
        """
        self.top_k = top_k
        unique = sorted(set(map(tuple, prompts)))
        caches = [self.new_cache(length) for _ in unique]
        logits = [
            self.read(torch.tensor([prompt], device=self.model.device), cache)
            for prompt, cache in zip(unique, caches, strict=True)
        ]
        order = [unique.index(tuple(prompt)) for prompt in prompts]
        self.cache = caches[0]
        if len(unique) > 1:
            self.cache.join(caches[1:])
        if order != list(range(len(unique))):
            self.cache.keep(torch.tensor(order))
        return torch.cat(logits)[order]

    def step(self, tokens: Tensor) -> Tensor:
        """Append one token to every row, (B,) int64; logits of the next, (B, V)."""
        assert self.cache is not None, "prefill comes first"
        return self.read(tokens[:, None], self.cache)

    def absorb(self, tokens: Tensor) -> None:
        """Append one token to every row, (B,) int64; nobody asks what comes next."""
        self.step(tokens)

    def keep(self, rows: Tensor) -> None:
        assert self.cache is not None, "prefill comes first"
        self.cache.keep(rows)
