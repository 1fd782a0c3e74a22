"""Which tokens a forward pass reads and which it scores: every token of a text exactly once.

A window reads `block_size` tokens at most; the next one begins `stride` tokens later and scores
only what no window scored before. At stride = block_size windows do not overlap; a smaller one
gives every token but the first window's at least block_size - stride + 1 tokens of context, at
block_size / stride times the cost. The figure belongs to its stride, so the stride is stated.

    tokens    0 1 2 3 4 5 6 7 8      block_size 4, stride 2: window 0 scores 1 2 3 4,
    window 0  x x x x y              window 1 scores 5 6, window 2 scores 7 8
    window 1      x x x x y

With `documents` no window reads across an end-of-text: it is the last token a document is asked
for, and the first thing the next one sees.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from regpt.core.data import CHUNK, IGNORE_INDEX, PADDING_ID, Dataset
from regpt.core.tokenizer import END_OF_TEXT_ID
from regpt.system.distributed import World
from regpt.system.errors import UserError


@dataclass(frozen=True)
class Windows:
    """Places in a stream of tokens, int64 (n,) each."""

    starts: np.ndarray
    """The first token read."""
    scored: np.ndarray
    """The first target scored."""
    stops: np.ndarray
    """The last target; the last token read stands before it."""

    def __len__(self) -> int:
        return len(self.starts)

    def take(self, rows: np.ndarray | slice) -> "Windows":
        return Windows(self.starts[rows], self.scored[rows], self.stops[rows])

    @property
    def targets(self) -> int:
        return int((self.stops - self.scored + 1).sum())

    def spread(self, count: int) -> "Windows":
        """At most so many, evenly spread over the text."""
        count = min(count, len(self))
        return self.take((2 * np.arange(count) + 1) * len(self) // (2 * count))

    def batches(self, tokens: int, world: World) -> Iterator[np.ndarray]:
        """The windows of this process by number, grouped so that about `tokens` are read at once.

        Longest first, so that a batch has little padding; equals keep their order.
        """
        lengths = self.stops - self.starts
        left = np.argsort(-lengths, kind="stable")[world.rank :: world.size]
        while len(left):
            rows = max(1, tokens // int(lengths[left[0]]))
            yield left[:rows]
            left = left[rows:]

    def read(self, dataset: Dataset) -> tuple[Tensor, Tensor]:
        """x and y, int64 (n, T): y is -100 where a target is not scored or not there."""
        T = int((self.stops - self.starts).max())
        x = np.full((len(self), T), PADDING_ID, dtype=np.int64)
        y = np.full((len(self), T), IGNORE_INDEX, dtype=np.int64)
        places = zip(self.starts.tolist(), self.scored.tolist(), self.stops.tolist(), strict=True)
        for row, (start, scored, stop) in enumerate(places):
            tokens = dataset.read(start, stop + 1)
            x[row, : stop - start] = tokens[:-1]
            y[row, scored - start - 1 : stop - start] = tokens[scored - start :]
        return torch.from_numpy(x), torch.from_numpy(y)


def cut_windows(
    dataset: Dataset, *, block_size: int, stride: int | None = None, documents: bool = False
) -> Windows:
    """The windows that score every token of a dataset but its first.

    Raises UserError for fewer than two tokens, or a stride that would leave tokens out.
    """
    stride = block_size if stride is None else stride
    if len(dataset) < 2:
        raise UserError(
            f"the validation text has {len(dataset)} tokens, but 2 are needed: give a longer text"
        )
    if not 1 <= stride <= block_size:
        raise UserError(
            f"stride {stride} is not between 1 and the block size {block_size}: a larger one would "
            "leave tokens out"
        )
    cuts = [0, len(dataset) - 1]
    if documents:
        cuts = [0, *find_ends(dataset), len(dataset) - 1]
    borders = np.unique(np.array(cuts, dtype=np.int64))
    first, last = borders[:-1], borders[1:]  # first token read, last target, of each document
    counts = 1 + np.maximum(-(-(last - first - block_size) // stride), 0)
    index = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    starts = np.repeat(first, counts) + stride * index
    stops = np.minimum(starts + block_size, np.repeat(last, counts))
    scored = np.where(index == 0, starts, starts - stride + block_size) + 1
    return Windows(starts, scored, stops)


def find_ends(dataset: Dataset) -> list[int]:
    """Where end-of-text stands, read chunk by chunk."""
    found: list[int] = []
    for start in range(0, len(dataset), CHUNK):
        tokens = dataset.read(start, min(start + CHUNK, len(dataset)))
        found += (start + np.flatnonzero(tokens == END_OF_TEXT_ID)).tolist()
    return found
