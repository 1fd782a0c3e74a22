"""Input files of `prepare`: found in a fixed order, read as blocks of about a megabyte.

| file | document |
|---|---|
| .jsonl, .jsonl.gz, .jsonl.zst | the text field of a line |
| .parquet | the text column of a row |
| .txt | the file; one of 64 KiB or more is two, divided where validation begins |

Only reading happens here, in one process; blocks travel to the processes that parse and encode them
(documents.py). Memory is bounded by the block, or by the longest line. The blocks of the same files
are the same each time, so their number says how far a preparation is.
"""

import importlib
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import IO, Literal

from regpt.datasets import encode
from regpt.datasets.manifest import Split
from regpt.system.errors import UserError

InputFormat = Literal["text", "jsonl", "parquet"]
INPUT_FORMATS: dict[str, InputFormat] = {
    ".txt": "text",
    ".jsonl": "jsonl",
    ".jsonl.gz": "jsonl",
    ".jsonl.zst": "jsonl",
    ".parquet": "parquet",
}
ENDINGS = ", ".join(INPUT_FORMATS)
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
BOOK_BYTES = 1 << 16
"""A .txt of this size is divided between training and validation; a shorter one is one block."""
PARQUET_ROWS = 64
BYTE_ORDER_MARK = "\N{ZERO WIDTH NO-BREAK SPACE}"


@dataclass(frozen=True)
class Source:
    path: Path
    name: str
    """Its path from the input argument on, so that manifests are the same wherever texts lie."""
    format: InputFormat
    bytes: int
    modified: int
    """Time of the last change in ns: a preparation is not continued on other contents."""


@dataclass
class InputBlock:
    """Some documents, or a piece of one."""

    path: Path
    content: str | bytes | list[str | None]
    """A piece of text; whole lines of jsonl; the texts of parquet rows."""
    bytes_read: int
    """Bytes on disk that are read after this block, for progress."""
    first_record: int = 0
    """The number of the first line or row, from 1 on, for messages."""
    begins_document: bool = True
    """False for the later pieces of a text."""
    split: Split | None = None
    """The split if it is decided already; else the document's digest decides."""


def find_sources(inputs: Sequence[str | Path]) -> list[Source]:
    """The files of all inputs, in order; a folder gives its own, recursively, sorted by path.

    A file that is named twice counts once. Raises UserError for what is missing, of another format
    or empty; in a folder, empty files and files of other formats are passed over.
    """
    sources: dict[Path, Source] = {}
    for given in map(Path, inputs):
        for path in _find_files(given):
            status, found = path.stat(), find_format(path)
            assert found is not None
            name = path.relative_to(given.parent).as_posix()
            source = Source(path, name, found, status.st_size, status.st_mtime_ns)
            sources.setdefault(path.resolve(), source)
    if not sources:
        raise UserError(f"no input: give files or folders of {ENDINGS}")
    return list(sources.values())


def _find_files(given: Path) -> list[Path]:
    if given.is_dir():
        files = [path for path in given.rglob("*") if find_format(path) and path.is_file()]
        files = [path for path in files if path.stat().st_size]
        if not files:
            raise UserError(f"{given} has no file with text in it: need {ENDINGS}")
        return sorted(files, key=lambda path: path.parts)
    if not given.is_file():
        raise UserError(f"{given} does not exist: give files or folders of {ENDINGS}")
    if find_format(given) is None:
        raise UserError(f"{given} is of an unknown kind: regpt prepare reads {ENDINGS}")
    if given.stat().st_size == 0:
        raise UserError(f"{given} is empty: give a file with text in it")
    return [given]


def find_format(path: Path) -> InputFormat | None:
    """What a file holds, by the end of its name; None if it is nothing we read."""
    name = path.name.lower()
    for ending, found in INPUT_FORMATS.items():
        if name.endswith(ending):
            return found
    return None


def read_blocks(
    sources: Sequence[Source], *, text_field: str, val_every: int
) -> Iterator[InputBlock]:
    """The blocks of all sources. `val_every`: see documents.py."""
    before = 0
    for source in sources:
        if source.format == "text":
            blocks = _read_text(source, val_every=val_every)
        elif source.format == "jsonl":
            blocks = _read_lines(source)
        else:
            blocks = _read_rows(source, text_field=text_field)
        try:
            for block in blocks:
                block.bytes_read += before
                yield block
        except OSError as error:
            raise UserError(f"cannot read {source.path}: {error.strerror or error}") from None
        before += source.bytes


