"""A GPT for the C kernel: its matrices in panels, and one call for a step.

A token's numbers do not depend, to the last bit, on the rows and tokens computed along with it.
"""

import ctypes
import threading
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from regpt.core.kv_cache import KeyValueCache
from regpt.core.model import GPT, Block, GPTConfig
from regpt.fast.decoding.panels import (
    WEIGHT_FORMATS,
    CBlock,
    CCall,
    CLinear,
    CModel,
    Panels,
    WeightFormat,
)
from regpt.fast.decoding.topk_sampling import LARGEST_K
from regpt.fast.kernels.build import load_library, near, unavailable_reason
from regpt.system.errors import UserError

TOLERANCE: dict[WeightFormat, float] = {"fp32": 1e-5, "bf16": 2e-2, "int8": 5e-2}
"""Relative error of the logits below which a kernel counts as working."""
LANES = 16
CANDIDATES = 4096
"""Logits of one token that `head.h` has room for, when it looks for the k largest."""
FEW_OVERFLOWS = 16
"""Tokens with more candidates than that before anybody wonders whether looking for them pays."""
ROUNDING = 1e-4
"""What float32 sums of a product can be off, against the lengths of its factors."""
MOST_TOKENS = 256
"""Tokens of one call: what its buffers are made for; longer texts take several."""


