"""Files of one JSON object per line; whatever is wrong is named by line number."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from regpt.system.errors import UserError
from regpt.system.files import refuse_device
from regpt.system.json_text import parse_json

T = TypeVar("T")

TYPE_NAMES = {str: "text", int: "an integer", list: "a list"}


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
