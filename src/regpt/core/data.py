"""Token stream to batches: batch = f(dataset, seed, step), whatever the number of processes.

A *window* is `block_size` consecutive targets; a *global batch* is `sequences` windows, over all
ranks and accumulation steps together. `BatchPlan.windows(step)` is a pure function from the step to
the windows' places in the stream; ranks and micro-batches take slices of its rows. So the state of
the loader is one integer, and 1, 2 or 3 processes see the same data at the same step, also after a
resume. Three orders:

- `sequential`, the lecture's: walk the tokens by B*T, fetch B*T+1, x and y are views of one
  buffer, wrap to the start when the next batch does not fit (the tail is never seen).
- `shuffled`: the N-1 targets are cut in ceil((N-1)/T) windows, and each epoch visits all of them in
  its own pseudo-random order (`permutation.py`), every target exactly once. Batches run on across
  the end of an epoch; the last window, if short, is padded with targets of -100.
- `shifted`: the same, but each epoch begins to cut at another place, so that a small text read
  several times does not show the same windows again. Fewer than T targets at the front are left
  out of an epoch, or fewer than T of them come twice.

    plan = BatchPlan(num_tokens=len(data), block_size=32, sequences=4, order="sequential", seed=0)
    x, y = Loader(data, plan).batch(0)
"""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from regpt.core.permutation import permute, shifts
from regpt.core.tokenizer import VOCAB_SIZE, Tokenizer
from regpt.system.errors import UserError

IGNORE_INDEX = -100
"""The target of padding; `torch.nn.functional.cross_entropy` skips it by default."""
PADDING_ID = 0
"""What stands in x where the target is ignored: any valid id does, nothing looks at it."""

CHUNK = 1 << 20
"""Tokens read at once from a text that may be larger than the memory."""

Order = Literal["sequential", "shuffled", "shifted"]


