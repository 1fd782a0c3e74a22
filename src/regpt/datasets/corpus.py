"""Documents in order as one stream of tokens, without ever holding a large text in memory.

A document is a text, or a `TextFile` that is read in pieces of about a megabyte. The pieces are cut
where no token changes (encode.py), so the tokens are those of the whole text. What stays in
memory is two bytes for each of them.
"""

import codecs
import hashlib
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from regpt.core.tokenizer import Tokenizer
from regpt.datasets.encode import BLOCK_BYTES, encode_pieces, read_pieces
from regpt.system.errors import UserError

Say = Callable[[str], None]
"""Takes a line for people."""

SPEAK_SECONDS = 10.0


def silent(text: str) -> None:
    """Lines that nobody reads."""


def speak(say: Say, doing: str, total: int, *, small: int) -> Callable[[int], None]:
    """Takes the bytes done; says them at once and every ten seconds, of `small` bytes or more."""
    due = -math.inf

    def progress(done: int) -> None:
        nonlocal due
        if total >= small and time.monotonic() >= due:
            due = time.monotonic() + SPEAK_SECONDS
            say(f"{doing} the text, {done / 1e6:,.0f} of {total / 1e6:,.0f} MB")

    return progress


@dataclass(frozen=True)
class TextFile:
    """A UTF-8 file, or a part of one; `len` counts its characters."""

    path: Path
    start: int
    """The first byte, after a byte order mark,"""
    stop: int
    """and the one after the last."""
    num_characters: int
    state: tuple[int, int]
    """Size and time of change when it was first read: it must not change in between."""

    @classmethod
    def check(cls, path: Path, say: Say = silent) -> "TextFile":
        """Read over a file once, so that it is known to be UTF-8. Raises OSError and UserError."""
        with path.open("rb") as file:
            state = state_of(file)
            progress = speak(say, "reading", state[0], small=10**6)
            start, num_characters = count_characters(file, path, progress)
        return cls(path, start, state[0], num_characters, state)

    def __len__(self) -> int:
        return self.num_characters

    def pieces(self) -> Iterator[str]:
        """The text in pieces whose tokens, one after the other, are those of the whole."""
        with self.open() as file:
            for text, _ in read_pieces(file, self.start, self.stop, path=self.path):
                yield text

    def divide(self, cut: int) -> "tuple[TextFile, TextFile]":
        """The first `cut` characters, or all, and the others."""
        cut = min(cut, len(self))
        middle, left = self.start, cut
        for text in self.pieces():
            if left == 0:
                break
            piece = text[:left]
            middle, left = middle + len(piece.encode()), left - len(piece)
        first = replace(self, stop=middle, num_characters=cut)
        return first, replace(self, start=middle, num_characters=len(self) - cut)

    def open(self) -> IO[bytes]:
        """The file, as long as it is the one that was checked."""
        shown = repr(str(self.path))
        try:
            file = self.path.open("rb")
        except OSError as error:
            raise UserError(f"data file {shown} cannot be read: {error.strerror}") from None
        if state_of(file) != self.state:
            file.close()
            raise UserError(f"data file {shown} changed while it was read: start again")
        return file


def state_of(file: IO[bytes]) -> tuple[int, int]:
    """Size and time of change, in nanoseconds, of an open file."""
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns


def count_characters(
    file: IO[bytes], path: Path, progress: Callable[[int], None] = lambda done: None
) -> tuple[int, int]:
    """Where the text begins in a file of UTF-8, after a byte order mark, and its characters."""
    start = len(codecs.BOM_UTF8) if file.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8 else 0
    file.seek(start)
    count, offset, lines, held = 0, start, 0, b""
    while True:
        progress(offset)
        chunk = file.read(BLOCK_BYTES)
        held += chunk
        try:
            text, used = codecs.utf_8_decode(held, "strict", not chunk)
        except UnicodeDecodeError as error:
            file.seek(0)
            guess = " and looks like UTF-16" if file.read(2) in (b"\xff\xfe", b"\xfe\xff") else ""
            line = lines + held.count(b"\n", 0, error.start) + 1
            raise UserError(
                f"data file {str(path)!r} is not UTF-8{guess}: byte 0x{held[error.start]:02x} at "
                f"offset {offset + error.start}, line {line}; convert it to UTF-8 first"
            ) from None
        if not chunk:
            return start, count
        count, offset, lines = count + len(text), offset + used, lines + text.count("\n")
        held = held[used:]


