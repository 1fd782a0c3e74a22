"""Input files: finding them in a fixed order, and opening what is compressed.

A file is known by the end of its name (`KINDS`). Its `name` in manifests starts at the input
argument, so that the same texts give the same manifest wherever they lie.
"""

import gzip
import importlib
import io
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import IO, Literal

from regpt.system.errors import UserError

Kind = Literal["text", "jsonl", "parquet"]
KINDS: dict[str, Kind] = {
    ".txt": "text",
    ".jsonl": "jsonl",
    ".jsonl.gz": "jsonl",
    ".jsonl.zst": "jsonl",
    ".parquet": "parquet",
}
CHUNK_BYTES = 1 << 14


@dataclass(frozen=True)
class Source:
    """One input file."""

    path: Path
    name: str
    """Its path from the input argument on."""
    kind: Kind
    bytes: int
    modified: int
    """Time of the last change in ns: a preparation is not continued on other contents."""


def find_sources(inputs: Sequence[str | Path]) -> list[Source]:
    """The files of all inputs, in order; a folder gives its own, recursively, sorted by path.

    A file that is named twice counts once. Raises UserError for what is missing, of another kind
    or empty; in a folder, empty files and files of other kinds are passed over.
    """
    sources: dict[Path, Source] = {}
    for given in map(Path, inputs):
        for path in _find_files(given):
            status, kind = path.stat(), find_kind(path)
            assert kind is not None
            name = path.relative_to(given.parent).as_posix()
            source = Source(path, name, kind, status.st_size, status.st_mtime_ns)
            sources.setdefault(path.resolve(), source)
    if not sources:
        raise UserError(f"no input: give files or folders of {', '.join(KINDS)}")
    return list(sources.values())


def _find_files(given: Path) -> list[Path]:
    if given.is_dir():
        files = [path for path in given.rglob("*") if find_kind(path) and path.is_file()]
        if not any(path.stat().st_size for path in files):
            raise UserError(f"{given} has no file with text in it: need {', '.join(KINDS)}")
        return sorted((p for p in files if p.stat().st_size), key=lambda p: p.parts)
    if not given.is_file():
        raise UserError(f"{given} does not exist: give files or folders of {', '.join(KINDS)}")
    if find_kind(given) is None:
        raise UserError(f"{given} is of an unknown kind: regpt prepare reads {', '.join(KINDS)}")
    if given.stat().st_size == 0:
        raise UserError(f"{given} is empty: give a file with text in it")
    return [given]


def find_kind(path: Path) -> Kind | None:
    """What a file holds, by the end of its name; None if it is nothing we read."""
    name = path.name.lower()
    return next((kind for ending, kind in KINDS.items() if name.endswith(ending)), None)


class ZstandardReader(io.RawIOBase):
    """The decompressed bytes of a .zst file. The package's own reader takes a file that is cut
    short for a file that ends; this one raises EOFError."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._new = import_optional("zstandard").ZstdDecompressor
        self._frame = None
        self._ready = b""

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]
        """Fill some of the buffer; 0 at the end of the last frame."""
        compressed = b""
        while not self._ready:
            compressed = compressed or self._file.read(CHUNK_BYTES)
            if not compressed:
                if self._frame is not None:
                    raise EOFError("the last zstandard frame has no end")
                return 0
            self._frame = self._frame or self._new().decompressobj()
            self._ready, compressed = self._frame.decompress(compressed), b""
            if self._frame.eof:
                compressed, self._frame = self._frame.unused_data, None
        count = min(len(buffer), len(self._ready))
        buffer[:count], self._ready = self._ready[:count], self._ready[count:]
        if compressed:  # the beginning of the next frame
            self._file.seek(-len(compressed), io.SEEK_CUR)
        return count


@contextmanager
def open_lines(source: Source, offset: int) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """A .jsonl file, decompressed, from byte `offset` of the text on; and the file on disk, whose
    position tells the progress. A compressed one has to be read up to the offset."""
    with source.path.open("rb") as file:
        suffix = source.path.suffix.lower()
        if suffix not in (".gz", ".zst"):
            file.seek(offset)
            yield file, file
            return
        raw = gzip.GzipFile(fileobj=file) if suffix == ".gz" else ZstandardReader(file)
        stream = io.BufferedReader(raw, 1 << 20)
        while offset:
            skipped = len(stream.read(min(offset, 1 << 20)))
            if not skipped:
                raise EOFError("it became shorter")
            offset -= skipped
        yield stream, file


def stream_errors() -> tuple[type[Exception], ...]:
    """What a compressed file that is cut short or damaged raises."""
    errors: tuple[type[Exception], ...] = (EOFError, gzip.BadGzipFile, zlib.error)
    try:
        return (*errors, importlib.import_module("zstandard").ZstdError)
    except ModuleNotFoundError:
        return errors


def import_optional(name: str) -> ModuleType:
    """A module of the extra `data`; UserError with the line that installs it if it is missing."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        package = name.partition(".")[0]
        raise UserError(
            f"this input needs {package}: pip install -c constraints.txt 'regpt[data]'"
        ) from None
