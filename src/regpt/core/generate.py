"""Writing: an iterator of tokens that the command line, a server and the tests all consume.

`generate` yields one (rows,) tensor per step and stops when every row has ended or is `max_length`
tokens long; the caller may stop earlier. Tokens in, tokens out: no text here (`detokenize.py` has
it). `complete` collects them into lists.

The prompts are read once (equal ones once together), then every step reads one token per row from a
key-value cache. What computes the logits is a `Decoder`: the plain one goes through the model
itself (`kv_cache.py`), the fast ones swap its matrices for packed ones (`packed_linear.py`).

A row ends at end-of-text and costs nothing from then on. Like transformers, it goes on yielding
end-of-text and, under the `hf` and `lecture` streams, consuming random numbers, so the other rows
do not notice. Past the model's last position generation is an error, or slides: when the positions
are full, the newest three quarters of the text are read in again as if they began there.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from regpt.core.kv_cache import PlainDecoder
from regpt.core.model import GPT
from regpt.core.sampling import SamplingParams, sample
from regpt.core.sequences import Rows, Step
from regpt.core.tokenizer import END_OF_TEXT_ID
from regpt.fast.decoding.drafters import Guesser
from regpt.fast.decoding.speculative import speculative_steps
from regpt.fast.kernels import draws
from regpt.system.errors import UserError

SLIDE_KEEPS = 0.75
"""Share of the positions that a sliding window keeps when it is full."""


class Decoder(Protocol):
    """What turns tokens into logits, one position at a time."""

    def prefill(self, prompts: list[list[int]]) -> Tensor:
        """Read the prompts in; logits of the token after each, (B, V)."""
        ...

    def step(self, tokens: Tensor) -> Tensor:
        """Append one token to every row, (B,) int64; logits of the next, (B, V)."""
        ...

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only, (n,) int64."""
        ...


def check_lengths(prompts: Sequence[Sequence[int]], params: SamplingParams, model: GPT) -> None:
    """Refuse what cannot work before anything is computed."""
    positions, longest = model.config.block_size, max(map(len, prompts))
    if params.max_length > positions and params.overflow == "error":
        raise UserError(
            f"max_length {params.max_length} is above the model's block_size {positions}: "
            "ask for fewer tokens, or overflow=slide"
        )
    if longest > positions:
        raise UserError(
            f"the prompt has {longest} tokens, the model's block_size is {positions}: shorten it"
        )
    if params.max_length < longest:
        raise UserError(
            f"max_length {params.max_length} is below the prompt's {longest} tokens: "
            "it counts the prompt too, so ask for more"
        )
    smallest, largest = min(map(min, prompts)), max(map(max, prompts))
    if smallest < 0 or largest >= model.config.vocab_size:
        raise UserError(
            f"token {smallest if smallest < 0 else largest} of the prompt is outside the model's "
            f"vocabulary of {model.config.vocab_size}"
        )


def as_lists(prompts: Tensor | Sequence[Sequence[int]]) -> list[list[int]]:
    """Prompts as lists; an empty one starts from end-of-text, as GPT-2 saw between documents."""
    rows = prompts.tolist() if isinstance(prompts, Tensor) else prompts
    return [list(row) or [END_OF_TEXT_ID] for row in rows]


def generate(
    model: GPT,
    prompts: Tensor | Sequence[Sequence[int]],
    params: SamplingParams,
    *,
    generator: torch.Generator | None = None,
    decoder: Decoder | None = None,
    guesser: Guesser | None = None,
) -> Iterator[Tensor]:
    """Yield the next token of every row until all have ended.

    Args:
        model: the model; put in eval mode while the iterator runs.
        prompts: (B, T) int64, or B lists of any lengths. Rows are what is sampled: repeat a prompt
            to continue it several times (`complete` does).
        params: lengths, filters, random stream. `num_samples` is the caller's business.
        generator: the random stream; default: a new one from `params.seed`.
        decoder: what computes the logits; default: the plain one.
        guesser: guesses tokens ahead, which saves time and changes nothing (`speculative.py`).

    Yields:
        (B,) int64 tokens on the model's device.

    Raises:
        UserError: lengths or tokens that the model has no room for, before the first step.
    """
    for step in generate_steps(
        model, prompts, params, generator=generator, decoder=decoder, guesser=guesser
    ):
        yield step.tokens


