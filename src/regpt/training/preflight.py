"""Before a long run: does it fit, how long will it take, does it learn?

Memory and disk are counted, three steps are timed (their peak corrects the count of the memory),
and one small batch is learnt by heart, which a sound setup does in a few dozen steps.
"""

import math
import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from regpt.core.data import IGNORE_INDEX, Batch
from regpt.core.train import StepResult, compute_gradients
from regpt.datasets.corpus import Say, silent
from regpt.system.distributed import World
from regpt.system.errors import UserError
from regpt.system.memory import available_memory
from regpt.system.runtime import find_runtime, peak_memory
from regpt.training.build import StateHooks, build, decide_compile
from regpt.training.config import RunConfig
from regpt.training.memory import HEADROOM, Memory, count_memory, gigabytes
from regpt.training.run_dir import free_name
from regpt.training.sanity import ROWS, Check, check_one_batch
from regpt.training.state import TrainState

TIMED_STEPS = 3
PATIENCE_SECONDS = 10.0
"""What one micro-batch may take."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What the timed steps came to, on one process."""

    rows: int
    """Sequences in a timed micro-batch."""
    row_seconds: float
    """Forward and backward of one sequence."""
    update_seconds: float
    """One step of the optimizer."""
    peak: int | None
    """Most bytes the device held meanwhile; of a CPU, the process; None: not known."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was found; where not one sequence fits here, nothing was timed."""

    config: RunConfig
    place: str
    processes: int
    memory: Memory
    speed: Speed | None = None
    epochs: float | None = None
    step_seconds: float | None = None
    """A whole step: forward and backward of a process's sequences, and the update."""
    tokens_per_second: float | None = None
    """Of all processes together, if each is as fast as this one."""
    hours: float | None = None
    """Steps times the seconds of one; validation and saving come on top."""
    checks: list[Check]

    @property
    def ok(self) -> bool:
        """Whether the run may begin."""
        return all(check.passed for check in self.checks)


