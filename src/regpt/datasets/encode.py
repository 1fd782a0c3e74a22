"""One block of documents to tokens, split by split: what a worker process does.

`<|endoftext|>` stands *before* every document, as in the lecture's shards: a model then knows the
token as the beginning of a text, and sampling without a prompt starts from it.

Which split a document belongs to follows from its text alone: with `val_every` N, it is validation
if the first 8 bytes of the sha256 of its UTF-8, as a big-endian number, are divisible by N. No
order, number of processes or restart changes that, and two copies of a document never end up on
both sides.

tiktoken, up to some version, is quadratic in the length of a string without whitespace, and panics
on a million spaces before a letter. Text is therefore given to it in pieces of about 65,536
characters, cut where no token changes (documents.py): what is encoded here in pieces, for training,
evaluation and shards, has the tokens of the whole text. Only a stretch of a million characters
without one such place, which is no text anybody wrote, is cut anywhere.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from regpt.core.tokenizer import Tokenizer
from regpt.datasets.documents import (
    BOOK_BYTES,
    LONGEST_STRETCH,
    Block,
    find_next_safe_cut,
    find_safe_cut,
)
from regpt.datasets.manifest import Split
from regpt.system.errors import UserError
from regpt.system.json_text import parse_json

PIECE_CHARACTERS = 1 << 16
END_OF_TEXT_RULE = "<|endoftext|> (50256) stands before each document"


def describe_split_rule(val_every: int) -> str:
    """The split rule in words, for the manifest."""
    if val_every == 0:
        return "every document is for training"
    return (
        f"a document is for validation if the first 8 bytes of the sha256 of its UTF-8, as a "
        f"big-endian number, are divisible by {val_every}; of a .txt file of at least {BOOK_BYTES} "
        f"bytes, the lines that begin in the last 1/{val_every} of its bytes are"
    )


def choose_split(text_bytes: bytes, val_every: int) -> Split:
    """The split of a document, by its UTF-8."""
    if val_every == 0:
        return "train"
    number = int.from_bytes(hashlib.sha256(text_bytes).digest()[:8], "big")
    return "val" if number % val_every == 0 else "train"


@dataclass
class EncodedSplit:
    """The tokens of one block that belong to one split."""

    tokens: np.ndarray = field(default_factory=lambda: np.empty(0, dtype="<u2"))
    """uint16 (n,)."""
    documents: int = 0
    """Documents that begin in this block."""
    text_bytes: int = 0


def encode_block(
    block: Block, tokenizer: Tokenizer, *, text_field: str, val_every: int
) -> dict[Split, EncodedSplit]:
    """Encode a block. Raises UserError, naming file and line or row, for what is no text."""
    tokens: dict[Split, list[np.ndarray]] = {"train": [], "val": []}
    encoded: dict[Split, EncodedSplit] = {"train": EncodedSplit(), "val": EncodedSplit()}
    end_of_text = np.array([tokenizer.eot], dtype=np.uint32)
    for text in read_texts(block, text_field):
        if not text:
            continue
        # JSON can hold half a surrogate pair, which has no UTF-8; the tokenizer makes it U+FFFD.
        text_bytes = text.encode("utf-8", errors="surrogatepass")
        split = block.split or choose_split(text_bytes, val_every)
        if block.begins_document:
            tokens[split].append(end_of_text)
            encoded[split].documents += 1
        tokens[split] += encode_pieces(text, tokenizer)
        encoded[split].text_bytes += len(text_bytes)
    for split, pieces in tokens.items():
        if pieces:
            encoded[split].tokens = np.concatenate(pieces, dtype="<u2", casting="unsafe")
    return encoded


def encode_pieces(text: str, tokenizer: Tokenizer) -> Iterator[np.ndarray]:
    """The ids of a text, uint32 (n,) each, piece by piece."""
    return map(tokenizer.encode_array, cut_pieces(text))


def cut_pieces(text: str) -> Iterator[str]:
    """The text in pieces that are quick to encode and have, together, the same tokens."""
    start = 0
    while start < len(text):
        limit, longest = start + PIECE_CHARACTERS, start + LONGEST_STRETCH
        if limit >= len(text):
            stop = len(text)
        else:
            stop = (
                find_safe_cut(text, start, limit)
                or find_next_safe_cut(text, limit - 1, longest)
                or longest
            )
        yield text[start:stop]
        start = stop


def read_texts(block: Block, text_field: str) -> Iterator[str]:
    """The texts of a block's documents."""
    where = block.source.path
    if isinstance(block.content, str):
        yield block.content
    elif isinstance(block.content, bytes):
        for number, line in enumerate(block.content.split(b"\n"), block.first_record):
            if line and not line.isspace():
                yield _parse_line(line, text_field, where=f"{where}: line {number}")
    else:
        for number, text in enumerate(block.content, block.first_record):
            if not isinstance(text, str):
                raise UserError(
                    f"{where}: row {number}: {text_field!r} is {_kind(text)}, not a text"
                )
            yield text


def _parse_line(line: bytes, text_field: str, *, where: str) -> str:
    try:
        record = parse_json(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where} is not UTF-8: byte 0x{line[error.start]:02x} at column {error.start + 1}; "
            f"convert the file first"
        ) from None
    except json.JSONDecodeError as error:
        raise UserError(
            f"{where} is not JSON ({error.msg} at column {error.colno}): mend or remove it"
        ) from None
    except (ValueError, RecursionError) as error:  # numbers too long, nesting too deep
        raise UserError(f"{where} is not usable JSON ({error}): mend or remove it") from None
    if not isinstance(record, dict):
        raise UserError(f"{where} is {_kind(record)}, not an object with a {text_field!r} field")
    if text_field not in record:
        names = ", ".join(list(record)[:8]) or "none"
        raise UserError(f"{where} has no {text_field!r} field, its fields: {names}")
    text = record[text_field]
    if not isinstance(text, str):
        raise UserError(f"{where}: {text_field!r} is {_kind(text)}, not a text")
    return text


def _kind(value: object) -> str:
    """What a value that should have been a text is, in JSON's words."""
    names = {str: "a text", list: "a list", dict: "an object", int: "a number", float: "a number"}
    return names.get(type(value), json.dumps(value, default=lambda _: type(value).__name__))
