"""The directory of shards while it is being written: it can be left at any instant.

Tokens are appended to `train_000000.bin.part`, `val_000000.bin.part`, ... Every few seconds, and
when a shard is full, the state is *committed*, in an order that a kill between any two steps leaves
recoverable:

1. the open files are flushed to the disk;
2. progress.json, replaced by rename, says how many tokens of each open file count, which shards
   are full, and from which `Place` of the inputs reading goes on;
3. full shards are renamed to their names.

The next run reads progress.json, repeats step 3, cuts the open files back to the tokens that count
and goes on. Since tokens follow from the inputs alone, the result is byte for byte that of one run.
At the end manifest.json takes the place of progress.json.
"""

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO

from regpt.datasets.documents import Block, Place
from regpt.datasets.encode import EncodedSplit
from regpt.datasets.manifest import (
    SPLITS,
    Manifest,
    ShardRecord,
    Split,
    SplitRecord,
    dump_json,
    read_record,
    rename,
)
from regpt.datasets.shards import (
    HEADER_BYTES,
    PROGRESS_NAME,
    SUFFIXES,
    TOKEN,
    digest_file,
    make_header,
)
from regpt.system.errors import UserError
from regpt.system.files import replace_files
from regpt.system.json_text import check_types, read_json

COMMIT_SECONDS = 5.0
PART = ".part"


@dataclass(frozen=True)
class State:
    """What progress.json holds, beside the settings: everything before `place` is done."""

    place: Place
    source_bytes: int
    """Bytes on disk of the current source that are done, for progress."""
    splits: dict[Split, SplitRecord]
    shards: tuple[ShardRecord, ...]
    """The full ones, in the order of their completion."""
    open_tokens: dict[Split, int]
    """Length of the open shard of each split; its number is that of the full ones before it."""

    @classmethod
    def empty(cls) -> "State":
        """The state of a preparation that begins."""
        splits: dict[Split, SplitRecord] = {split: SplitRecord() for split in SPLITS}
        return cls(Place(), 0, splits, (), dict.fromkeys(SPLITS, 0))

    @classmethod
    def from_content(cls, content: dict) -> "State":
        """Back from JSON. Raises KeyError or TypeError if it is not what `asdict` made."""
        values = dict(
            place=read_record(Place, content["place"]),
            source_bytes=content["source_bytes"],
            splits={split: read_record(SplitRecord, content["splits"][split]) for split in SPLITS},
            shards=tuple(read_record(ShardRecord, record) for record in content["shards"]),
            open_tokens={split: content["open_tokens"][split] for split in SPLITS},
        )
        return cls(**check_types(cls, values))

    def open_name(self, split: Split) -> str:
        """The name the open shard of a split will have."""
        return f"{split}_{sum(shard.split == split for shard in self.shards):06d}.bin"


