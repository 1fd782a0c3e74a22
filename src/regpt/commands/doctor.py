"""`regpt doctor`: look at a run before it begins."""

import sys
from dataclasses import dataclass
from typing import Any

from regpt.system.console import Console
from regpt.system.json_text import json_line
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


def duration(hours: float) -> str:
    """Hours for people."""
    if hours < 1 / 60:
        return f"{hours * 3600:.0f} s"
    if hours < 2:
        return f"{hours * 60:.0f} min"
    return f"{hours:.1f} h" if hours < 72 else f"{hours / 24:.1f} days"


def lines_of(report: Report, price_per_hour: float | None) -> list[str]:
    """What was counted and measured, a line each."""
    memory, speed, config = report.memory, report.speed, report.config
    parts = ("parameters", "gradients", "optimizer", "copies", "loss")
    counted = ", ".join(f"{name} {gigabytes(getattr(memory, name))}" for name in parts)
    lines = [
        f"fixed      {gigabytes(memory.fixed)}: {counted}",
        f"activations {gigabytes(memory.activations)} for each sequence of a micro-batch, "
        f"of which {memory.largest_batch} fit",
    ]
    if speed is None:
        return [*lines, "speed      not timed: not one sequence fits here"]
    if speed.peak:
        lines.append(f"measured   peak {gigabytes(speed.peak)} with {speed.rows} sequences")
    many = f" on {report.processes} processes" if report.processes > 1 else ""
    lines += [
        f"speed      {speed.tokens_per_second:,.0f} tokens/s{many}, {speed.step_seconds:.2f} s a "
        f"step (three timed, micro-batches of {speed.rows})",
        f"time       {duration(speed.hours)} for {config.steps:,} steps of "
        f"{config.batch_tokens:,} tokens, {report.epochs:.2f} epochs; validation and saving extra",
    ]
    if price_per_hour is not None:
        cost = speed.hours * price_per_hour
        lines.append(f"cost       {cost:,.2f} at {price_per_hour:g} per hour")
    return lines


def as_json(report: Report, price_per_hour: float | None) -> dict[str, Any]:
    """Everything as JSON values."""
    memory, speed = report.memory, report.speed
    cost = speed.hours * price_per_hour if speed and price_per_hour is not None else None
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
            "measured_peak": speed and speed.peak,
        },
        "timed_sequences": speed and speed.rows,
        "step_seconds": speed and speed.step_seconds,
        "tokens_per_second": speed and speed.tokens_per_second,
        "hours": speed and speed.hours,
        "cost": cost,
        "checks": [vars(check) for check in report.checks],
    }


def doctor(config: DoctorConfig) -> None:
    """Examine and tell; exit code 1 if the run should not begin."""
    say = Console(stderr=config.json).say
    report = examine(config, processes=config.processes, say=say)
    if config.json:
        sys.stdout.write(json_line(as_json(report, config.price_per_hour)))
    else:
        say(f"regpt doctor {config.preset}, on {report.place}")
        for line in lines_of(report, config.price_per_hour):
            say(line)
        for check in report.checks:
            say(f"{check.name:<12} {'ok   ' if check.passed else 'FAULT'}  {check.text}")
        faults = [check.name for check in report.checks if not check.passed]
        say(f"not fit to run: {', '.join(faults)}" if faults else "fit to run")
    raise SystemExit(0 if report.ok else 1)
