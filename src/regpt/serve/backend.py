"""Model and caches behind one interface: all that the server wants from the rest of regpt.

`KernelBackend` computes a whole step in one call of the C kernel, in which a token's numbers do not
depend, to the last bit, on what is computed along with it. Everywhere else the shape of a product
decides how it is rounded, so `AloneBackend` gives each text calls of its own whose shapes follow
from its positions alone: prompts in pieces of `PIECE` tokens from position 0 on, then one token
after the other. The text of a seed is then the same in any company there too, and slower.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, cast

import torch
from torch import Tensor

from regpt.core.kv_cache import KeyValueCache, PlainDecoder
from regpt.core.model import GPT, GPTConfig
from regpt.core.sampling import SamplingParams, penalize
from regpt.fast.decoding.decoders import choose_decoder
from regpt.fast.decoding.kernel_model import KernelModel, unusable_reason
from regpt.fast.decoding.panels import WeightFormat
from regpt.serve.portable import Draw, draw_tokens
from regpt.serve.scheduler import Part, Text
from regpt.system.errors import UserError
from regpt.system.memory import available_memory
from regpt.system.runtime import find_runtime

PIECE = 64
MOST_ROWS = 16
SCORED_AT_ONCE = 16
"""Places of a prompt whose log-probabilities are in memory at once, 0.2 MB each."""
MEMORY_SHARE = 0.25
"""Of the free memory, what the rows may take if nobody says how many."""


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """How a request draws its tokens."""

    params: SamplingParams
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    logprobs: int | None = None
    """How many of the likeliest tokens to tell; None: no log-probabilities at all."""

    @property
    def changes_logits(self) -> bool:
        """Whether logits are changed before temperature and filters."""
        return bool(self.presence_penalty or self.frequency_penalty or self.logit_bias)

    def enough(self) -> int | None:
        """How many of the largest logits decide a draw; None: all take part."""
        if self.logprobs is not None or self.changes_logits:
            return None
        return self.params.logits_needed


@dataclass(eq=False, kw_only=True)
class Choice(Text):
    """One choice of a completion."""

    number: int
    """Its row in the random stream: 0 .. n-1."""
    max_tokens: int
    drawing: Drawing


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A token with what the model thought of it."""

    token: int
    logprob: float | None = None
    top: list[tuple[int, float]] = field(default_factory=list)
    """The likeliest tokens at its place, the likeliest first."""


class Backend(Protocol):
    """What the engine computes with."""

    granule: int
    """In pieces of how many tokens prompts are read (`scheduler.py`)."""

    def step(self, parts: Sequence[Part], top_k: int | None) -> Tensor:
        """Compute the parts; the wanted logits in their order, (n, V) float32."""
        ...

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the keys and values of a row's first tokens to another row."""
        ...


class KernelBackend:
    """The C kernel over one cache of all rows."""

    granule = 1

    def __init__(self, native: KernelModel, rows: int) -> None:
        self.native = native
        config = native.model.config
        self.cache = KeyValueCache(
            config, rows=rows, length=config.block_size, dtype=native.cache_dtype, clean=False
        )
        self.cache.tensor.zero_()  # its memory is taken now, not while texts are written

    def step(self, parts: Sequence[Part], top_k: int | None) -> Tensor:
        """All parts in one call."""
        ids: list[int] = []
        rows: list[int] = []
        positions: list[int] = []
        wanted: list[int] = []
        for part in parts:
            ids += part.tokens
            rows += [part.row] * len(part.tokens)
            positions += range(part.start, part.start + len(part.tokens))
            first = len(ids) - (len(part.tokens) if part.wanted == "all" else 1)
            wanted += range(first, len(ids)) if part.wanted != "none" else ()
        idx, *at = (torch.tensor(numbers)[:, None] for numbers in (ids, rows, positions))
        return self.native.run(idx, self.cache, wanted=wanted, top_k=top_k, at=(at[0], at[1]))

    def copy(self, source: int, target: int, length: int) -> None:
        """Within the one cache."""
        kept = self.cache.tensor
        kept[:, :, target, :, :length] = kept[:, :, source, :, :length]


class AloneBackend:
    """Any decoder, every text by itself: a cache for each row."""

    granule = PIECE

    def __init__(self, decoder: PlainDecoder, rows: int, *, dtype: str) -> None:
        self.decoder = decoder
        self.runtime = find_runtime("cpu", dtype="bf16" if dtype == "bf16" else "fp32")
        with self.runtime.autocast():
            length = decoder.model.config.block_size
            self.caches = [decoder.new_cache(length) for _ in range(rows)]

    def step(self, parts: Sequence[Part], top_k: int | None) -> Tensor:
        """One call for each part."""
        logits = []
        with self.runtime.autocast():
            for part in parts:
                cache = self.caches[part.row]
                cache.lengths = [part.start]
                idx = torch.tensor([part.tokens])
                if part.wanted == "all":
                    logits.append(self.decoder.read_all(idx, cache)[0].float())
                else:
                    last = self.decoder.read(idx, cache).float()
                    logits += [last] if part.wanted == "last" else []
        return torch.cat(logits) if logits else torch.empty(0)

    def copy(self, source: int, target: int, length: int) -> None:
        """From one row's cache to another's."""
        kept = self.caches[source].tensor[..., :length, :]
        self.caches[target].tensor[..., :length, :] = kept


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model ready to serve."""

    name: str
    gpt: GPT
    """As torch has it, for what only looks."""
    backend: Backend
    rows: int
    config: GPTConfig
    fingerprint: str
    """Equal where weights, dtype and kernel are: then one seed and prompt give one text."""
    note: str | None = None
    """What a person should know, in one line."""


def newest_checkpoint(run: str) -> Path | None:
    """Where a run's newest checkpoint is, if it has any."""
    from regpt.training.checkpoint import LATEST, read_pointer

    folder = Path(run) / "checkpoints"
    name = read_pointer(folder, LATEST)
    return folder / name if name else None


