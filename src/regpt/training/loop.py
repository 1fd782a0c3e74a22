"""A run: build, resume, then for each step train, record, maybe evaluate, maybe save.

`train(config)` is a library function: it prints nothing, it hands lines for people to `say` and the
lines of metrics.jsonl to `observe`. One loop serves one process and many: the first tells and
writes, all compute.
"""

import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

from regpt import weights
from regpt.core.data import Batch
from regpt.core.train import StepResult
from regpt.core.train import train as train_model
from regpt.datasets.corpus import Say, silent
from regpt.fast.kernels.build import refused
from regpt.system.distributed import open_world
from regpt.system.memory import peak_memory
from regpt.system.runtime import find_runtime
from regpt.training.build import StateHooks, build, uses_bf16_weights
from regpt.training.checkpoint import CheckpointWriter
from regpt.training.config import RunConfig
from regpt.training.describe import beginning, end, interruption
from regpt.training.loss_plot import draw_loss
from regpt.training.nonfinite import handle_nonfinite_step, nonfinite_reason, spike_reason
from regpt.training.periodic_evaluation import PeriodicEvaluation
from regpt.training.resume import load_finished, open_directory, restore_latest
from regpt.training.run_dir import RunDirectory
from regpt.training.state import SPIKE_WINDOW, TrainState, take_snapshot
from regpt.training.tensorboard import TensorBoard, check_installed

Observe = Callable[[dict[str, Any]], None]
"""Takes a line of metrics.jsonl."""


def train(
    config: RunConfig,
    observe: Observe = lambda entry: None,
    say: Say = silent,
    *,
    resume: bool = False,
    stop: Callable[[], bool] = lambda: False,
) -> TrainState:
    """Run a training from its beginning, or its newest checkpoint, to its end.

    Args:
        config: the run; with `resume`, `config.out` is the directory to go on in.
        observe: told every line of metrics.jsonl, on the first process.
        say: told what happens, in lines for people, on the first process.
        resume: go on where the newest sound checkpoint stands.
        stop: asked after every step; True saves the run and ends it there.

    Raises:
        UserError: what the configuration, data or directory make impossible; and a step whose
            numbers are not finite, once no more of them may be skipped.
    """
    started = time.perf_counter()
    if config.tensorboard:
        check_installed()
    runtime = find_runtime(config.device, dtype=config.dtype, threads=config.threads)
    with open_world(runtime) as world:
        say = say if world.is_first else silent

        def note(text: str) -> None:
            say(f"note: {text}")

        config = config.with_batch_tokens(world.size)
        state = build(config, runtime, world, say=note)
        evaluation = PeriodicEvaluation(state)
        directory = open_directory(state, resume=resume)
        try:
            if resume and directory.is_complete(config.steps):
                load_finished(state, directory, note)
                return state
            if resume:
                restore_latest(state, directory, note)
            say(beginning(state, directory.path, evaluation))
            run = Run(state, directory, evaluation, observe, say, stop)
            if run.to_the_end():
                run.finish()
                say(end(state, directory.path, time.perf_counter() - started))
            else:
                say(interruption(state, directory.path))
        finally:
            directory.release()
        return state


