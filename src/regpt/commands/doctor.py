"""`regpt doctor`: look at a run before it begins."""

import json as json_text
import sys
from dataclasses import dataclass, fields
from typing import Any

from regpt.system.console import Console
from regpt.system.json_text import finite
from regpt.training.config import RunConfig
from regpt.training.memory import gigabytes
from regpt.training.preflight import Report, examine


@dataclass(frozen=True, kw_only=True)
class DoctorConfig(RunConfig):
    """A training run, and what to tell of it."""

    processes: int = 1
    """How many processes the run will have, each on a device like this one."""
    price_per_hour: float | None = None
    """Of all devices together, in any currency: prints what the run costs."""
    json: bool = False
    """Print one JSON object and nothing else."""

    def run(self) -> RunConfig:
        """The training run alone."""
        return RunConfig(**{entry.name: getattr(self, entry.name) for entry in fields(RunConfig)})


def duration(hours: float) -> str:
    """Hours for people."""
    if hours < 1 / 60:
        return f"{hours * 3600:.0f} s"
    if hours < 2:
        return f"{hours * 60:.0f} min"
    return f"{hours:.1f} h" if hours < 72 else f"{hours / 24:.1f} days"


def memory_lines(report: Report) -> list[str]:
    """The arithmetic, spelled out."""
    memory = report.memory
    most = f"{report.largest_batch} sequences"
    how = "tried" if report.tried else "by arithmetic, not tried"
    parts = (
        f"parameters {gigabytes(memory.parameters)}",
        f"gradients {gigabytes(memory.gradients)}",
        f"optimizer {gigabytes(memory.optimizer)}",
        f"copies {gigabytes(memory.copies)}",
        f"loss {gigabytes(memory.loss)}",
    )
    lines = [
        f"fixed      {gigabytes(memory.fixed)}: {', '.join(parts)}",
        f"activations {gigabytes(memory.activations)} for each sequence of a micro-batch",
        f"largest    micro-batch that fits and is of use: {most} ({how})",
    ]
    if report.speed and report.speed.peak:
        lines.append(
            f"measured   peak {gigabytes(report.speed.peak)} with {report.speed.rows} sequences"
        )
    return lines


def speed_lines(report: Report, price_per_hour: float | None) -> list[str]:
    """How fast, how long, how much."""
    speed, config = report.speed, report.config
    if speed is None or report.hours is None or report.epochs is None:
        return ["speed      not timed: not one sequence fits here"]
    many = f" on {report.processes} processes" if report.processes > 1 else ""
    lines = [
        f"speed      {report.tokens_per_second:,.0f} tokens/s{many}, {report.step_seconds:.2f} s a "
        f"step (three timed, micro-batches of {speed.rows})",
        f"time       {duration(report.hours)} for {config.steps:,} steps of "
        f"{config.batch_tokens:,} tokens, {report.epochs:.2f} epochs; validation and saving extra",
    ]
    cost = report.cost(price_per_hour)
    if cost is not None:
        lines.append(f"cost       {cost:,.2f} at {price_per_hour:g} per hour")
    return lines


def as_json(report: Report, price_per_hour: float | None) -> dict[str, Any]:
    """Everything as JSON values."""
    memory, speed = report.memory, report.speed
    return {
        "ok": report.ok,
        "preset": report.config.preset,
        "place": report.place,
        "processes": report.processes,
        "memory": {
            "fixed": memory.fixed,
            "activations_per_sequence": memory.activations,
            "needed": memory.needed(report.config.batch_size),
            "available": memory.available,
            "measured_peak": speed.peak if speed else None,
        },
        "largest_batch_size": report.largest_batch,
        "largest_was_tried": report.tried,
        "disk": {"needed": report.disk.needed, "free": report.disk.free},
        "timed_sequences": speed.rows if speed else None,
        "step_seconds": report.step_seconds,
        "tokens_per_second": report.tokens_per_second,
        "hours": report.hours,
        "cost": report.cost(price_per_hour),
        "first_loss": speed.first_loss if speed else None,
        "checks": [vars(check) for check in report.checks],
    }


def doctor(config: DoctorConfig) -> None:
    """Examine and tell; exit code 1 if the run should not begin."""
    console = Console(stderr=config.json)
    report = examine(config.run(), processes=config.processes, say=console.say)
    if config.json:
        sys.stdout.write(json_text.dumps(finite(as_json(report, config.price_per_hour))) + "\n")
        raise SystemExit(0 if report.ok else 1)
    lines = [f"regpt doctor {config.preset}, on {report.place}"]
    lines += memory_lines(report) + speed_lines(report, config.price_per_hour)
    for check in report.checks:
        lines.append(f"{check.name:<12} {'ok   ' if check.passed else 'FAULT'}  {check.text}")
    faults = [check.name for check in report.checks if not check.passed]
    lines.append(f"not fit to run: {', '.join(faults)}" if faults else "fit to run")
    for line in lines:
        console.say(line)
    raise SystemExit(0 if report.ok else 1)
