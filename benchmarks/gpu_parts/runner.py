"""Starts a part in a process of its own, hears what it finds, and ends it when its time is over."""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A part and its time."""

    name: str
    place: str
    """`module:function`."""
    limit: float
    """Seconds it may take,"""
    least: float
    """and those without which it is not begun. They are kept for it from the parts before."""


@dataclass(kw_only=True)
class Found:
    """What a part came to."""

    name: str
    status: str = "not begun"
    """done, skipped: ..., failed: ..., over its limit ..., not begun ..."""
    seconds: float = 0.0
    rows: list[dict] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    head: dict = field(default_factory=dict)
    """The machine, from the part that looked at it."""

    def to_json(self) -> dict[str, object]:
        """A JSON object."""
        return {name: value for name, value in vars(self).items() if name != "head"}

    @property
    def faulty(self) -> bool:
        """Whether something went wrong, and not only missing."""
        broken = self.status.startswith(("failed", "over"))
        return broken or any(row.get("verdict") == "DIFFERS" for row in self.rows)


def allowance(plans: list[Plan], index: int, left: float) -> float:
    """Seconds that a part gets of what is left, the later parts' least set aside."""
    return min(plans[index].limit, left - sum(plan.least for plan in plans[index + 1 :]))


def end_group(process: subprocess.Popen) -> None:
    """End a part and all it started: a worker that goes on would hold the GPU's memory."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def listen(stream: IO[str], lines: "queue.SimpleQueue[str | None]") -> None:
    """Every line, then None."""
    for line in stream:
        lines.put(line)
    lines.put(None)


def run_part(
    plan: Plan,
    settings: Mapping[str, object],
    *,
    seconds: float,
    environment: Mapping[str, str],
    log: Path,
    heard: Callable[[Found], None],
) -> Found:
    """Run a part for at most so many seconds; `heard` is told after every line of it."""
    found = Found(name=plan.name, status="interrupted")
    begun = time.monotonic()
    with log.open("a", encoding="utf-8") as errors:
        errors.write(f"==== {plan.name}\n")
        errors.flush()
        process = subprocess.Popen(
            [sys.executable, "-m", "gpu_parts.part", plan.place, json.dumps(settings)],
            stdout=subprocess.PIPE,
            stderr=errors,
            stdin=subprocess.DEVNULL,
            env=dict(environment),
            text=True,
            encoding="utf-8",
            start_new_session=True,
        )
    assert process.stdout is not None
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    listener = threading.Thread(target=listen, args=(process.stdout, lines), daemon=True)
    listener.start()
    try:
        while True:
            try:
                line = lines.get(timeout=max(begun + seconds - time.monotonic(), 0.0))
            except queue.Empty:
                found.status = f"over its limit of {seconds:.0f} s: ended"
                break
            facts = {} if line is None else json.loads(line)
            if "row" in facts:
                found.rows.append(facts["row"])
            elif "note" in facts:
                found.notes.append(facts["note"])
            elif "machine" in facts:
                found.head = facts
            else:
                found.status = facts.get("end") or f"failed: its process {last_words(process)}"
                break
            found.seconds = time.monotonic() - begun
            heard(found)
    finally:
        end_group(process)
        listener.join(1.0)
        if not listener.is_alive():
            process.stdout.close()
        found.seconds = time.monotonic() - begun
        heard(found)
    return found


def last_words(process: subprocess.Popen) -> str:
    """How a process ended that did not say so itself."""
    code = process.wait()
    return f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
