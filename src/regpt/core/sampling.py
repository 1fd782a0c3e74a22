"""From logits to a token: pure functions, no state.

A draw has two halves. The first is common to all: repetition penalty, then temperature, then the
filters top-k, top-p, min-p, in this order (transformers' order; its code defines what the released
pipeline means). The second is where the randomness comes from, and it is what makes two programs
with one seed write different texts:

- `hf` draws as transformers' `generate` does: everything filtered out is masked, softmax over the
  whole vocabulary, one multinomial draw. Torch's multinomial takes one exponential random number
  per *entry*, in vocabulary order: B x V numbers a step. Same seed, same device: same text.
- `lecture` draws as the lecture's loop does: softmax, top-k, multinomial over the k sorted
  probabilities, gather. The same distribution from another stream: B x k numbers a step.
- `portable` takes the random number of a candidate from a counter-based generator (`philox`): a
  function of (seed, row, position, token id) alone. A sample then depends neither on the device nor
  on the other rows of its batch, but for the rounding of the logits.

`docs/parity.md` tells why the lecture's text is not the pipeline's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from regpt.core.filters import keep_min_p, keep_top_k, keep_top_p, penalize
from regpt.core.noise import draw_words, exponential_of, words_are_exponential
from regpt.core.philox import exponential
from regpt.fast.kernels import draws
from regpt.system.errors import UserError

Stream = Literal["hf", "lecture", "portable"]
STREAMS: tuple[Stream, ...] = ("hf", "lecture", "portable")

SPARE = 14
"""Logits looked at beyond the top k, for those that equal the k-th."""
CLOSE = 1e-5
"""Relative distance below which two candidates' scores count as equal: float32 sums differ less."""


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How to continue a prompt. The defaults are the lecture's."""

    max_length: int = 30
    """Length of the finished text in tokens, the prompt included."""
    num_samples: int = 5
    """Continuations of each prompt."""
    top_k: int | None = 50
    """Draw among the k most likely tokens; None: among all."""
    temperature: float = 1.0
    """Divides the logits; 0 takes the most likely token."""
    top_p: float | None = None
    """Draw among the most likely tokens that together hold this probability."""
    min_p: float | None = None
    """Draw among tokens at least this share as likely as the most likely one."""
    repetition_penalty: float = 1.0
    """Divides (multiplies, if negative) the logits of tokens already in the text."""
    seed: int = 42
    """Seed of the random stream."""
    rng: Stream = "hf"
    """The random stream: hf (transformers' text), lecture, or portable."""
    stop_at_eot: bool = True
    """End a row at <|endoftext|>."""
    overflow: Literal["error", "slide"] = "error"
    """Past the model's positions: refuse, or go on with the newest three quarters as the start."""

    def __post_init__(self) -> None:
        if self.max_length < 1:
            raise UserError(f"max_length must be at least 1, got {self.max_length}")
        if self.num_samples < 1:
            raise UserError(f"num_samples must be at least 1, got {self.num_samples}")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k must be at least 1, got {self.top_k}; None for no limit")
        if not 0 <= self.temperature < float("inf"):
            raise UserError(
                f"temperature must be 0 (greedy) or a positive number, got {self.temperature}"
            )
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"top_p must be in (0, 1], got {self.top_p}")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise UserError(f"min_p must be in [0, 1], got {self.min_p}")
        if not 0 < self.repetition_penalty < float("inf"):
            raise UserError(
                f"repetition_penalty must be a positive number, got {self.repetition_penalty}"
            )
        if not -(2**63) <= self.seed < 2**64:
            raise UserError(f"seed must fit in 64 bits, got {self.seed}")
        if self.overflow not in ("error", "slide"):
            raise UserError(f"overflow {self.overflow!r} is not one of error, slide")
        if self.rng not in STREAMS:
            raise UserError(f"rng {self.rng!r} is not one of {', '.join(STREAMS)}")

    def generator(self, device: torch.device) -> torch.Generator:
        """A generator on `device` in the state that `torch.manual_seed(seed)` leaves it in."""
        return torch.Generator(device).manual_seed(self.seed)


