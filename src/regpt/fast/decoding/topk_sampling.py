"""The draw among the top k, sooner: only the candidates get a random number.

`torch.multinomial` for one draw takes q ~ Exp(1) of the shape of the probabilities and returns the
argmax of p / q. With 50,257 entries a row the logarithms of q cost more than the rest of sampling,
though a top-k of 50 looks at 50 of them. On a CPU, torch makes each q of one 64-bit word of the
generator,

    u = (word mod 2^53) / 2^53,    q = -log1p(-u) in float64, rounded to float32

(at::native distribution_templates: uniform_real and exponential transformations), and `random_` on
int64 hands out the same words and leaves the generator in the same state. So the words are drawn
for the whole row and q is computed for the candidates alone: the same stream, and the same text as
`regpt.core.sampling.sample`, token for token. `words_are_exponential` proves it on the running
torch before it is relied on.

The race among the candidates is one C loop (draw.c), and the words are made in C (words.c), seven
times as fast. torch keeps the state of its generator as a few bytes with MT19937's 624 words in
them, each in 64 bits (ATen's CPUGeneratorImpl.cpp): they are read out and written back, if
`words_are_known` finds that the running torch keeps them so.
"""

import ctypes
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regpt.core import sampling
from regpt.core.sampling import SamplingParams, draw_hf
from regpt.fast.kernels.build import (
    COUNT,
    NUMBER,
    PLACE,
    fields,
    load_library,
    numbers,
    unavailable_reason,
)

SPARE = 14
"""Logits looked at beyond the top k, for those that equal the k-th."""
TIE_TOLERANCE = 1e-5
"""Relative distance below which two candidates' scores count as equal: float32 sums differ less."""
LARGEST_K = 512
"""The top k the C kernel is made for: half of its groups of logits."""
MANTISSA = (1 << 53) - 1
MANY = 1 << 12
"""Words from which on reading the generator's state out and in again pays."""
WORDS = 624
STATE_BYTES = 5056
STATE = np.dtype(
    [("seed", "<u8"), ("left", "<i4"), ("seeded", "<i4"), ("next", "<u8"), ("words", "<u8", WORDS)]
)


def draw_noise(
    params: SamplingParams,
    generator: torch.Generator | None,
    *,
    batch: int,
    vocab_size: int,
    device: torch.device,
) -> Tensor | None:
    """`sampling.draw_noise`; (batch, V) int64 words of the generator where they are enough."""
    if has_few_candidates(params, vocab_size, device):
        return draw_words(batch, vocab_size, generator)
    return sampling.draw_noise(params, generator, batch=batch, vocab_size=vocab_size, device=device)


def has_few_candidates(params: SamplingParams, vocab_size: int, device: torch.device) -> bool:
    """Whether `sample_topk` draws what `draw_hf` means, for less."""
    return (
        device.type == "cpu"
        and params.rng == "hf"
        and params.temperature > 0
        and params.top_k is not None
        and params.top_k + SPARE < vocab_size
        and params.top_p in (None, 1.0)
        and params.min_p is None
        and words_are_exponential()
    )


def sample(
    logits: Tensor,
    params: SamplingParams,
    generator: torch.Generator | None = None,
    *,
    context: Tensor | None = None,
    rows: Tensor | None = None,
    batch: int | None = None,
    noise: Tensor | Sequence[Tensor] | None = None,
    **portable: Any,
) -> Tensor:
    """`sampling.sample`, arguments and result alike; `noise` is this module's `draw_noise`."""
    B, V = logits.shape
    if noise is None:
        noise = draw_noise(params, generator, batch=batch or B, vocab_size=V, device=logits.device)
    if noise is None or noise[0].dtype != torch.int64:
        return sampling.sample(
            *(logits, params, generator), context=context, rows=rows, noise=noise, **portable
        )
    logits = logits.float()
    if params.repetition_penalty != 1.0:
        assert context is not None, "a repetition penalty needs the text so far"
        logits = sampling.penalize(logits, context, params.repetition_penalty)
    if rows is not None and len(noise) != B:
        noise = [noise[row] for row in rows.tolist()]
    return sample_topk(logits, params, noise)


def sample_topk(logits: Tensor, params: SamplingParams, words: Tensor | Sequence[Tensor]) -> Tensor:
    """The token `draw_hf` draws, from words (B, V) or rows of them: only the top k are looked at.

    transformers keeps every logit equal to the k-th. Where two candidates are as good as equal, so
    that the order of the softmax's sum could decide, the row goes the long way.
    """
    assert params.top_k is not None
    in_c = params.top_k <= LARGEST_K and unavailable_reason(*DRAW) is None
    race = race_in_c if in_c else race_topk
    tokens, undecided = race(logits, params, words)
    if bool(undecided.any()):
        places = undecided.nonzero().flatten().tolist()
        rows = torch.stack([words[place] for place in places])
        tokens[undecided] = draw_hf(logits[undecided], params, exponential_of(rows))
    return tokens


