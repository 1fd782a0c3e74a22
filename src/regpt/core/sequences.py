"""Batch state of a generation: token lists, active rows, and what a step returns."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from regpt.core.sampling import SamplingParams
from regpt.core.tokenizer import END_OF_TEXT_ID


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
    """Token lists and active rows."""

    def __init__(
        self, prompts: list[list[int]], params: SamplingParams, numbers: Sequence[int] | None
    ) -> None:
        self.numbers = range(len(prompts)) if numbers is None else numbers
        self.texts = [list(prompt) for prompt in prompts]
        self.params = params
        self.evicted = [0] * len(prompts)  # tokens a sliding window has left behind
        self.active = [row for row in range(len(prompts)) if not self.is_long(row)]

    def is_long(self, row: int) -> bool:
        """Whether a row has all the tokens asked for."""
        return len(self.texts[row]) >= self.params.max_length

    def cached_length(self, row: int) -> int:
        """Tokens of a row that the decoder still holds."""
        return len(self.texts[row]) - self.evicted[row]

    def append(self, tokens: list[int]) -> list[int]:
        """Add a token to each active row; returns the places, in `active`, of rows that go on."""
        going_on = []
        for place, (row, token) in enumerate(zip(self.active, tokens, strict=True)):
            self.texts[row].append(token)
            ended = self.params.stop_at_eot and token == END_OF_TEXT_ID
            if not ended and not self.is_long(row):
                going_on.append(place)
        self.active = [self.active[place] for place in going_on]
        return going_on
