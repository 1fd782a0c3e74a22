"""Where a run begins: in a directory of its own, or where its newest sound checkpoint stands."""

from pathlib import Path

import torch

from regpt.datasets.corpus import Say
from regpt.system.errors import UserError
from regpt.training.checkpoint import Checkpoint, load, load_newest, name_of
from regpt.training.run_dir import RunDirectory, free_name
from regpt.training.state import TrainState, load_model, restore


def open_directory(state: TrainState, *, resume: bool) -> RunDirectory:
    """The run's directory: made and locked by the first process, known to all."""
    config, world = state.config, state.world
    path = Path(config.out) if config.out else free_name(config.preset)
    world.barrier()  # all have looked for a free name before the first takes it
    directory = RunDirectory(path)
    with world.fail_together():
        if world.is_first and resume:
            directory.lock()
        elif world.is_first:
            directory = RunDirectory.create(path)
            directory.write_record(config, state.data.record, state.runtime.describe())
    return directory


def load_finished(state: TrainState, directory: RunDirectory, note: Say) -> None:
    """Take the weights of a run that is complete; nothing is left to do."""
    load_model(state, directory.path)
    state.step = directory.read_record()["finished"]
    text = f"{directory.path} is complete, {state.step:,} steps: nothing is left to do"
    note(f"{text}; --steps N goes on to more, from its newest checkpoint")


def restore_latest(state: TrainState, directory: RunDirectory, note: Say) -> None:
    """Restore the newest sound checkpoint and forget what was recorded after it.

    The first process looks for it and the others take the same one. A run that was killed before
    its first checkpoint begins again.
    """
    world, checkpoint = state.world, None
    with world.fail_together():
        if world.is_first:
            checkpoint = find_checkpoint(directory, note)
    step = torch.tensor(checkpoint.progress["step"] if checkpoint else 0, device=world.device)
    step = int(world.sum(step).item())
    if step:
        checkpoint = checkpoint or load(directory.checkpoints / name_of(step))
        restore(state, checkpoint)
        saved = checkpoint.progress["world_size"]
        if saved != world.size:
            note(f"saved by {saved} processes, resumed by {world.size}: same data, step by step")
        note(f"resumed after step {step} from {checkpoint.path}")
    else:
        note(f"{directory.path} has no checkpoint yet: it begins again")
    world.barrier()
    if world.is_first:
        for change in directory.change_record(state.config, step):
            note(f"from here on {change}")
        for dropped in directory.rewind(step):
            note(dropped)


def find_checkpoint(directory: RunDirectory, note: Say) -> Checkpoint | None:
    """The newest sound checkpoint; None if none was ever completed and the run never ended."""
    checkpoint = load_newest(directory.checkpoints, note=note)
    if checkpoint is None and (
        directory.is_complete(1) or any(directory.checkpoints.glob("step-*"))
    ):
        raise UserError(
            f"{directory.path} has no sound checkpoint to resume from: start a new run with "
            "--save-every"
        )
    return checkpoint
