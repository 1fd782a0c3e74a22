"""Text to tokens: the one way, for `train --data`, `evaluate --data` and `prepare`.

A file is read in pieces of about a megabyte, and a piece goes to tiktoken in strings of about
65,536 characters: tiktoken is quadratic in the length of a string without whitespace, and panics on
a million spaces before a letter. Text is cut only before a whitespace character that something else
follows, where no token changes: GPT-2's pattern never lets a match run across such a place, and
divides the whitespace before it in the same way whether or not the text goes on. A stretch without
one (a page of empty lines, a genome) stays whole up to a million characters.
"""

import codecs
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from regpt.core.tokenizer import Tokenizer
from regpt.system.errors import UserError

BLOCK_BYTES = 1 << 20
PIECE_CHARACTERS = 1 << 16
LONGEST_STRETCH = 1 << 20
"""Characters without a safe place to cut that are kept together."""

# Unicode's White_Space, which is what \s means to the tokenizer. Python's \s has four more.
WHITESPACE = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
SAFE_CUT = re.compile(rf"(?=[{WHITESPACE}][^{WHITESPACE}])")
LAST_SAFE_CUT = re.compile(rf"(?s:.+){SAFE_CUT.pattern}")


def find_safe_cut(text: str, start: int, stop: int) -> int | None:
    """The last place in start+1 .. stop-2 where cutting `text` changes no token; None if none."""
    found = LAST_SAFE_CUT.match(text, start, stop)
    return found.end() if found else None


def read_pieces(
    file: IO[bytes], offset: int, stop: int, *, path: Path
) -> Iterator[tuple[str, int]]:
    """The text between two bytes in pieces of about a megabyte, each with the offset of its end.

    The pieces' tokens, one after the other, are those of the whole. Raises UserError for what is
    not UTF-8.
    """
    while offset < stop:
        text = _read_piece(file, offset, stop, size=BLOCK_BYTES, path=path)
        offset += len(text.encode())
        yield text, offset


def _read_piece(file: IO[bytes], offset: int, stop: int, *, size: int, path: Path) -> str:
    """About `size` bytes of text from `offset` on, cut safely; all up to `stop` if that is less."""
    file.seek(offset)
    data = file.read(min(size, stop - offset))
    is_last = offset + len(data) == stop
    if not is_last and len(data) < size:
        raise UserError(f"{path} became shorter while it was read: start again")
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(data, final=is_last)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8: byte 0x{data[error.start]:02x} at offset "
            f"{offset + error.start}; convert it first"
        ) from None
    if is_last:
        return text
    cut = find_safe_cut(text, 0, len(text))
    if cut is None and len(text) < LONGEST_STRETCH:
        return _read_piece(file, offset, stop, size=2 * size, path=path)
    return text[:cut]


def cut_pieces(text: str) -> Iterator[str]:
    """The text in pieces that are quick to encode and have, together, the same tokens."""
    start = 0
    while len(text) - start > PIECE_CHARACTERS:
        limit, longest = start + PIECE_CHARACTERS, start + LONGEST_STRETCH
        stop = find_safe_cut(text, start, limit)
        if stop is None:
            found = SAFE_CUT.search(text, limit - 1, longest)
            stop = found.start() if found else longest
        yield text[start:stop]
        start = stop
    if start < len(text):
        yield text[start:]


def encode_pieces(text: str, tokenizer: Tokenizer) -> Iterator[np.ndarray]:
    """The ids of a text, uint32 (n,) each, piece by piece."""
    return map(tokenizer.encode_array, cut_pieces(text))
