"""Who guesses the coming tokens of a text, for `speculative.py` to check.

`Lookup` finds the last words earlier in the text and repeats what followed them. `Draft` is the
same model, or a smaller one, in cheaper numbers, which draws with the same random numbers and so is
nearly always right. How far it runs ahead is a matter of cost: a guess costs a cheap step and makes
the checking dearer, and is wasted once one before it was wrong. `best_depth` weighs that with the
speeds measured on this machine (`speeds.py`) and the share of guesses that were right so far.
"""

from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

from regpt.core.kv_cache import PlainDecoder
from regpt.core.tokenizer import END_OF_TEXT_ID
from regpt.fast.decoding.decoders import PackedDecoder
from regpt.fast.decoding.kernel_model import NativeModel, missing_native
from regpt.fast.decoding.speeds import Speed, is_large, known_speed, speed_of
from regpt.system.errors import UserError

Speculation = Literal["auto", "off", "lookup", "draft"]

Draw = Callable[[Tensor, Sequence[int]], Tensor]
"""(logits (B, n, V), n places ahead) -> tokens (B, n): the draws of each row's coming tokens."""

DEEPEST = 12
"""The most tokens guessed ahead."""
EXPECTED_RIGHT = 16.0
EXPECTED_WRONG = 1.0
"""What a draft is taken to have got right and wrong before it has guessed anything."""
DRAW_SECONDS = 4e-4
"""What a step takes beside the model: drawing, and Python (measured on two Zen 5 cores)."""
SETTLING = 0.8
"""Cheap steps that a round takes beyond its guesses: most end with one to read the last guess."""
WORTHWHILE = 1.15
"""Times as fast as without a draft: less is not worth its memory."""


class Guesser(Protocol):
    """Who guesses the next tokens of each row."""

    def reach(self, rows: int) -> int:
        """How many tokens to guess ahead for so many rows."""
        ...

    def begin(self, prompts: list[list[int]], length: int) -> None:
        """Rows with these tokens, up to so long; the newest of each is not drawn yet."""
        ...

    def guess(self, texts: list[list[int]], count: int, draw: Draw) -> list[list[int]]:
        """Up to `count` tokens after each text, equally many for all rows."""
        ...

    def settle(self, lengths: list[int], *, right: int, wrong: int) -> None:
        """Only so many tokens of each row stand; so many guesses were right, so many not."""
        ...

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only, (n,) int64."""
        ...


class Lookup:
    """Repeat what followed the last words where they stood before in the same text."""

    def __init__(self, *, depth: int = 8, words: tuple[int, ...] = (4, 3, 2)) -> None:
        self.depth = depth
        self.words = words

    def reach(self, rows: int) -> int:
        """Looking costs nothing."""
        return self.depth

    def begin(self, prompts: list[list[int]], length: int) -> None:
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

    def settle(self, lengths: list[int], *, right: int, wrong: int) -> None:
        """Nothing is held."""

    def keep(self, rows: Tensor) -> None:
        """Nothing is held."""


def best_depth(share: float, rows: int, exact: Speed, cheap: Speed) -> tuple[int, float]:
    """How far to guess ahead, and how many times as fast writing is then.

    Rows run ahead of one another, but the text is done when the slowest row is, so a round counts
    as far as all rows were right.

    Args:
        share: of the guesses, those that are right, if all before them were; below 1.
        rows: texts written at once.
        exact: of the model that checks.
        cheap: of the one that guesses.
    """
    alone = exact.of(rows) + DRAW_SECONDS
    together = share**rows
    best = (0, 1.0)
    for depth in range(1, DEEPEST + 1):
        tokens = (1 - together ** (depth + 1)) / (1 - together)
        seconds = (depth + SETTLING) * (cheap.of(rows) + DRAW_SECONDS)
        seconds += exact.of(rows * (depth + 1)) + DRAW_SECONDS
        best = max(best, (depth, tokens * alone / seconds), key=lambda found: found[1])
    return best


class Draft:
    """Another decoder of the same vocabulary, drawing with the same random numbers."""

    def __init__(
        self, decoder: PlainDecoder, *, depth: int = 7, speeds: tuple[Speed, Speed] | None = None
    ) -> None:
        """`speeds`, of who checks and who guesses, find the depth; without them it stays."""
        self.decoder = decoder
        self.depth = depth
        self.speeds = speeds
        self.right, self.wrong = EXPECTED_RIGHT, EXPECTED_WRONG
        self._last = torch.empty(0)

    def reach(self, rows: int) -> int:
        """As far as pays."""
        if self.speeds is None:
            return self.depth
        return best_depth(self.right / (self.right + self.wrong), rows, *self.speeds)[0]

    def begin(self, prompts: list[list[int]], length: int) -> None:
        """Read the prompts."""
        self.decoder.prefill(prompts, length=length)

    def guess(self, texts: list[list[int]], count: int, draw: Draw) -> list[list[int]]:
        """Write on, as if it were alone."""
        tokens = torch.tensor([text[-1] for text in texts])
        guesses = []
        for ahead in range(count):
            tokens = draw(self.decoder.step(tokens)[:, None], (ahead,))[:, 0]
            guesses.append(tokens)
        self._last = tokens
        return torch.stack(guesses, dim=1).tolist() if guesses else [[] for _ in texts]

    def settle(self, lengths: list[int], *, right: int, wrong: int) -> None:
        """Forget wrong guesses; read the last one if it was right."""
        self.right += right
        self.wrong += wrong
        cache = self.decoder.cache
        assert cache is not None
        if any(new > old for new, old in zip(lengths, cache.lengths, strict=True)):
            self.decoder.absorb(self._last)
        cache.cut(lengths)

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows."""
        self.decoder.keep(rows)


def choose_guesser(decoder: PlainDecoder, how: Speculation, *, rows: int) -> Guesser | None:
    """Who guesses for a decoder, if anybody.

    `auto` is an int8 draft for the C kernel's float32 where the speeds measured here say that it
    pays for so many rows: the exact text in less time, for a quarter more memory. `draft` insists.
    """
    if how == "off":
        return None
    if how == "lookup":
        return Lookup()
    native = decoder.packed if isinstance(decoder, PackedDecoder) else None
    reason = "a draft is int8 beside float32 in the C kernel, which is not what decodes here"
    if isinstance(native, NativeModel) and native.kind == "fp32":
        reason = missing_native("int8")
        if reason is None:
            return int8_draft(native, insist=how == "draft", rows=rows)
    if how == "draft":
        raise UserError(f"{reason}: use --speculate lookup or off")
    return None


def int8_draft(exact: NativeModel, *, insist: bool, rows: int) -> Draft | None:
    """The int8 draft of a float32 model; None if it does not pay, unless one insists."""
    model = exact.model
    if not is_large(model):  # reading its weights is not what a step waits for
        return Draft(PackedDecoder(NativeModel(model, "int8"))) if insist else None
    checking = speed_of(exact)
    known = known_speed(model, "native", "int8")
    if known is not None and not insist and not pays(rows, checking, known):
        return None
    cheap = NativeModel(model, "int8")
    speeds = checking, speed_of(cheap)
    if not insist and not pays(rows, *speeds):
        return None
    return Draft(PackedDecoder(cheap), speeds=speeds)


def pays(rows: int, exact: Speed, cheap: Speed) -> bool:
    """Whether a draft that is right as often as expected is worth having."""
    share = EXPECTED_RIGHT / (EXPECTED_RIGHT + EXPECTED_WRONG)
    return best_depth(share, rows, exact, cheap)[1] >= WORTHWHILE