def _read_text(source: Source, *, val_every: int) -> Iterator[InputBlock]:
    with source.path.open("rb") as file:
        parts: list[tuple[int, int, Split | None]] = [(0, source.bytes, None)]
        if source.bytes >= BOOK_BYTES:
            border = find_validation_start(file, size=source.bytes, val_every=val_every)
            parts = [(0, border, "train"), (border, source.bytes, "val")]
        for start, stop, split in parts:
            offset = start
            for text, end in encode.read_pieces(file, start, stop, path=source.path):
                if offset == 0:
                    text = text.removeprefix(BYTE_ORDER_MARK)
                begins = offset == start
                yield InputBlock(source.path, text, end, begins_document=begins, split=split)
                offset = end


def find_validation_start(file: IO[bytes], *, size: int, val_every: int) -> int:
    """Where the validation part of a text begins, as a byte offset; `size` if there is none.

    It is the first line that begins in the last 1/val_every of the bytes; without a line end in
    the next megabyte, the first character there.
    """
    if val_every == 0:
        return size
    start = size - size // val_every
    file.seek(start)
    ahead = file.read(encode.BLOCK_BYTES)
    line = ahead.find(b"\n") + 1
    if line:
        return start + line
    while ahead and ahead[0] & 0xC0 == 0x80:  # inside a character
        start, ahead = start + 1, ahead[1:]
    return start


def _read_lines(source: Source) -> Iterator[InputBlock]:
    record = 0
    try:
        with open_lines(source.path) as (stream, file):
            while content := stream.read(encode.BLOCK_BYTES):
                content += stream.readline()  # up to the end of a line
                yield InputBlock(source.path, content, file.tell(), record + 1)
                record += content.count(b"\n")
    except OSError as error:
        if error.errno is not None:
            raise
        raise UserError(
            f"{source.path} is cut short or damaged after line {record} ({error}): get it again"
        ) from None


@contextmanager
def open_lines(path: Path) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """A .jsonl file, decompressed; and the file on disk, whose position tells the progress.

    Reading raises OSError without a number if a compressed file is cut short or damaged.
    """
    with path.open("rb") as file:
        compression = COMPRESSIONS.get(path.suffix.lower())
        if compression is None:
            yield file, file
            return
        pyarrow = import_optional("pyarrow")
        stream = pyarrow.CompressedInputStream(pyarrow.PythonFile(file), compression)
        with io.BufferedReader(stream, 1 << 20) as lines:
            yield lines, file


def _read_rows(source: Source, *, text_field: str) -> Iterator[InputBlock]:
    pyarrow, parquet = import_optional("pyarrow"), import_optional("pyarrow.parquet")
    record = size = 0
    texts: list[str | None] = []
    try:
        with parquet.ParquetFile(source.path, pre_buffer=False) as file:
            names, num_rows = file.schema_arrow.names, file.metadata.num_rows
            if text_field not in names:
                raise UserError(
                    f"{source.path} has no column {text_field!r}, only {', '.join(names)}"
                )
            for batch in file.iter_batches(PARQUET_ROWS, columns=[text_field]):
                values = batch.column(0).to_pylist()
                texts += values
                size += sum(len(text) for text in values if isinstance(text, str))
                if size >= encode.BLOCK_BYTES:
                    first, record = record + 1, record + len(texts)
                    done = source.bytes * record // num_rows
                    yield InputBlock(source.path, texts, done, first)
                    texts, size = [], 0
            if texts:
                yield InputBlock(source.path, texts, source.bytes, record + 1)
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{source.path} is damaged after row {record} ({reason}): get it again"
        ) from None


def import_optional(name: str) -> ModuleType:
    """A module of the extra `data`; UserError with the line that installs it if it is missing."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        package = name.partition(".")[0]
        raise UserError(
            f"this input needs {package}: pip install -c constraints.txt 'regpt[data]'"
        ) from None
