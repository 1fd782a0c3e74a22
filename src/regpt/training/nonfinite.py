"""A step whose loss or gradient norm is not finite is not applied, and its evidence is kept.

With `spike_score`, so is a step whose loss is far above those before it.

RUN/incidents/step-N/ then holds

    report.json    step, loss, gradient norm, the reason, the losses before
    batch.txt      the texts of the batch
    model/         the weights that met it, a model directory; of the newest KEPT_MODELS only

and training stops, naming the directory; or goes on without the step, up to `skip_bad_steps` times.
`regpt replay RUN --step N` computes such a step again in float32, layer by layer; one without
weights, from the checkpoint before it.
"""

import math
import statistics
from dataclasses import asdict
from pathlib import Path

from regpt import weights
from regpt.core.data import describe_batch
from regpt.core.tokenizer import get_tokenizer
from regpt.core.train import StepResult
from regpt.system.distributed import full
from regpt.system.errors import UserError
from regpt.system.files import new_directory, replace_files, writing_to
from regpt.system.json_text import finite, json_bytes
from regpt.training.checkpoint import remove
from regpt.training.run_dir import RunDirectory
from regpt.training.state import SPIKE_WINDOW, TrainState

KEPT_MODELS = 3
"""Skipped steps whose weights stand on the disk at once."""


def nonfinite_reason(result: StepResult) -> str | None:
    """Why this step must not be applied, in words; None if it may."""
    for name, value in (("loss", result.loss), ("gradient norm", result.grad_norm)):
        if not math.isfinite(value):
            return f"{name} is {value}"
    return None


def spike_reason(state: TrainState, result: StepResult) -> str | None:
    """How far a loss lies above those of the last steps, if `spike_score` forbids it."""
    losses, limit = state.recent_losses, state.config.spike_score
    if limit is None or len(losses) < SPIKE_WINDOW:
        return None
    spread = statistics.pstdev(losses)
    score = (result.loss - statistics.fmean(losses)) / spread if spread else 0.0
    if score <= limit:
        return None
    above = f"{score:.1f} standard deviations above the mean of the last {SPIKE_WINDOW}"
    return f"loss {result.loss:.4f} is {above}"


def report_directory(directory: RunDirectory, step: int) -> Path:
    """Where a step's evidence lies; steps count from 1, as in metrics.jsonl."""
    return directory.nonfinite / f"step-{step:08d}"


def write_report(
    state: TrainState, directory: RunDirectory, result: StepResult, reason: str
) -> Path:
    """Keep the step's evidence, in the place of the oldest weights; every process must ask."""
    path = report_directory(directory, state.step + 1)
    tensors = {name: full(t.detach()).cpu() for name, t in state.whole_model().state_dict().items()}
    if not state.world.is_first or path.exists():
        return path
    report = {
        "step": state.step + 1,
        "fault": reason,
        "loss": result.loss,
        "grad_norm": result.grad_norm,
        "recent_losses": state.recent_losses[-16:],
    }
    texts = describe_batch(state.data.loader, state.step, get_tokenizer())
    batch = "\n\n".join(texts) + "\n"
    with writing_to(directory.nonfinite):
        models = sorted(directory.nonfinite.glob("step-*/model"), reverse=True)
        for model in models[KEPT_MODELS - 1 :]:
            remove(model)
    with new_directory(path) as hidden:
        weights.write_model(hidden / "model", tensors, asdict(state.config.model))
        files = {"batch.txt": batch.encode(), "report.json": json_bytes(finite(report))}
        replace_files(hidden, files)
    return path


def handle_nonfinite_step(
    state: TrainState, directory: RunDirectory, result: StepResult, reason: str
) -> str:
    """Keep the evidence; returns a note that the step is skipped, or raises UserError."""
    path = write_report(state, directory, result, reason)
    state.world.barrier()
    state.bad_steps += 1
    left = state.config.skip_bad_steps - state.bad_steps
    if left < 0:
        raise UserError(
            f"step {state.step + 1}: {reason}; the step was not applied. Its batch and weights "
            f"are in {path}: look with regpt replay {directory.path} --step {state.step + 1}, "
            "lower --lr, or allow --skip-bad-steps N"
        )
    return f"step {state.step + 1} skipped: {reason} ({left} more may be); see {path}"
