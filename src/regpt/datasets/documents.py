"""Input files as a stream of blocks: about a megabyte of documents each, in a fixed order.

| file | document |
|---|---|
| .jsonl, .jsonl.gz, .jsonl.zst | the text field of a line |
| .parquet | the text column of a row |
| .txt | the file; one of 64 KiB or more is two, divided where validation begins |

Only reading happens here, in one process; blocks travel to the processes that parse and encode them
(encode.py). Memory is bounded by the block, or by the longest line. A `.txt` of any size is one
document, so it is cut where the tokens cannot notice: before a whitespace character that something
else follows. GPT-2's pattern never lets a piece run across such a place, and cuts the whitespace
before it in the same way whether or not the text goes on. A stretch without such a place (a page of
empty lines, a genome) stays whole up to a million characters; only a longer one is cut anywhere.

Every block carries the `Place` after it, three integers from which reading can go on.
"""

import codecs
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from regpt.datasets.manifest import Split
from regpt.datasets.sources import Source, import_optional, open_lines, stream_errors
from regpt.system.errors import UserError

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

BLOCK_BYTES = 1 << 20
BOOK_BYTES = 1 << 16
"""A .txt of this size is divided between training and validation; a shorter one is one block."""
LONGEST_STRETCH = 1 << 20
"""Characters without a safe place to cut that are kept together."""
PARQUET_ROWS = 64
assert BOOK_BYTES <= BLOCK_BYTES
BYTE_ORDER_MARK = "\N{ZERO WIDTH NO-BREAK SPACE}"

# Unicode's White_Space, which is what \s means to the tokenizer. Python's \s has four more.
WHITESPACE = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
SAFE_CUT = re.compile(rf"(?=[{WHITESPACE}][^{WHITESPACE}])")
LAST_SAFE_CUT = re.compile(rf"(?s:.+){SAFE_CUT.pattern}")


def find_safe_cut(text: str, start: int, stop: int) -> int | None:
    """The last place in start+1 .. stop-2 where cutting `text` changes no token; None if none."""
    found = LAST_SAFE_CUT.match(text, start, stop)
    return found.end() if found else None


def find_next_safe_cut(text: str, start: int, stop: int) -> int | None:
    """The first place in start .. stop-2 where cutting `text` changes no token; None if none."""
    found = SAFE_CUT.search(text, start, stop)
    return found.start() if found else None


@dataclass(frozen=True)
class Place:
    """Where reading stands in source number `source`."""

    source: int = 0
    offset: int = 0
    """Bytes of text, decompressed, before this place (0 for parquet)."""
    record: int = 0
    """Lines or rows before this place (0 for text)."""


@dataclass(frozen=True)
class Block:
    """Some documents, or a piece of one, of one source."""

    source: Source
    content: str | bytes | list[str | None]
    """A piece of text; whole lines of jsonl; the texts of parquet rows."""
    first_record: int
    """The number of the first line or row, from 1 on, for messages."""
    begins_document: bool
    """False for the later pieces of a text."""
    split: Split | None
    """The split if it is decided already; else the document's digest decides (encode.py)."""
    after: Place
    source_bytes: int
    """Bytes of the file on disk that are read after this block, for progress."""

    @property
    def size(self) -> int:
        """Roughly the bytes of the content."""
        if isinstance(self.content, list):
            return sum(len(text) for text in self.content if isinstance(text, str))
        return len(self.content)


def read_blocks(
    sources: Sequence[Source], *, place: Place, text_field: str, val_every: int
) -> Iterator[Block]:
    """The blocks of all sources from `place` on. `val_every`: see encode.py."""
    for index in range(place.source, len(sources)):
        source = sources[index]
        start = place if index == place.source else Place(source=index)
        try:
            if source.kind == "text":
                yield from _read_text(source, start, val_every=val_every)
            elif source.kind == "jsonl":
                yield from _read_lines(source, start)
            else:
                yield from _read_rows(source, start, text_field=text_field)
        except OSError as error:
            raise UserError(f"cannot read {source.path}: {error.strerror or error}") from None