def row_bytes(config: GPTConfig, dtype: torch.dtype) -> int:
    """Memory of a row: keys and values of every layer and position."""
    return 2 * config.n_layer * config.n_embd * config.block_size * dtype.itemsize


@torch.no_grad()
def prepare(gpt: GPT, name: str, *, dtype: WeightFormat, rows: int | None) -> Loaded:
    """Pack a model and make room for its rows; as many as there is memory for if None."""
    if rows is not None and rows < 1:
        raise UserError(f"rows must be at least 1, got {rows}")
    config, note = gpt.config, None
    reason = unusable_reason(config, dtype)
    kept = torch.bfloat16 if dtype != "fp32" and reason is None else torch.float32
    room = int(available_memory(gpt.device) * MEMORY_SHARE) // row_bytes(config, kept)
    rows = rows or max(1, min(room, MOST_ROWS))
    backend: Backend
    if reason is None:
        native = KernelModel(gpt, dtype)
        backend, kernel = KernelBackend(native, rows), Path(native.library._name).stem
    else:
        decoder, _ = choose_decoder(gpt, engine="auto", dtype=dtype)
        backend = AloneBackend(decoder, rows, dtype=dtype)
        kernel = f"{type(decoder).__name__} torch {torch.__version__} {torch.get_num_threads()}"
        note = f"{reason}; each text is computed by itself, which keeps it exact and is slower"
    return Loaded(
        name=name,
        gpt=gpt,
        backend=backend,
        rows=rows,
        config=config,
        fingerprint=fingerprint(gpt, dtype, kernel),
        note=note,
    )


def fingerprint(gpt: GPT, dtype: str, kernel: str) -> str:
    """What decides a text besides prompt and parameters, in 16 hexadecimal digits."""
    digest = hashlib.sha256(f"{gpt.config} {dtype} {kernel}".encode())
    for name, tensor in sorted(gpt.state_dict().items()):
        digest.update(name.encode())
        digest.update(cast(bytes, tensor.detach().contiguous().numpy().reshape(-1).data))
    return f"fp_{digest.hexdigest()[:16]}"


def top_k_of(choices: Sequence[Choice]) -> int | None:
    """How many of the largest logits decide the draws of a step; None: all."""
    needed = [choice.drawing.enough() for choice in choices]
    known = [k for k in needed if k is not None]
    return max(known, default=1) if len(known) == len(needed) else None


def draw(logits: Sequence[Tensor], choices: Sequence[Choice]) -> list[Entry]:
    """Draw the next token of each choice from its logits, (V,) float32 each, which may change."""
    pairs = list(zip(logits, choices, strict=True))
    known = [row if choice.drawing.logprobs is None else row.clone() for row, choice in pairs]
    tokens = draw_tokens([as_drawn(row, choice) for row, choice in pairs])
    return [
        Entry(token=token)
        if choice.drawing.logprobs is None
        else entries(row[None], [token], choice.drawing.logprobs)[0]
        for row, token, choice in zip(known, tokens, choices, strict=True)
    ]


def as_drawn(logits: Tensor, choice: Choice) -> Draw:
    """The draw of a choice's next token, with penalties and biases in its logits."""
    drawing, tokens, params = choice.drawing, choice.tokens, choice.drawing.params
    if drawing.frequency_penalty or drawing.presence_penalty:
        drawn = torch.tensor(tokens[len(choice.prompt) :], dtype=torch.int64)
        counts = torch.bincount(drawn, minlength=logits.shape[0])
        logits -= drawing.frequency_penalty * counts + drawing.presence_penalty * (counts > 0)
    for token, bias in drawing.logit_bias.items():
        logits[token] += bias
    if params.repetition_penalty != 1.0:
        logits = penalize(logits[None], torch.tensor([tokens]), params.repetition_penalty)[0]
        params = replace(params, repetition_penalty=1.0)
    return Draw(logits=logits, params=params, number=choice.number, position=len(tokens))


def entries(logits: Tensor, tokens: Sequence[int], top: int) -> list[Entry]:
    """Tokens with their log-probabilities under logits (n, V) at their places, and the top ones."""
    found: list[Entry] = []
    for rows in logits.split(SCORED_AT_ONCE):
        logprobs = rows.log_softmax(dim=-1)
        ids = tokens[len(found) : len(found) + len(rows)]
        chosen = logprobs.gather(1, torch.tensor(ids)[:, None]).squeeze(1).tolist()
        best = logprobs.topk(top, dim=-1)
        pairs = map(zip, best.indices.tolist(), best.values.tolist())
        found += [
            Entry(token=token, logprob=logprob, top=list(likely))
            for token, logprob, likely in zip(ids, chosen, pairs, strict=True)
        ]
    return found
