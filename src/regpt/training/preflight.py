"""Before a long run: does it fit, how long will it take, what will it cost, does it learn?

Memory and disk are counted, then three steps are timed (their peak corrects the count of the
memory), the largest micro-batch is tried, and one small batch is learnt by heart, which a sound
setup does in a few dozen steps.
"""

import math
import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
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
from regpt.training.nonfinite import KEPT_MODELS
from regpt.training.run_dir import free_name
from regpt.training.sanity import ROWS, Check, check_first_loss, check_one_batch
from regpt.training.state import TrainState

TIMED_STEPS = 3
PATIENCE_SECONDS = 10.0
"""What one micro-batch may take."""


@dataclass(frozen=True, kw_only=True)
class Disk:
    """What a run leaves at its output place, against what is free there."""

    place: Path
    checkpoints: int
    """Most that stand at once: the newest, the best, and one being written."""
    bad_steps: int
    """Most skipped steps whose weights are kept as evidence."""
    needed: int
    """Bytes, the final model included."""
    free: int


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


@dataclass(kw_only=True)
class Report:
    """What was found, as far as a step could be tried."""

    config: RunConfig
    place: str
    processes: int
    memory: Memory
    disk: Disk
    largest_batch: int = 0
    """Sequences per micro-batch that fit, at most what a process gets of a global batch."""
    tried: bool = False
    """Whether the largest was tried, not only computed."""
    speed: Speed | None = None
    epochs: float | None = None
    checks: list[Check] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """What one process gets of a global batch, in sequences."""
        return -(-self.config.sequences(self.processes) // self.processes)

    @property
    def step_seconds(self) -> float | None:
        """A whole step: forward and backward of a process's sequences, and the update."""
        if self.speed is None:
            return None
        return self.rows * self.speed.row_seconds + self.speed.update_seconds

    @property
    def tokens_per_second(self) -> float | None:
        """Of all processes together, if each is as fast as this one."""
        seconds, tokens = self.step_seconds, self.config.batch_tokens
        return None if seconds is None or tokens is None else tokens / seconds

    @property
    def hours(self) -> float | None:
        """Steps times the seconds of one; validation and saving come on top."""
        seconds = self.step_seconds
        return None if seconds is None else self.config.steps * seconds / 3600

    def cost(self, price_per_hour: float | None) -> float | None:
        """Of the whole run, in the price's currency."""
        if self.hours is None or price_per_hour is None:
            return None
        return self.hours * price_per_hour

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
    count = partial(count_memory, config, runtime, available=available_memory(runtime.device))
    memory = count(processes=processes)
    learning: list[Check] = []
    report = Report(
        config=config,
        place=runtime.describe(),
        processes=processes,
        memory=memory,
        disk=count_disk(config, memory),
    )
    report.largest_batch = min(memory.largest_batch, report.rows)
    if count(processes=1).largest_batch > 0:  # a step can be tried here
        held = peak_memory(runtime.device) or 0
        alone = World(device=runtime.device)
        state = build(replace(config, shard=False), runtime, alone, say=say)
        if state.vocabulary is not None:
            count = partial(count, rows=len(state.model.wte.weight))
        measure(report, state, count(processes=processes), count(processes=1), held)
        assert report.speed is not None
        batch = some_rows(state, min(ROWS, report.rows))
        learning = [
            check_first_loss(report.speed.first_loss, config),
            check_one_batch(state.model, config, runtime, batch.x, batch.y),
        ]
    report.checks = [check_memory(report), check_disk(report.disk), *learning]
    return report


def measure(report: Report, state: TrainState, memory: Memory, alone: Memory, held: int) -> None:
    """Speed and peak of real steps, and the largest micro-batch tried.

    `memory` is counted for the run, `alone` for this one process, which held `held` bytes before.
    """
    config = report.config
    rows = min(report.rows, config.batch_size, alone.largest_batch)
    speed = report.speed = time_steps(state, rows=rows)
    report.epochs = config.steps * (config.batch_tokens or 0) / len(state.data.loader.dataset)
    if speed.peak is not None:
        found = alone.corrected(speed.peak - held, speed.rows).activations
        if found > alone.activations:
            memory = replace(memory, activations=found)
    report.memory, report.disk = memory, count_disk(config, memory)
    largest = min(memory.largest_batch, report.rows)
    # a GPU refuses what does not fit, but a CPU's system kills
    roomy = memory.needed(largest) < memory.available / 2 or state.runtime.device.type == "cuda"
    if largest <= speed.rows:
        report.tried = True
    elif roomy and largest * speed.row_seconds <= PATIENCE_SECONDS:
        report.tried = True
        while largest > speed.rows and not fits(state, largest):
            largest -= max(largest // 10, 1)
    report.largest_batch = largest


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
    seconds_of(lambda: gradients_of(state, one))  # allocates and compiles
    rows = max(1, min(rows, int(PATIENCE_SECONDS / seconds_of(lambda: gradients_of(state, one)))))
    batch = some_rows(state, rows)
    if decide_compile(state.config, runtime.device)[0]:
        gradients_of(state, batch)
    state.optimizer.set_factor(1.0 / max(state.config.schedule.warmup_steps, 1))
    losses, gradient, update = [], [], []
    for _ in range(TIMED_STEPS):
        gradient.append(seconds_of(lambda: losses.append(gradients_of(state, batch).loss)))
        update.append(seconds_of(state.optimizer.step))
    return Speed(
        rows=rows,
        first_loss=losses[0],
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


def check_memory(report: Report) -> Check:
    """Does the configured micro-batch fit?"""
    memory, wanted = report.memory, min(report.config.batch_size, report.rows)
    needed = memory.needed(wanted)
    passed = needed <= memory.available * HEADROOM
    text = f"{gigabytes(needed)} for micro-batches of {wanted}, {gigabytes(memory.available)} free"
    if not passed and memory.largest_batch:
        text += f": use --batch-size {report.largest_batch}"
    elif not passed:
        text += ": not one sequence fits; try --checkpoint-activations, --shard, --block-size"
    return Check(name="memory", passed=passed, text=text)


def count_disk(config: RunConfig, memory: Memory) -> Disk:
    """The checkpoints that stand at once, where the run will write."""
    place = Path(config.out) if config.out else free_name(config.preset)
    while not place.exists():
        place = place.absolute().parent
    checkpoints = 1  # a run that is interrupted saves, whatever the configuration
    if config.save_every is not None:
        saves = math.ceil(config.steps / config.save_every)
        checkpoints = min(saves, config.keep + 1) + (config.eval_every is not None)
    # the step that ends a run leaves its weights as well, but then there is no final model
    bad_steps = min(config.skip_bad_steps, KEPT_MODELS)
    return Disk(
        place=place,
        checkpoints=checkpoints,
        bad_steps=bad_steps,
        needed=checkpoints * memory.checkpoint + (1 + bad_steps) * memory.parameters_whole,
        free=shutil.disk_usage(place).free,
    )


def check_disk(disk: Disk) -> Check:
    """Is there room for the checkpoints and the weights of skipped steps?"""
    noun = "checkpoint" if disk.checkpoints == 1 else "checkpoints"
    evidence = f", the weights of {disk.bad_steps} bad steps" if disk.bad_steps else ""
    text = (
        f"{gigabytes(disk.needed)} for {disk.checkpoints} {noun} at once{evidence} and the model, "
        f"{gigabytes(disk.free)} free at {disk.place}"
    )
    passed = disk.needed <= disk.free
    if not passed:
        text += ": choose another --out, or a smaller --keep"
    return Check(name="disk", passed=passed, text=text)