@torch.no_grad()  # not inference_mode: a sharded model would keep what it gathered in it
def generate_steps(
    model: GPT,
    prompts: Tensor | Sequence[Sequence[int]],
    params: SamplingParams,
    *,
    generator: torch.Generator | None = None,
    decoder: Decoder | None = None,
    top: int | None = None,
    numbers: Sequence[int] | None = None,
    guesser: Guesser | None = None,
) -> Iterator[Step]:
    """`generate` with log-probabilities: of the chosen token, and of the `top` most likely.

    `numbers` are the rows' numbers for the portable stream, 0, 1, ... if not given. A `guesser`
    makes the same text cheaper (`speculative.py`); where it cannot (log-probabilities, a repetition
    penalty, a sliding window) it is not asked.
    """
    texts = as_lists(prompts)
    check_lengths(texts, params, model)
    generator = generator or params.generator(model.device)
    rows = Rows(texts, params, numbers)
    length = min(params.max_length, model.config.block_size)
    decoder = decoder or PlainDecoder(model, length=length)
    if isinstance(decoder, PlainDecoder):
        decoder.top_k = enough_logits(params) if top is None else None
    was_training = model.training
    model.eval()
    try:
        guesser = guesser if top is None and can_guess(params, model) else None
        if guesser is not None and isinstance(decoder, PlainDecoder):
            yield from speculative_steps(decoder, guesser, rows, params, generator)
            return
        logits = decoder.prefill([texts[row] for row in rows.active]) if rows.active else None
        while logits is not None:
            step = draw(logits, rows, params, generator, top)
            running = len(rows.active)
            going_on = rows.append(step.tokens[rows.active].tolist())
            yield step
            if not rows.active:
                return
            if len(going_on) < running:
                decoder.keep(torch.tensor(going_on))
            logits = advance(decoder, rows, step.tokens[rows.active], model.config.block_size)
    finally:
        model.train(was_training)


def can_guess(params: SamplingParams, model: GPT) -> bool:
    """Whether guessing ahead is possible: a penalty looks back, a window slides."""
    return params.repetition_penalty == 1.0 and params.max_length <= model.config.block_size


def enough_logits(params: SamplingParams) -> int | None:
    """How many of the largest logits decide a draw; None: all take part.

    A penalty changes their order, and the lecture's softmax rounds over the whole vocabulary.
    """
    if params.repetition_penalty != 1.0:
        return None
    if params.temperature == 0:
        return 1
    if params.rng == "lecture" or params.top_k is None or params.top_k > draws.LARGEST_K:
        return None
    return params.top_k


def advance(decoder: Decoder, rows: Rows, tokens: Tensor, positions: int) -> Tensor:
    """Logits after the newest tokens of the rows that go on; slides if the positions are full."""
    if max(rows.held(row) for row in rows.active) <= positions:
        return decoder.step(tokens)
    kept = max(int(positions * SLIDE_KEEPS), 1)
    for row in rows.active:
        rows.forgotten[row] = max(len(rows.texts[row]) - kept, 0)
    return decoder.prefill([rows.texts[row][rows.forgotten[row] :] for row in rows.active])


def draw(
    logits: Tensor,
    rows: Rows,
    params: SamplingParams,
    generator: torch.Generator,
    top: int | None,
) -> Step:
    """Draw a token for each active row, from (active, V) logits; ended rows get end-of-text."""
    device, batch = logits.device, len(rows.texts)
    active = torch.tensor(rows.active, device=device)
    context = None
    if params.repetition_penalty != 1.0:
        longest = max(len(rows.texts[row]) for row in rows.active)
        texts = [rows.texts[row] for row in rows.active]
        # a row's own first token fills up the rows that are shorter: it is in their text already
        padded = [text + [text[0]] * (longest - len(text)) for text in texts]
        context = torch.tensor(padded, device=device)
    chosen = sample(
        logits,
        params,
        generator,
        context=context,
        rows=active,
        numbers=torch.tensor([rows.numbers[row] for row in rows.active], device=device),
        positions=torch.tensor([len(rows.texts[row]) for row in rows.active], device=device),
        batch=batch,
    )
    tokens = torch.full((batch,), END_OF_TEXT_ID, device=device)
    tokens[active] = chosen
    if top is None:
        return Step(tokens=tokens)
    all_logprobs = logits.float().log_softmax(dim=-1)
    best = all_logprobs.topk(max(top, 1), dim=-1)
    logprobs = all_logprobs.new_zeros(batch)
    top_ids = tokens.new_full((batch, top), END_OF_TEXT_ID)
    top_logprobs = all_logprobs.new_zeros(batch, top)
    logprobs[active] = all_logprobs.gather(1, chosen[:, None]).squeeze(1)
    top_ids[active] = best.indices[:, :top]
    top_logprobs[active] = best.values[:, :top]
    return Step(tokens=tokens, logprobs=logprobs, top_ids=top_ids, top_logprobs=top_logprobs)


def complete(
    model: GPT,
    prompt: Sequence[int],
    params: SamplingParams,
    *,
    decoder: Decoder | None = None,
    guesser: Guesser | None = None,
) -> list[list[int]]:
    """`num_samples` continuations of one prompt, prompt included, cut after end-of-text."""
    start = as_lists([prompt])[0]
    prompts = [start] * params.num_samples
    steps = list(generate(model, prompts, params, decoder=decoder, guesser=guesser))
    drawn = torch.stack(steps, dim=1).tolist() if steps else [[] for _ in prompts]
    return [start + until_end(row, params) for row in drawn]


def until_end(row: list[int], params: SamplingParams) -> list[int]:
    """The drawn tokens up to and including the first end-of-text, if rows end there."""
    if params.stop_at_eot and END_OF_TEXT_ID in row:
        return row[: row.index(END_OF_TEXT_ID) + 1]
    return row
