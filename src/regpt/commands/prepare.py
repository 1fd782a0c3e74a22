"""`regpt prepare`: text files into shards of tokens."""

import time

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from regpt.datasets.prepare import PrepareProgress
from regpt.datasets.prepare import prepare as run
from regpt.system.console import Console


class Display:
    """A bar with MB/s and time left; what a continued run had done does not count as speed."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.task = progress.add_task("", total=None)
        self.started = time.perf_counter()
        self.before: int | None = None

    def __call__(self, event: PrepareProgress) -> None:
        if self.before is None:
            self.before = event.source_bytes
            self.progress.start()  # not before: what is refused at once leaves no bar
        seconds = max(time.perf_counter() - self.started, 1e-9)
        speed = (event.source_bytes - self.before) / seconds / 1e6
        self.progress.update(
            self.task,
            total=event.total_bytes,
            completed=event.source_bytes,
            description=f"{speed:,.1f} MB/s  {event.tokens:,} tokens",
        )


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
    columns = (
        TextColumn("[progress.percentage]{task.percentage:>3.0f}%"),
        BarColumn(bar_width=None),
        TextColumn("{task.description}"),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    display = Display(Progress(*columns, console=console))
    try:
        manifest = run(
            inputs,
            out,
            processes=processes,
            shard_tokens=shard_tokens,
            val_every=val_every,
            text_field=text_field,
            progress=display,
        )
    finally:
        if display.before is not None:
            display.progress.stop()

    for name, split in manifest.splits.items():
        console.say(f"{name:<6} {split.tokens:>16,} tokens  {split.documents:>12,} documents")
    console.say(f"{len(manifest.shards)} shards and manifest.json in {out}. Train on them with:")
    console.say(f"  regpt train gpt2-124m --data {out}")
    console.say(f"  regpt data show {out} --step 1")
    console.say(f"After a copy, regpt data verify {out} reads them against their digests.")
