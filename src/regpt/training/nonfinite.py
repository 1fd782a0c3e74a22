"""When numbers go wrong: the step is not applied, and everything needed to look at it is kept.

A loss or gradient norm that is not finite (or, if asked for, a loss far above the recent ones)
makes the step an incident. RUN/incidents/step-N/ then holds

    report.json    step, loss, gradient norm, what is wrong; activations per layer, and the first
                   layer that is not finite; weights and gradients per parameter
    batch.txt      the texts of the batch
    model/         the weights that met it, a model directory; of the newest KEPT_MODELS only

and training stops, naming the place; or goes on without the step, up to `skip_bad_steps` times.
`regpt replay RUN --step N` computes such a step again in float32; one without weights, from the
checkpoint before it.
"""

import json
import math
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from regpt import weights
from regpt.core.data import Batch, describe_batch
from regpt.core.model import GPT
from regpt.core.tokenizer import get_tokenizer
from regpt.core.train import StepResult
from regpt.system.distributed import full
from regpt.system.errors import UserError
from regpt.system.files import new_directory, replace_files, writing_to
from regpt.training.activation_stats import Layer, first_not_finite, over_processes, watching
from regpt.training.checkpoint import remove, without_padding
from regpt.training.events import Noted, Observer
from regpt.training.run_dir import RunDirectory, finite
from regpt.training.state import SPIKE_WINDOW, TrainState

KEPT_MODELS = 3
"""Bad steps whose weights stand on the disk at once."""


def what_is_wrong(state: TrainState, result: StepResult) -> str | None:
    """Why this step must not be applied, in words; None if it may."""
    if not math.isfinite(result.loss):
        return f"loss is {result.loss}"
    if not math.isfinite(result.grad_norm):
        return f"gradient norm is {result.grad_norm}"
    limit = state.config.spike_score
    if limit is not None and len(state.recent_losses) == SPIKE_WINDOW:
        losses = state.recent_losses
        spread = statistics.pstdev(losses)
        score = (result.loss - statistics.fmean(losses)) / spread if spread else 0.0
        if score > limit:
            return (
                f"loss {result.loss:.4f} is {score:.1f} standard deviations above the mean of the "
                f"last {SPIKE_WINDOW}"
            )
    return None


@torch.no_grad()
def activation_statistics(state: TrainState, batch: Batch) -> dict[str, Layer]:
    """A forward of the batch again, in the run's own dtype, with every layer watched."""
    with watching(state.model) as layers, state.runtime.autocast():
        for x in batch.x.split(state.config.batch_size):
            state.model.hidden(x)
    return over_processes(layers, state.world)


def parameter_statistics(model: GPT) -> dict[str, dict[str, float | int]]:
    """Per parameter: norms and non-finite counts of weight and gradient."""
    report: dict[str, dict[str, float | int]] = {}
    for name, parameter in model.named_parameters():
        weight = full(parameter.detach()).float()
        entry: dict[str, float | int] = {
            "weight_norm": weight.norm().item(),
            "weight_max": weight.abs().max().item(),
            "weight_not_finite": int((~weight.isfinite()).sum()),
        }
        if parameter.grad is not None:
            gradient = full(parameter.grad).float()
            entry["grad_norm"] = gradient.norm().item()
            entry["grad_max"] = gradient.abs().max().item()
            entry["grad_not_finite"] = int((~gradient.isfinite()).sum())
        report[name] = entry
    return report


def incident_path(directory: RunDirectory, step: int) -> Path:
    """Where a step's incident lies; steps count from 1, as in metrics.jsonl."""
    return directory.incidents / f"step-{step:08d}"


def make_room(directory: RunDirectory) -> None:
    """Remove the weights of the oldest bad steps, so that one more may be kept."""
    models = sorted(directory.incidents.glob("step-*/model"))
    with writing_to(directory.incidents):
        for model in models[: max(len(models) - (KEPT_MODELS - 1), 0)]:
            remove(model)


def write_incident(
    state: TrainState, directory: RunDirectory, batch: Batch, result: StepResult, fault: str
) -> str:
    """Keep the step's evidence; returns the directory's name."""
    path = incident_path(directory, state.step + 1)
    layers = activation_statistics(state, batch)
    report: dict[str, Any] = {
        "step": state.step + 1,
        "fault": fault,
        "loss": result.loss,
        "grad_norm": result.grad_norm,
        "recent_losses": state.recent_losses[-16:],
        "first_layer_not_finite": first_not_finite(layers),
        "layers": [layer.to_json() for layer in layers.values()],
        "parameters": parameter_statistics(state.model),
    }
    tensors = {name: full(t.detach()).cpu() for name, t in state.whole_model().state_dict().items()}
    step = 0 if state.config.overfit else state.step
    texts = describe_batch(state.data.loader, step, get_tokenizer())
    if state.world.is_first and not path.exists():
        make_room(directory)
        with new_directory(path) as hidden:
            shape = state.config.model
            weights.write_model(
                hidden / "model", without_padding(tensors, shape.vocab_size), asdict(shape)
            )
            replace_files(
                hidden,
                {
                    "batch.txt": ("\n\n".join(texts) + "\n").encode(),
                    "report.json": (json.dumps(finite(report), indent=2) + "\n").encode(),
                },
            )
    return str(path)


def handle_incident(
    state: TrainState,
    directory: RunDirectory,
    batch: Batch,
    result: StepResult,
    fault: str,
    observe: Observer,
) -> None:
    """Keep the evidence; stop, or note that the step is skipped."""
    place = write_incident(state, directory, batch, result, fault)
    state.world.barrier()
    state.bad_steps += 1
    if state.bad_steps > state.config.skip_bad_steps:
        raise UserError(
            f"step {state.step + 1}: {fault}; the step was not applied. Its batch and statistics "
            f"are in {place}: look with regpt replay {directory.path} --step {state.step + 1}, "
            "lower --lr, or allow --skip-bad-steps N"
        )
    left = state.config.skip_bad_steps - state.bad_steps
    observe(Noted(text=f"step {state.step + 1} skipped: {fault} ({left} more may be); see {place}"))
