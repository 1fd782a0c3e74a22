"""What a check found: a value, for the table, for JSON and for the exit code alike."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Status = Literal["agrees", "differs", "not checked"]


@dataclass(frozen=True, kw_only=True)
class Check:
    name: str
    """What was compared."""
    status: Status
    figure: str = ""
    """What was measured."""
    bound: str = ""
    """What it may be at most; 'every token' where nothing is tolerated."""
    detail: str = ""
    """What was compared with what; why it was not checked; or the first difference."""
    values: Mapping[str, float | int | str | None] = field(default_factory=dict)
    """The same for programs."""


def judge(agrees: bool) -> Status:
    return "agrees" if agrees else "differs"
