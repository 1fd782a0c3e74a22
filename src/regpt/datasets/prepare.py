"""Texts to shards: read, encode in many processes, write in order.

One process reads the inputs as blocks (sources.py) and hands them out; workers parse and encode
them (documents.py); their tokens are written in the order of the blocks (shard_writer.py). So the
output does not depend on the number of processes, and memory is a few blocks per worker whatever
the size of the inputs. Workers are spawned, not forked: a process with threads must not be forked.

    manifest = prepare(["books", "web.jsonl.zst"], "shards", processes=8)

A kill costs the shard that was being filled: the same call continues. When the directory is
complete, the same call returns at once.
"""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path

from regpt.core.tokenizer import DIGEST
from regpt.datasets.documents import (
    END_OF_TEXT_RULE,
    EncodedSplit,
    describe_split_rule,
    encode_block,
)
from regpt.datasets.manifest import Manifest, SourceRecord, Split
from regpt.datasets.shard_writer import ShardWriter, State
from regpt.datasets.shards import PROGRESS_NAME, open_shard
from regpt.datasets.sources import InputBlock, find_sources, read_blocks
from regpt.system.errors import UserError
from regpt.system.memory import usable_cores

MAX_SHARD_TOKENS = 2**31 - 1
"""The count in a shard's header is an int32."""

MIN_TASK, MAX_BLOCKS, QUEUED = 1 << 18, 64, 8
"""A task for a worker is at least this much text, in at most so many blocks; so many tasks wait for
each worker, enough for the seconds in which the disk takes a shard."""


Encoded = dict[Split, EncodedSplit]
Encode = Callable[[InputBlock], Encoded]


@dataclass(frozen=True)
class PrepareProgress:
    """How far a preparation is. The first report tells where a continued one starts."""

    source_bytes: int
    """Bytes of the input files, as they are on disk, that are done."""
    total_bytes: int
    documents: int
    tokens: int


def prepare(
    inputs: Sequence[str | Path],
    out: str | Path,
    *,
    processes: int | None = None,
    shard_tokens: int = 100_000_000,
    val_every: int = 100,
    text_field: str = "text",
    progress: Callable[[PrepareProgress], None] = lambda report: None,
) -> Manifest:
    """Encode files or folders of .txt, .jsonl(.gz, .zst) and .parquet into a directory of shards.

    `processes` encode (None: one per core we may use). `val_every` N makes one document in N
    validation (0: none), by the rule in documents.py. `text_field` is the field of .jsonl and the
    column of .parquet. `progress` is called after every block. Raises UserError, in one line, for
    wrong input and for an `out` that holds anything but this very preparation.
    """
    if processes is None:
        processes = usable_cores()
    for name, value, low, high in (
        ("processes", processes, 1, 1024),
        ("tokens per shard", shard_tokens, 1, MAX_SHARD_TOKENS),
        ("val_every", val_every, 0, 2**63),
    ):
        if not low <= value <= high:
            raise UserError(f"{name} must be from {low} to {high}, got {value}")
    sources, out = find_sources(inputs), Path(out)
    manifest = Manifest(
        end_of_text=END_OF_TEXT_RULE,
        split_rule=describe_split_rule(val_every),
        text_field=text_field,
        shard_tokens=shard_tokens,
        splits={},
        shards=(),
        sources=tuple(SourceRecord(name=s.name, bytes=s.bytes) for s in sources),
    )
    settings = {
        "inputs (or they have changed)": [[s.name, s.bytes, s.modified] for s in sources],
        "shard size": shard_tokens,
        "validation rule": manifest.split_rule,
        "text field": text_field,
        "tokenizer": DIGEST,
    }
    total_bytes = sum(source.bytes for source in sources)
    blocks = read_blocks(sources, text_field=text_field, val_every=val_every)
    encode = partial(encode_block, text_field=text_field, val_every=val_every)
    try:
        if (complete := find_complete(out, manifest)) is not None:
            return complete
        out.mkdir(parents=True, exist_ok=True)
        with closing(ShardWriter(out, settings, shard_tokens=shard_tokens)) as writer:
            done = writer.state.blocks
            left = (block for number, block in enumerate(blocks) if number >= done)
            progress(report(writer.state, total_bytes))
            with closing(encode_all(left, encode, processes=processes)) as results:
                for block, encoded in results:
                    writer.append(encoded, bytes_read=block.bytes_read)
                    progress(report(writer.state, total_bytes))
            require_training_text(writer, val_every)
            return writer.finish(manifest)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot write {out}: {reason}; mend it and repeat to continue") from None


