"""JSON that others wrote, a file or a line at a time, with everything that can be wrong with it."""

import contextlib
import json
import math
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from regpt.system.errors import UserError
from regpt.system.files import refuse_device

T = TypeVar("T")

TYPE_NAMES = {str: "text", int: "an integer", list: "a list"}
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


def read_objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers, from 1 on, and objects; empty lines are passed over.

    Raises:
        UserError: a file that cannot be read, has no object in it, or has a malformed line.
    """
    found = False
    try:
        refuse_device(path)
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    found = True
                    yield number, parse_object(line, path, number)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    if not found:
        raise UserError(f"{path} has no examples: give a file with one JSON object per line")


def read_lines(data: bytes) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Line numbers, from 1 on, and objects, or None for a line that is none; empty lines are passed
    over. For files in which a line may be damaged: a kill cuts one short."""
    for number, line in enumerate(data.split(b"\n"), start=1):
        if line.strip():
            try:
                value = parse_json(line)
            except ValueError:  # of which a UnicodeDecodeError is one
                value = None
            yield number, value if isinstance(value, dict) else None


def parse_object(line: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        value = parse_json(line)
    except ValueError as error:
        where = f" at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        reason = str(error).partition(":")[0] + where
        raise UserError(f"{path} line {number} is not JSON ({reason}): mend or drop it") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} line {number} is no JSON object: mend or drop it")
    return value


def field(value: dict[str, Any], name: str, kind: type[T], *, where: str) -> T:
    if name not in value:
        names = ", ".join(list(value)[:8]) or "none"
        raise UserError(f"{where} has no field {name!r} (its fields: {names}): mend or drop it")
    found = value[name]
    if not isinstance(found, kind) or isinstance(found, bool):
        found = f"{found!r:.40}"
        raise UserError(
            f"{where}: field {name!r} is not {TYPE_NAMES[kind]} ({found}): mend or drop it"
        )
    return found


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


def from_object(target: type[T], values: Any) -> T:
    """A dataclass from an object that holds all of its fields; what else it holds is passed over.

    Raises KeyError or TypeError.
    """
    names = [field.name for field in fields(target)]  # pyright: ignore[reportArgumentType]
    return target(**check_types(target, {name: values[name] for name in names}))


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
