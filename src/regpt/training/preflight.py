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
from regpt.datasets.corpus import Say, silent
from regpt.system.distributed import World
from regpt.system.errors import UserError
from regpt.system.memory import available_memory, peak_memory
from regpt.system.runtime import find_runtime
from regpt.training.build import build, decide_compile, gradients_of
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
    """What the timed steps came to, on one process, and what that makes of a run."""

    rows: int
    """Sequences in a timed micro-batch."""
    row_seconds: float
    """Forward and backward of one sequence."""
    update_seconds: float
    """One step of the optimizer."""
    peak: int | None
    """Most bytes the device held meanwhile; of a CPU, the process; None: not known."""
    step_seconds: float
    """A whole step: forward and backward of a process's sequences, and the update."""
    tokens_per_second: float
    """Of all processes together, if each is as fast as this one."""
    hours: float
    """Steps times the seconds of one; validation and saving come on top."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was found; where not one sequence fits here, nothing was timed."""

    config: RunConfig
    place: str
    processes: int
    memory: Memory
    checks: list[Check]
    speed: Speed | None = None
    epochs: float | None = None

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
    speed = time_steps(state, timed=min(rows, config.batch_size, alone.largest_batch), rows=rows)
    if speed.peak is not None:
        found = alone.corrected(speed.peak - held, speed.rows)
        memory = replace(memory, activations=found.activations)
    batch, plan = first_rows(state, min(ROWS, rows)), state.data.loader.plan
    return report(
        memory=memory,
        speed=speed,
        epochs=config.steps * plan.tokens_per_batch / plan.num_tokens,
        checks=[
            check_memory(config, memory, rows),
            check_disk(config, memory),
            check_one_batch(state.model, config, runtime, batch.x, batch.y),
        ],
    )


def first_rows(state: TrainState, rows: int) -> Batch:
    """So many sequences of the first batch, as a batch of their own."""
    x, y = state.data.loader.batch(0, slice(rows))
    device = state.runtime.device
    return Batch(0, x.to(device), y.to(device), int((y != IGNORE_INDEX).sum()))


def time_steps(state: TrainState, *, timed: int, rows: int) -> Speed:
    """Time three steps on micro-batches of `timed` sequences, or as many as are affordable.

    A step of the run is `rows` sequences on this process and one update, so the two are timed
    apart.
    """
    config, runtime = state.config, state.runtime
    if runtime.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(runtime.device)

    def seconds_of(work: Callable[[], object]) -> float:
        clock = time.perf_counter()
        work()
        runtime.synchronize()
        return time.perf_counter() - clock

    one = first_rows(state, 1)
    gradients_of(state, one)  # allocates and compiles
    timed = max(1, min(timed, int(PATIENCE_SECONDS / seconds_of(lambda: gradients_of(state, one)))))
    batch = first_rows(state, timed)
    if decide_compile(config, runtime.device)[0]:
        gradients_of(state, batch)
    state.optimizer.set_factor(1.0 / max(config.schedule.warmup_steps, 1))
    gradient, update = [], []
    for _ in range(TIMED_STEPS):
        gradient.append(seconds_of(lambda: gradients_of(state, batch)))
        update.append(seconds_of(state.optimizer.step))
    row_seconds, update_seconds = statistics.median(gradient) / timed, statistics.median(update)
    step_seconds = rows * row_seconds + update_seconds
    return Speed(
        rows=timed,
        row_seconds=row_seconds,
        update_seconds=update_seconds,
        peak=peak_memory(runtime.device),
        step_seconds=step_seconds,
        tokens_per_second=state.data.loader.plan.tokens_per_batch / step_seconds,
        hours=config.steps * step_seconds / 3600,
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
