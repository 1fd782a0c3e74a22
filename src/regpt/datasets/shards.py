"""Shards: files of tokens, and a directory of them read as one stream.

A shard is a `.bin` in the layout of llm.c, so that other trainers read ours and we read theirs:

| bytes | content |
|---|---|
| 0 .. 1023 | 256 little-endian int32: 20240520, version 1, number of tokens, zeros |
| 1024 .. | the tokens, little-endian uint16 |

The reader also takes the lecture's shards, 1-D integer arrays in `.npy`. Files are mapped and
slices read, across the borders of files, so that no shard is loaded whole and none has a tail that
is lost. Size and header are checked when a file is opened and ids when they are read; digests only
on request, as that reads everything.

    >>> data = ShardDataset.open("fineweb-edu", split="train")
    >>> data.read(0, 3)
    array([50256,   464,  3290], dtype=uint16)
"""

import hashlib
import re
import tokenize
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np

from regpt.core.tokenizer import DIGEST, VOCAB_SIZE
from regpt.datasets.manifest import Manifest, Split
from regpt.system.errors import UserError

MAGIC = 20240520
VERSION = 1
HEADER_BYTES = 1024
TOKEN = np.dtype("<u2")
SUFFIXES = (".bin", ".npy")
PROGRESS_NAME = "progress.json"
"""Present while a preparation is under way: what it has done so far."""

SPLIT_WORDS: dict[Split, frozenset[str]] = {
    "train": frozenset({"train", "training"}),
    "val": frozenset({"val", "valid", "validation"}),
}
SAMPLES_PER_SHARD, SAMPLE_TOKENS = 64, 512


def make_header(num_tokens: int) -> bytes:
    """The first 1024 bytes of a `.bin` shard."""
    header = np.zeros(HEADER_BYTES // 4, dtype="<i4")
    header[:3] = MAGIC, VERSION, num_tokens
    return header.tobytes()


def digest_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_shard(path: Path) -> np.ndarray:
    """The tokens of a `.bin` or `.npy` shard: an integer array (n,), mapped, not loaded.

    Raises UserError in one line if the file is missing, of another format, or cut short.
    """
    try:
        tokens = _open_npy(path) if path.suffix == ".npy" else _open_bin(path)
    except OSError as error:
        raise UserError(f"cannot read shard {path}: {error.strerror or error}") from None
    return tokens.view(np.ndarray)  # slices of a np.memmap are ten times slower to make


def _open_bin(path: Path) -> np.ndarray:
    size = path.stat().st_size
    if size < HEADER_BYTES:
        raise UserError(
            f"shard {path} has {size} bytes, fewer than its header of {HEADER_BYTES}: "
            f"it is cut short or no shard; copy or prepare it again"
        )
    magic, version, num_tokens = np.fromfile(path, dtype="<i4", count=3).tolist()
    if magic != MAGIC or version != VERSION:
        raise UserError(
            f"shard {path} begins with {magic}, {version} instead of {MAGIC}, {VERSION}: "
            f"it is no file of uint16 tokens in llm.c's layout; prepare it with regpt"
        )
    expected = HEADER_BYTES + num_tokens * TOKEN.itemsize
    if size != expected:
        raise UserError(
            f"shard {path} has {size:,} bytes, its header of {num_tokens:,} tokens says "
            f"{expected:,}: it is {'cut short' if size < expected else 'damaged'}; copy or prepare "
            f"it again"
        )
    if num_tokens == 0:
        return np.empty(0, dtype=TOKEN)  # a file cannot be mapped over no bytes
    return np.memmap(path, dtype=TOKEN, mode="r", offset=HEADER_BYTES)


def _open_npy(path: Path) -> np.ndarray:
    try:
        tokens = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, tokenize.TokenError) as error:  # numpy parses the header
        reason = " ".join(str(error).split())
        raise UserError(
            f"shard {path} is not a whole .npy file ({reason}): copy or prepare it again"
        ) from None
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        raise UserError(
            f"shard {path} holds a {tokens.ndim}-D array of {tokens.dtype}, not a 1-D array of "
            f"integers: it is no file of tokens"
        )
    return tokens


@dataclass(frozen=True)
class Shard:
    path: Path
    tokens: np.ndarray


