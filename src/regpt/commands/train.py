"""`regpt train`: run a preset and show how it goes."""

import contextlib
import shlex
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import FrameType

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from regpt.system.console import Console
from regpt.training.config import RunConfig
from regpt.training.events import (
    Event,
    Finished,
    HellaSwagScored,
    Interrupted,
    Noted,
    Sampled,
    Saved,
    Started,
    Stepped,
    Validated,
    ValidatedQuickly,
)
from regpt.training.loop import train as run
from regpt.training.run_dir import RunDirectory


class Display:
    """Prints what a run tells: a line per fact, and a progress bar with loss and tokens/s."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.say = console.say  # above the bar
        self.config: RunConfig | None = None
        self.progress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=None),
            TextColumn("{task.description}"),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
        )
        self.task: TaskID | None = None
        self.speed = 0.0
        self.newest: dict[str, str] = {}
        """The latest evaluation figures, for the progress line."""

    def __call__(self, event: Event) -> None:
        match event:
            case Started():
                self.start(event)
            case Stepped():
                self.step(event)
            case Validated():
                self.validated(event)
            case ValidatedQuickly():
                self.newest["validation"] = f"val {event.loss:.3f}"
            case HellaSwagScored():
                self.scored(event)
            case Sampled():
                self.sampled(event)
            case Noted():
                self.say(f"note: {event.text}")
            case Saved():
                self.say(f"step {event.step:>6}  checkpoint, {event.seconds * 1000:.0f} ms pause")
            case Interrupted():
                self.interrupted(event)
            case Finished():
                self.finish(event)

    def start(self, event: Started) -> None:
        config = self.config = event.config
        shape = config.model
        self.say(f"regpt train {config.preset}: {', '.join(config.data)} -> {event.directory}")
        self.say(
            f"model      {event.num_parameters:,} parameters: {shape.n_layer} layers, "
            f"{shape.n_head} heads, {shape.n_embd} channels, {shape.block_size} positions"
        )
        held_out = f", {event.validation_tokens:,} held out" if event.validation_tokens else ""
        self.say(f"data       {event.train_tokens:,} tokens{held_out}")
        self.say(
            f"training   {config.steps:,} steps of {event.sequences} x {config.block_size} "
            f"tokens, {event.steps_per_epoch:,} steps per epoch, {config.optimizer.name}"
        )
        if event.hellaswag[0]:
            count, total = event.hellaswag
            self.say(f"hellaswag  {count:,} of {total:,} examples, the lecture's scoring, fp32")
        processes = f", {event.processes} processes" if event.processes > 1 else ""
        self.say(f"on         {event.place}{processes}")
        compiled, reason = event.compiling
        self.say(f"compiled   {'yes' if compiled else 'no'}: {reason}")

    def step(self, event: Stepped) -> None:
        assert self.config is not None
        if self.task is None:
            self.task = self.progress.add_task("", total=self.config.steps)
            self.progress.start()
        blend = 0.9 if self.speed else 0.0
        self.speed = blend * self.speed + (1 - blend) * event.tokens_per_second
        held = f"  {event.peak_memory / 1e9:.2f} GB" if event.peak_memory else ""
        self.progress.update(
            self.task,
            completed=event.step,
            description="  ".join(
                (f"loss {event.loss:.3f}", *self.newest.values(), f"{self.speed:,.0f} tokens/s")
            ),
        )
        if not self.console.is_terminal:  # a log file gets lines instead of a bar
            every = max(self.config.steps // 10, 1)
            if event.step == 1 or event.step % every == 0:
                self.say(
                    f"step {event.step:>6}/{self.config.steps}  loss {event.loss:.4f}  "
                    + "".join(f"{figure}  " for figure in self.newest.values())
                    + f"{self.speed:,.0f} tokens/s{held}"
                )

    def validated(self, event: Validated) -> None:
        result = event.result
        self.newest["validation"] = f"val {result.loss:.3f}"
        self.say(
            f"step {event.step:>6}  validation loss {result.loss:.4f} nats per token, "
            f"{result.bits_per_byte:.4f} bits per byte, "
            f"{result.nats_per_character:.4f} nats per character"
        )

    def scored(self, event: HellaSwagScored) -> None:
        self.newest["hellaswag"] = f"hellaswag {event.acc_norm.value:.3f}"
        self.say(
            f"step {event.step:>6}  hellaswag acc {event.acc.value:.4f}, "
            f"acc_norm {event.acc_norm.value:.4f} ± {event.acc_norm.stderr:.4f}, "
            f"{event.examples:,} examples"
        )

    def sampled(self, event: Sampled) -> None:
        when = "before training" if event.step == 0 else f"after {event.step:,} steps"
        self.say(f"\nsamples {when}:")
        for texts in event.samples.values():
            for text in texts:
                self.say(f"> {text}")
        self.say()

    def interrupted(self, event: Interrupted) -> None:
        self.progress.stop()
        self.say(f"stopped after step {event.step:,} and saved. Go on with:")
        self.say(f"  regpt train --resume {shlex.quote(str(event.directory))}")

    def finish(self, event: Finished) -> None:
        assert self.config is not None
        self.progress.stop()
        self.say(f"done in {event.seconds:.0f} s. In {event.directory}:")
        self.say("  config.json, model.safetensors, tokenizer files   the model")
        self.say("  metrics.jsonl, loss.png                           its curve")
        self.say("  run.json, samples.txt                             what was run, and texts")
        if self.config.tensorboard:
            folder = shlex.quote(str(event.directory.parent))
            self.say(f"Look at it:\n  tensorboard --logdir {folder}")
        self.say("Write with it:")
        length = min(self.config.model.block_size, 100)
        prompt = shlex.quote(self.config.prompts[0] if self.config.prompts else "")
        model = shlex.quote(str(event.directory))
        self.say(f"  regpt sample {prompt} --model {model} --max-length {length}")


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
    display = Display(Console())
    try:
        with StopRequest().listening() as stop:
            run(config, display, resume=resume, stop=stop)
    finally:
        if display.task is not None:  # stopping what never started would print an empty line
            display.progress.stop()