class KernelCache(KeyValueCache):
    """A key-value cache that remembers which rows began with the same tokens.

    Each row has its own copy, but the C kernel reads what rows share from the first of them: once
    from memory, and for the others from the processor's caches. It looks at nothing beyond a row's
    end, so the memory is not cleaned.
    """

    def __init__(
        self, config: GPTConfig, *, rows: int, length: int, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__(config, rows=rows, length=length, dtype=dtype, clean=False)
        self.leaders = list(range(rows))
        """For each row, the first row that has the same first tokens."""
        self.shared = [0] * rows
        """How many tokens each row has in common with its leader."""

    def prefixes(self) -> tuple[Tensor, Tensor] | None:
        """`leaders` and `shared`, (B,) int64 each; None if no row shares anything."""
        return (torch.tensor(self.leaders), torch.tensor(self.shared)) if any(self.shared) else None

    def join(self, others: Sequence[KeyValueCache]) -> None:
        """Take in the rows of other caches, which share nothing with one's own."""
        super().join(others)
        rows = len(self.lengths)
        self.leaders, self.shared = list(range(rows)), [0] * rows

    def cut(self, lengths: list[int]) -> None:
        super().cut(lengths)
        self.shared = [
            min(shared, lengths[row], lengths[leader])
            for row, (leader, shared) in enumerate(zip(self.leaders, self.shared, strict=True))
        ]

    def keep(self, rows: Tensor) -> None:
        sources = rows.tolist()
        groups = [self.leaders[source] for source in sources]
        common = [self.shared[source] or self.lengths[source] for source in sources]
        super().keep(rows)
        self.leaders = [groups.index(group) for group in groups]
        self.shared = [
            min(common[row], common[leader]) if groups.count(groups[row]) > 1 else 0
            for row, leader in enumerate(self.leaders)
        ]


class KernelModel:
    """A GPT's matrices in panels; any number of decoders and threads share it, one call at a time.

    A call has all cores, and its buffers are the model's: a second thread waits for the first.
    """

    def __init__(self, model: GPT, kind: WeightFormat, *, untested: bool = False) -> None:
        """`untested`: without asking whether the kernel is right here; for the question itself."""
        reason = None if untested else unusable_reason(model.config, kind)
        if reason is not None:
            raise UserError(f"{reason}: use --engine plain")
        if model.device.type != "cpu":
            raise UserError(f"the C kernel decodes on a cpu, not on {model.device}")
        self.model = model
        self.kind: WeightFormat = kind
        self.library = load_library()
        self.threads = torch.get_num_threads()
        self._alive: list[object] = []
        blocks = [self._block(cast(Block, block)) for block in model.h]
        self._blocks = (CBlock * len(blocks))(*blocks)
        config = model.config
        self.vocab_size = config.vocab_size
        self.structure = CModel(
            WEIGHT_FORMATS.index(kind),
            *(config.n_layer, config.n_head, config.n_embd, config.layer_norm_epsilon),
            *(self._place(embedding.weight) for embedding in (model.wte, model.wpe)),
            *(self._place(part) for part in (model.ln_f.weight, model.ln_f.bias)),
            ctypes.addressof(self._blocks),
            *self._head(model.wte.weight.detach()[: config.vocab_size].float()),
        )
        self._lock = threading.Lock()  # ctypes lets other threads run meanwhile
        self._tokens = self._longest = 0  # what the buffers have room for
        self._screened = self._overflowed = 0  # tokens

    def _head(self, weight: Tensor) -> tuple[CLinear, int | None, int | None]:
        """The head's panels; in float32 those of its bfloat16 copy, and how far that is off."""
        self.screens = self.kind == "fp32"
        if not self.screens:
            return self._panels(weight, None), None, None
        cheap = Panels(weight, None, "bf16")
        self._alive.append(cheap)
        size = torch.linalg.vector_norm(weight, dim=1)
        differences = (rows - rows.bfloat16() for rows in weight.split(4096))
        error = torch.cat([torch.linalg.vector_norm(rows, dim=1) for rows in differences])
        error.add_(size, alpha=ROUNDING).mul_(1 + ROUNDING)
        # the copy's length is at most the matrix's and the difference's
        return cheap.structure, self._place(error), self._place(size + error)

    def _place(self, tensor: Tensor) -> int:
        values = tensor.detach().float().contiguous()
        self._alive.append(values)
        return values.data_ptr()

    def _panels(self, weight: Tensor, bias: Tensor | None) -> CLinear:
        panels = Panels(weight, bias, self.kind)
        self._alive.append(panels)
        return panels.structure

    def _block(self, block: Block) -> CBlock:
        norms = (block.ln_1, block.ln_2)
        linears = (block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj)
        return CBlock(
            *(self._place(part) for norm in norms for part in (norm.weight, norm.bias)),
            *(self._panels(linear.weight, linear.bias) for linear in linears),
        )

    @property
    def cache_dtype(self) -> torch.dtype:
        """What keys and values are kept in: as precise as the matrices."""
        return torch.float32 if self.kind == "fp32" else torch.bfloat16

    def _make_room(self, tokens: int, longest: int) -> None:
        """Buffers for so many tokens, kept from call to call."""
        if tokens <= self._tokens and longest <= self._longest:
            return
        self._tokens, self._longest = max(tokens, self._tokens), max(longest, self._longest)
        width, threads = self.model.config.n_embd, self.threads
        n = self._tokens
        sizes = {
            "x": n * width,
            "q": n * width,
            "y": n * width,
            "h": n * 4 * width,
            "packed": threads * (n * 4 * width + width),
            "ranges": threads * 2 * n,
            "scores": threads * self._longest,
        }
        self._buffers = {name: torch.empty(size) for name, size in sizes.items()}
        if self.screens:
            self._buffers["candidates"] = torch.empty(n * CANDIDATES, dtype=torch.int32)

    def logits(self, idx: Tensor, cache: KeyValueCache, *, top_k: int | None = None) -> Tensor:
        """Append (B, T) tokens to the cache; logits (B, V) float32 of the token after the last.

        With `top_k`, up to 512, those that are not among the k largest may be -inf.
        """
        B, T = idx.shape
        together = max(MOST_TOKENS // B, 1)
        first = 0
        while T - first > together:
            self.run(idx[:, first : first + together], cache, wanted=())
            first += together
        rest = T - first
        wanted = range(rest - 1, B * rest, rest)
        return self.run(idx[:, first:], cache, wanted=wanted, top_k=top_k)

    def all_logits(self, idx: Tensor, cache: KeyValueCache, *, top_k: int | None = None) -> Tensor:
        """The same after every token: (B, T, V)."""
        B, T = idx.shape
        return self.run(idx, cache, wanted=range(B * T), top_k=top_k).view(B, T, -1)

    def run(
        self,
        idx: Tensor,
        cache: KeyValueCache,
        *,
        wanted: Sequence[int],
        top_k: int | None = None,
        at: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Append (B, T) tokens; logits (len(wanted), V) after those at these places of B * T.

        `at`: the cache's row and the position of every token, (B, T) int64 each; default: the rows
        in order, each from its end on.
        """
        B, T = idx.shape
        tokens = B * T
        rows, positions = at or (torch.arange(B)[:, None], cache.positions(T))
        rows, positions = (part.expand(B, T).contiguous() for part in (rows, positions))
        ids = idx.contiguous()
        places = torch.tensor(wanted, dtype=torch.int64)
        logits = torch.empty(len(wanted), self.vocab_size)
        kept = cache.tensor
        assert kept.stride(4) == kept.shape[5]
        assert kept.stride(5) == 1
        call = CCall(
            *(kept.data_ptr(), kept.dtype == torch.bfloat16, *kept.stride()[:4], tokens),
            *(ids.data_ptr(), rows.data_ptr(), positions.data_ptr()),
            *(len(wanted), places.data_ptr(), logits.data_ptr(), self.vocab_size),
            threads=self.threads,
        )
        prefixes = cache.prefixes() if isinstance(cache, KernelCache) and at is None else None
        if prefixes is not None:
            leaders, shared = (part[:, None].expand(B, T).contiguous() for part in prefixes)
            call.leaders, call.shared = leaders.data_ptr(), shared.data_ptr()
        with self._lock:
            self._make_room(tokens, cache.capacity)
            for name in ("x", "q", "y", "h", "packed", "ranges", "scores"):
                setattr(call, name, self._buffers[name].data_ptr())
            call.scores_stride = self._longest
            counts = self._screen(call, len(wanted), top_k)
            self.library.regpt_decode(ctypes.byref(self.structure), ctypes.byref(call))
            if counts is not None:
                self._screened += len(wanted)
                self._overflowed += int((counts < 0).sum())
        return logits

    def _screen(self, call: CCall, tokens: int, top_k: int | None) -> Tensor | None:
        """Ask for the k largest logits only, where that is worth it; where the counts will be."""
        too_often = self._overflowed > FEW_OVERFLOWS + self._screened // 4
        if top_k is None or top_k > LARGEST_K or not self.screens or not tokens or too_often:
            return None
        counts = torch.empty(tokens, dtype=torch.int64)
        call.top_k = top_k
        call.candidates, call.counts = self._buffers["candidates"].data_ptr(), counts.data_ptr()
        return counts


def unusable_reason(config: GPTConfig, kind: WeightFormat) -> str | None:
    """Why the kernel cannot be used for such a model here, in words; None if it can."""
    return unavailable_format(kind) or misshapen(config)


def misshapen(config: GPTConfig) -> str | None:
    """Why a model's shape does not fit the kernel's registers, in words; None if it does."""
    size = config.n_embd // config.n_head
    if size % LANES or size > 8 * LANES:
        return f"the C kernel wants heads of 16, 32, ... 128 channels, not {size}"
    return None


def unavailable_format(kind: WeightFormat) -> str | None:
    """Why the kernel cannot be used on this machine, in words; None if it can."""
    return unavailable_reason(f"{kind} decoding", lambda: decodes_right(kind))


def decodes_right(kind: WeightFormat) -> bool:
    """A small model against the plain path."""
    config = GPTConfig(block_size=8, vocab_size=81, n_layer=1, n_head=2, n_embd=32)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        model = GPT(config).eval()
    for parameter in model.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(1))
    idx = torch.tensor([[1, 80, 5, 7], [3, 3, 0, 2]])
    native = KernelModel(model, kind, untested=True)
    cache = KeyValueCache(config, rows=2, length=8, dtype=native.cache_dtype)
    return near(native.all_logits(idx, cache), model(idx)[0], TOLERANCE[kind])
