"""Generation: an iterator of tokens that the command line, a server and the tests all consume.

`generate` yields one (rows,) tensor per step and stops when every row has ended or is `max_length`
tokens long; the caller may stop earlier. Tokens in, tokens out: text is `detokenize.py`'s.

The prompts are read once (equal ones once together), then every step reads one token per row from a
key-value cache. A decoder computes the logits: `kv_cache.PlainDecoder` through the model itself,
those of `regpt.fast.decoding` sooner.

A row ends at end-of-text and costs nothing from then on. Like transformers, it goes on yielding
end-of-text and, under the `hf` and `lecture` streams, consuming random numbers, so the other rows
do not notice. Past the model's last position generation is an error, or slides: when the positions
are full, the newest three quarters of the text are read in again as if they began there.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from regpt.core.kv_cache import PlainDecoder
from regpt.core.model import GPT
from regpt.core.sampling import SamplingParams, sample
from regpt.core.tokenizer import END_OF_TEXT_ID
from regpt.system.errors import UserError

Sampler = Callable[..., Tensor]
"""A function with the arguments and the result of `sampling.sample`."""
SLIDE_KEEPS = 0.75
"""Share of the positions that a sliding window keeps when it is full."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of all rows; entries of rows that have ended repeat end-of-text and mean nothing."""

    tokens: Tensor
    """(B,) int64."""
    logprobs: Tensor | None = None
    """(B,) log-probability of each token under the unfiltered model, if asked for."""
    top_ids: Tensor | None = None
    """(B, n) int64, the most likely tokens, if asked for."""
    top_logprobs: Tensor | None = None
    """(B, n), theirs."""


class Sequences:
    """The rows of a generation: their tokens so far, and which of them go on."""

    def __init__(
        self, prompts: list[list[int]], params: SamplingParams, numbers: Sequence[int] | None
    ) -> None:
        self.numbers = range(len(prompts)) if numbers is None else numbers
        self.texts = [list(prompt) for prompt in prompts]
        self.params = params
        self.evicted = [0] * len(prompts)  # tokens a sliding window has left behind
        self.active = [row for row in range(len(prompts)) if not self.is_long(row)]

    def is_long(self, row: int) -> bool:
        return len(self.texts[row]) >= self.params.max_length

    def extend(self, row: int, tokens: list[int]) -> bool:
        """Add tokens to a row up to its end; whether it goes on."""
        for token in tokens:
            self.texts[row].append(token)
            if self.is_long(row) or (self.params.stop_at_eot and token == END_OF_TEXT_ID):
                return False
        return True

    def append(self, tokens: list[list[int]]) -> list[int]:
        """Add tokens to each active row; returns the places, in `active`, of rows that go on."""
        rows = enumerate(zip(self.active, tokens, strict=True))
        going_on = [place for place, (row, own) in rows if self.extend(row, own)]
        self.active = [self.active[place] for place in going_on]
        return going_on

    def held(self) -> list[list[int]]:
        """The text of each active row that the decoder still holds."""
        return [self.texts[row][self.evicted[row] :] for row in self.active]

    def slide(self, positions: int) -> None:
        """Leave behind all but the newest part of each active row: the positions are full."""
        kept = max(int(positions * SLIDE_KEEPS), 1)
        for row in self.active:
            self.evicted[row] = max(len(self.texts[row]) - kept, 0)


GenerateSteps = Callable[..., Iterator[Step]]
"""A function with the arguments and the result of `generate_steps`."""


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
    decoder: PlainDecoder | None = None,
    sampler: Sampler = sample,
) -> Iterator[Tensor]:
    """Yield the next token of every row until all have ended.

    Args:
        model: the model; put in eval mode while the iterator runs.
        prompts: (B, T) int64, or B lists of any lengths. Repeat a prompt to continue it several
            times (`complete` does).
        params: lengths, filters, random stream. `num_samples` is the caller's business.
        generator: the random stream; default: a new one from `params.seed`.
        decoder: what computes the logits; default: the plain one.
        sampler: draws the tokens: `sampling.sample`, or a faster function that draws the same.

    Yields:
        (B,) int64 tokens on the model's device.

    Raises:
        UserError: lengths or tokens that the model has no room for, before the first step.
    """
    steps = generate_steps(
        model, prompts, params, generator=generator, decoder=decoder, sampler=sampler
    )
    for step in steps:
        yield step.tokens