def find_complete(out: Path, expected: Manifest) -> Manifest | None:
    """The manifest of `out` if it is complete; None if it has none. UserError if it is another."""
    found = Manifest.read(out)
    if found is None:
        return None
    if replace(found, splits={}, shards=()) != expected:
        raise UserError(
            f"{out} already holds a data set of other inputs or settings: choose another directory"
        )
    for shard in found.shards:
        open_shard(out / shard.file)
    (out / PROGRESS_NAME).unlink(missing_ok=True)  # killed between the last two steps
    return found


def report(state: State, total_bytes: int) -> PrepareProgress:
    return PrepareProgress(
        source_bytes=state.bytes_read,
        total_bytes=total_bytes,
        documents=sum(split.documents for split in state.splits.values()),
        tokens=sum(split.tokens for split in state.splits.values()),
    )


def require_training_text(writer: ShardWriter, val_every: int) -> None:
    """Refuse to make a data set of nothing, and leave nothing of it."""
    splits = writer.state.splits
    if splits["train"].tokens:
        return
    writer.discard()
    if splits["val"].tokens:
        raise UserError(
            f"every document fell to validation (1 in {val_every}): give more text, or val_every 0"
        )
    raise UserError("the inputs have no text in them: every document is empty")


# ---- processes ----


def encode_all(
    blocks: Iterator[InputBlock], encode: Encode, *, processes: int
) -> Generator[tuple[InputBlock, Encoded], None, None]:
    """Each block with its tokens, in order; a few blocks per process are under way at a time."""
    if processes == 1:
        for block in blocks:
            yield block, encode(block)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_start_worker)
    pending: deque[tuple[list[InputBlock], Future[list[Encoded]]]] = deque()

    def first() -> Iterator[tuple[InputBlock, Encoded]]:
        task, future = pending.popleft()
        return zip(task, future.result(), strict=True)

    try:
        for task in _gather(blocks):
            try:
                pending.append((task, pool.submit(_map, encode, task)))
            except (RuntimeError, OSError) as error:
                raise UserError(
                    f"no process that encodes can be started ({error}): repeat with --processes 1"
                ) from None
            if len(pending) > QUEUED * processes:
                yield from first()
        while pending:
            yield from first()
    except BrokenProcessPool:
        raise UserError(
            "a process that encodes was killed or could not start (not enough memory? a script "
            "without `if __name__ == '__main__'`?): repeat with fewer processes to continue"
        ) from None
    finally:
        with suppress(RuntimeError):  # a thread that could not start cannot be joined
            pool.shutdown(cancel_futures=True)


def _gather(blocks: Iterator[InputBlock]) -> Iterator[list[InputBlock]]:
    """Blocks in lists worth the way to another process: a folder may hold many short texts."""
    task: list[InputBlock] = []
    for block in blocks:
        task.append(block)
        if len(task) == MAX_BLOCKS or sum(len(b.content) for b in task) >= MIN_TASK:
            yield task
            task = []
    if task:
        yield task


def _map(encode: Encode, task: list[InputBlock]) -> list[Encoded]:
    return [encode(block) for block in task]


def _start_worker() -> None:
    """Leave Ctrl-C to the main process, and do not outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
