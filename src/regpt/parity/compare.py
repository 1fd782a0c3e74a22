"""What both sides wrote: how many tokens agree, and where the first does not."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from regpt.core.sampling import SamplingParams
from regpt.parity.model_pair import Pair
from regpt.parity.references import Rows


@dataclass(frozen=True, kw_only=True)
class Texts:
    """The rows of one prompt under one seed, and all that is needed to draw them again."""

    pair: Pair
    params: SamplingParams
    """What both sides were asked for."""
    prompt: list[int]
    ours: Rows
    theirs: Rows
    against: str
    """Who wrote `theirs`."""
    decoding: str = ""
    """Where equal tokens became different text, if they did."""

    @cached_property
    def equal(self) -> list[list[bool]]:
        """For each row, whether the tokens drawn by either side are the same, one by one."""
        return [
            [our[i : i + 1] == their[i : i + 1]
             for i in range(len(self.prompt), max(len(our), len(their)))]
            for our, their in zip(self.ours, self.theirs, strict=True)
        ]  # fmt: skip

    @property
    def differ(self) -> bool:
        """Whether any token does."""
        return not all(map(all, self.equal))

    @property
    def first(self) -> tuple[int, int]:
        """Step and row of the first token that differs, in the order of generation."""
        rows = enumerate(self.equal)
        return min((same.index(False), row) for row, same in rows if not all(same))

    @property
    def position(self) -> int:
        """Where in its text that token stands."""
        return len(self.prompt) + self.first[0]

    @property
    def tokens(self) -> tuple[int | None, int | None]:
        """That token, ours and theirs; None where a row is already over."""
        row, place = self.first[1], self.position
        ours, theirs = (
            rows[row][place] if place < len(rows[row]) else None
            for rows in (self.ours, self.theirs)
        )
        return ours, theirs


def tally(calls: Sequence[Texts]) -> dict[str, int]:
    """Texts; tokens drawn by either side, and how many are equal; texts that ended early."""
    equal = [same for texts in calls for row in texts.equal for same in row]
    ended = [len(row) < texts.params.max_length for texts in calls for row in texts.theirs]
    return {"texts": len(ended), "tokens": len(equal), "equal": sum(equal), "ended": sum(ended)}
