"""Writing several tokens a step: guesses, checked all at once, and the same text to the last token.

A decoding step reads every weight once, for one token a row or for several alike. So somebody cheap
guesses the next tokens, the model reads all guesses in one step, and draws each place's token from
its own logits with the random numbers that place would have had anyway (`sampling.draw_noise`).
As long as the drawn token is the guessed one, the next place has been computed from the right text
and counts too; the first that differs is drawn as it should be, and the rest is forgotten. Sampling
by rejection would keep the distribution; this keeps the text: with one seed, guessing or not, token
for token, greedy or sampled, in every random stream.

Two who guess: `Lookup` finds the last words earlier in the text and repeats what followed them;
`Draft` is the same model, or a smaller one, in cheaper numbers, which draws with the same random
numbers and so is nearly always right.
"""

from collections.abc import Callable, Iterator
from typing import Literal, Protocol

import torch
from torch import Tensor

from regpt.cache import PlainDecoder
from regpt.errors import UserError
from regpt.fast import PackedDecoder
from regpt.native_model import NativeModel, missing_native
from regpt.rows import Rows, Step
from regpt.sampling import SamplingParams, draw_noise, sample
from regpt.tokenizer import END_OF_TEXT_ID

Speculation = Literal["auto", "off", "lookup", "draft"]

Draw = Callable[[Tensor, int], Tensor]
"""(logits (B, V), places ahead) -> tokens (B,): the draw of each row's coming token."""


class Guesser(Protocol):
    """Who guesses the next tokens of each row."""

    depth: int
    """The most tokens to guess ahead."""

    def begin(self, prompts: list[list[int]]) -> None:
        """Rows with these tokens; the newest of each is not drawn yet."""
        ...

    def guess(self, texts: list[list[int]], count: int, draw: Draw) -> list[list[int]]:
        """Up to `count` tokens after each text, equally many for all rows."""
        ...

    def settle(self, lengths: list[int]) -> None:
        """Only so many tokens of each row stand."""
        ...

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only, (n,) int64."""
        ...


class Lookup:
    """Repeat what followed the last words where they stood before in the same text."""

    def __init__(self, *, depth: int = 8, words: tuple[int, ...] = (4, 3, 2)) -> None:
        self.depth = depth
        self.words = words

    def begin(self, prompts: list[list[int]]) -> None:
        """Nothing to read: the text is all there is."""

    def guess(self, texts: list[list[int]], count: int, draw: Draw) -> list[list[int]]:
        """What followed the longest run of last words found; rows without one get filler."""
        found = [self.find(text, count) for text in texts]
        longest = max(map(len, found))
        return [row + [END_OF_TEXT_ID] * (longest - len(row)) for row in found]

    def find(self, text: list[int], count: int) -> list[int]:
        """The latest earlier place wins."""
        for words in self.words:
            end = text[-words:]
            for start in range(len(text) - words - 1, -1, -1):
                if text[start : start + words] == end:
                    return text[start + words : start + words + count]
        return []

    def settle(self, lengths: list[int]) -> None:
        """Nothing is held."""

    def keep(self, rows: Tensor) -> None:
        """Nothing is held."""


class Draft:
    """Another decoder of the same vocabulary, drawing with the same random numbers."""

    def __init__(self, decoder: PlainDecoder, *, depth: int = 7) -> None:
        self.decoder = decoder
        self.depth = depth
        self._last = torch.empty(0)

    def begin(self, prompts: list[list[int]]) -> None:
        """Read the prompts."""
        self.decoder.prefill(prompts)

    def guess(self, texts: list[list[int]], count: int, draw: Draw) -> list[list[int]]:
        """Write on, as if it were alone."""
        tokens = torch.tensor([text[-1] for text in texts])
        guesses = []
        for ahead in range(count):
            tokens = draw(self.decoder.step(tokens), ahead)
            guesses.append(tokens)
        self._last = tokens
        return torch.stack(guesses, dim=1).tolist() if guesses else [[] for _ in texts]

    def settle(self, lengths: list[int]) -> None:
        """Forget wrong guesses; read the last one if it was right."""
        cache = self.decoder.cache
        assert cache is not None
        if any(new > old for new, old in zip(lengths, cache.lengths, strict=True)):
            self.decoder.absorb(self._last)
        cache.cut(lengths)

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows."""
        self.decoder.keep(rows)


FEW_ROWS = 2
"""Rows up to which a draft pays: beyond, arithmetic bounds the checking, not reading weights."""


def choose_guesser(decoder: PlainDecoder, how: Speculation, *, rows: int) -> Guesser | None:
    """Who guesses for a decoder, if anybody.

    `auto` is an int8 draft for the C kernel's float32, for one row or two: the exact text 1.6 times
    as fast, for a quarter more memory. `draft` insists on it.
    """
    if how == "off" or (how == "auto" and rows > FEW_ROWS):
        return None
    if how == "lookup":
        return Lookup()
    native = decoder.packed if isinstance(decoder, PackedDecoder) else None
    reason = "a draft is int8 beside float32 in the C kernel, which is not what decodes here"
    if isinstance(native, NativeModel) and native.kind == "fp32":
        reason = missing_native("int8")
        if reason is None:
            draft = NativeModel(native.model, "int8")
            return Draft(PackedDecoder(draft, length=decoder.length))
    if how == "draft":
        raise UserError(f"{reason}: use --speculate lookup or off")
    return None