def examine(config: RunConfig, *, processes: int = 1, say: Say = silent) -> Report:
    """Look at a run before it begins; trains nothing that is kept and writes nothing.

    Args:
        config: the run.
        processes: how many the run will have, each on a machine or device like this one.
        say: told how far a large text is.

    Raises:
        UserError: what makes the run impossible to build, as `train` would say it.
    """
    runtime = find_runtime(config.device, dtype=config.dtype, threads=config.threads)
    if runtime.world_size > 1:
        raise UserError("doctor runs as one process: start it without torchrun, with --processes N")
    if processes < 1:
        raise UserError(f"processes must be at least 1, got {processes}")
    config = config.with_batch_tokens(processes)
    assert config.batch_tokens is not None
    rows = -(-config.sequences(processes) // processes)  # a process's part of a global batch
    count = partial(count_memory, config, runtime, available=available_memory(runtime.device))
    memory, alone = count(processes=processes), count(processes=1)
    report = partial(Report, config=config, place=runtime.describe(), processes=processes)
    if alone.largest_batch == 0:
        checks = [check_memory(config, memory, rows), check_disk(config, memory)]
        return report(memory=memory, checks=checks)

    held = peak_memory(runtime.device) or 0
    state = build(replace(config, shard=False), runtime, World(device=runtime.device), say=say)
    if state.vocabulary is not None:
        count = partial(count, rows=len(state.model.wte.weight))
        memory, alone = count(processes=processes), count(processes=1)
    speed = time_steps(state, rows=min(rows, config.batch_size, alone.largest_batch))
    if speed.peak is not None:
        found = alone.corrected(speed.peak - held, speed.rows).activations
        memory = replace(memory, activations=max(memory.activations, found))
    batch = some_rows(state, min(ROWS, rows))
    seconds = rows * speed.row_seconds + speed.update_seconds
    return report(
        memory=memory,
        speed=speed,
        epochs=config.steps * config.batch_tokens / len(state.data.loader.dataset),
        step_seconds=seconds,
        tokens_per_second=config.batch_tokens / seconds,
        hours=config.steps * seconds / 3600,
        checks=[
            check_memory(config, memory, rows),
            check_disk(config, memory),
            check_one_batch(state.model, config, runtime, batch.x, batch.y),
        ],
    )


def some_rows(state: TrainState, rows: int) -> Batch:
    """So many sequences of the first batches, as a batch of their own."""
    loader, device = state.data.loader, state.runtime.device
    batches = [loader.batch(step) for step in range(-(-rows // loader.plan.sequences))]
    x, y = (torch.cat(parts)[:rows] for parts in zip(*batches, strict=True))
    return Batch(0, x.to(device), y.to(device), int((y != IGNORE_INDEX).sum()))


def gradients_of(state: TrainState, batch: Batch) -> StepResult:
    """The real step function on one micro-batch."""
    settings = replace(state.settings, micro_batch=None)
    return compute_gradients(state.model, state.optimizer, batch, settings, StateHooks(state))


def time_steps(state: TrainState, *, rows: int) -> Speed:
    """Time three steps on micro-batches of `rows` sequences, or as many as are affordable.

    A step is many micro-batches and one update, so the two are timed apart.
    """
    runtime = state.runtime
    if runtime.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(runtime.device)

    def seconds_of(work: Callable[[], object]) -> float:
        clock = time.perf_counter()
        work()
        runtime.synchronize()
        return time.perf_counter() - clock

    one = some_rows(state, 1)
    gradients_of(state, one)  # allocates and compiles
    rows = max(1, min(rows, int(PATIENCE_SECONDS / seconds_of(lambda: gradients_of(state, one)))))
    batch = some_rows(state, rows)
    if decide_compile(state.config, runtime.device)[0]:
        gradients_of(state, batch)
    state.optimizer.set_factor(1.0 / max(state.config.schedule.warmup_steps, 1))
    gradient, update = [], []
    for _ in range(TIMED_STEPS):
        gradient.append(seconds_of(lambda: gradients_of(state, batch)))
        update.append(seconds_of(state.optimizer.step))
    return Speed(
        rows=rows,
        row_seconds=statistics.median(gradient) / rows,
        update_seconds=statistics.median(update),
        peak=peak_memory(runtime.device),
    )


def check_memory(config: RunConfig, memory: Memory, rows: int) -> Check:
    """Does the configured micro-batch fit, of a process that gets so many sequences a step?"""
    wanted, largest = min(config.batch_size, rows), min(memory.largest_batch, rows)
    needed = memory.needed(wanted)
    passed = needed <= memory.available * HEADROOM
    text = f"{gigabytes(needed)} for micro-batches of {wanted}, {gigabytes(memory.available)} free"
    if not passed and largest:
        text += f": use --batch-size {largest}"
    elif not passed:
        text += ": not one sequence fits; try --checkpoint-activations, --shard, --block-size"
    return Check(name="memory", passed=passed, text=text)


def checkpoints_at_once(config: RunConfig) -> int:
    """The newest, the best, and one being written; a run that is interrupted saves in any case."""
    if config.save_every is None:
        return 1
    saves = math.ceil(config.steps / config.save_every)
    return min(saves, config.keep + 1) + (config.eval_every is not None)


def check_disk(config: RunConfig, memory: Memory) -> Check:
    """Is there room for checkpoints and model where the run will write?"""
    place = Path(config.out) if config.out else free_name(config.preset)
    while not place.exists():
        place = place.absolute().parent
    checkpoints = checkpoints_at_once(config)
    needed = checkpoints * memory.checkpoint + memory.parameters_whole
    free = shutil.disk_usage(place).free
    noun = "checkpoint" if checkpoints == 1 else "checkpoints"
    text = (
        f"{gigabytes(needed)} for {checkpoints} {noun} at once and the model, "
        f"{gigabytes(free)} free at {place}"
    )
    if needed > free:
        text += ": choose another --out, or a smaller --keep"
    return Check(name="disk", passed=needed <= free, text=text)
