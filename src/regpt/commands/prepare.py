"""`regpt prepare`: text files into shards of tokens."""

import time

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from regpt.datasets.prepare import PrepareProgress
from regpt.datasets.prepare import prepare as run
from regpt.system.console import Console


def prepare(
    inputs: tuple[str, ...],
    /,
    *,
    out: str,
    processes: int | None = None,
    shard_tokens: int = 100_000_000,
    val_every: int = 100,
    text_field: str = "text",
) -> None:
    """Make a data set of tokens from text files; run again after a kill, it goes on.

    Args:
        inputs: .txt, .jsonl, .jsonl.gz, .jsonl.zst or .parquet files, or folders of them.
        out: The directory for the shards and manifest.json.
        processes: Processes that encode; default: one per core. The output does not depend on it.
        shard_tokens: Tokens per shard.
        val_every: One document in so many goes to validation, by the digest of its text; 0: none.
        text_field: The field of a .jsonl line, or column of a .parquet file, that holds the text.
    """
    console = Console()
    bar = Progress(
        TextColumn("[progress.percentage]{task.percentage:>3.0f}%"),
        BarColumn(bar_width=None),
        TextColumn("{task.description}"),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    )
    task, started, before = bar.add_task("", total=None), time.perf_counter(), None

    def show(event: PrepareProgress) -> None:
        nonlocal before
        done = event.source_bytes
        if before is None:
            before = done  # what a continued run had done does not count as speed
            bar.start()  # not before: what is refused at once leaves no bar
        speed = (done - before) / max(time.perf_counter() - started, 1e-9) / 1e6
        text = f"{speed:,.1f} MB/s  {event.tokens:,} tokens"
        bar.update(task, total=event.total_bytes, completed=done, description=text)

    try:
        manifest = run(
            inputs,
            out,
            processes=processes,
            shard_tokens=shard_tokens,
            val_every=val_every,
            text_field=text_field,
            progress=show,
        )
    finally:
        if before is not None:
            bar.stop()

    for name, split in manifest.splits.items():
        console.say(f"{name:<6} {split.tokens:>16,} tokens  {split.documents:>12,} documents")
    console.say(f"{len(manifest.shards)} shards and manifest.json in {out}. Train on them with:")
    console.say(f"  regpt train gpt2-124m --data {out}")
    console.say(f"  regpt data show {out} --step 1")
    console.say(f"After a copy, regpt data verify {out} reads them against their digests.")
