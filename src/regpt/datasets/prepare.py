"""Texts to shards: read, encode in many processes, write in order.

One process reads the inputs as blocks (documents.py) and hands them out; workers parse and encode
them (encode.py); their tokens are written in the order of the blocks (assemble.py). So the output
does not depend on the number of processes, and memory is a few blocks per worker whatever the size
of the inputs. The process that reads is one of those asked for: when the workers have enough
waiting, it takes a task back and encodes it itself, so that two processes are two at work and not
two and a half. Workers are spawned, not forked: a process with threads must not be forked.

    manifest = prepare(["books", "web.jsonl.zst"], "shards", processes=8)

A kill costs the last seconds: the same call continues. When the directory is complete, the same
call returns at once.
"""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from multiprocessing.connection import wait
from pathlib import Path

from regpt.core.tokenizer import DIGEST, VOCAB_SIZE, get_tokenizer
from regpt.datasets.assemble import Assembly
from regpt.datasets.documents import Block, read_blocks
from regpt.datasets.encode import END_OF_TEXT_RULE, EncodedSplit, describe_split_rule, encode_block
from regpt.datasets.manifest import Manifest, SourceRecord, Split
from regpt.datasets.shards import PROGRESS_NAME, open_shard
from regpt.datasets.sources import Source, find_sources
from regpt.system.errors import UserError

MAX_SHARD_TOKENS = 2**31 - 1
"""The count in a shard's header is an int32."""

MIN_TASK, MAX_BLOCKS, QUEUED = 1 << 18, 64, 8
"""A task for a worker is at least this much text, in at most so many blocks; so many tasks wait for
each worker, enough for the seconds in which the disk takes a shard."""

Encoded = dict[Split, EncodedSplit]
Encode = Callable[[Block], Encoded]


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
    progress: Callable[[PrepareProgress], None] | None = None,
) -> Manifest:
    """Encode files or folders of .txt, .jsonl(.gz, .zst) and .parquet into a directory of shards.

    `processes` encode (None: one per core we may use). `val_every` N makes one document in N
    validation (0: none), by the rule in encode.py. `text_field` is the field of .jsonl and the
    column of .parquet. `progress` is called after every block. Raises UserError, in one line, for
    wrong input and for an `out` that holds anything but this very preparation.
    """
    processes = count_cores() if processes is None else processes
    for name, value, low, high in (
        ("processes", processes, 1, 1024),
        ("tokens per shard", shard_tokens, 1, MAX_SHARD_TOKENS),
        ("val_every", val_every, 0, 2**63),
    ):
        if not low <= value <= high:
            raise UserError(f"{name} must be from {low} to {high}, got {value}")
    sources, out = find_sources(inputs), Path(out)
    manifest = _begin_manifest(sources, shard_tokens, val_every, text_field)
    settings = {
        "inputs (or they have changed)": [[s.name, s.bytes, s.modified] for s in sources],
        "shard size": shard_tokens,
        "validation rule": manifest.split_rule,
        "text field": text_field,
        "tokenizer": DIGEST,
    }
    encode = partial(_encode, text_field=text_field, val_every=val_every)
    try:
        if (complete := find_complete(out, manifest)) is not None:
            return complete
        out.mkdir(parents=True, exist_ok=True)
        with closing(Assembly(out, settings, shard_tokens=shard_tokens)) as assembly:
            place = assembly.state.place
            blocks = read_blocks(sources, place=place, text_field=text_field, val_every=val_every)
            report = _make_report(assembly, sources, progress)
            report()
            with closing(encode_all(blocks, encode, processes=processes)) as results:
                for block, encoded in results:
                    assembly.append(block, encoded)
                    report()
            _require_training_text(assembly, val_every)
            return assembly.finish(manifest)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot write {out}: {reason}; mend it and repeat to continue") from None