class Assembly:
    """Appends tokens of each split, cuts them into shards, commits, and continues after a kill.

    `settings` are the JSON values the output depends on: a preparation is continued only under the
    same ones. With other ones it is begun anew if less than a shard is lost, and refused otherwise.
    """

    def __init__(self, out: Path, settings: dict[str, object], *, shard_tokens: int) -> None:
        self.out = out
        self.settings = settings
        self.shard_tokens = shard_tokens
        state = read_state(out, settings)
        if state is None:
            remove_parts(out)
            state = State.empty()
        else:
            self._rename(shard for shard in state.shards if not (out / shard.file).exists())
        self.state = state
        self._committed = time.monotonic()
        self._files: dict[Split, IO[bytes]] = {}
        try:
            for split in SPLITS:
                self._open(split)
            self.commit()
        except BaseException:
            self.close()
            raise

    def append(self, block: Block, encoded: dict[Split, EncodedSplit]) -> None:
        """Add the tokens of the next block; commit if a shard is full or some seconds passed."""
        num_full = len(self.state.shards)
        for split, part in encoded.items():
            before = self.state.splits[split]
            after = SplitRecord(
                documents=before.documents + part.documents,
                tokens=before.tokens + len(part.tokens),
                text_bytes=before.text_bytes + part.text_bytes,
            )
            self.state.splits[split] = after
            start = 0
            while start < len(part.tokens):
                room = self.shard_tokens - self.state.open_tokens[split]
                piece = part.tokens[start : start + room]
                self._files[split].write(piece.astype(TOKEN, copy=False).data)
                self.state.open_tokens[split] += len(piece)
                start += len(piece)
                if len(piece) == room:
                    self._complete(split)
        self.state = replace(self.state, place=block.after, source_bytes=block.source_bytes)
        if len(self.state.shards) > num_full or time.monotonic() > self._committed + COMMIT_SECONDS:
            self.commit()

    def commit(self) -> None:
        """Make everything up to now, the end of a block, survive a kill (see above)."""
        for file in self._files.values():
            _flush(file)
        content = {"settings": self.settings} | asdict(self.state)
        replace_files(self.out, {PROGRESS_NAME: dump_json(content).encode()})
        self._rename(shard for shard in self.state.shards if self._part(shard.file).exists())
        self._committed = time.monotonic()

    def finish(self, manifest: Manifest) -> Manifest:
        """Complete the last shards; write manifest.json, given all but the splits and shards, in
        place of progress.json."""
        for split in SPLITS:
            if self.state.open_tokens[split]:
                self._complete(split)
        self.commit()
        self.close()
        remove_parts(self.out)
        shards = sorted(self.state.shards, key=lambda shard: (shard.split, shard.file))
        manifest = replace(manifest, splits=dict(self.state.splits), shards=tuple(shards))
        manifest.write(self.out)
        (self.out / PROGRESS_NAME).unlink()
        return manifest

    def discard(self) -> None:
        """Remove everything again: there was nothing to write."""
        self.close()
        remove_parts(self.out)
        for shard in self.state.shards:
            (self.out / shard.file).unlink(missing_ok=True)
        (self.out / PROGRESS_NAME).unlink()
        with suppress(OSError):  # not ours alone
            self.out.rmdir()

    def close(self) -> None:
        """Close the open files; what was not committed is done again by the next run."""
        for file in self._files.values():
            with suppress(OSError):  # a full disk has been reported already
                file.close()

    def _complete(self, split: Split) -> None:
        """Give the open shard its header and digest, and begin the next one."""
        name, tokens = self.state.open_name(split), self.state.open_tokens[split]
        file = self._files[split]
        file.seek(0)
        file.write(make_header(tokens))
        _flush(file)
        file.close()
        digest = digest_file(self._part(name))
        record = ShardRecord(file=name, split=split, tokens=tokens, sha256=digest)
        self.state.open_tokens[split] = 0
        self.state = replace(self.state, shards=(*self.state.shards, record))
        self._open(split)

    def _open(self, split: Split) -> None:
        """Open the unfinished shard, cut back to the tokens that count, at its end."""
        path, tokens = self._part(self.state.open_name(split)), self.state.open_tokens[split]
        end = HEADER_BYTES + tokens * TOKEN.itemsize
        if tokens and (not path.exists() or path.stat().st_size < end):
            raise UserError(
                f"{path} is missing or cut short: remove {self.out} and prepare it again"
            )
        file = self._files[split] = path.open("r+b" if tokens else "w+b")
        file.truncate(end)
        file.seek(end)

    def _part(self, name: str) -> Path:
        return self.out / (name + PART)

    def _rename(self, shards: Iterable[ShardRecord]) -> None:
        rename([(self._part(shard.file), self.out / shard.file) for shard in shards])


def read_state(out: Path, settings: dict[str, object]) -> State | None:
    """The state of a preparation that was interrupted; None if a new one may begin in `out`."""
    path = out / PROGRESS_NAME
    try:
        content = read_json(path)
        before, state = content["settings"], State.from_content(content)
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
    different = [key for key in settings if before.get(key) != settings[key]]
    if not different:
        return state
    if state.shards:
        raise UserError(
            f"{out} holds an unfinished preparation of other {different[0]}: repeat it as it was, "
            f"or remove {out}, or choose another directory"
        )
    return None


def remove_parts(out: Path) -> None:
    """Remove the unfinished shards of a directory."""
    for split in SPLITS:
        for path in out.glob(f"{split}_*.bin{PART}"):
            path.unlink()


def _flush(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())