class Noise:
    """The random numbers of coming steps: drawn in order, kept until all rows are past them."""

    def __init__(
        self, params: SamplingParams, generator: torch.Generator, *, batch: int, logits: Tensor
    ) -> None:
        self.params, self.generator, self.batch = params, generator, batch
        self.vocab_size, self.device = logits.shape[-1], logits.device
        self.blocks: dict[int, tuple[Tensor | None, Tensor]] = {}
        self.next = 0

    def of(self, rows: list[int], steps: list[int]) -> Tensor | None:
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
        first = blocks[0]
        if first is None:
            return None
        if all(block is first for block in blocks):
            return first if len(rows) == self.batch else first[torch.tensor(rows)]
        kept = [block[row] for block, row in zip(blocks, rows, strict=True) if block is not None]
        return torch.stack(kept)

    def forget(self, before: int) -> None:
        """No row needs these steps any more."""
        for step in [step for step in self.blocks if step < before]:
            del self.blocks[step]

    def rewind(self, steps: int) -> None:
        """Leave the generator as if only so many steps had been drawn."""
        if steps < self.next:
            self.generator.set_state(self.blocks[steps - 1][1])


def speculative_steps(
    decoder: PlainDecoder,
    guesser: Guesser,
    rows: Rows,
    params: SamplingParams,
    generator: torch.Generator,
) -> Iterator[Step]:
    """The steps of `generate_steps`; rows run ahead of one another inside."""
    batch = len(rows.texts)
    starts = [len(text) for text in rows.texts]
    if not rows.active:
        return
    prompts = [rows.texts[row] for row in rows.active]
    logits = decoder.prefill(prompts)
    guesser.begin(prompts)
    noise = Noise(params, generator, batch=batch, logits=logits)
    given = 0

    def draw(logits: Tensor, ahead: int) -> Tensor:
        active = rows.active
        lengths = [len(rows.texts[row]) + ahead for row in active]
        steps = [length - starts[row] for length, row in zip(lengths, active, strict=True)]
        return sample(
            logits,
            params,
            numbers=torch.tensor([rows.numbers[row] for row in active], device=logits.device),
            positions=torch.tensor(lengths, device=logits.device),
            noise=noise.of(active, steps),
        )

    taken = [[token] for token in draw(logits, 0).tolist()]
    while True:
        lengths = take(decoder, guesser, rows, taken)
        drawn = [len(text) - start for text, start in zip(rows.texts, starts, strict=True)]
        ready = min([drawn[row] for row in rows.active], default=max(drawn))
        for step in range(given, ready):
            yield as_step(rows, starts, step, logits.device)
        noise.forget(ready - 1)
        given = ready
        if not rows.active:
            noise.rewind(given)
            return
        taken = check(decoder, guesser, rows, lengths, draw)


def take(decoder: PlainDecoder, guesser: Guesser, rows: Rows, taken: list[list[int]]) -> list[int]:
    """Add the tokens of each active row up to its end; leave ended rows; how long the rest is."""
    running = list(rows.active)
    places = {row: place for place, row in enumerate(running)}
    for count in range(max(map(len, taken))):
        pending = [row for row in rows.active if count < len(taken[places[row]])]
        resting = [row for row in rows.active if row not in pending]
        rows.active = pending
        rows.append([taken[places[row]][count] for row in pending])
        rows.active = sorted(rows.active + resting)
    if rows.active and len(rows.active) < len(running):
        kept = torch.tensor([places[row] for row in rows.active])
        decoder.keep(kept)
        guesser.keep(kept)
    return [len(rows.texts[row]) for row in rows.active]


def check(
    decoder: PlainDecoder, guesser: Guesser, rows: Rows, lengths: list[int], draw: Draw
) -> list[list[int]]:
    """The guesser guesses, the model reads, both settle on what is right: tokens of each row."""
    texts = [rows.texts[row] for row in rows.active]
    room = min(rows.params.max_length - length for length in lengths)
    guesses = guesser.guess(texts, min(guesser.depth, room - 1), draw)
    cache = decoder.cache
    assert cache is not None
    read = [[text[-1], *guess] for text, guess in zip(texts, guesses, strict=True)]
    logits = decoder.read_all(torch.tensor(read, device=decoder.model.device), cache)
    taken: list[list[int]] = [[] for _ in texts]
    going = set(range(len(texts)))
    for ahead in range(logits.shape[1]):
        for place, token in enumerate(draw(logits[:, ahead], ahead).tolist()):
            if place in going:
                taken[place].append(token)
                if ahead < len(guesses[place]) and token != guesses[place][ahead]:
                    going.discard(place)
        if not going:
            break
    standing = [length - 1 + len(tokens) for length, tokens in zip(lengths, taken, strict=True)]
    cache.cut(standing)
    guesser.settle(standing)
    return taken


def as_step(rows: Rows, starts: list[int], step: int, device: torch.device) -> Step:
    """The tokens of one step; end-of-text for rows that have ended."""
    places = [start + step for start in starts]
    tokens = [
        text[place] if place < len(text) else END_OF_TEXT_ID
        for text, place in zip(rows.texts, places, strict=True)
    ]
    return Step(tokens=torch.tensor(tokens, device=device))