class Dataset(Protocol):
    """A stream of tokens that is read in slices."""

    fingerprint: str
    """Identifies the tokens: two datasets of one fingerprint hold the same stream."""
    vocab_size: int

    def __len__(self) -> int:
        """How many tokens the stream has."""
        ...

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens start .. stop-1 as an integer array (stop - start,), 0 <= start <= stop <= len."""
        ...


class ArrayDataset:
    """Tokens in memory: the lecture's text, or any array of ids."""

    def __init__(self, tokens: np.ndarray, *, vocab_size: int = VOCAB_SIZE) -> None:
        if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
            raise UserError(f"tokens must be 1-D integers, not {tokens.ndim}-D {tokens.dtype}")
        if len(tokens) and not 0 <= int(tokens.min()) <= int(tokens.max()) < vocab_size:
            raise UserError(
                f"token ids run from {tokens.min()} to {tokens.max()}, the vocabulary from 0 to "
                f"{vocab_size - 1}: give a model of a larger vocabulary, or a text of its tokenizer"
            )
        self.tokens = tokens
        self.vocab_size = vocab_size
        digest = hashlib.sha256()
        for start in range(0, len(tokens), CHUNK):
            digest.update(tokens[start : start + CHUNK].astype("<u4").tobytes())
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self.tokens)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens start .. stop-1: a view of the array."""
        return self.tokens[start:stop]


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """Which windows of the stream make the global batch of a step: arithmetic, no data."""

    num_tokens: int
    block_size: int
    """T: targets per sequence."""
    sequences: int
    """Sequences in the global batch of one step, over all ranks and accumulation steps."""
    order: Order
    seed: int
    overfit: bool = False
    """Give every step the first step's batch: the lecture's sanity check."""

    def __post_init__(self) -> None:
        if self.block_size < 1 or self.sequences < 1:
            raise UserError(
                f"block size and sequences per batch must be at least 1, "
                f"got {self.block_size} and {self.sequences}"
            )
        if self.order not in ("sequential", "shuffled", "shifted"):
            raise UserError(f"order {self.order!r} is not one of sequential, shuffled, shifted")
        if self.num_tokens <= self.tokens_per_batch:
            raise UserError(
                f"the data has {self.num_tokens:,} tokens, but a batch of {self.sequences} x "
                f"{self.block_size} needs {self.tokens_per_batch + 1:,}: give more text, or a "
                f"smaller batch or block size"
            )

    @property
    def tokens_per_batch(self) -> int:
        """Targets of a full global batch: B*T."""
        return self.sequences * self.block_size

    @property
    def windows_per_epoch(self) -> int:
        """Windows in one pass over the data, a short last one included (`shuffled`)."""
        return -(-(self.num_tokens - 1) // self.block_size)

    @property
    def steps_per_epoch(self) -> int:
        """Steps after which every window was seen (`shuffled`) or the walk wraps (`sequential`)."""
        if self.order == "sequential":
            return (self.num_tokens - 1) // self.tokens_per_batch
        return -(-self.windows_per_epoch // self.sequences)

    def windows(self, step: int) -> np.ndarray:
        """Where the windows of this global batch start in the stream: int64 (sequences,)."""
        if step < 0:
            raise UserError(f"step must be at least 0, got {step}")
        if self.overfit:
            step = 0
        if self.order == "sequential":
            start = step % self.steps_per_epoch * self.tokens_per_batch
            return start + self.block_size * np.arange(self.sequences, dtype=np.int64)
        numbers = step * self.sequences + np.arange(self.sequences, dtype=np.int64)
        epochs, positions = np.divmod(numbers, self.windows_per_epoch)
        chosen = permute(positions, size=self.windows_per_epoch, seed=self.seed, epochs=epochs)
        starts = chosen * self.block_size
        if self.order == "shifted":
            starts += shifts(epochs, seed=self.seed, block_size=self.block_size)
            starts[starts >= self.num_tokens - 1] = 0  # what the shift has left out at the front
        return starts

    def num_targets(self, step: int) -> int:
        """Targets of the global batch that are not padding: what its summed loss is divided by."""
        left = self.num_tokens - 1 - self.windows(step)
        return int(np.minimum(left, self.block_size).sum())

    def rows(self, rank: int, world_size: int) -> slice:
        """The rows of a global batch that are this rank's: consecutive, equal to within one."""
        if self.sequences < world_size:
            raise UserError(
                f"a batch of {self.sequences} sequences cannot be shared by {world_size} processes:"
                f" use a larger batch or fewer processes"
            )
        return slice(self.sequences * rank // world_size, self.sequences * (rank + 1) // world_size)


def read_windows(dataset: Dataset, offsets: np.ndarray, block_size: int) -> tuple[Tensor, Tensor]:
    """The windows that start at `offsets` (int64 (n,)): x and y, int64 (n, block_size) each.

    y[i, j] is the token after x[i, j]. Windows that follow each other in the stream are read at
    once, and x and y are then views of one buffer; a window that the end of the stream cuts short
    is padded, its missing targets IGNORE_INDEX.
    """
    num_rows, last = len(offsets), len(dataset) - 1
    if num_rows == 0:
        empty = torch.empty((0, block_size), dtype=torch.int64)
        return empty, empty.clone()
    first = int(offsets[0])
    stop = first + num_rows * block_size
    if stop <= last and np.array_equal(offsets, np.arange(first, stop, block_size)):
        buffer = torch.from_numpy(dataset.read(first, stop + 1).astype(np.int64))
        return buffer[:-1].view(num_rows, block_size), buffer[1:].view(num_rows, block_size)
    x = np.full((num_rows, block_size), PADDING_ID, dtype=np.int64)
    y = np.full((num_rows, block_size), IGNORE_INDEX, dtype=np.int64)
    for row, offset in enumerate(offsets.tolist()):
        length = min(block_size, last - offset)
        tokens = dataset.read(offset, offset + length + 1)
        x[row, :length] = tokens[:-1]
        y[row, :length] = tokens[1:]
    return torch.from_numpy(x), torch.from_numpy(y)


class Batch(NamedTuple):
    """What one process trains on in one step."""

    step: int
    x: Tensor
    """int64 (rows, T), on the device asked for."""
    y: Tensor
    """int64 (rows, T): the token after each of x, IGNORE_INDEX where there is none."""
    num_targets: int
    """Real targets of the whole global batch, all ranks and rows: divide the summed loss by it."""


class Loader:
    """A dataset and a plan. Holds no position: any step can be asked for at any time."""

    def __init__(self, dataset: Dataset, plan: BatchPlan) -> None:
        if plan.num_tokens != len(dataset):
            raise UserError(
                f"the plan is for {plan.num_tokens:,} tokens, the dataset has {len(dataset):,}"
            )
        self.dataset = dataset
        self.plan = plan

    def batch(self, step: int, rows: slice | None = None) -> tuple[Tensor, Tensor]:
        """x and y of the global batch of `step`, or of some of its rows: int64 (rows, T)."""
        offsets = self.plan.windows(step)
        return read_windows(
            self.dataset, offsets if rows is None else offsets[rows], self.plan.block_size
        )

    def batches(
        self,
        start_step: int,
        stop_step: int | None = None,
        *,
        rows: slice | None = None,
        device: torch.device | None = None,
    ) -> Iterator[Batch]:
        """The batches of start_step, start_step + 1, ..., without end unless `stop_step` is given.

        A thread prepares the next batch while the caller computes. For a CUDA device it does so in
        pinned memory, and the copy to the device does not wait.
        """
        device = device or torch.device("cpu")
        prepare = partial(self._prepare, rows=rows, device=device)
        step = start_step
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="loader") as pool:
            pending = pool.submit(prepare, step)
            while stop_step is None or step < stop_step:
                batch = pending.result()
                step += 1
                if stop_step is None or step < stop_step:
                    pending = pool.submit(prepare, step)
                yield batch._replace(
                    x=batch.x.to(device, non_blocking=True), y=batch.y.to(device, non_blocking=True)
                )

    def _prepare(self, step: int, *, rows: slice | None, device: torch.device) -> Batch:
        """The batch in host memory; pinned where the device can copy from it by itself."""
        x, y = self.batch(step, rows)
        if device.type == "cuda":
            # A thread starts on device 0: without this, pinning would open a context there.
            with torch.cuda.device(device):
                x, y = x.pin_memory(), y.pin_memory()
        return Batch(step, x, y, self.plan.num_targets(step))


def describe_batch(loader: Loader, step: int, tokenizer: Tokenizer) -> list[str]:
    """The texts of a global batch, one entry per sequence: a line of place, then the text."""
    plan = loader.plan
    entries = []
    for row, offset in enumerate(plan.windows(step).tolist()):
        stop = min(offset + plan.block_size + 1, plan.num_tokens)
        text = tokenizer.decode(loader.dataset.read(offset, stop).tolist())
        entries.append(f"sequence {row}, tokens {offset:,} to {stop - 1:,}\n{text}")
    return entries