def filtered(logits: Tensor, params: SamplingParams, *, top_k: bool = True) -> Tensor:
    """Temperature and the filters, in transformers' order, on (B, V) float32 logits."""
    if params.temperature != 1.0:
        logits = logits / params.temperature
    if top_k and params.top_k is not None:
        logits = keep_top_k(logits, params.top_k)
    if params.top_p is not None and params.top_p < 1:
        logits = keep_top_p(logits, params.top_p)
    if params.min_p is not None:
        logits = keep_min_p(logits, params.min_p)
    return logits


def draw_noise(
    params: SamplingParams,
    generator: torch.Generator | None,
    *,
    batch: int,
    vocab_size: int,
    device: torch.device,
) -> Tensor | None:
    """All randomness of one step of `batch` rows, to be given to `sample`; None: it needs none.

    Drawing it apart lets a step be drawn twice from the same numbers, or for some rows only.
    Returns words, (batch, V) int64 (`noise.py`), or Exp(1) numbers, (batch, V) or, for `lecture`,
    (batch, k), float32.
    """
    if params.temperature == 0 or params.rng == "portable":
        return None
    if params.rng == "lecture":
        columns = min(params.top_k or vocab_size, vocab_size)
        return torch.empty(batch, columns, device=device).exponential_(generator=generator)
    if has_few_candidates(params, vocab_size, device):
        return draw_words(batch, vocab_size, generator)
    return torch.empty(batch, vocab_size, device=device).exponential_(generator=generator)


def has_few_candidates(params: SamplingParams, vocab_size: int, device: torch.device) -> bool:
    """Whether `draw_among_few` draws what `draw_hf` means, for less."""
    return (
        device.type == "cpu"
        and params.top_k is not None
        and params.top_k + SPARE < vocab_size
        and params.top_p in (None, 1.0)
        and params.min_p is None
        and words_are_exponential()
    )


def draw_hf(logits: Tensor, params: SamplingParams, noise: Tensor) -> Tensor:
    """transformers' draw: mask, softmax over the vocabulary, multinomial in vocabulary order.

    argmax of p / q is torch.multinomial's own way to draw once; noise (B, V) is its q.
    """
    if noise.dtype == torch.int64:
        noise = exponential_of(noise)
    return (F.softmax(filtered(logits, params), dim=-1) / noise).argmax(dim=-1)


def draw_among_few(
    logits: Tensor, params: SamplingParams, words: Tensor | Sequence[Tensor]
) -> Tensor:
    """The token `draw_hf` draws, from words (B, V) or rows of them: only the top k are looked at.

    transformers keeps every logit equal to the k-th. Where two candidates are as good as equal, so
    that the order of the softmax's sum could decide, the row goes the long way.
    """
    assert params.top_k is not None
    if draws.works(params.top_k):
        tokens, undecided = draws.draw(
            logits, words, top_k=params.top_k, temperature=params.temperature, close=CLOSE
        )
    else:
        tokens, undecided = race_among_few(logits, params, words)
    if bool(undecided.any()):
        places = undecided.nonzero().flatten().tolist()
        rows = torch.stack([words[place] for place in places])
        tokens[undecided] = draw_hf(logits[undecided], params, rows)
    return tokens


