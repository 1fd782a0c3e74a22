"""The whole examination: arithmetic first, then three steps, then one batch learnt by heart."""

import math
import shutil
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from regpt.datasets.corpus import Say, silent
from regpt.doctor.memory import HEADROOM, Memory, count_memory
from regpt.doctor.sanity_checks import Check, check_first_loss, diagnose
from regpt.doctor.speed import (
    PATIENCE_SECONDS,
    Speed,
    fits,
    some_rows,
    time_steps,
)
from regpt.system.distributed import World
from regpt.system.errors import UserError
from regpt.system.memory import available_memory
from regpt.system.runtime import Runtime, find_runtime, peak_memory
from regpt.training.build import build
from regpt.training.config import RunConfig
from regpt.training.nonfinite import KEPT_MODELS
from regpt.training.run_dir import free_name
from regpt.training.state import TrainState


@dataclass(frozen=True, kw_only=True)
class Disk:
    """What a run leaves at its output place, against what is free there."""

    place: Path
    checkpoints: int
    """Most that stand at once: those kept, the best, and one being written."""
    bad_steps: int
    """Most skipped steps whose weights are kept as evidence."""
    needed: int
    """Bytes, the final model included."""
    free: int


@dataclass(kw_only=True)
class Report:
    """What was found, as far as it was looked for."""

    config: RunConfig
    place: str
    processes: int
    memory: Memory
    disk: Disk
    largest_batch: int
    """Sequences per micro-batch that fit, at most what a process gets of a global batch."""
    tried: bool = False
    """Whether the largest was tried, not only computed."""
    speed: Speed | None = None
    step_seconds: float | None = None
    epochs: float | None = None
    checks: list[Check] = field(default_factory=list)

    @property
    def tokens_per_second(self) -> float | None:
        """Of all processes together, if each is as fast as this one."""
        if self.step_seconds is None:
            return None
        return tokens_per_step(self.config) / self.step_seconds

    @property
    def hours(self) -> float | None:
        """Steps times the seconds of one; validation and saving come on top."""
        return None if self.step_seconds is None else self.config.steps * self.step_seconds / 3600

    def cost(self, price_per_hour: float) -> float | None:
        """Of the whole run, in the price's currency."""
        return None if self.hours is None else self.hours * price_per_hour

    @property
    def ok(self) -> bool:
        """Whether the run may begin."""
        return all(check.passed for check in self.checks)

    def to_json(self, price_per_hour: float | None = None) -> dict[str, Any]:
        """Everything as JSON values."""
        memory, speed = self.memory, self.speed
        return {
            "ok": self.ok,
            "preset": self.config.preset,
            "place": self.place,
            "processes": self.processes,
            "memory": {
                "fixed": memory.fixed,
                "activations_per_sequence": memory.activations,
                "needed": memory.needed(self.config.batch_size),
                "available": memory.available,
                "measured_peak": speed.peak if speed else None,
            },
            "largest_batch_size": self.largest_batch,
            "largest_was_tried": self.tried,
            "disk": {"needed": self.disk.needed, "free": self.disk.free},
            "timed_sequences": speed.rows if speed else None,
            "step_seconds": self.step_seconds,
            "tokens_per_second": self.tokens_per_second,
            "hours": self.hours,
            "cost": self.cost(price_per_hour) if price_per_hour is not None else None,
            "first_loss": speed.first_loss if speed else None,
            "checks": [vars(check) for check in self.checks],
        }


def tokens_per_step(config: RunConfig) -> int:
    """Of a configuration whose global batch is named."""
    assert config.batch_tokens is not None
    return config.batch_tokens


def gigabytes(count: float) -> str:
    """Bytes for people."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


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
    report = Report(
        config=config,
        place=runtime.describe(),
        processes=processes,
        memory=memory,
        disk=count_disk(config, memory),
        largest_batch=0,
    )
    look_at_memory(report, memory)
    if count(processes=1).largest_batch == 0:
        return report  # a step cannot be tried here
    held = peak_memory(runtime.device) or 0
    state = build(replace(config, shard=False), runtime, World(device=runtime.device), say=say)
    if state.vocabulary is not None:
        count = partial(count, rows=len(state.model.wte.weight))
        look_at_memory(report, count(processes=processes))
    rows = rows_of_a_process(report)
    batch_size = min(rows, config.batch_size, count(processes=1).largest_batch)
    try_steps(report, state, batch_size, rows)
    if report.speed is not None and report.speed.peak is not None:
        alone = count(processes=1)
        extra = alone.corrected(report.speed.peak - held, report.speed.rows).activations
        if extra > alone.activations:
            look_at_memory(report, replace(report.memory, activations=extra))
    return report


def rows_of_a_process(report: Report) -> int:
    """What one process gets of a global batch, in sequences."""
    return -(-report.config.sequences(report.processes) // report.processes)


def look_at_memory(report: Report, memory: Memory) -> None:
    """Take a count of the memory, and everything that follows from it, into the report."""
    report.memory, report.disk = memory, count_disk(report.config, memory)
    rows = rows_of_a_process(report)
    largest = min(memory.largest_batch, rows)
    report.largest_batch = min(report.largest_batch, largest) if report.tried else largest
    checks = [check_memory(report, rows), check_disk(report.disk)]
    report.checks = checks + report.checks[len(checks) :]


def try_steps(report: Report, state: TrainState, batch_size: int, rows: int) -> None:
    """Everything that takes a model: speed, the largest micro-batch, first loss, one batch."""
    config = report.config
    speed = report.speed = time_steps(state, rows=batch_size)
    report.step_seconds = speed.step_seconds(rows)
    report.epochs = config.steps * tokens_per_step(config) / len(state.data.loader.dataset)
    if speed.rows >= report.largest_batch:
        report.tried = True
    elif affordable(report, state.runtime):
        report.tried = True
        while report.largest_batch > speed.rows and not fits(state, report.largest_batch):
            report.largest_batch -= max(report.largest_batch // 10, 1)
    report.checks.append(check_first_loss(speed.first_loss, config))
    batch = some_rows(state, min(4, max(rows, 1)))
    report.checks += diagnose(state.model, config, state.runtime, batch.x, batch.y)


def affordable(report: Report, runtime: Runtime) -> bool:
    """Whether to try the largest micro-batch: a device refuses, but a CPU's system kills."""
    assert report.speed is not None
    seconds = report.largest_batch * report.speed.row_seconds
    roomy = report.memory.needed(report.largest_batch) < report.memory.available / 2
    return seconds <= PATIENCE_SECONDS and (runtime.device.type == "cuda" or roomy)


def check_memory(report: Report, rows: int) -> Check:
    """Does the configured micro-batch fit?"""
    memory, wanted = report.memory, min(report.config.batch_size, rows)
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
    needed = checkpoints * memory.checkpoint + (1 + bad_steps) * memory.parameters_whole
    return Disk(
        place=place,
        checkpoints=checkpoints,
        bad_steps=bad_steps,
        needed=needed,
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
