"""The loss curve as a PNG, from metrics.jsonl."""

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


def draw_loss(metrics: list[dict[str, Any]], path: Path, *, title: str) -> None:
    """Draw training loss (raw and smoothed) and validation loss over the steps."""
    from matplotlib.figure import Figure  # half a second: only when a picture is drawn

    train = [(entry["step"], entry["loss"]) for entry in metrics if entry.get("loss") is not None]
    validation = [(entry["step"], entry["val_loss"]) for entry in metrics if "val_loss" in entry]
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    steps, losses = [step for step, _ in train], [loss for _, loss in train]
    axes.plot(steps, losses, color=GREY, linewidth=0.8, label="training loss, each step")
    axes.plot(steps, smooth(losses), color=BLUE, linewidth=1.8, label="training loss, smoothed")
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
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per token)")
    axes.set_title(title, loc="left")
    axes.grid(color="#e6e6e6", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path)
