"""`regpt train`: run a preset and show how it goes."""

import contextlib
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from statistics import harmonic_mean
from types import FrameType
from typing import Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from regpt.system.console import Console
from regpt.training.config import RunConfig
from regpt.training.loop import train as run
from regpt.training.run_dir import RunDirectory

SPEAK_SECONDS = (5.0, 60.0)
"""Between two lines of steps in a log: at first, and after twenty minutes."""


class Display:
    """Lines for what metrics.jsonl is told, and for the steps a bar on a terminal.

    A log has lines of the first step, the last, and some between.
    """

    def __init__(self, steps: int, console: Console) -> None:
        self.steps, self.console, self.say = steps, console, console.say
        self.bar = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=None),
            TextColumn("{task.description}"),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self.task = self.bar.add_task("", total=steps)
        self.began, self.spoken = time.monotonic(), 0.0
        self.speeds: list[float] = []
        """Tokens per second of the steps since the last line."""
        self.newest: dict[str, str] = {}
        """The latest evaluation figures."""

    def __call__(self, entry: dict[str, Any]) -> None:
        step = f"step {entry['step']:>6}"
        if "loss" in entry:
            self.step(entry)
        elif "val_loss" in entry:
            self.newest["validation"] = f"val {entry['val_loss']:.3f}"
            self.say(
                f"{step}  validation loss {entry['val_loss']:.4f} nats per token, "
                f"{entry['val_bits_per_byte']:.4f} bits per byte, "
                f"{entry['val_nats_per_character']:.4f} nats per character"
            )
        elif "quick_val_loss" in entry:
            self.newest["validation"] = f"val {entry['quick_val_loss']:.3f}"
        elif "hellaswag_acc" in entry:
            self.newest["hellaswag"] = f"hellaswag {entry['hellaswag_acc_norm']:.3f}"
            self.say(
                f"{step}  hellaswag acc {entry['hellaswag_acc']:.4f}, acc_norm "
                f"{entry['hellaswag_acc_norm']:.4f} ± {entry['hellaswag_acc_norm_stderr']:.4f}, "
                f"{entry['hellaswag_examples']:,} examples"
            )
        elif "samples" in entry:
            when = f"after {entry['step']:,} steps" if entry["step"] else "before training"
            texts = [f"> {text}" for written in entry["samples"].values() for text in written]
            self.say("\n".join([f"\nsamples {when}:", *texts, ""]))

    def step(self, entry: dict[str, Any]) -> None:
        """Loss, the newest other figures, speed, memory and what is left."""
        step, now = entry["step"], time.monotonic()
        self.speeds.append(entry["tokens_per_second"])
        speed = harmonic_mean(self.speeds[-20:])
        self.bar.start()
        figures = "  ".join((f"loss {entry['loss']:.3f}", *self.newest.values()))
        self.bar.update(self.task, completed=step, description=f"{figures}  {speed:,.0f} tokens/s")
        least, most = SPEAK_SECONDS
        pause = min(max(least, (now - self.began) / 20), most)
        quiet = self.console.is_terminal or now < self.spoken + pause
        if self.spoken and step < self.steps and quiet:
            return
        speed = harmonic_mean(self.speeds)
        left = (self.steps - step) * entry["tokens"] / step / speed
        held = f"  {entry['peak_memory'] / 1e9:.2f} GB" if entry["peak_memory"] else ""
        figures = "  ".join((f"loss {entry['loss']:.4f}", *self.newest.values()))
        self.say(
            f"step {step:>6}/{self.steps}  {figures}  {speed:,.0f} tokens/s{held}  "
            f"{timedelta(seconds=round(left))} left"
        )
        self.spoken, self.speeds = now, []

    def close(self) -> None:
        """Leave the bar as it is."""
        self.bar.stop()


class StopRequest:
    """SIGTERM or Ctrl-C: finish the step, save, stop. A second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self) -> bool:
        return self.asked

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True

    @contextlib.contextmanager
    def listening(self) -> Iterator["StopRequest"]:
        """Take the signals for as long as a run goes on."""
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self._handle) for number in numbers}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def saved_config(directory: str) -> RunConfig:
    """The configuration a run was started with, its directory filled in."""
    path = Path(directory)
    record = RunDirectory(path).read_record()
    return replace(RunConfig.from_json(record["config"]), out=str(path))


def train(config: RunConfig, *, resume: bool = False) -> None:
    """Run a training and show its progress."""
    console = Console()
    display = Display(config.steps, console)
    with StopRequest().listening() as stop, contextlib.closing(display):
        run(config, display, console.say, resume=resume, stop=stop)
