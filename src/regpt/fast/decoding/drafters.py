"""Drafters for speculative decoding: n-gram lookup, and an int8 copy of the model.

`NGramDrafter` finds the newest tokens earlier in the text and repeats what followed them.
`ModelDrafter` is the same model, or a smaller one, in a cheaper format; it draws with the same
random numbers and so is nearly always right. A drafted token costs a cheap step and makes the check
dearer, and is wasted once one before it was rejected: `best_draft_length` weighs that with the
speeds measured on this machine (`speeds.py`) and the acceptance rate so far.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from regpt.core.kv_cache import PlainDecoder
from regpt.core.tokenizer import END_OF_TEXT_ID
from regpt.fast.decoding.decoders import KernelDecoder
from regpt.fast.decoding.kernel_model import KernelModel, unavailable_format
from regpt.fast.decoding.speeds import Speed, is_large, known_speed, speed_of
from regpt.system.errors import UserError

Speculation = Literal["auto", "off", "lookup", "draft"]

Draw = Callable[[Tensor, Sequence[int]], Tensor]
"""(logits (B, n, V), n places ahead) -> tokens (B, n): the draws of each row's coming tokens."""

MAX_DRAFT_LENGTH = 12
"""The most tokens drafted ahead."""
PRIOR_ACCEPTED = 16.0
PRIOR_REJECTED = 1.0
"""What a draft model is taken to have had accepted and rejected before it has drafted anything."""
DRAW_SECONDS = 4e-4
"""What a step takes beside the model: drawing, and Python (measured on two Zen 5 cores)."""
EXTRA_STEPS = 0.8
"""Cheap steps that a round takes beyond its drafts: most end with one to read the last draft."""
MIN_SPEEDUP = 1.15
"""Times as fast as without a draft: less is not worth its memory."""