# ---- .txt ----


def find_validation_start(file: IO[bytes], *, size: int, val_every: int) -> int:
    """Where the validation part of a text begins, as a byte offset; `size` if there is none.

    It is the first line that begins in the last 1/val_every of the bytes; without a line end in
    the next megabyte, the first character there.
    """
    if val_every == 0:
        return size
    start = size - size // val_every
    file.seek(start)
    ahead = file.read(BLOCK_BYTES)
    line = ahead.find(b"\n") + 1
    if line:
        return start + line
    while ahead and ahead[0] & 0xC0 == 0x80:  # inside a character
        start, ahead = start + 1, ahead[1:]
    return start


def _read_text(source: Source, place: Place, *, val_every: int) -> Iterator[Block]:
    with source.path.open("rb") as file:
        if source.bytes < BOOK_BYTES:
            parts: list[tuple[int, int, Split | None]] = [(0, source.bytes, None)]
        else:
            border = find_validation_start(file, size=source.bytes, val_every=val_every)
            parts = [(0, border, "train"), (border, source.bytes, "val")]
        for start, stop, split in parts:
            offset = max(start, place.offset)
            for text, end in read_pieces(file, offset, stop, path=source.path):
                begins = offset == start
                if offset == 0:
                    text = text.removeprefix(BYTE_ORDER_MARK)
                yield Block(source, text, 0, begins, split, Place(place.source, end), end)
                offset = end


def read_pieces(
    file: IO[bytes], offset: int, stop: int, *, path: Path
) -> Iterator[tuple[str, int]]:
    """The text between two bytes in pieces of about a megabyte, each with the offset of its end.

    The pieces' tokens, one after the other, are those of the whole.
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


# ---- .jsonl ----


def _read_lines(source: Source, place: Place) -> Iterator[Block]:
    record, offset = place.record, place.offset
    try:
        with open_lines(source, offset) as (stream, file):
            while content := stream.read(BLOCK_BYTES):
                content += stream.readline()  # up to the end of a line
                begins, offset = offset == 0, offset + len(content)
                lines = content.count(b"\n") + (not content.endswith(b"\n"))
                if begins:
                    content = content.removeprefix(codecs.BOM_UTF8)
                first, record = record + 1, record + lines
                after = Place(place.source, offset, record)
                yield Block(source, content, first, True, None, after, file.tell())
    except stream_errors() as error:
        raise UserError(
            f"{source.path} is cut short or damaged after line {record} ({error}): get it again"
        ) from None


# ---- .parquet ----


def _read_rows(source: Source, place: Place, *, text_field: str) -> Iterator[Block]:
    pyarrow, parquet = import_optional("pyarrow"), import_optional("pyarrow.parquet")
    record = place.record
    try:
        with parquet.ParquetFile(source.path, pre_buffer=False) as file:
            names = file.schema_arrow.names
            if text_field not in names:
                raise UserError(
                    f"{source.path} has no column {text_field!r}, only {', '.join(names)}"
                )
            for texts in _read_column(file, text_field, record):
                first, record = record + 1, record + len(texts)
                read = source.bytes * record // file.metadata.num_rows
                after = Place(place.source, 0, record)
                yield Block(source, texts, first, True, None, after, read)
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{source.path} is damaged after row {record} ({reason}): get it again"
        ) from None


def _read_column(file: "ParquetFile", name: str, first: int) -> Iterator[list[str | None]]:
    """The values of a column from row `first` on, in lists of about a megabyte."""
    gathered: list[str | None] = []
    size = 0
    for group in range(file.num_row_groups):
        in_group = file.metadata.row_group(group).num_rows
        if first >= in_group:
            first -= in_group
            continue
        for batch in file.iter_batches(PARQUET_ROWS, row_groups=[group], columns=[name]):
            values = batch.column(0).slice(first).to_pylist()
            first = max(0, first - len(batch))
            gathered += values
            size += sum(len(text) for text in values if isinstance(text, str))
            if size >= BLOCK_BYTES:
                yield gathered
                gathered, size = [], 0
    if gathered:
        yield gathered