@torch.no_grad()  # not inference_mode: a sharded model would keep what it gathered in it
def generate_steps(
    model: GPT,
    prompts: Tensor | Sequence[Sequence[int]],
    params: SamplingParams,
    *,
    generator: torch.Generator | None = None,
    decoder: PlainDecoder | None = None,
    top: int | None = None,
    numbers: Sequence[int] | None = None,
    sampler: Sampler = sample,
) -> Iterator[Step]:
    """`generate` with log-probabilities: of the chosen token, and of the `top` most likely.

    `numbers` are the rows' numbers for the portable stream, 0, 1, ... if not given.
    """
    texts = as_lists(prompts)
    check_lengths(texts, params, model)
    generator = generator or params.generator(model.device)
    rows = Sequences(texts, params, numbers)
    length = min(params.max_length, model.config.block_size)
    decoder = decoder or PlainDecoder(model)
    needed = params.logits_needed if top is None else None
    was_training = model.training
    model.eval()
    try:
        if not rows.active:
            return
        logits = decoder.prefill(rows.held(), length=length, top_k=needed)
        while True:
            step = draw_step(logits, rows, generator, top, sampler)
            running = len(rows.active)
            tokens = step.tokens[rows.active]
            going_on = rows.append(tokens[:, None].tolist())
            yield step
            if not rows.active:
                return
            if len(going_on) < running:
                decoder.keep(torch.tensor(going_on))
            if max(map(len, rows.held())) <= length:
                logits = decoder.step(tokens[going_on])
            else:
                rows.slide(length)
                logits = decoder.prefill(rows.held(), length=length, top_k=needed)
    finally:
        model.train(was_training)


def draw_step(
    logits: Tensor, rows: Sequences, generator: torch.Generator, top: int | None, sampler: Sampler
) -> Step:
    """Draw a token for each active row, from (active, V) logits; ended rows get end-of-text."""
    device, batch = logits.device, len(rows.texts)
    active = torch.tensor(rows.active, device=device)
    texts = [rows.texts[row] for row in rows.active]
    context = None
    if rows.params.repetition_penalty != 1.0:
        longest = max(map(len, texts))
        # a row's own first token fills up the rows that are shorter: it is in their text already
        padded = [text + [text[0]] * (longest - len(text)) for text in texts]
        context = torch.tensor(padded, device=device)
    chosen = sampler(
        logits,
        rows.params,
        generator,
        context=context,
        rows=active,
        numbers=torch.tensor([rows.numbers[row] for row in rows.active], device=device),
        positions=torch.tensor([len(text) for text in texts], device=device),
        batch=batch,
    )

    def spread(values: Tensor, filler: float) -> Tensor:
        """From the active rows to all."""
        return values.new_full((batch, *values.shape[1:]), filler).index_copy(0, active, values)

    tokens = spread(chosen, END_OF_TEXT_ID)
    if top is None:
        return Step(tokens=tokens)
    logprobs = logits.float().log_softmax(dim=-1)
    best = logprobs.topk(top, dim=-1)
    return Step(
        tokens=tokens,
        logprobs=spread(logprobs.gather(1, chosen[:, None]).squeeze(1), 0.0),
        top_ids=spread(best.indices, END_OF_TEXT_ID),
        top_logprobs=spread(best.values, 0.0),
    )


def complete(
    model: GPT,
    prompt: Sequence[int],
    params: SamplingParams,
    *,
    decoder: PlainDecoder | None = None,
    generate: GenerateSteps = generate_steps,
) -> list[list[int]]:
    """`num_samples` continuations of one prompt, prompt included, cut after end-of-text."""
    if decoder is not None:
        generate = partial(generate, decoder=decoder)
    return complete_each(model, [prompt] * params.num_samples, params, generate=generate)


def complete_each(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams,
    *,
    generate: GenerateSteps = generate_steps,
) -> list[list[int]]:
    """One continuation of each prompt, prompt included, cut after end-of-text.

    `generate` is `generate_steps`, or another that writes the same text
    (`regpt.fast.decoding.speculative.generate_steps`), its decoder and the like filled in.
    """
    rows = as_lists(prompts)
    steps = [step.tokens for step in generate(model, rows, params)]
    drawn = torch.stack(steps, dim=1).tolist() if steps else [[] for _ in rows]
    return [
        row + until_end(tokens[: params.max_length - len(row)], params)
        for row, tokens in zip(rows, drawn, strict=True)
    ]


def until_end(row: list[int], params: SamplingParams) -> list[int]:
    """The drawn tokens up to and including the first end-of-text, if rows end there."""
    if params.stop_at_eot and END_OF_TEXT_ID in row:
        return row[: row.index(END_OF_TEXT_ID) + 1]
    return row
