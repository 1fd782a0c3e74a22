"""`regpt data`: the texts of the batch that a step is trained on; shards against their digests."""

import sys
from collections import Counter
from pathlib import Path
from typing import Literal

from regpt.system.errors import UserError


def data(
    action: Literal["show", "verify"],
    directory: str,
    /,
    *,
    step: int = 1,
    block_size: int = 1024,
    sequences: int = 8,
    order: Literal["sequential", "shuffled", "shifted"] = "shuffled",
    seed: int = 1337,
    split: Literal["train", "val"] = "train",
) -> None:
    """Show the texts of a batch, of a run or of a prepared data set; or verify a data set.

    Args:
        action: show a batch's texts; or verify: read all shards and compare their sha256.
        directory: A run (its own settings decide the batch) or a directory made by regpt prepare.
        step: The step, counted from 1 as in metrics.jsonl.
        block_size: Tokens per sequence, for a data set.
        sequences: Sequences per batch, for a data set.
        order: shuffled, shifted or sequential, for a data set.
        seed: The seed of the order, for a data set.
        split: train or val, for a data set.
    """
    from regpt.core.data import BatchPlan, Loader, describe_batch
    from regpt.core.tokenizer import get_tokenizer
    from regpt.datasets.shards import ShardDataset
    from regpt.system.distributed import World
    from regpt.system.runtime import find_device
    from regpt.training.config import RunConfig
    from regpt.training.run_dir import RunDirectory
    from regpt.training.training_data import read_data

    if action == "verify":
        verify(Path(directory))
        return
    if step < 1:
        raise UserError(f"step must be at least 1, got {step}")
    if (Path(directory) / "run.json").exists():
        config = RunConfig.from_json(RunDirectory(Path(directory)).read_record()["config"])
        world = World(device=find_device("cpu"))
        loader = read_data(config, world, say=lambda text: print(text, file=sys.stderr)).loader
    else:
        dataset = ShardDataset.open(directory, split=split)
        plan = BatchPlan(
            num_tokens=len(dataset),
            block_size=block_size,
            sequences=sequences,
            order=order,
            seed=seed,
        )
        loader = Loader(dataset, plan)
    for text in describe_batch(loader, step - 1, get_tokenizer()):
        sys.stdout.write(f"-- {text}\n\n")


def verify(directory: Path) -> None:
    """Read every shard of a directory made by regpt prepare, and compare it with the manifest."""
    from regpt.datasets.manifest import SPLITS, Manifest
    from regpt.datasets.shards import ShardDataset

    manifest = Manifest.read(directory) if directory.is_dir() else None
    if manifest is None:  # says what the directory is instead
        ShardDataset.open(directory, verify=True)
        return
    counts = Counter(shard.split for shard in manifest.shards)
    for split in SPLITS:
        if not (count := counts[split]):
            continue
        shards = "1 shard" if count == 1 else f"{count} shards"
        sys.stdout.write(f"{split:<6} reading {shards}\n")
        sys.stdout.flush()
        tokens = len(ShardDataset.open(directory, split=split, verify=True))
        sys.stdout.write(f"{split:<6} {tokens:,} tokens, as manifest.json says\n")
