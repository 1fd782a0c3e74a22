"""The loss curves of a run, from the lines of metrics.jsonl: for loss.png and the report."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from regpt.system.files import replace_files
from regpt.system.plot import COLORS, Chart, Curve, Level, Points, charts_png

TITLE = "loss (nats per token)"


def points_of(entries: Sequence[dict[str, Any]], name: str) -> Points:
    """(step, value) wherever a line has this number."""
    found = ((entry["step"], entry.get(name)) for entry in entries)
    return [(step, y) for step, y in found if isinstance(y, int | float) and math.isfinite(y)]


def smooth(points: Points) -> Points:
    """Bias-corrected exponential moving average over about a fiftieth of the values."""
    beta = 1 - 1 / min(max(len(points) / 50, 1), 100)
    smoothed, average, weight = [], 0.0, 0.0
    for x, value in points:
        average = beta * average + (1 - beta) * value
        weight = beta * weight + (1 - beta)
        smoothed.append((x, average / weight))
    return smoothed


def uniform_loss(vocab_size: int) -> Level:
    """What a model's first loss is near: that of taking every token for equally likely."""
    return Level(name=f"ln {vocab_size}, all tokens equally likely", value=math.log(vocab_size))


def loss_curves(
    points: Callable[[str], Points], *, quick_tokens: int, prefix: str = "", color: str = COLORS[0]
) -> list[Curve]:
    """Training loss and validation loss, on all held-out tokens and on `quick_tokens` of them.

    `points` looks up a number of metrics.jsonl. With a `prefix`, a run's name, all its curves have
    its color, and the loss of each step, which would hide other runs, is left out.
    """
    train, validation = points("loss"), points("val_loss")
    other = color if prefix else COLORS[1]
    last = f", last {validation[-1][1]:.3f}" if validation else ""
    curves = [
        Curve(name="training, each step", points=[] if prefix else train, color=color, faint=True),
        Curve(name=f"{prefix}training, smoothed", points=smooth(train), color=color),
        Curve(name=f"{prefix}validation, {quick_tokens:,} of its tokens",
              points=points("quick_val_loss"), color=other, marker=".", style=":"),
        Curve(name=f"{prefix}validation{last}", points=validation, color=other, marker="o",
              style="--" if prefix else "-"),
    ]  # fmt: skip
    return [curve for curve in curves if curve.points]


def quick_tokens(entries: Sequence[dict[str, Any]]) -> int:
    """Held-out tokens that the quick validations scored."""
    return int(max((value for _, value in points_of(entries, "quick_val_tokens")), default=0))


def loss_chart(entries: Sequence[dict[str, Any]], *, vocab_size: int) -> Chart:
    """A run's loss over its steps, below what guessing costs."""
    curves = loss_curves(lambda name: points_of(entries, name), quick_tokens=quick_tokens(entries))
    levels = (uniform_loss(vocab_size),)
    return Chart(title=TITLE, curves=tuple(curves), x_name="step", levels=levels)


def draw_loss(
    metrics: Sequence[dict[str, Any]], path: Path, *, title: str, vocab_size: int
) -> None:
    """Write the loss chart as a PNG."""
    picture = charts_png([loss_chart(metrics, vocab_size=vocab_size)], title=title)
    replace_files(path.parent, {path.name: picture})
