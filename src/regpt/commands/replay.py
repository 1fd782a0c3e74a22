"""`regpt replay`: a step of a run again, in float32, layer by layer."""

import sys
from pathlib import Path

from rich.table import Table

from regpt.system.console import Console
from regpt.system.json_text import json_line
from regpt.training.activation_stats import (
    LayerStats,
    TensorStats,
    first_gradient_not_finite,
    first_not_finite,
)
from regpt.training.replay import Replay
from regpt.training.replay import replay as run_again


def cells(stats: TensorStats) -> list[str]:
    """Three cells of the table; empty where nothing passed."""
    if not stats.numbers:
        return ["", "", ""]
    bad = f"[bold red]{stats.not_finite:,}[/]" if stats.not_finite else "0"
    return [f"{stats.rms:.3g}", f"{stats.largest:.3g}", bad]


def table(layers: dict[str, LayerStats]) -> Table:
    """A row per layer, in the order of computation."""
    columns = ("layer", "rms", "max", "not finite", "gradient rms", "max", "not finite")
    shown = Table(*columns, box=None, pad_edge=False)
    for column in shown.columns[1:]:
        column.justify = "right"
    for name, layer in layers.items():
        shown.add_row(name, *cells(layer.output), *cells(layer.gradient))
    return shown


def verdict(replayed: Replay) -> str:
    """What the numbers say, in one line."""
    if place := first_not_finite(replayed.layers):
        return f"not finite from {place} on, in float32 too: look at its weights and the batch"
    if place := first_gradient_not_finite(replayed.layers):
        return f"finite forward; the gradient is not finite from {place} on, going backward"
    if not replayed.is_finite:
        return "every layer is finite, loss or gradient norm is not: look at the loss"
    if replayed.fault:
        return "finite in float32: the run's own dtype, or its learning rate, is the suspect"
    return "every number is finite"


def as_json(replayed: Replay) -> str:
    """One object on a line."""
    facts = dict(vars(replayed))
    layers = facts.pop("layers")
    facts["first_layer_not_finite"] = first_not_finite(layers)
    facts["first_gradient_not_finite"] = first_gradient_not_finite(layers)
    facts["layers"] = [{"name": name, **layer.to_json()} for name, layer in layers.items()]
    return json_line(facts)


def replay(run: Path, /, *, step: int, device: str | None = None, json: bool = False) -> None:
    """Compute one step of a run again in float32 and show every layer.

    Args:
        run: The run's directory.
        step: Which step, from 1, as in metrics.jsonl and incidents/.
        device: cpu, cuda, cuda:N or mps; default: the run's own.
        json: Print one JSON object and nothing else.
    """
    console = Console(stderr=json)
    say = console.say
    replayed = run_again(run, step, device=device, note=lambda text: say(f"note: {text}"))
    if json:
        sys.stdout.write(as_json(replayed))
        return
    say(f"step {step} of {run}, weights from {replayed.source}, on {replayed.place}")
    say(f"loss {replayed.loss:.6g}, gradient norm {replayed.grad_norm:.6g}")
    recorded = replayed.recorded
    if recorded is None:
        say("the run recorded nothing of this step")
    else:
        told = f"; it stopped or skipped there: {replayed.fault}" if replayed.fault else ""
        shown = (recorded["loss"], recorded["grad_norm"])
        loss, norm = ("not finite" if number is None else f"{number:.6g}" for number in shown)
        say(f"the run recorded loss {loss}, gradient norm {norm}{told}")
    console.print(table(replayed.layers))
    say(verdict(replayed))
