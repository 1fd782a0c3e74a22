"""From logits to a token: pure functions, no state.

A draw has two halves. The first is common to all: repetition penalty, temperature, then the filters
top-k, top-p, min-p, in transformers' order. The second is where the randomness comes from, and it
is what makes two programs with one seed write different texts:

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
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from regpt.core.philox import exponential
from regpt.system.errors import UserError

Stream = Literal["hf", "lecture", "portable"]
STREAMS: tuple[Stream, ...] = get_args(Stream)


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

    @property
    def logits_needed(self) -> int | None:
        """How many of the largest logits decide a draw; None: all take part.

        A penalty changes their order, and the lecture's softmax rounds over the whole vocabulary.
        """
        if self.repetition_penalty != 1.0:
            return None
        if self.temperature == 0:
            return 1
        return None if self.rng == "lecture" else self.top_k

    def generator(self, device: torch.device) -> torch.Generator:
        """A generator on `device` in the state that `torch.manual_seed(seed)` leaves it in."""
        return torch.Generator(device).manual_seed(self.seed)


def penalize(logits: Tensor, context: Tensor, penalty: float) -> Tensor:
    """Make tokens of `context` (B, T) less likely in `logits` (B, V)."""
    seen = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, context, True)
    penalized = torch.where(logits < 0, logits * penalty, logits / penalty)
    return torch.where(seen, penalized, logits)


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Mask (B, V) logits below the k-th largest of their row; ties with it stay."""
    kth = torch.topk(logits, min(k, logits.shape[-1])).values[:, -1:]
    return logits.masked_fill(logits < kth, -torch.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Mask all but the smallest set of (B, V) logits that holds probability p."""
    ascending, order = torch.sort(logits, descending=False)
    remove = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - p
    remove[:, -1] = False  # the most likely token always stays
    return logits.masked_fill(remove.scatter(1, order, remove), -torch.inf)


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Mask (B, V) logits whose probability is below p times the largest of their row."""
    probabilities = logits.softmax(dim=-1)
    top, index = probabilities.max(dim=-1, keepdim=True)
    remove = (probabilities < p * top).scatter(1, index, False)
    return logits.masked_fill(remove, -torch.inf)


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
    Returns Exp(1) numbers, float32: (batch, V) or, for `lecture`, (batch, k).
    """
    if params.temperature == 0 or params.rng == "portable":
        return None
    columns = vocab_size
    if params.rng == "lecture" and params.top_k is not None:
        columns = min(params.top_k, vocab_size)
    return torch.empty(batch, columns, device=device).exponential_(generator=generator)


def draw_hf(logits: Tensor, params: SamplingParams, noise: Tensor) -> Tensor:
    """transformers' draw: mask, softmax over the vocabulary, multinomial in vocabulary order.

    argmax of p / q is torch.multinomial's own way to draw once; noise (B, V) is its q.
    """
    return (F.softmax(filtered(logits, params), dim=-1) / noise).argmax(dim=-1)


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
    if not isinstance(noise, Tensor):
        noise = torch.stack(list(noise))
    draw = draw_lecture if params.rng == "lecture" else draw_hf
    return draw(logits, params, noise if len(noise) == B else noise[rows])