def count_cores() -> int:
    """The cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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


def _begin_manifest(
    sources: Sequence[Source], shard_tokens: int, val_every: int, text_field: str
) -> Manifest:
    """The manifest but for the splits and shards."""
    return Manifest(
        tokenizer_digest=DIGEST,
        vocab_size=VOCAB_SIZE,
        end_of_text=END_OF_TEXT_RULE,
        split_rule=describe_split_rule(val_every),
        text_field=text_field,
        shard_tokens=shard_tokens,
        splits={},
        shards=(),
        sources=tuple(SourceRecord(name=s.name, bytes=s.bytes) for s in sources),
    )


def _make_report(
    assembly: Assembly,
    sources: Sequence[Source],
    progress: Callable[[PrepareProgress], None] | None,
) -> Callable[[], None]:
    """What tells `progress` how far the assembly is."""
    bytes_before = [0, *accumulate(source.bytes for source in sources)]

    def report() -> None:
        if progress is None:
            return
        state = assembly.state
        progress(
            PrepareProgress(
                source_bytes=bytes_before[state.place.source] + state.source_bytes,
                total_bytes=bytes_before[-1],
                documents=sum(split.documents for split in state.splits.values()),
                tokens=sum(split.tokens for split in state.splits.values()),
            )
        )

    return report


def _require_training_text(assembly: Assembly, val_every: int) -> None:
    """Refuse to make a data set of nothing, and leave nothing of it."""
    splits = assembly.state.splits
    if splits["train"].tokens:
        return
    assembly.discard()
    if splits["val"].tokens:
        raise UserError(
            f"every document fell to validation (1 in {val_every}): give more text, or val_every 0"
        )
    raise UserError("the inputs have no text in them: every document is empty")


# ---- processes ----


def encode_all(
    blocks: Iterator[Block], encode: Encode, *, processes: int
) -> Generator[tuple[Block, Encoded], None, None]:
    """Each block with its tokens, in order; a few blocks per process are under way at a time."""
    if processes == 1:
        for block in blocks:
            yield block, encode(block)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes - 1, mp_context=context, initializer=_start_worker)
    pending: deque[Task] = deque()
    try:
        for blocks_of_task in _gather(blocks):
            future = pool.submit(_map, encode, blocks_of_task)
            pending.append(Task(blocks_of_task, future))
            while len(pending) > QUEUED * (processes - 1):
                yield from _advance(pending, encode)
        while pending:
            yield from _advance(pending, encode)
    except BrokenProcessPool:
        raise UserError(
            "a process that encodes was killed or could not start (not enough memory? a script "
            "without `if __name__ == '__main__'`?): repeat with fewer processes to continue"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


@dataclass
class Task:
    """Blocks that were handed out, and what will be their tokens."""

    blocks: list[Block]
    future: Future[list[Encoded]]


def _advance(pending: deque[Task], encode: Encode) -> Iterator[tuple[Block, Encoded]]:
    """The first task's blocks with their tokens; if they are not ready, encode another meanwhile.

    That is the last one no worker has begun. What it raises is raised when its turn comes.
    """
    if not pending[0].future.done():
        for task in reversed(pending):
            if task.future.cancel():
                task.future = Future()
                try:
                    task.future.set_result(_map(encode, task.blocks))
                except Exception as error:
                    task.future.set_exception(error)
                return
    first = pending.popleft()
    yield from zip(first.blocks, first.future.result(), strict=True)


def _gather(blocks: Iterator[Block]) -> Iterator[list[Block]]:
    """Blocks in lists worth the way to another process: a folder may hold many short texts."""
    task: list[Block] = []
    for block in blocks:
        task.append(block)
        if len(task) == MAX_BLOCKS or sum(b.size for b in task) >= MIN_TASK:
            yield task
            task = []
    if task:
        yield task


def _map(encode: Encode, task: list[Block]) -> list[Encoded]:
    return [encode(block) for block in task]


def _encode(block: Block, *, text_field: str, val_every: int) -> Encoded:
    return encode_block(block, get_tokenizer(), text_field=text_field, val_every=val_every)


def _start_worker() -> None:
    """Leave Ctrl-C to the main process, and do not outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
