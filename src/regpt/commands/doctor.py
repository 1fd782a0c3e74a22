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


def cost_of(report: Report, price_per_hour: float | None) -> float | None:
    """Of the whole run, in the price's currency."""
    if report.hours is None or price_per_hour is None:
        return None
    return report.hours * price_per_hour


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
    if speed is None or report.hours is None:
        return [*lines, "speed      not timed: not one sequence fits here"]
    if speed.peak:
        lines.append(f"measured   peak {gigabytes(speed.peak)} with {speed.rows} sequences")
    many = f" on {report.processes} processes" if report.processes > 1 else ""
    lines += [
        f"speed      {report.tokens_per_second:,.0f} tokens/s{many}, {report.step_seconds:.2f} s a "
        f"step (three timed, micro-batches of {speed.rows})",
        f"time       {duration(report.hours)} for {config.steps:,} steps of "
        f"{config.batch_tokens:,} tokens, {report.epochs:.2f} epochs; validation and saving extra",
    ]
    if (cost := cost_of(report, price_per_hour)) is not None:
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
        "timed_sequences": speed.rows if speed else None,
        "step_seconds": report.step_seconds,
        "tokens_per_second": report.tokens_per_second,
        "hours": report.hours,
        "cost": cost_of(report, price_per_hour),
        "checks": [vars(check) for check in report.checks],
    }


def doctor(config: DoctorConfig) -> None:
    """Examine and tell; exit code 1 if the run should not begin."""
    console = Console(stderr=config.json)
    report = examine(config.run(), processes=config.processes, say=console.say)
    if config.json:
        sys.stdout.write(json_text.dumps(finite(as_json(report, config.price_per_hour))) + "\n")
        raise SystemExit(0 if report.ok else 1)
    console.say(f"regpt doctor {config.preset}, on {report.place}")
    for line in lines_of(report, config.price_per_hour):
        console.say(line)
    for check in report.checks:
        console.say(f"{check.name:<12} {'ok   ' if check.passed else 'FAULT'}  {check.text}")
    faults = [check.name for check in report.checks if not check.passed]
    console.say(f"not fit to run: {', '.join(faults)}" if faults else "fit to run")
    raise SystemExit(0 if report.ok else 1)
