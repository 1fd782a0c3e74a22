"""What a run saved as JSON, and whether its values are of the types declared."""

from types import UnionType
from typing import Any, Literal, TypedDict, Union, get_args, get_origin, get_type_hints

LARGEST = 1 << 64
"""Of a whole number that stands for a float; Python's grow without end and torch's do not."""


class Progress(TypedDict):
    """What state.json says."""

    step: int
    tokens: int
    val_loss: float | None
    val_step: int | None
    recent_losses: list[float]
    bad_steps: int
    world_size: int
    seed: int
    data: dict[str, Any]
    """Fingerprints."""


class Incident(TypedDict):
    """What is read again of an incident's report.json."""

    loss: float | None
    grad_norm: float | None
    fault: str


def check_types(target: type, values: Any) -> Any:
    """The same values by name, of a dataclass or TypedDict.

    Raises:
        TypeError: they are no object, or the first one's type is not its field's.
        KeyError: a TypedDict's field is missing.
    """
    hints = get_type_hints(target)
    if type(values) is not dict:
        raise TypeError(f"{target.__name__} is {values!r:.40}")
    for name in getattr(target, "__required_keys__", ()):
        values[name]
    for name, value in values.items():
        if name in hints and not fits(value, hints[name]):
            raise TypeError(f"{name} is {value!r:.40}")
    return values


def fits(value: object, hint: Any) -> bool:
    """Whether a value is of a type as annotations write it; an int is a float, a bool not."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(fits(value, part) for part in parts)
    if origin is Literal:
        return value in parts and type(value) is str
    if hint is Any:
        return True
    if origin is list:
        return type(value) is list and all(fits(entry, parts[0]) for entry in value)
    if origin is dict:
        return type(value) is dict and all(fits(entry, parts[1]) for entry in value.values())
    if origin is tuple:
        assert isinstance(value, tuple)
        each = parts[:1] * len(value) if parts[-1] is ... else parts
        return len(value) == len(each) and all(map(fits, value, each))
    if hint is float:
        return type(value) is float or (type(value) is int and abs(value) < LARGEST)
    if hint is int:
        return type(value) is int and abs(value) < LARGEST
    return type(value) is hint
