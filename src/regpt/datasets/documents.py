"""One block of documents to tokens, split by split: what a process of `prepare` does.

`<|endoftext|>` stands *before* every document, as in the lecture's shards: a model then knows the
token as the beginning of a text, and sampling without a prompt starts from it.

Which split a document belongs to follows from its text alone: with `val_every` N, it is validation
if the first 8 bytes of the sha256 of its UTF-8, as a big-endian number, are divisible by N. No
order, number of processes or restart changes that, and two copies of a document never end up on
both sides.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from regpt.core.tokenizer import get_tokenizer
from regpt.datasets.corpus import to_bytes
from regpt.datasets.encode import encode_pieces
from regpt.datasets.manifest import SPLITS, Split
from regpt.datasets.shards import TOKEN
from regpt.datasets.sources import BOOK_BYTES, InputBlock
from regpt.system.json_text import field, parse_object

END_OF_TEXT_RULE = "<|endoftext|> (50256) stands before each document"


def describe_split_rule(val_every: int) -> str:
    if val_every == 0:
        return "every document is for training"
    return (
        f"a document is for validation if the first 8 bytes of the sha256 of its UTF-8, as a "
        f"big-endian number, are divisible by {val_every}; of a .txt file of at least {BOOK_BYTES} "
        f"bytes, the lines that begin in the last 1/{val_every} of its bytes are"
    )


def choose_split(text_bytes: bytes, val_every: int) -> Split:
    if val_every == 0:
        return "train"
    number = int.from_bytes(hashlib.sha256(text_bytes).digest()[:8], "big")
    return "val" if number % val_every == 0 else "train"


def read_texts(block: InputBlock, text_field: str) -> Iterator[str]:
    """The texts of a block's documents. Raises UserError naming the line or row that has none."""
    if isinstance(block.content, str):
        yield block.content
    elif isinstance(block.content, bytes):
        for number, line in enumerate(block.content.split(b"\n"), block.first_record):
            if line and not line.isspace():
                record = parse_object(line, block.path, number)
                yield field(record, text_field, str, where=f"{block.path} line {number}")
    else:
        for number, text in enumerate(block.content, block.first_record):
            yield field({text_field: text}, text_field, str, where=f"{block.path} row {number}")


@dataclass
class EncodedSplit:
    """The tokens of one block that belong to one split."""

    tokens: np.ndarray
    """uint16 (n,)."""
    documents: int
    """Documents that begin in this block."""
    text_bytes: int


def encode_block(
    block: InputBlock, *, text_field: str, val_every: int
) -> dict[Split, EncodedSplit]:
    """The tokens of a block. Raises UserError, naming file and line or row, for what is no text."""
    tokenizer = get_tokenizer()
    pieces: dict[Split, list[np.ndarray]] = {split: [] for split in SPLITS}
    documents, text_bytes = dict.fromkeys(SPLITS, 0), dict.fromkeys(SPLITS, 0)
    for text in read_texts(block, text_field):
        if not text:
            continue
        data = to_bytes(text)  # JSON can hold half a surrogate pair; the tokenizer makes it U+FFFD
        split = block.split or choose_split(data, val_every)
        if block.begins_document:
            pieces[split].append(np.array([tokenizer.eot], dtype=np.uint32))
            documents[split] += 1
        pieces[split] += encode_pieces(text, tokenizer)
        text_bytes[split] += len(data)
    return {
        split: EncodedSplit(
            tokens=np.concatenate(found, dtype=TOKEN, casting="unsafe"),
            documents=documents[split],
            text_bytes=text_bytes[split],
        )
        for split, found in pieces.items()
        if found
    }
