"""JSON that others wrote, with everything that can be wrong with it; and ours."""

import json
import math
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from regpt.system.files import refuse_device

LARGEST = 1 << 64
"""Of a whole number that stands for a float; Python's grow without end and torch's do not."""


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is not JSON, not Unicode, or nested deeper than Python's parser goes.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deep") from None


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises:
        OSError: it cannot be read, or is a device, which may have no end.
        ValueError: as `parse_json`.
    """
    refuse_device(path)
    return parse_json(path.read_bytes())


def finite(value: Any) -> Any:
    """The same, with null for numbers JSON does not have, however deep."""
    if isinstance(value, dict):
        return {name: finite(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def json_bytes(value: Any) -> bytes:
    """The text of a JSON file, indented."""
    return (json.dumps(value, indent=2) + "\n").encode()


def json_line(value: Any) -> str:
    """The text of a value on one line, the line's end included; null for numbers JSON has not."""
    return json.dumps(finite(value)) + "\n"


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
        if name in hints and not is_of_type(value, hints[name]):
            raise TypeError(f"{name} is {value!r:.40}")
    return values


def is_of_type(value: object, hint: Any) -> bool:
    """Whether a value is of a type as annotations write it; an int is a float, a bool not."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(is_of_type(value, part) for part in parts)
    if origin is Literal:
        return value in parts and type(value) is str
    if hint is Any:
        return True
    if origin is list:
        return type(value) is list and all(is_of_type(entry, parts[0]) for entry in value)
    if origin is dict:
        return type(value) is dict and all(is_of_type(entry, parts[1]) for entry in value.values())
    if origin is tuple:
        assert isinstance(value, tuple)
        each = parts[:1] * len(value) if parts[-1] is ... else parts
        return len(value) == len(each) and all(map(is_of_type, value, each))
    if hint is float:
        return type(value) is float or (type(value) is int and abs(value) < LARGEST)
    if hint is int:
        return type(value) is int and abs(value) < LARGEST
    return type(value) is hint