class Drafter:
    """Proposes the next tokens of each row."""

    def __init__(self, depth: int) -> None:
        self.depth = depth

    def draft_length(self, rows: int) -> int:
        """How many tokens to draft ahead for so many rows."""
        return self.depth

    def begin(self, prompts: list[list[int]], length: int) -> None:
        """Rows with these tokens, up to so long; the newest of each is not drawn yet."""

    def draft(self, texts: list[list[int]], count: int, draw: Draw) -> list[list[int]]:
        """Up to `count` tokens after each text, equally many for all rows."""
        raise NotImplementedError

    def commit(self, lengths: list[int], *, accepted: int, rejected: int) -> None:
        """The accepted length of each row, and how many drafted tokens were accepted and not."""

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only, (n,) int64."""


class NGramDrafter(Drafter):
    """Repeats what followed the newest n tokens where they stood before in the same text."""

    def __init__(self, *, depth: int = 8) -> None:
        super().__init__(depth)

    def draft(self, texts: list[list[int]], count: int, draw: Draw) -> list[list[int]]:
        """What followed the longest run of last words found; rows without one get filler."""
        found = [self.find(text, count) for text in texts]
        longest = max(map(len, found))
        return [row + [END_OF_TEXT_ID] * (longest - len(row)) for row in found]

    def find(self, text: list[int], count: int) -> list[int]:
        """The latest earlier place wins."""
        for n in (4, 3, 2):
            end = text[-n:]
            for start in range(len(text) - n - 1, -1, -1):
                if text[start : start + n] == end:
                    return text[start + n : start + n + count]
        return []


def best_draft_length(share: float, rows: int, exact: Speed, cheap: Speed) -> tuple[int, float]:
    """How far to draft ahead, and how many times as fast writing is then.

    Rows run ahead of one another, but the text is done when the slowest row is, so a round counts
    as far as all rows were right.

    Args:
        share: of the drafts, those that are right, if all before them were; below 1.
        rows: texts written at once.
        exact: of the model that checks.
        cheap: of the one that drafts.
    """
    alone = exact.of(rows) + DRAW_SECONDS
    together = share**rows
    best = (0, 1.0)
    for depth in range(1, MAX_DRAFT_LENGTH + 1):
        tokens = (1 - together ** (depth + 1)) / (1 - together)
        seconds = (depth + EXTRA_STEPS) * (cheap.of(rows) + DRAW_SECONDS)
        seconds += exact.of(rows * (depth + 1)) + DRAW_SECONDS
        best = max(best, (depth, tokens * alone / seconds), key=lambda found: found[1])
    return best


class ModelDrafter(Drafter):
    """Another decoder of the same vocabulary, drawing with the same random numbers."""

    def __init__(
        self, decoder: PlainDecoder, *, depth: int = 7, speeds: tuple[Speed, Speed] | None = None
    ) -> None:
        """`speeds`, of who checks and who drafts, find the depth; without them it stays."""
        super().__init__(depth)
        self.decoder = decoder
        self.speeds = speeds
        self.accepted, self.rejected = PRIOR_ACCEPTED, PRIOR_REJECTED
        self._last = torch.empty(0)

    def draft_length(self, rows: int) -> int:
        if self.speeds is None:
            return self.depth
        return best_draft_length(
            self.accepted / (self.accepted + self.rejected), rows, *self.speeds
        )[0]

    def begin(self, prompts: list[list[int]], length: int) -> None:
        self.decoder.prefill(prompts, length=length)

    def draft(self, texts: list[list[int]], count: int, draw: Draw) -> list[list[int]]:
        tokens = torch.tensor([text[-1] for text in texts])
        drafts = []
        for ahead in range(count):
            tokens = draw(self.decoder.step(tokens)[:, None], (ahead,))[:, 0]
            drafts.append(tokens)
        self._last = tokens
        return torch.stack(drafts, dim=1).tolist() if drafts else [[] for _ in texts]

    def commit(self, lengths: list[int], *, accepted: int, rejected: int) -> None:
        """Forget wrong drafts; read the last one if it was right."""
        self.accepted += accepted
        self.rejected += rejected
        cache = self.decoder.cache
        assert cache is not None
        if any(new > old for new, old in zip(lengths, cache.lengths, strict=True)):
            self.decoder.absorb(self._last)
        cache.cut(lengths)

    def keep(self, rows: Tensor) -> None:
        self.decoder.keep(rows)


def choose_drafter(decoder: PlainDecoder, how: Speculation, *, rows: int) -> Drafter | None:
    """Who drafts for a decoder, if anybody.

    `auto` is an int8 draft for the C kernel's float32 where the speeds measured here say that it
    pays for so many rows: the exact text in less time, for a quarter more memory. `draft` insists.
    """
    if how == "off":
        return None
    if how == "lookup":
        return NGramDrafter()
    insist = how == "draft"
    reason: str | None = (
        "a draft is int8 beside float32 in the C kernel, which is not what decodes here"
    )
    if isinstance(decoder, KernelDecoder) and decoder.kernel.kind == "fp32":
        reason = unavailable_format("int8")
        if reason is None:
            return int8_draft(decoder.kernel, insist=insist, rows=rows)
    if insist:
        raise UserError(f"{reason}: use --speculate lookup or off")
    return None


def int8_draft(exact: KernelModel, *, insist: bool, rows: int) -> ModelDrafter | None:
    """The int8 draft of a float32 model; None if it does not pay, unless one insists."""
    model = exact.model
    if not is_large(model):  # reading its weights is not what a step waits for
        return ModelDrafter(KernelDecoder(KernelModel(model, "int8"))) if insist else None
    checking, known, cheap = speed_of(exact), known_speed(model, "int8"), None
    if known is None:
        cheap = KernelModel(model, "int8")
        known = speed_of(cheap)
    share = PRIOR_ACCEPTED / (PRIOR_ACCEPTED + PRIOR_REJECTED)
    if not insist and best_draft_length(share, rows, checking, known)[1] < MIN_SPEEDUP:
        return None
    cheap = cheap or KernelModel(model, "int8")
    return ModelDrafter(KernelDecoder(cheap), speeds=(checking, known))
