"""JSON that others wrote, with everything that can be wrong with it; and ours."""

import contextlib
import json
import math
from dataclasses import is_dataclass
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
    return (json.dumps(value, indent=2) + "\n").encode()


def json_line(value: Any) -> str:
    """The text of a value on one line, the line's end included; null for numbers JSON has not."""
    return json.dumps(finite(value)) + "\n"


def check_types(target: type, values: Any) -> Any:
    """The same values by name, each as the field of a dataclass or TypedDict wants it: `typed`.

    Raises:
        TypeError: they are no object, or the first one's type is not its field's.
        KeyError: a field is missing.
    """
    hints = get_type_hints(target)
    if type(values) is not dict:
        raise TypeError(f"{target.__name__} is {values!r:.40}")
    for name in getattr(target, "__required_keys__", ()):
        values[name]
    return {name: typed(value, hints.get(name, Any), name) for name, value in values.items()}


def typed(value: Any, hint: Any, name: str) -> Any:
    """A JSON value as an annotation wants it: a dataclass from an object, a tuple from a list, the
    rest as it is. An int is a float, a bool is not. Raises TypeError, saying `name`."""
    origin, parts = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, UnionType):
        for part in parts:
            with contextlib.suppress(TypeError):
                return typed(value, part, name)
    elif origin is Literal:
        if type(value) is str and value in parts:
            return value
    elif origin is tuple:
        if type(value) in (list, tuple):
            each = parts[:1] * len(value) if parts[-1] is ... else parts
            if len(value) == len(each):
                return tuple(typed(*pair, name) for pair in zip(value, each, strict=True))
    elif origin is list:
        if type(value) is list:
            return [typed(entry, parts[0], name) for entry in value]
    elif origin is dict:
        if type(value) is dict:
            keys = get_args(parts[0]) or value  # names that a Literal lists must all be there
            return {key: typed(value[key], parts[1], name) for key in keys}
    elif isinstance(hint, type) and is_dataclass(hint) and type(value) is dict:
        return hint(**check_types(hint, value))
    elif hint in (int, float):
        if type(value) in (int, hint) and (type(value) is float or abs(value) < LARGEST):
            return value
    elif type(value) is hint:
        return value
    raise TypeError(f"{name} is {value!r:.40}")
