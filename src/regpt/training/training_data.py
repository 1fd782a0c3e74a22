"""The tokens of a run: texts that are encoded here, or a folder that `regpt prepare` made."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regpt.core.data import CHUNK, IGNORE_INDEX, ArrayDataset, BatchPlan, Dataset, Loader
from regpt.core.tokenizer import VOCAB_SIZE, get_tokenizer
from regpt.datasets.corpora import load_corpus
from regpt.datasets.corpus import Corpus, Say, silent
from regpt.datasets.manifest import Manifest
from regpt.datasets.shards import ShardDataset, find_shards
from regpt.fast.training.compact_vocabulary import CompactVocabulary
from regpt.system.distributed import World
from regpt.system.errors import UserError
from regpt.training.config import RunConfig


class First:
    """The first tokens of a dataset, as a dataset."""

    def __init__(self, whole: Dataset, length: int) -> None:
        self.whole, self.length = whole, min(length, len(whole))
        self.fingerprint = f"{whole.fingerprint} 0-{self.length}"
        self.vocab_size = whole.vocab_size

    def __len__(self) -> int:
        return self.length

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens start .. stop-1."""
        return self.whole.read(start, stop)


class CompactLoader(Loader):
    """A loader whose token ids are rows of a compact embedding."""

    def __init__(self, loader: Loader, vocabulary: CompactVocabulary) -> None:
        super().__init__(loader.dataset, loader.plan)
        self.lookup = vocabulary.lookup()

    def batch(self, step: int, rows: slice | None = None) -> tuple[Tensor, Tensor]:
        """x and y of `Loader.batch`, each token by its row."""
        x, y = super().batch(step, rows)
        real = y != IGNORE_INDEX
        return self.lookup[x], torch.where(real, self.lookup[y.where(real, 0)], y)


def compact_data(data: "Data", vocab_size: int) -> "tuple[Data, CompactVocabulary | None]":
    """The data in rows of a compact embedding, and which; as they are if every token occurs."""
    dataset = data.loader.dataset
    if not isinstance(dataset, ArrayDataset):
        raise UserError("compact_vocabulary is for a text in memory, not for a folder of shards")
    vocabulary = CompactVocabulary.of(dataset.tokens, vocab_size)
    if vocabulary.shared < 2:
        return data, None
    return replace(data, loader=CompactLoader(data.loader, vocabulary)), vocabulary


@dataclass(frozen=True, kw_only=True)
class Data:
    """The tokens of a run."""

    loader: Loader
    validation: Dataset | None
    record: dict[str, Any]
    """Sources, fingerprint, sizes and tokenizer, as in run.json; a resume compares it."""


def read_data(config: RunConfig, world: World, *, say: Say = silent) -> Data:
    """The training tokens behind a loader, and the validation tokens if any are held out.

    `say` is told how far a large text is. The first batch and all held-out tokens are read once, so
    that a damaged shard is met before a run has a directory.
    """
    folder = len(config.data) == 1 and Path(config.data[0]).is_dir()
    training, held_out, record = read_folder(config) if folder else read_texts(config, say)
    if held_out is not None and config.validation_tokens is not None:
        held_out = First(held_out, config.validation_tokens)
    plan = BatchPlan(
        num_tokens=len(training),
        block_size=config.block_size,
        sequences=config.sequences(world.size),
        order=config.order,
        seed=config.seed,
        overfit=config.overfit,
    )
    plan.rows(world.rank, world.size)  # refuses a batch that cannot be shared out
    loader = Loader(training, plan)
    loader.batch(0)
    validation_tokens = 0 if held_out is None else len(held_out)
    for start in range(0, validation_tokens, CHUNK):
        assert held_out is not None
        held_out.read(start, min(start + CHUNK, validation_tokens))
    record |= {
        "train_tokens": len(training),
        "validation_tokens": validation_tokens,
        "tokenizer": get_tokenizer().digest,
    }
    return Data(loader=loader, validation=held_out, record=record)


Splits = tuple[Dataset, Dataset | None, dict[str, Any]]
"""Training tokens, held-out tokens, and what identifies them."""


def known_tokens(config: RunConfig) -> int:
    """Token ids below this are the tokenizer's and have a row in the model."""
    return min(VOCAB_SIZE, config.model.vocab_size)


def read_folder(config: RunConfig) -> Splits:
    """Both splits of a folder of shards; one without validation shards has no validation."""
    folder = config.data[0]
    training, held_out = ShardDataset.open(folder), None
    training.vocab_size = known_tokens(config)
    fingerprint = training.fingerprint
    if config.validation_tokens is not None or holds_validation(Path(folder)):
        held_out = ShardDataset.open(folder, split="val")
        held_out.vocab_size = known_tokens(config)
        fingerprint = f"{fingerprint} {held_out.fingerprint}"
    return training, held_out, {"sources": folder, "fingerprint": fingerprint}


def holds_validation(folder: Path) -> bool:
    """Whether a folder of shards has any for validation."""
    manifest = Manifest.read(folder)
    if manifest is not None:
        return any(shard.split == "val" for shard in manifest.shards)
    try:
        return bool(find_shards(folder, "val"))
    except UserError:
        return False


def read_texts(config: RunConfig, say: Say) -> Splits:
    """Texts, encoded now; the last part of them held out if asked for."""
    corpus = training = load_corpus(config.data, say=say)
    record = {"sources": corpus.name, "fingerprint": corpus.fingerprint}

    def encode(part: Corpus) -> ArrayDataset:
        tokens = part.tokens(get_tokenizer(), say=say)
        return ArrayDataset(tokens, vocab_size=known_tokens(config))

    held_out = None
    if config.validation_fraction:
        training, rest = corpus.split(config.validation_fraction)
        held_out = encode(rest)
        if len(held_out) < 2:
            raise UserError(
                f"the validation text, the last {config.validation_fraction:g} of {corpus.name}, "
                f"has {len(held_out)} tokens, but 2 are needed: give more text"
            )
    return encode(training), held_out, record
