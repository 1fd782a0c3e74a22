"""Tokens per second, from three timed steps of the real step function.

A step of a large batch is many micro-batches and one update, so the two are timed apart and a
whole step is put together: micro-batches times gradient, plus update. Where even one micro-batch is
slow, fewer of its sequences are timed, and the answer says how many.
"""

import statistics
import time
from dataclasses import dataclass, replace

import torch

from regpt.core.data import IGNORE_INDEX, Batch
from regpt.core.train import StepResult, compute_gradients
from regpt.system.runtime import peak_memory
from regpt.training.build import StateHooks, decide_compile
from regpt.training.state import TrainState

TIMED_STEPS = 3
PATIENCE_SECONDS = 10.0
"""What one timed micro-batch may take."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What the timed steps came to, on one process."""

    rows: int
    """Sequences in a timed micro-batch."""
    first_loss: float
    """Before any update."""
    row_seconds: float
    """Forward and backward of one sequence."""
    update_seconds: float
    """One step of the optimizer."""
    peak: int | None
    """Most bytes the device held meanwhile; of a CPU, the process; None: not known."""

    def step_seconds(self, rows: int) -> float:
        """A whole step in which one process has so many sequences."""
        return rows * self.row_seconds + self.update_seconds


def some_rows(state: TrainState, rows: int) -> Batch:
    """So many sequences of the first batches, as a batch of their own."""
    loader, device = state.data.loader, state.runtime.device
    pieces, step, found = [], 0, 0
    while found < rows:
        pieces.append(loader.batch(step))
        found, step = found + len(pieces[-1][0]), step + 1
    x = torch.cat([piece[0] for piece in pieces])[:rows]
    y = torch.cat([piece[1] for piece in pieces])[:rows]
    return Batch(0, x.to(device), y.to(device), int((y != IGNORE_INDEX).sum()))


def gradients_of(state: TrainState, batch: Batch) -> StepResult:
    """The real step function on one micro-batch."""
    settings = replace(state.settings, micro_batch=None)
    return compute_gradients(state.model, state.optimizer, batch, settings, StateHooks(state))


def time_steps(state: TrainState, *, rows: int) -> Speed:
    """Time the step function on micro-batches of `rows` sequences, or as many as are affordable."""
    runtime = state.runtime
    if runtime.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(runtime.device)
    one = some_rows(state, 1)
    gradients_of(state, one)  # allocates and compiles
    runtime.synchronize()
    clock = time.perf_counter()
    gradients_of(state, one)
    runtime.synchronize()
    seconds = time.perf_counter() - clock
    rows = max(1, min(rows, int(PATIENCE_SECONDS / seconds)))
    batch = some_rows(state, rows)
    if decide_compile(state.config, state.runtime.device)[0]:
        gradients_of(state, batch)
    results, gradient, update = [], [], []
    state.optimizer.set_factor(1.0 / max(state.config.schedule.warmup_steps, 1))
    for _ in range(TIMED_STEPS):
        clock = time.perf_counter()
        results.append(gradients_of(state, batch))
        runtime.synchronize()
        gradient.append(time.perf_counter() - clock)
        clock = time.perf_counter()
        state.optimizer.step()
        runtime.synchronize()
        update.append(time.perf_counter() - clock)
    return Speed(
        rows=rows,
        first_loss=results[0].loss,
        row_seconds=statistics.median(gradient) / rows,
        update_seconds=statistics.median(update),
        peak=peak_memory(runtime.device),
    )


def fits(state: TrainState, rows: int) -> bool:
    """Whether a micro-batch of so many sequences goes through forward and backward."""
    try:
        gradients_of(state, some_rows(state, rows))
    except torch.OutOfMemoryError:
        return False
    finally:
        state.optimizer.zero_grad()
    return True
