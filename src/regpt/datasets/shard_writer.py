"""The directory of shards while it is being written: it can be left at any instant.

Tokens are appended to `train_000000.bin.part`, `val_000000.bin.part`, ... A full shard is forced to
the disk and renamed to its name; after the block that filled it, progress.json, replaced by rename,
says how many blocks and tokens count. The next run cuts the open files back to those tokens, reads
over those blocks and goes on. Since tokens follow from the inputs alone, the result is byte for
byte that of one run. At the end manifest.json takes the place of progress.json.
"""

import os
import re
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from regpt.datasets.documents import EncodedSplit
from regpt.datasets.manifest import (
    SPLITS,
    Manifest,
    ShardRecord,
    Split,
    SplitRecord,
    dump_json,
)
from regpt.datasets.shards import (
    HEADER_BYTES,
    PROGRESS_NAME,
    SUFFIXES,
    TOKEN,
    digest_file,
    make_header,
    open_shard,
)
from regpt.system.errors import UserError
from regpt.system.files import replace_files
from regpt.system.json_text import from_object, read_json

PART = ".part"


@dataclass(kw_only=True)
class State:
    """What progress.json holds."""

    settings: dict[str, Any]
    """JSON values the output depends on."""
    blocks: int = 0
    """Blocks of the inputs whose tokens are written."""
    bytes_read: int = 0
    """Bytes of the inputs on disk up to there, for progress."""
    splits: dict[Split, SplitRecord] = field(
        default_factory=lambda: {split: SplitRecord() for split in SPLITS}
    )
    digests: dict[Split, list[str]] = field(default_factory=lambda: {split: [] for split in SPLITS})
    """sha256 of the full shards of each split, in order."""