class ShardDataset:
    """Shards in order, read as one stream of tokens (a `regpt.core.data.Dataset`)."""

    vocab_size = VOCAB_SIZE

    def __init__(self, shards: Sequence[Shard], *, fingerprint: str) -> None:
        self.shards = tuple(shards)
        self.fingerprint = fingerprint
        self._starts = np.array([0, *accumulate(len(s.tokens) for s in self.shards)], np.int64)

    @classmethod
    def open(
        cls, directory: str | Path, *, split: Split = "train", verify: bool = False
    ) -> "ShardDataset":
        """One split of a directory of shards.

        With a manifest.json the manifest says which files, how long, and by which tokenizer; with
        `verify` their sha256 are compared too (about a second per gigabyte). Without one, files
        belong to the split whose name (train; val) is a word of theirs, in the order of their
        names: `fineweb_val_000000.bin` is validation, `interval_train.npy` is not.
        """
        directory = Path(directory)
        if not directory.is_dir():
            raise UserError(f"{directory} is not a directory of shards: make one by regpt prepare")
        manifest = Manifest.read(directory)
        if manifest is None:
            if (directory / PROGRESS_NAME).exists():
                raise UserError(
                    f"{directory} is not fully prepared: run the same regpt prepare again, it goes "
                    f"on where it was"
                )
            if verify:
                raise UserError(f"{directory} has no manifest.json to verify its shards against")
            return cls.from_files(find_shards(directory, split))
        return cls._open_manifest(directory, manifest, split=split, verify=verify)

    @classmethod
    def _open_manifest(
        cls, directory: Path, manifest: Manifest, *, split: Split, verify: bool
    ) -> "ShardDataset":
        if manifest.tokenizer.digest != DIGEST:
            raise UserError(
                f"{directory} was prepared with tokenizer {manifest.tokenizer.digest[:12]}, this is"
                f" {DIGEST[:12]}: prepare it again with this one"
            )
        shards = []
        for record in (record for record in manifest.shards if record.split == split):
            path = directory / record.file
            tokens = open_shard(path)
            if len(tokens) != record.tokens:
                raise UserError(
                    f"shard {path} has {len(tokens):,} tokens, the manifest says "
                    f"{record.tokens:,}: copy or prepare it again"
                )
            if verify and (digest := digest_file(path)) != record.sha256:
                raise UserError(
                    f"shard {path} has sha256 {digest[:12]}, the manifest says "
                    f"{record.sha256[:12]}: it is damaged; copy or prepare it again"
                )
            shards.append(Shard(path, tokens))
        if not shards:
            raise UserError(
                f"{directory} has no {split} tokens ({manifest.split_rule}): prepare it with "
                f"another validation rule"
            )
        return cls(shards, fingerprint=manifest.fingerprint(split))

    @classmethod
    def from_files(cls, paths: Sequence[str | Path]) -> "ShardDataset":
        """Shards of anyone's, in the order given. `fingerprint` is then of a sample of the tokens:
        lengths, and 64 pieces of 512 tokens per shard, as a digest would read everything."""
        shards = [Shard(Path(path), open_shard(Path(path))) for path in paths]
        if not any(len(shard.tokens) for shard in shards):
            raise UserError(f"no tokens in shards {', '.join(str(path) for path in paths)}")
        dataset = cls(shards, fingerprint="")
        dataset.fingerprint = dataset._sample()
        return dataset

    def _sample(self) -> str:
        digest = hashlib.sha256()
        for shard, start in zip(self.shards, self._starts.tolist(), strict=False):
            count = len(shard.tokens)
            digest.update(f"{count}\n".encode())
            places = np.linspace(0, max(0, count - SAMPLE_TOKENS), SAMPLES_PER_SHARD).astype(int)
            for place in np.unique(places).tolist():
                stop = min(place + SAMPLE_TOKENS, count)
                digest.update(self.read(start + place, start + stop).astype("<u4").tobytes())
        return digest.hexdigest()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens start .. stop-1, across the borders of shards: an integer array (stop - start,).

        A view of the map where one shard holds them all. Raises UserError, naming the shard, for
        an id outside the vocabulary.
        """
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"tokens {start} to {stop} of {len(self)}")
        pieces = []
        index = int(np.searchsorted(self._starts, start, side="right")) - 1
        while start < stop:
            shard, first = self.shards[index], int(self._starts[index])
            piece = shard.tokens[start - first : stop - first]
            if len(piece):
                pieces.append(self._check(shard, piece))
            start, index = start + len(piece), index + 1
        if not pieces:
            return np.empty(0, dtype=TOKEN)
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def _check(self, shard: Shard, piece: np.ndarray) -> np.ndarray:
        low, high = int(piece.min()), int(piece.max())
        if low < 0 or high >= self.vocab_size:
            raise UserError(
                f"shard {shard.path} holds token id {low if low < 0 else high}, the vocabulary has "
                f"0 to {self.vocab_size - 1}: it is damaged, of another tokenizer, or for "
                "a model of a larger vocabulary"
            )
        return piece


def find_shards(directory: Path, split: Split) -> list[Path]:
    """The shard files of a split, by their names: the split must be a whole word of the stem."""
    names = sorted(p.name for p in directory.iterdir() if p.suffix in SUFFIXES and p.is_file())
    words = SPLIT_WORDS[split]
    found = [name for name in names if words & set(re.findall("[a-z]+", Path(name).stem.lower()))]
    if not found:
        seen = (
            f"only {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}" if names else "none"
        )
        raise UserError(
            f"{directory} has no {split} shards ({seen}): name them with the word {split}, as in "
            f"{split}_000000.bin"
        )
    return [directory / name for name in found]
