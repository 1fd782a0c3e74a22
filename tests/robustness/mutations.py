"""What is done to files and flags: strategies that draw a mutation of what is given."""

import json
from typing import Any

from hypothesis import strategies as st

DEEP = "[" * 100_000
"""JSON nested deeper than any parser's stack."""

ODD_NUMBERS = (
    -1, 0, 1, 2, 7, 2**31 - 1, 2**31, 2**63 - 1, 2**63, 2**64, 10**30, -(2**63), 0.5, -0.0, 1e308,
    float("nan"), float("inf"), float("-inf"), 10**400,
)  # fmt: skip
ODD_TEXTS = (
    "", " ", "\0", "\n", "a\nb", "../../etc/passwd", "/", "[bold]x[/bold]", "[/]", "\ud800",
    "\u202e", "é", "𝄞" * 3, "x" * 5000, "NaN", "-1", "true", "<b>x</b>", "%s%n", "{0}",
)  # fmt: skip
ODD_VALUES = (*ODD_NUMBERS, *ODD_TEXTS, None, True, False, [], {}, [[]], {"a": {"b": []}}, [1, "a"])

odd_values = st.sampled_from(ODD_VALUES)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values in a JSON value, itself included."""
    found = [path]
    if isinstance(value, dict):
        for name, entry in value.items():
            found += places(entry, (*path, name))
    elif isinstance(value, list):
        for index, entry in enumerate(value[:4]):
            found += places(entry, (*path, index))
    return found


def changed(value: Any, path: tuple[Any, ...], how: str, odd: Any) -> Any:
    """A copy of a JSON value with one place of it changed."""
    if not path:
        return odd
    copy = dict(value) if isinstance(value, dict) else list(value)
    name = path[0]
    if len(path) > 1:
        copy[name] = changed(copy[name], path[1:], how, odd)
    elif how == "replace":
        copy[name] = odd
    elif how == "remove":
        del copy[name]
    elif how == "add" and isinstance(copy, dict):
        copy["odd" if how == "add" else name] = odd
    else:
        copy[name] = [copy[name], copy[name]]
    return copy


@st.composite
def json_values(draw: st.DrawFn, value: Any) -> Any:
    """A JSON value with one to three places of it changed."""
    for _ in range(draw(st.sampled_from((1, 1, 1, 2, 3)))):
        # small indices first would crowd the top level
        path = draw(st.sampled_from(places(value)[::-1]))
        how = draw(st.sampled_from(("replace", "replace", "replace", "remove", "add", "nest")))
        value = changed(value, path, how, draw(odd_values))
    return value


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """Bytes cut short, flipped, repeated, or with others in between."""
    for _ in range(draw(st.sampled_from((1, 1, 2)))):
        place = draw(st.integers(0, max(len(data) - 1, 0)))
        how = draw(st.sampled_from(("cut", "flip", "insert", "repeat", "zero", "drop", "empty")))
        few = draw(st.integers(1, 64))
        if how == "cut":
            data = data[:place]
        elif how == "flip":
            byte = data[place : place + 1] or b"\0"
            data = data[:place] + bytes([byte[0] ^ draw(st.integers(1, 255))]) + data[place + 1 :]
        elif how == "insert":
            data = data[:place] + draw(st.binary(min_size=1, max_size=16)) + data[place:]
        elif how == "repeat":
            data = data[:place] + data[place : place + few] * 3 + data[place + few :]
        elif how == "zero":
            data = data[:place] + bytes(len(data[place : place + few])) + data[place + few :]
        elif how == "drop":
            data = data[:place] + data[place + few :]
        else:
            data = b""
    return data


@st.composite
def json_files(draw: st.DrawFn, value: Any) -> bytes:
    """A JSON file, its value or its bytes mutated."""
    how = draw(st.sampled_from(("value",) * 7 + ("bytes", "bytes", "form")))
    if how == "value":
        return json.dumps(draw(json_values(value))).encode()
    data = json.dumps(value).encode()
    if how == "bytes":
        return draw(damaged(data))
    forms = (b"\xef\xbb\xbf" + data, data.decode().encode("utf-16"), DEEP.encode(), b"\xff" + data,
             data[:-1] + b',"odd":' + DEEP.encode(), b"1" * 5000, data * 2, b"\0" * 64,
             b'{"a":' * 50_000)  # fmt: skip
    return draw(st.sampled_from(forms))


@st.composite
def json_lines(draw: st.DrawFn, entries: list[Any]) -> bytes:
    """A file of JSON lines, one or two lines of it mutated."""
    lines = [json.dumps(entry).encode() for entry in entries]
    for _ in range(draw(st.sampled_from((1, 1, 2)))):
        index = draw(st.integers(0, len(lines) - 1))
        lines[index] = draw(json_files(entries[index]))
    end = draw(st.sampled_from((b"\n", b"\n", b"\n", b"\r\n", b"", b"\n\n", b"\n\0\n")))
    return b"\n".join(lines) + end
