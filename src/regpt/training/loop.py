"""The loop, visible: build, resume, then for each step fetch, step, record, maybe look, maybe save.

`train(config)` is a library function; the command line only prints what it tells its observer. One
loop serves one process and many: the first prints and writes, all compute.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict

from regpt.core.data import Batch
from regpt.core.train import StepResult
from regpt.core.train import train as train_model
from regpt.fast.kernels.build import refused
from regpt.system.distributed import open_world
from regpt.system.runtime import find_runtime, peak_memory
from regpt.training.build import StateHooks, build, uses_bf16_weights
from regpt.training.checkpoint import CheckpointWriter
from regpt.training.compiling import decide
from regpt.training.config import RunConfig
from regpt.training.events import (
    Event,
    Finished,
    Interrupted,
    Noted,
    Observer,
    Saved,
    Started,
    Stepped,
)
from regpt.training.loss_plot import draw_loss
from regpt.training.nonfinite import handle_incident, what_is_wrong
from regpt.training.periodic_evaluation import Looks
from regpt.training.resume import go_back, look_at, open_directory
from regpt.training.run_dir import RunDirectory
from regpt.training.state import (
    TrainState,
    snapshot_bytes,
    take_snapshot,
)
from regpt.training.tensorboard import TensorBoard, check_installed


def ignore(event: Event) -> None:
    """The observer that does not look."""


def never() -> bool:
    """The request to stop that never comes."""
    return False


def train(
    config: RunConfig,
    observe: Observer = ignore,
    *,
    resume: bool = False,
    stop: Callable[[], bool] = never,
) -> TrainState:
    """Run a training from its beginning, or its newest checkpoint, to its end.

    Args:
        config: the run; with `resume`, `config.out` is the directory to go on in.
        observe: told what happens, on the first process.
        resume: go on where the newest sound checkpoint stands.
        stop: asked after every step; True saves the run and ends it there.

    Raises:
        UserError: what the configuration, data or directory make impossible; and a step whose
            numbers went wrong, once no more of them may be skipped.
    """
    started = time.perf_counter()
    if config.tensorboard:
        check_installed()
    runtime = find_runtime(config.device, dtype=config.dtype, threads=config.threads)
    with open_world(runtime) as world:
        observe = observe if world.is_first else ignore
        config = config.with_batch_tokens(world.size)
        state = build(config, runtime, world, say=lambda text: observe(Noted(text=text)))
        looks = Looks(config, world)
        directory = open_directory(state, resume=resume)
        try:
            run(state, directory, looks, observe, resume=resume, stop=stop, started=started)
        finally:
            directory.release()
        return state


def run(
    state: TrainState,
    directory: RunDirectory,
    looks: Looks,
    observe: Observer,
    *,
    resume: bool,
    stop: Callable[[], bool],
    started: float,
) -> None:
    """A run in its directory, from where it stands to its end or until it is asked to stop."""
    if resume and directory.is_complete(state.config.steps):
        look_at(state, directory, observe)
        return
    if resume:
        go_back(state, directory, observe)
    observe(describe(state, directory, looks))
    if state.config.tensorboard and state.world.is_first:
        earlier = directory.read_metrics()
        directory.mirror = TensorBoard(directory.path, earlier, step=state.step)
    looks.before_training(state, directory, observe)
    writer = CheckpointWriter(directory.checkpoints, keep=state.config.keep)
    try:
        finished = run_steps(state, directory, looks, writer, observe, stop)
    finally:
        writer.close()
    state.world.barrier()
    if not finished:
        observe(Interrupted(directory=directory.path, step=state.step))
        return
    finish(state, directory)
    observe(Finished(directory=directory.path, seconds=time.perf_counter() - started))


def run_steps(
    state: TrainState,
    directory: RunDirectory,
    looks: Looks,
    writer: CheckpointWriter,
    observe: Observer,
    stop: Callable[[], bool],
) -> bool:
    """All steps that are left; False if asked to stop before the last."""
    hooks = RunHooks(state, directory, looks, writer, observe, stop)
    train_model(
        state.model,
        batches_left(state),
        state.optimizer,
        steps=state.config.steps,
        schedule=state.config.schedule,
        settings=state.settings,
        hooks=hooks,
    )
    return not hooks.stopped


def batches_left(state: TrainState) -> Iterator[Batch]:
    """The batches of this process from the state's step on; in `overfit` one again and again."""
    config, world, loader = state.config, state.world, state.data.loader
    rows = loader.plan.rows(world.rank, world.size)
    device = state.runtime.device
    if not config.overfit:
        yield from loader.batches(state.step, config.steps, rows=rows, device=device)
        return
    (batch,) = loader.batches(0, 1, rows=rows, device=device)
    for step in range(state.step, config.steps):
        yield batch._replace(step=step)


