"""How often something is done in a run: every so many steps, or every so many tokens.

A number is steps; with a letter behind it, or the word, it is tokens: `250`, `10M`, `4096tokens`.
In tokens, a step is due when it passes a multiple, whatever the batch size is, so two runs of
different batches are looked at at the same places. Both depend on the counts alone: a resumed run
does what the run would have done.
"""

import re
from dataclasses import dataclass

from regpt.system.errors import UserError

Every = int | str
"""As a person writes it."""
UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}


@dataclass(frozen=True, kw_only=True)
class Interval:
    """Every so many steps, or tokens."""

    count: int
    in_tokens: bool = False

    @classmethod
    def parse(cls, value: Every, name: str) -> "Interval":
        """From steps as a number, or text like `10M`; `name` is the setting's, for the error."""
        found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kmb]?) ?(tokens)?", str(value).strip().lower())
        if found is None:
            raise UserError(
                f"{name} {value!r} is no interval: give steps (250), or tokens (500k, 10M, 1B, "
                "4096tokens)"
            )
        number, unit, word = found.groups()
        count = round(float(number) * UNITS[unit]) if "." in number else int(number) * UNITS[unit]
        if count < 1:
            raise UserError(f"{name} must be at least 1, got {value}")
        if not (unit or word) and "." in number:
            raise UserError(f"{name} {value}: steps are whole; in tokens write {number}M")
        return cls(count=count, in_tokens=bool(unit or word))

    def passed(self, *, step: int, tokens: int, tokens_before: int) -> bool:
        """Whether the step that is `step` steps and `tokens` tokens into the run is due."""
        if not self.in_tokens:
            return step % self.count == 0
        return tokens // self.count > tokens_before // self.count

    def __str__(self) -> str:
        return f"every {self.count:,} {'tokens' if self.in_tokens else 'steps'}"