class ShardWriter:
    """Appends tokens of each split, cuts them into shards, and continues after a kill.

    `settings` are the JSON values the output depends on: a preparation is continued only under the
    same ones. With other ones it is begun anew if less than a shard is lost, and refused otherwise.
    """

    def __init__(self, out: Path, settings: dict[str, object], *, shard_tokens: int) -> None:
        self.out = out
        self.shard_tokens = shard_tokens
        self._files: dict[Split, IO[bytes]] = {}
        state = read_state(out, settings)
        if state is None:
            self._remove(f".bin{PART}", ".bin")
        self.state = state or State(settings=settings)
        try:
            for split in SPLITS:
                for number in range(len(self.state.digests[split])):
                    open_shard(self._place(split, number)[1])
                self._open(split)
            self._commit()
        except BaseException:
            self.close()
            raise

    def append(self, encoded: dict[Split, EncodedSplit], *, bytes_read: int) -> None:
        """Add the tokens of the next block; if that fills a shard, all up to here is kept."""
        num_full = self._num_full()
        for split, part in encoded.items():
            tokens = part.tokens
            record = self.state.splits[split]
            while len(tokens):
                room = self.shard_tokens - self._open_tokens(split)
                piece, tokens = tokens[:room], tokens[room:]
                self._files[split].write(piece.data)
                record.tokens += len(piece)
                if len(piece) == room:
                    self._complete(split, self.shard_tokens)
                    self._open(split)
            record.documents += part.documents
            record.text_bytes += part.text_bytes
        self.state.blocks += 1
        self.state.bytes_read = bytes_read
        if self._num_full() > num_full:
            self._commit()

    def finish(self, manifest: Manifest) -> Manifest:
        """Complete the last shards; write manifest.json, given all but the splits and shards, in
        place of progress.json."""
        for split in SPLITS:
            if tokens := self._open_tokens(split):
                self._complete(split, tokens)
        self.close()
        shards = [
            ShardRecord(
                file=shard_name(split, number),
                split=split,
                tokens=min(
                    self.shard_tokens, self.state.splits[split].tokens - number * self.shard_tokens
                ),
                sha256=digest,
            )
            for split in SPLITS
            for number, digest in enumerate(self.state.digests[split])
        ]
        manifest = replace(manifest, splits=dict(self.state.splits), shards=tuple(shards))
        self._remove(f".bin{PART}")
        manifest.write(self.out)
        (self.out / PROGRESS_NAME).unlink()
        return manifest

    def discard(self) -> None:
        """Remove everything again: there was nothing to write."""
        self.close()
        self._remove(f".bin{PART}", ".bin")
        (self.out / PROGRESS_NAME).unlink()
        with suppress(OSError):  # not ours alone
            self.out.rmdir()

    def close(self) -> None:
        """Close the open files; what progress.json does not count is done again by the next run."""
        for file in self._files.values():
            with suppress(OSError):  # a full disk has been reported already
                file.close()

    def _num_full(self) -> int:
        return sum(map(len, self.state.digests.values()))

    def _open_tokens(self, split: Split) -> int:
        """Tokens of the shard that is not full."""
        full = len(self.state.digests[split])
        return self.state.splits[split].tokens - full * self.shard_tokens

    def _place(self, split: Split, number: int) -> tuple[Path, Path]:
        """A shard's unfinished file and its own."""
        name = shard_name(split, number)
        return self.out / (name + PART), self.out / name

    def _open(self, split: Split) -> None:
        """Open the unfinished shard, cut back to the tokens that count, at its end."""
        number, tokens = len(self.state.digests[split]), self._open_tokens(split)
        part, whole = self._place(split, number)
        if tokens and not part.exists() and whole.exists():  # full after what progress.json counts
            os.replace(whole, part)
        end = HEADER_BYTES + tokens * TOKEN.itemsize
        size = part.stat().st_size if part.exists() else 0
        if not 0 <= tokens < self.shard_tokens or (tokens and size < end):
            raise UserError(
                f"{part} is missing or cut short: remove {self.out} and prepare it again"
            )
        file = self._files[split] = part.open("r+b" if tokens else "w+b")
        file.truncate(end)
        file.seek(end)

    def _complete(self, split: Split, tokens: int) -> None:
        """Give the open shard its header, digest and name."""
        part, whole = self._place(split, len(self.state.digests[split]))
        with self._files[split] as file:
            file.seek(0)
            file.write(make_header(tokens))
            _flush(file)
        self.state.digests[split].append(digest_file(part))
        os.replace(part, whole)

    def _commit(self) -> None:
        """Make everything up to the end of a block survive a kill."""
        for file in self._files.values():
            _flush(file)
        replace_files(self.out, {PROGRESS_NAME: dump_json(asdict(self.state))})

    def _remove(self, *endings: str) -> None:
        for split in SPLITS:
            for ending in endings:
                for path in self.out.glob(f"{split}_*{ending}"):
                    path.unlink()


def shard_name(split: Split, number: int) -> str:
    return f"{split}_{number:06d}.bin"


def read_state(out: Path, settings: dict[str, object]) -> State | None:
    """The state of a preparation that was interrupted; None if a new one may begin in `out`."""
    path = out / PROGRESS_NAME
    try:
        state = from_object(State, read_json(path))
        for digest in (one for each in state.digests.values() for one in each):
            if not re.fullmatch("[0-9a-f]{64}", digest):
                raise TypeError(f"digest {digest!r:.40}")
        different = [key for key in settings if state.settings.get(key) != settings[key]]
    except FileNotFoundError:
        others = sorted(file.name for file in out.iterdir() if file.suffix in SUFFIXES)
        if others:
            raise UserError(
                f"{out} already holds shards of another origin ({others[0]}): choose another "
                f"directory"
            ) from None
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}): remove {out} and start again") from None
    if not different:
        return state
    if any(state.digests.values()):
        raise UserError(
            f"{out} holds an unfinished preparation of other {different[0]}: repeat it as it was, "
            f"or remove {out}, or choose another directory"
        )
    return None


def _flush(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())