def race_topk(
    logits: Tensor, params: SamplingParams, words: Tensor | Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """`race_in_c` in torch's operators.

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
    return tokens, (best[:, 0] <= best[:, 1] * (1 + TIE_TOLERANCE)) | tied.squeeze(1)


class Draw(ctypes.Structure):
    """`Draw` of draw.c."""

    _fields_ = (
        ("logits", PLACE),
        *fields(COUNT, "rows columns stride"),
        ("words", PLACE),
        ("top_k", COUNT),
        ("temperature", NUMBER),
        ("close", ctypes.c_double),
        *fields(PLACE, "tokens open"),
        ("threads", COUNT),
    )


def race_in_c(
    logits: Tensor, params: SamplingParams, words: Tensor | Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Draw among the k most likely tokens of each row; logits equal to the k-th take part.

    Args:
        logits: (B, V) float32 on the CPU, the entries of a row adjacent.
        params: with a top_k of at most `LARGEST_K`.
        words: B times (V,) int64, adjacent: `draw_words`.

    Returns:
        tokens (B,) int64, and which rows are not decided (B,) bool: their tokens mean nothing.
    """
    assert logits.stride(1) == 1
    assert params.top_k is not None
    rows, columns = logits.shape
    tokens, undecided = torch.empty(rows, dtype=torch.int64), torch.empty(rows, dtype=torch.bool)
    places = (ctypes.c_void_p * rows)(*(row.data_ptr() for row in words))
    call = Draw(
        *(logits.data_ptr(), rows, columns, logits.stride(0), ctypes.addressof(places)),
        *(params.top_k, params.temperature, TIE_TOLERANCE),
        *(tokens.data_ptr(), undecided.data_ptr(), torch.get_num_threads()),
    )
    load_library().regpt_draw(ctypes.byref(call))
    return tokens, undecided


def is_right() -> bool:
    """The most likely token, whatever the words."""
    logits, words = numbers(3, 5000), torch.arange(15_000).view(3, 5000)
    tokens, undecided = race_in_c(logits, SamplingParams(top_k=1), words)
    return torch.equal(tokens, logits.argmax(1)) and not undecided.any()


DRAW = ("draw", is_right)
"""What `unavailable_reason` is asked."""


class Twister(ctypes.Structure):
    """`Twister` of words.c."""

    _fields_ = (("words", ctypes.c_uint32 * WORDS), ("next", ctypes.c_int64))


def draw_words(rows: int, columns: int, generator: torch.Generator | None) -> Tensor:
    """What `exponential_` of (rows, columns) would consume, (rows, columns) int64, on the CPU."""
    if rows * columns >= MANY and words_are_known():
        return draw_in_c(rows, columns, generator or torch.default_generator)
    return torch.empty(rows, columns, dtype=torch.int64).random_(generator=generator)


def draw_in_c(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """What `random_` of (rows, columns) int64 draws from a CPU generator, and as it leaves it."""
    state = generator.get_state()
    place = state.numpy()[: STATE.itemsize].view(STATE)[0]
    # `left` counts down to 1, where new words are due; before the first of all, `next` is 0
    due = place["left"] == 1
    twister = Twister(next=WORDS if due else int(place["next"]))
    held = np.frombuffer(twister.words, dtype=np.uint32)
    held[:] = place["words"]
    drawn = torch.empty(rows, columns, dtype=torch.int64)
    load_library().regpt_words(ctypes.byref(twister), drawn.numel(), drawn)
    place["words"] = held
    place["next"] = twister.next
    place["left"] = WORDS + 1 - twister.next
    generator.set_state(state)
    return drawn


def exponential_of(words: Tensor) -> Tensor:
    """The Exp(1) numbers, float32, that `exponential_` makes of these words."""
    uniform = words.bitwise_and(MANTISSA).double().mul_(2.0**-53)
    return torch.log1p(uniform.neg_()).neg_().float()


@lru_cache(maxsize=1)
def words_are_known() -> bool:
    """Whether there is a C kernel here and it draws what this torch draws."""
    one, other = torch.Generator().manual_seed(7), torch.Generator().manual_seed(7)
    if one.get_state().numel() != STATE_BYTES or unavailable_reason() is not None:
        return False
    for rows, columns in ((1, 3), (3, 700), (1, 1), (2, 312)):
        expected = torch.empty(rows, columns, dtype=torch.int64).random_(generator=one)
        if not torch.equal(draw_in_c(rows, columns, other), expected):
            return False
        for generator in (one, other):  # not on an even place of the stream only
            torch.rand(1, generator=generator)
    return torch.equal(one.get_state(), other.get_state())


@lru_cache(maxsize=1)
def words_are_exponential() -> bool:
    """Whether this torch makes its exponential numbers as this file says."""
    shape, odd = (2, 40_001), 3  # above every size at which torch changes its method
    one, other = torch.Generator().manual_seed(7), torch.Generator().manual_seed(7)
    for _ in range(2):
        for generator in (one, other):  # not on an even place of the stream only
            torch.rand(odd, generator=generator)
        expected = torch.empty(shape).exponential_(generator=one)
        if not torch.equal(exponential_of(draw_words(*shape, other)), expected):
            return False
    return torch.equal(one.get_state(), other.get_state())
