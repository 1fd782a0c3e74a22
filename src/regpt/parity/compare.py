"""Rows of tokens against rows of tokens: how many agree, and where the first does not."""

from dataclasses import dataclass

from regpt.core.sampling import SamplingParams
from regpt.parity.model_pair import Pair
from regpt.parity.references import Rows


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The first token that is not the same, and all that is needed to draw it again."""

    pair: Pair
    params: SamplingParams
    """What both sides were asked for."""
    prompt: list[int]
    ours: Rows
    theirs: Rows
    against: str
    """Who wrote `theirs`."""
    step: int
    """Tokens drawn before it."""
    row: int

    @property
    def position(self) -> int:
        """Where in the text it stands."""
        return len(self.prompt) + self.step

    @property
    def tokens(self) -> tuple[int | None, int | None]:
        """Ours and theirs; None where a row is already over."""
        rows = self.ours[self.row], self.theirs[self.row]
        ours, theirs = (row[self.position] if self.position < len(row) else None for row in rows)
        return ours, theirs


@dataclass
class Tally:
    """Texts compared so far, and the first difference in the order of generation."""

    texts: int = 0
    tokens: int = 0
    """Drawn by either side."""
    equal: int = 0
    ended: int = 0
    """Texts that ended before their full length."""
    first: Difference | None = None
    decoding: str = ""
    """Where equal tokens became different text, if they did."""

    def add(self, pair: Pair, params: SamplingParams, prompt: list[int], *,
            ours: Rows, theirs: Rows, against: str) -> None:  # fmt: skip
        """Count the rows of one call and its references."""
        unequal = []
        for row, (our, their) in enumerate(zip(ours, theirs, strict=True)):
            places = range(len(prompt), max(len(our), len(their)))
            same = [our[place : place + 1] == their[place : place + 1] for place in places]
            self.texts += 1
            self.tokens += len(same)
            self.equal += sum(same)
            self.ended += len(their) < params.max_length
            if not all(same):
                unequal.append((same.index(False), row))
        if unequal and self.first is None:
            step, row = min(unequal)
            self.first = Difference(
                pair=pair, params=params, prompt=prompt, ours=ours, theirs=theirs,
                against=against, step=step, row=row,
            )  # fmt: skip

    @property
    def agrees(self) -> bool:
        """Every token and every text is the same; nothing compared is no agreement."""
        return self.first is None and not self.decoding and self.texts > 0