def note_missing_kernels(state: TrainState, observe: Observer) -> None:
    """Say why the C kernels are not used, where the step asked for them."""
    reason = refused() if uses_bf16_weights(state.config, state.runtime, state.world) else None
    if reason is not None:
        observe(Noted(text=f"{reason}; training through torch's operators, which is slower"))


class RunHooks(StateHooks):
    """What happens around a step of a run: guard, record, evaluation, checkpoints, the end."""

    def __init__(
        self,
        state: TrainState,
        directory: RunDirectory,
        looks: Looks,
        writer: CheckpointWriter,
        observe: Observer,
        stop: Callable[[], bool],
    ) -> None:
        super().__init__(state)
        self.directory, self.looks, self.writer = directory, looks, writer
        self.observe, self.stop = observe, stop
        self.begun = state.step
        self.stopped = False
        self.clock = time.perf_counter()

    def accept(self, batch: Batch, result: StepResult) -> bool:
        """Whether loss and gradient are sound; if not, keep the evidence, or end the run."""
        fault = what_is_wrong(self.state, result)
        if fault is None:
            self.state.remember_loss(result.loss)
        else:
            handle_incident(self.state, self.directory, batch, result, fault, self.observe)
        return fault is None

    def after_step(self, batch: Batch, result: StepResult) -> bool:
        """Record, evaluate and save what is due; False when asked to stop."""
        state, config = self.state, self.state.config
        record(state, self.directory, result, batch, self.clock, self.observe)
        if state.step == self.begun + 1:
            note_missing_kernels(state, self.observe)
        if config.save_every and state.world.is_first and state.step == self.begun + 1:
            self.writer.make_room(snapshot_bytes(state))
        self.looks.after_step(state, self.directory, self.observe)
        self.stopped = state.world.any(self.stop()) and state.step < config.steps
        due = config.save_every and is_due(state.step, config.save_every, config.steps)
        if self.stopped or due:
            save(state, self.directory, self.writer, self.observe)
        self.clock = time.perf_counter()
        self.writer.check()
        return not self.stopped


def describe(state: TrainState, directory: RunDirectory, looks: Looks) -> Started:
    """The facts of a run that is about to start."""
    data = state.data
    return Started(
        config=state.config,
        directory=directory.path,
        place=state.runtime.describe(),
        num_parameters=state.whole_model().num_parameters(),
        train_tokens=len(data.loader.dataset),
        validation_tokens=len(data.validation) if data.validation else 0,
        steps_per_epoch=data.loader.plan.steps_per_epoch,
        sequences=data.loader.plan.sequences,
        first_step=state.step,
        processes=state.world.size,
        compiling=decide(state.config, state.runtime.device),
        hellaswag=(len(looks.examples), looks.examples_in_all),
    )


def is_due(step: int, every: int | None, steps: int) -> bool:
    """Whether something done every so many steps, and at the end, is due after `step` steps."""
    return step == steps or (every is not None and step % every == 0)


def record(
    state: TrainState,
    directory: RunDirectory,
    result: StepResult,
    batch: Batch,
    clock: float,
    observe: Observer,
) -> None:
    """Count the step and write its line; `clock` is when it began."""
    state.step += 1
    state.tokens += batch.num_targets
    event = Stepped(
        step=state.step,
        loss=result.loss,
        learning_rate=state.optimizer.lr,
        grad_norm=result.grad_norm,
        tokens=state.tokens,
        tokens_per_second=batch.num_targets / (time.perf_counter() - clock),
        peak_memory=peak_memory(state.runtime.device),
    )
    if state.world.is_first:
        directory.append_metrics(asdict(event))
    observe(event)


def save(
    state: TrainState, directory: RunDirectory, writer: CheckpointWriter, observe: Observer
) -> None:
    """Start a checkpoint; training goes on once the numbers are copied."""
    if state.world.is_first:
        directory.sync_metrics()
        seconds = writer.save(lambda memory: take_snapshot(state, memory))
        observe(Saved(step=state.step, seconds=seconds))
    elif state.config.shard:
        take_snapshot(state)  # gathering whole tensors takes every process


def finish(state: TrainState, directory: RunDirectory) -> None:
    """Leave a directory that is a model, with its curve."""
    snapshot = take_snapshot(state) if state.config.shard else None
    if state.world.is_first:
        whole = state.whole_model()
        directory.write_model(snapshot.model if snapshot else whole.state_dict(), whole.config)
        title = f"{state.config.preset}: {whole.num_parameters() / 1e6:.1f}M parameters"
        metrics, vocab_size = directory.read_metrics(), whole.config.vocab_size
        draw_loss(metrics, directory.picture, title=title, vocab_size=vocab_size)
        directory.mark_finished(state.step)
    state.world.barrier()
