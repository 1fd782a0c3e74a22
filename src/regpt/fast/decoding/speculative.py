"""Speculative decoding: drafted tokens are checked in one step, and the text stays the same.

A decoding step reads every weight once, for one token a row or for several alike. So a cheap
drafter proposes the next tokens, the model reads all of them in one step, and each position's token
is drawn from its own logits with the random numbers that position would have had anyway. As long as
the drawn token is the drafted one, the next position has been computed from the right text and
counts too; the first that differs is kept as drawn, and the rest is dropped. Rejection sampling
would keep the distribution; this keeps the text: with one seed, drafting or not, token for token,
greedy or sampled, in every random stream.
"""

from collections.abc import Iterator, Sequence
from itertools import takewhile

import torch
from torch import Tensor

from regpt.core import generate as plain
from regpt.core.generate import Sequences, Step
from regpt.core.kv_cache import PlainDecoder
from regpt.core.model import GPT
from regpt.core.sampling import SamplingParams
from regpt.core.tokenizer import END_OF_TEXT_ID
from regpt.fast.decoding.drafters import MAX_DRAFT_LENGTH, Drafter, Draw
from regpt.fast.decoding.topk_sampling import draw_noise, sample


@torch.no_grad()
def generate_steps(
    model: GPT,
    prompts: Tensor | Sequence[Sequence[int]],
    params: SamplingParams,
    *,
    decoder: PlainDecoder,
    drafter: Drafter | None = None,
    generator: torch.Generator | None = None,
    top: int | None = None,
    numbers: Sequence[int] | None = None,
) -> Iterator[Step]:
    """`regpt.core.generate.generate_steps`, sooner; a `drafter` runs ahead where it can."""
    if drafter is None or top is not None or not can_draft(params, model):
        yield from plain.generate_steps(
            model,
            prompts,
            params,
            generator=generator,
            decoder=decoder,
            top=top,
            numbers=numbers,
            sampler=sample,
        )
        return
    texts = plain.as_lists(prompts)
    plain.check_lengths(texts, params, model)
    generator = generator or params.generator(model.device)
    was_training = model.training
    model.eval()
    try:
        yield from draft_and_check(decoder, drafter, Sequences(texts, params, numbers), generator)
    finally:
        model.train(was_training)


def can_draft(params: SamplingParams, model: GPT) -> bool:
    """Whether running ahead is possible: a penalty looks back, a window slides."""
    return params.repetition_penalty == 1.0 and params.max_length <= model.config.block_size


class Noise:
    """The random numbers of coming steps: drawn in order, kept until all rows are past them."""

    def __init__(
        self, params: SamplingParams, generator: torch.Generator, *, batch: int, logits: Tensor
    ) -> None:
        self.params, self.generator, self.batch = params, generator, batch
        self.vocab_size, self.device = logits.shape[-1], logits.device
        self.blocks: dict[int, tuple[Tensor | None, Tensor]] = {}
        self.next = 0

    def of(self, rows: list[int], steps: list[int]) -> list[Tensor] | None:
        """The numbers of these rows, each at its own step."""
        while self.next <= max(steps):
            block = draw_noise(
                self.params,
                self.generator,
                batch=self.batch,
                vocab_size=self.vocab_size,
                device=self.device,
            )
            self.blocks[self.next] = block, self.generator.get_state()
            self.next += 1
        blocks = [self.blocks[step][0] for step in steps]
        kept = [block[row] for block, row in zip(blocks, rows, strict=True) if block is not None]
        return kept or None

    def forget(self, before: int) -> None:
        """No row needs these steps any more."""
        for step in [step for step in self.blocks if step < before]:
            del self.blocks[step]

    def rewind(self, steps: int) -> None:
        """Leave the generator as if only so many steps had been drawn."""
        if steps < self.next:
            self.generator.set_state(self.blocks[steps - 1][1])


def draft_and_check(
    decoder: PlainDecoder, drafter: Drafter, rows: Sequences, generator: torch.Generator
) -> Iterator[Step]:
    """The steps of `generate_steps`; rows run ahead of one another inside."""
    params = rows.params
    starts = [len(text) for text in rows.texts]
    if not rows.active:
        return
    # room for a row's drafts to run past its end while another's are still wanted
    length = min(params.max_length + MAX_DRAFT_LENGTH, decoder.model.config.block_size)
    logits = decoder.prefill(rows.held(), length=length, top_k=params.logits_needed)
    drafter.begin(rows.held(), length)
    noise = Noise(params, generator, batch=len(rows.texts), logits=logits)
    given, device = 0, logits.device

    def draw(logits: Tensor, aheads: Sequence[int]) -> Tensor:
        active = [row for row in rows.active for _ in aheads]
        lengths = [len(rows.texts[row]) + ahead for row in rows.active for ahead in aheads]
        steps = [length - starts[row] for length, row in zip(lengths, active, strict=True)]
        drawn = sample(
            logits.flatten(0, 1),
            params,
            numbers=torch.tensor([rows.numbers[row] for row in active], device=device),
            positions=torch.tensor(lengths, device=device),
            noise=noise.of(active, steps),
        )
        return drawn.view(len(rows.active), len(aheads))

    taken = draw(logits[:, None], (0,)).tolist()
    while True:
        running = len(rows.active)
        going_on = rows.append(taken)
        if 0 < len(going_on) < running:
            decoder.keep(torch.tensor(going_on))
            drafter.keep(torch.tensor(going_on))
        drawn = [text[start:] for text, start in zip(rows.texts, starts, strict=True)]
        ready = min([len(drawn[row]) for row in rows.active], default=max(map(len, drawn)))
        for step in range(given, ready):
            tokens = [row[step] if step < len(row) else END_OF_TEXT_ID for row in drawn]
            yield Step(tokens=torch.tensor(tokens, device=device))
        noise.forget(ready - 1)
        given = ready
        if not rows.active:
            noise.rewind(given)
            return
        taken = check(decoder, drafter, rows, draw)


def check(decoder: PlainDecoder, drafter: Drafter, rows: Sequences, draw: Draw) -> list[list[int]]:
    """The drafter drafts, the model reads, both commit on what is right: tokens of each row."""
    texts, cache = rows.held(), decoder.cache
    assert cache is not None
    lengths = list(map(len, texts))
    rooms = [rows.params.max_length - length for length in lengths]
    most = min(max(rooms) - 1, cache.capacity - max(lengths))
    drafts = drafter.draft(texts, min(drafter.draft_length(len(texts)), most), draw)
    read = [[text[-1], *draft] for text, draft in zip(texts, drafts, strict=True)]
    logits = decoder.read_all(torch.tensor(read, device=decoder.model.device), cache)
    drawn = draw(logits, range(logits.shape[1])).tolist()
    taken = []
    accepted = rejected = 0
    for tokens, draft, room in zip(drawn, drafts, rooms, strict=True):
        agreeing = takewhile(lambda pair: pair[0] == pair[1], zip(tokens, draft, strict=False))
        count = sum(1 for _ in agreeing)
        accepted += min(count, room)
        rejected += count < min(len(draft), room)
        taken.append(tokens[: min(count + 1, room)])
    standing = [length - 1 + len(tokens) for length, tokens in zip(lengths, taken, strict=True)]
    cache.cut(standing)
    drafter.commit(standing, accepted=accepted, rejected=rejected)
    return taken