def race_among_few(
    logits: Tensor, params: SamplingParams, words: Tensor | Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Tokens (B,), and which rows are not decided: `draws.py` in torch's operators.

    A few more than k are looked at, for the ties with the k-th; where even the last of them is
    equal to it, the row is not decided.
    """
    assert params.top_k is not None
    if params.temperature != 1.0:
        logits = logits / params.temperature
    values, ids = torch.topk(logits, params.top_k + SPARE)
    kth = values[:, params.top_k - 1 : params.top_k]
    tied = values[:, -1:] == kth
    values = values.masked_fill(values < kth, -torch.inf)
    noise = exponential_of(torch.stack([row[few] for row, few in zip(words, ids, strict=True)]))
    best, places = (values.softmax(dim=-1) / noise).topk(2)
    tokens = ids.gather(1, places[:, :1]).squeeze(1)
    return tokens, (best[:, 0] <= best[:, 1] * (1 + CLOSE)) | tied.squeeze(1)


def draw_lecture(logits: Tensor, params: SamplingParams, noise: Tensor) -> Tensor:
    """The lecture's draw: softmax, top-k, multinomial over the k sorted, gather; noise (B, k)."""
    probabilities = F.softmax(filtered(logits, params, top_k=False), dim=-1)
    largest, ids = torch.topk(probabilities, noise.shape[1], dim=-1)
    choice = (largest / noise).argmax(dim=-1, keepdim=True)
    return torch.gather(ids, -1, choice).squeeze(1)


def draw_portable(
    logits: Tensor, params: SamplingParams, rows: Tensor, positions: Tensor
) -> Tensor:
    """argmax of p / q with q ~ Exp(1) from a counter: no generator, no stream."""
    masked = filtered(logits, params)
    if params.top_k is not None:  # only candidates need a number; ties beyond k keep their place
        count = int((masked > -torch.inf).sum(dim=-1).max())
        masked, ids = torch.topk(masked, count, dim=-1)
    else:
        ids = torch.arange(logits.shape[-1], device=logits.device).expand_as(logits)
    noise = exponential(params.seed, rows[:, None], positions[:, None], ids)
    # float64: the winner must not change with a device's float32 logarithm
    scores = masked.double() - noise.log()
    # equal scores go to the smaller token id, whatever order topk left ties in
    best = scores == scores.max(dim=-1, keepdim=True).values
    return torch.where(best, ids, logits.shape[-1]).min(dim=-1).values


def sample(
    logits: Tensor,
    params: SamplingParams,
    generator: torch.Generator | None = None,
    *,
    context: Tensor | None = None,
    rows: Tensor | None = None,
    numbers: Tensor | None = None,
    positions: Tensor | None = None,
    batch: int | None = None,
    noise: Tensor | Sequence[Tensor] | None = None,
) -> Tensor:
    """Draw the next token of each row.

    Args:
        logits: (B, V), any float dtype; worked on in float32.
        params: temperature, filters, random stream.
        generator: the stream of `hf` and `lecture`; None: torch's global one.
        context: (B, T) int64, the text so far; needed with a repetition penalty.
        rows: (B,) int64, the rows' places in the whole batch; default 0 .. B-1.
        numbers: (B,) int64, the rows' numbers for `portable`; default their places.
        positions: (B,) int64, where the drawn token will stand, for `portable`; default 0.
        batch: rows of the whole batch, ended ones included; default B.
        noise: `draw_noise` of this step, (batch, ...), or its rows one by one; default: drawn now
            from `generator`.

    Returns:
        (B,) int64 token ids.
    """
    logits = logits.float()
    if params.repetition_penalty != 1.0:
        assert context is not None, "a repetition penalty needs the text so far"
        logits = penalize(logits, context, params.repetition_penalty)
    if params.temperature == 0:
        return logits.argmax(dim=-1)
    B = logits.shape[0]
    rows = torch.arange(B, device=logits.device) if rows is None else rows
    if params.rng == "portable":
        positions = torch.zeros_like(rows) if positions is None else positions
        return draw_portable(logits, params, rows if numbers is None else numbers, positions)
    V = logits.shape[1]
    if noise is None:
        noise = draw_noise(params, generator, batch=batch or B, vocab_size=V, device=logits.device)
        assert noise is not None
    if noise[0].dtype == torch.int64:
        chosen = noise if len(noise) == B else [noise[row] for row in rows.tolist()]
        return draw_among_few(logits, params, chosen)
    if not isinstance(noise, Tensor):
        noise = torch.stack(list(noise))
    draw = draw_lecture if params.rng == "lecture" else draw_hf
    return draw(logits, params, noise if len(noise) == B else noise[rows])
