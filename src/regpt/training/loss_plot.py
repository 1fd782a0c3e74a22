"""The loss curve as a PNG, from metrics.jsonl."""

import math
from pathlib import Path
from typing import Any

BLUE, ORANGE, GREY = "#2a5fa5", "#d9822b", "#b8c4d6"


def smooth(values: list[float]) -> list[float]:
    """Bias-corrected exponential moving average over about a fiftieth of the values."""
    beta = 1 - 1 / min(max(len(values) / 50, 1), 100)
    smoothed, average, weight = [], 0.0, 0.0
    for value in values:
        average = beta * average + (1 - beta) * value
        weight = beta * weight + (1 - beta)
        smoothed.append(average / weight)
    return smoothed


def level_of_guessing(vocab_size: int) -> tuple[str, float]:
    """What a model's first loss is near: that of taking every token for equally likely."""
    return f"ln {vocab_size}, all tokens equally likely", math.log(vocab_size)


def draw_loss(metrics: list[dict[str, Any]], path: Path, *, title: str, vocab_size: int) -> None:
    """Draw training loss (raw and smoothed) and validation loss over the steps."""
    from matplotlib.figure import Figure  # half a second: only when a picture is drawn

    train = [(entry["step"], entry["loss"]) for entry in metrics if entry.get("loss") is not None]
    validation = [(entry["step"], entry["val_loss"]) for entry in metrics if "val_loss" in entry]
    quick = [entry for entry in metrics if "quick_val_loss" in entry]
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    steps, losses = [step for step, _ in train], [loss for _, loss in train]
    axes.plot(steps, losses, color=GREY, linewidth=0.8, label="training loss, each step")
    axes.plot(steps, smooth(losses), color=BLUE, linewidth=1.8, label="training loss, smoothed")
    if quick:
        axes.plot(
            [entry["step"] for entry in quick],
            [entry["quick_val_loss"] for entry in quick],
            color=ORANGE,
            linestyle=":",
            marker=".",
            linewidth=1.4,
            label=f"validation loss, {quick[-1]['quick_val_tokens']:,} of its tokens",
        )
    if validation:
        axes.plot(
            [step for step, _ in validation],
            [loss for _, loss in validation],
            color=ORANGE,
            marker="o",
            markersize=4,
            linewidth=1.4,
            label=f"validation loss, last {validation[-1][1]:.3f}",
        )
    name, level = level_of_guessing(vocab_size)
    axes.axhline(level, color=GREY, linestyle="--", linewidth=1)
    axes.annotate(f"{name}: {level:.2f}", (0.99, level), xycoords=("axes fraction", "data"),
                  ha="right", va="bottom", fontsize=8, color="#66717f")  # fmt: skip
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per token)")
    axes.set_title(title, loc="left")
    axes.grid(color="#e6e6e6", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path)
