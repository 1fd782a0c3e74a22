"""manifest.json: what a directory of shards holds and how it came about.

Everything in it follows from the inputs and the settings: no times, no paths of a machine, no
number of processes. The same texts therefore give the same bytes everywhere, manifest included,
and its digests identify the data wherever it is copied to.

    {"format": "regpt-shards", "version": 1,
     "tokenizer": {"digest": "306c...", "vocab_size": 50257},
     "end_of_text": "...", "split_rule": "...", "text_field": "text", "shard_tokens": 100000000,
     "splits": {"train": {"documents": 7, "tokens": 4321, "text_bytes": 17284}, "val": {...}},
     "shards": [{"file": "train_000000.bin", "split": "train", "tokens": 4321, "sha256": "..."}],
     "sources": [{"name": "books/emma.txt", "bytes": 17284}]}
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from regpt.core.tokenizer import DIGEST, VOCAB_SIZE
from regpt.system.errors import UserError
from regpt.system.files import replace_files
from regpt.system.json_text import from_object, read_json

NAME = "manifest.json"
FORMAT = "regpt-shards"
VERSION = 1

Split = Literal["train", "val"]
SPLITS: tuple[Split, ...] = ("train", "val")


@dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """One shard file, by its name in the directory."""

    file: str
    split: Split
    tokens: int
    sha256: str


@dataclass(kw_only=True)
class SplitRecord:
    """What one split amounts to, over all its shards."""

    documents: int = 0
    tokens: int = 0
    """Tokens on disk, the end-of-text tokens included."""
    text_bytes: int = 0
    """UTF-8 bytes of the documents: what bits per byte are counted against."""


@dataclass(frozen=True, kw_only=True)
class SourceRecord:
    """One input file: its name from the input argument on, and its size on disk."""

    name: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class TokenizerRecord:
    digest: str
    vocab_size: int


@dataclass(frozen=True, kw_only=True)
class Manifest:
    format: str = FORMAT
    version: int = VERSION
    tokenizer: TokenizerRecord = TokenizerRecord(digest=DIGEST, vocab_size=VOCAB_SIZE)
    end_of_text: str
    split_rule: str
    text_field: str
    """Which field of .jsonl or column of .parquet held the text."""
    shard_tokens: int
    """Tokens of every shard but the last of a split."""
    splits: dict[Split, SplitRecord]
    shards: tuple[ShardRecord, ...]
    sources: tuple[SourceRecord, ...]

    def fingerprint(self, split: Split) -> str:
        """sha256 over the digests of the split's shards, in order: identifies its tokens."""
        digests = (f"{s.sha256} {s.tokens}\n" for s in self.shards if s.split == split)
        return hashlib.sha256("".join(digests).encode()).hexdigest()

    def write(self, directory: Path) -> None:
        replace_files(directory, {NAME: dump_json(asdict(self))})

    @classmethod
    def read(cls, directory: Path) -> "Manifest | None":
        """The manifest of a directory of shards; None if it has none."""
        path = directory / NAME
        try:
            content = read_json(path)
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise UserError(f"{path} is damaged ({error}): prepare the data again") from None
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise UserError(f"{path} is not a manifest of regpt shards: move it out of the way")
        if content.get("version") != VERSION:
            raise UserError(
                f"{path} has format version {content.get('version')}, this regpt reads {VERSION}: "
                f"use the regpt that wrote it, or prepare the data again"
            )
        try:
            manifest = from_object(cls, content)
            if any(Path(shard.file).name != shard.file for shard in manifest.shards):
                raise TypeError("a shard that does not lie beside it")
        except (KeyError, TypeError) as error:
            raise UserError(
                f"{path} is damaged (missing or wrong: {error}): prepare the data again"
            ) from None
        return manifest


def dump_json(content: Mapping[str, object]) -> bytes:
    """JSON for people and for digests: indented, one form for one content."""
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()