class Run(StateHooks):
    """A run in its directory, and what happens around each of its steps."""

    def __init__(
        self,
        state: TrainState,
        directory: RunDirectory,
        evaluation: PeriodicEvaluation,
        observe: Observe,
        say: Say,
        stop: Callable[[], bool],
    ) -> None:
        super().__init__(state)
        self.directory, self.evaluation, self.stop, self.say = directory, evaluation, stop, say
        self.observers = [directory.append_metrics, observe] if state.world.is_first else []
        self.writer = CheckpointWriter(directory.checkpoints, keep=state.config.keep)
        self.first_step = state.step + 1
        self.stopped = False
        self.clock = time.perf_counter()

    def record(self, entries: Iterable[dict[str, Any]]) -> None:
        """Write down lines of metrics.jsonl and show them."""
        for entry in entries:
            for observe in self.observers:
                observe(entry)

    def to_the_end(self) -> bool:
        """All steps that are left; False if asked to stop before the last."""
        state, config, world = self.state, self.state.config, self.state.world
        with ExitStack() as open_files:
            open_files.callback(self.writer.close)
            if world.is_first and config.tensorboard:
                earlier, _ = self.directory.read_metrics()
                board = TensorBoard(self.directory.path, earlier, step=state.step)
                open_files.callback(board.close)
                self.observers.insert(1, board.write)
            if state.step == 0:  # a resumed run has them already
                self.record(self.evaluation.write_samples())
            loader = state.data.loader
            rows = loader.plan.rows(world.rank, world.size)
            self.clock = time.perf_counter()
            train_model(
                state.model,
                loader.batches(state.step, config.steps, rows=rows, device=world.device),
                state.optimizer,
                steps=config.steps,
                schedule=config.schedule,
                settings=state.settings,
                hooks=self,
            )
        world.barrier()
        return not self.stopped

    def accept(self, batch: Batch, result: StepResult) -> bool:
        """Whether loss and gradient are finite; if not, keep the evidence, or end the run."""
        state = self.state
        reason = nonfinite_reason(result) or spike_reason(state, result)
        if reason is None:
            state.recent_losses = [*state.recent_losses, result.loss][-SPIKE_WINDOW:]
        else:
            self.say(f"note: {handle_nonfinite_step(state, self.directory, result, reason)}")
        return reason is None

    def after_step(self, batch: Batch, result: StepResult) -> bool:
        """Record, evaluate and save what is due; False when asked to stop."""
        state, config = self.state, self.state.config
        state.step += 1
        state.tokens += batch.num_targets
        step = {
            "step": state.step,
            "loss": result.loss,
            "learning_rate": state.optimizer.lr,
            "grad_norm": result.grad_norm,
            "tokens": state.tokens,
            "tokens_per_second": batch.num_targets / (time.perf_counter() - self.clock),
            "peak_memory": peak_memory(state.runtime.device),
        }
        self.record([step])
        if state.step == self.first_step:
            self.explain_missing_kernels()
        self.record(self.evaluation.after_step())
        last = state.step == config.steps
        self.stopped = state.world.any(self.stop()) and not last
        every = config.save_every
        if self.stopped or (every is not None and (last or state.step % every == 0)):
            self.save()
        self.clock = time.perf_counter()
        self.writer.check()
        return not self.stopped

    def explain_missing_kernels(self) -> None:
        """Say why the C kernels are not used, if so."""
        state = self.state
        if uses_bf16_weights(state.config, state.runtime, state.world) and (reason := refused()):
            self.say(f"note: {reason}; training through torch's operators, which is slower")

    def save(self) -> None:
        """Start a checkpoint; training goes on once the numbers are copied."""
        state = self.state
        if state.world.is_first:
            self.directory.sync_metrics()
            started = time.perf_counter()
            self.writer.save(lambda: take_snapshot(state))
            seconds = time.perf_counter() - started
            self.say(f"step {state.step:>6}  checkpoint, {seconds * 1000:.0f} ms pause")
        elif state.config.shard:
            take_snapshot(state)  # gathering whole tensors takes every process

    def finish(self) -> None:
        """Leave a directory that is a model, with its loss curve."""
        state, directory = self.state, self.directory
        snapshot = take_snapshot(state) if state.config.shard else None
        if state.world.is_first:
            whole = state.whole_model()
            tensors = snapshot.model if snapshot else whole.state_dict()
            weights.write_model_files(directory.path, tensors, asdict(whole.config))
            title = f"{state.config.preset}: {whole.num_parameters() / 1e6:.1f}M parameters"
            metrics, _ = directory.read_metrics()
            draw_loss(metrics, directory.picture, title=title, vocab_size=whole.config.vocab_size)
            directory.mark_finished(state.step)
        state.world.barrier()
