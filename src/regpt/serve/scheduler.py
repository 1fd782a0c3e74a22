"""Which row does what in the next step: admission, prefix reuse, order, cancellation. No torch.

The key-value cache has a fixed number of rows. A step is one token for every running text plus
at most `chunk(running)` prompt tokens of the oldest waiting ones, so that no long prompt stalls the
others. A row that has ended keeps its keys until it is needed; a new text starts from the row
that shares the longest prefix with it, compared by tokens, and copies it where the row is busy.

Where the numbers of a token depend on what is computed along with it (every path but the C
kernel's), `granule` says in how large pieces prompts are read, from position 0 on: only whole
pieces are used again, so that a text is the same whatever the cache held.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

Wanted = Literal["none", "last", "all"]
"""Which logits of a part are asked for."""
READING = 16
"""Prompt tokens of a step beside one or few running texts."""
READING_EACH = 2
"""Prompt tokens of a step for each running text: a step then takes about three times as long."""
READING_ALONE = 256
"""Prompt tokens of a step in which nothing runs."""


def chunk(running: int) -> int:
    """At most so many prompt tokens in a step with `running` texts."""
    return max(READING, READING_EACH * running) if running else READING_ALONE


@dataclass(eq=False, kw_only=True)
class Text:
    """One text under way: a prompt and what was drawn after it."""

    prompt: list[int]
    request: object = None
    """What it belongs to: a change of model waits until all texts of a request are written."""
    scores_prompt: bool = False
    """Whether the logits after every prompt token are asked for."""
    tokens: list[int] = field(init=False)
    """The prompt and the drawn tokens."""
    reused: int = 0
    """Prompt tokens whose keys another text had computed."""

    def __post_init__(self) -> None:
        self.tokens = list(self.prompt)


@dataclass(eq=False)
class Row:
    """A row of the cache: the tokens whose keys it holds, and who uses it."""

    held: list[int] = field(default_factory=list)
    exact: int = 0
    """Of these, the first so many may be used for another text."""
    text: Text | None = None
    last_used: int = 0

    @property
    def pending(self) -> list[int]:
        """Tokens of its text that the model has not seen."""
        assert self.text is not None
        return self.text.tokens[len(self.held) :]


@dataclass(frozen=True, kw_only=True)
class Part:
    """Consecutive tokens of one row in one step."""

    row: int
    start: int
    """Position of the first."""
    tokens: list[int]
    wanted: Wanted
    text: Text


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One step: first the copies (source row, target row, tokens), then all parts together."""

    copies: list[tuple[int, int, int]]
    parts: list[Part]


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two texts share from their beginning on."""
    for place, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return place
    return min(len(one), len(other))


class Scheduler:
    """The queue and the rows; `plan` says what to compute, `done` that it was."""

    def __init__(self, rows: int, *, granule: int = 1) -> None:
        self.rows = [Row() for _ in range(rows)]
        self.waiting: deque[Text] = deque()
        self.granule = granule
        self.paused = False
        """Whether no new request is let in: the model is about to change."""
        self._begun: object = None
        self._clock = 0

    @property
    def busy(self) -> int:
        """Rows in use."""
        return sum(row.text is not None for row in self.rows)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to compute."""
        return not self.busy and not self._next_in_line()

    def add(self, text: Text) -> None:
        """Queue a text."""
        self.waiting.append(text)

    def remove(self, text: Text) -> None:
        """Forget a text that has ended or is no longer wanted; its row keeps its keys."""
        for row in self.rows:
            if row.text is text:
                row.text = None
                self._clock += 1
                row.last_used = self._clock
                return
        if text in self.waiting:
            self.waiting.remove(text)

    def clear(self) -> None:
        """Forget all keys: they are another model's."""
        assert not self.busy
        self.rows = [Row() for _ in self.rows]

    def plan(self) -> Plan:
        """The next step."""
        copies: list[tuple[int, int, int]] = []
        parts: list[Part] = []
        readers: list[int] = []
        for number, row in enumerate(self.rows):
            if row.text is None:
                continue
            if len(row.held) < len(row.text.prompt):
                readers.append(number)
            else:
                parts.append(self._part(number, len(row.pending)))
        budget = chunk(len(parts))
        while budget > 0:
            number = readers.pop() if readers else self._admit(parts, copies)
            if number is None:
                break
            size = self._next_piece(self.rows[number], budget)
            parts.append(self._part(number, size))
            budget -= size
            if size < len(self.rows[number].pending):
                break  # the oldest first, until it is read
        return Plan(copies=copies, parts=parts)

    def done(self, plan: Plan) -> None:
        """The step was computed."""
        for part in plan.parts:
            row = self.rows[part.row]
            row.held += part.tokens
            prompt = len(part.text.prompt)
            if self.granule == 1:
                row.exact = len(row.held)
            elif len(row.held) <= prompt:
                row.exact = len(row.held) - len(row.held) % self.granule

    def _next_piece(self, row: Row, budget: int) -> int:
        left = len(row.pending)
        if self.granule == 1:
            return min(left, budget)
        return min(left, self.granule - len(row.held) % self.granule)

    def _part(self, number: int, size: int) -> Part:
        row = self.rows[number]
        assert row.text is not None
        pending = row.pending
        wanted: Wanted = "last" if size == len(pending) else "none"
        if row.text.scores_prompt and len(row.held) < len(row.text.prompt):
            wanted = "all"
        return Part(
            row=number,
            start=len(row.held),
            tokens=pending[:size],
            wanted=wanted,
            text=row.text,
        )

    def _admit(self, parts: list[Part], copies: list[tuple[int, int, int]]) -> int | None:
        """Give the oldest waiting text a row; None if there is none, or waiting pays."""
        free = [number for number, row in enumerate(self.rows) if row.text is None]
        text = self._next_in_line()
        if text is None or not free:
            return None
        best, shared = free[0], 0
        if not text.scores_prompt:
            wanted = text.prompt[:-1]  # the last one's logits are needed
            if self._is_being_read(wanted, parts):
                return None
            for number in sorted(range(len(self.rows)), key=lambda number: number not in free):
                row = self.rows[number]
                common = common_prefix(row.held[: row.exact], wanted)
                common -= common % self.granule
                if common > shared:
                    best, shared = number, common
        oldest = min(free, key=lambda number: self.rows[number].last_used)
        target = oldest
        if best in free and shared and 2 * shared >= len(self.rows[best].held):
            target = best  # else its longer text stays for others
        if shared and target != best:
            copies.append((best, target, shared))
        row = self.rows[target]
        row.held, row.exact = text.prompt[:shared], shared
        row.text = self.waiting.popleft()
        self._begun = text.request
        text.reused = shared
        return target

    def _next_in_line(self) -> Text | None:
        """The oldest waiting text, if it may begin."""
        if not self.waiting:
            return None
        oldest = self.waiting[0]
        is_begun = oldest.request is not None and oldest.request is self._begun
        return oldest if is_begun or not self.paused else None

    def _is_being_read(self, wanted: list[int], parts: list[Part]) -> bool:
        """Whether this very step computes keys of a longer shared prefix than any row has."""
        most = max(common_prefix(row.held[: row.exact], wanted) for row in self.rows)
        for part in parts:
            prompt = part.text.prompt
            if part.start < len(prompt):
                coming = common_prefix(prompt[: part.start + len(part.tokens)], wanted)
                if coming - coming % self.granule > most:
                    return True
        return False