Document = str | TextFile


def to_pieces(document: Document) -> Iterator[str]:
    """The text of a document: that of a file in pieces, another whole."""
    return iter([document]) if isinstance(document, str) else document.pieces()


def to_bytes(text: str) -> bytes:
    """UTF-8. Half a surrogate pair, which has none, is taken as it is."""
    return text.encode("utf-8", errors="surrogatepass")


def count_bytes(document: Document) -> int:
    if isinstance(document, TextFile):
        return document.stop - document.start
    return len(to_bytes(document))


def divide(document: Document, cut: int) -> tuple[Document, Document]:
    """The first `cut` characters, or all, and the others."""
    if isinstance(document, TextFile):
        return document.divide(cut)
    return document[:cut], document[cut:]


@dataclass(frozen=True)
class Corpus:
    """Documents in order, and what they are called."""

    name: str
    parts: tuple[Document, ...]

    @property
    def documents(self) -> tuple[str, ...]:
        """The texts themselves, all in memory."""
        return tuple("".join(to_pieces(part)) for part in self.parts)

    @property
    def num_characters(self) -> int:
        return sum(map(len, self.parts))

    @cached_property
    def num_bytes(self) -> int:
        """Bytes of all documents in UTF-8, the denominator of bits per byte."""
        return sum(map(count_bytes, self.parts))

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the documents, each after its length, so that no two divisions agree."""
        digest = hashlib.sha256()
        for part in self.parts:
            digest.update(count_bytes(part).to_bytes(8, "little"))
            for text in to_pieces(part):
                digest.update(to_bytes(text))
        return digest.hexdigest()

    def split(self, validation_fraction: float) -> tuple["Corpus", "Corpus"]:
        """The first part, and the last `validation_fraction` of the characters.

        The text is cut as a whole, at int((1 - f) * characters) with f taken as the decimal number
        it was written as; a document across the border is cut in two. Both parts keep the name.
        """
        if not 0 <= validation_fraction < 1:
            raise UserError(f"validation fraction {validation_fraction}: give 0 or more, below 1")
        # In floating point, (1 - 0.9) * 10 is a little less than 1: the cut would be off by one.
        cut = int((1 - Fraction(str(validation_fraction))) * self.num_characters)
        first: list[Document] = []
        last: list[Document] = []
        for part in self.parts:
            before, after = divide(part, cut)
            first += [before] if len(before) else []
            last += [after] if len(after) else []
            cut = max(0, cut - len(part))
        return Corpus(self.name, tuple(first)), Corpus(self.name, tuple(last))

    def tokens(self, tokenizer: Tokenizer, *, say: Say = silent) -> NDArray[np.uint16]:
        """All documents as one array (num_tokens,), `tokenizer.eot` between two documents.

        A single document therefore has none: tiny Shakespeare is the lecture's 338,025 tokens.
        Text that looks like a special token is encoded as the plain text it is.
        """
        if tokenizer.vocab_size > 1 << 16:
            raise UserError(f"vocabulary of {tokenizer.vocab_size}: tokens are uint16, <= 65536")
        # No token is shorter than a byte. Memory that is never written to takes no room.
        tokens = np.empty(self.num_bytes + len(self.parts), dtype=np.uint16)
        count = done = 0
        # a megabyte takes a twentieth of a second
        progress = speak(say, "encoding", self.num_bytes, small=10**7)
        progress(done)
        for number, part in enumerate(self.parts):
            if number:
                tokens[count] = tokenizer.eot
                count += 1
            for text in to_pieces(part):
                for ids in encode_pieces(text, tokenizer):
                    tokens[count : count + len(ids)] = ids
                    count += len(ids)
                done += count_bytes(text)
                progress(done)
        tokens.resize(count, refcheck=False)
        return tokens
