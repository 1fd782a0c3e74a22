"""The report's curves as PNGs, for places that take pictures only."""

import io
from collections.abc import Sequence

from regpt.report.chart import COLORS
from regpt.report.history import History
from regpt.report.references import find_references
from regpt.report.run_page import Axis, smoothed
from regpt.training.loss_plot import level_of_guessing

PANELS = (
    ("learning_rate", "learning rate"),
    ("grad_norm", "gradient norm"),
    ("tokens_per_second", "tokens per second"),
)


def draw_pictures(runs: Sequence[History]) -> dict[str, bytes]:
    """Name to PNG: `loss` and `training`."""
    from matplotlib.figure import Figure  # half a second: only when a picture is drawn

    axis = Axis(runs)
    loss = Figure(figsize=(9, 5), dpi=120, layout="constrained")
    axes = loss.add_subplot()
    for index, run in enumerate(runs):
        color = COLORS[index % len(COLORS)]
        validation = axis.points(run, "val_loss")
        train = smoothed(axis.points(run, "loss"))
        axes.plot(*columns(train), color=color, linewidth=1.6, label=f"{run.name}, training")
        quick = axis.points(run, "quick_val_loss")
        if quick:
            label = f"{run.name}, validation, {run.quick_tokens():,} of its tokens"
            axes.plot(*columns(quick), color=color, linestyle=":", marker=".", label=label)
        if validation:
            axes.plot(*columns(validation), color=color, linestyle=":", marker="o", markersize=4,
                      label=f"{run.name}, validation")  # fmt: skip
    sizes = sorted({size for run in runs if (size := run.vocab_size()) is not None})
    levels = [level_of_guessing(size) for size in sizes]
    levels += [(found.name, found.value) for found in find_references(runs, "val_loss")]
    for name, value in levels:
        axes.axhline(value, color="#8a94a0", linestyle="--", linewidth=1)
        axes.annotate(f"{name}: {value:.5g}", (0.99, value),
                      xycoords=("axes fraction", "data"), ha="right", va="bottom",
                      fontsize=8, color="#66717f")  # fmt: skip
    axes.set_ylabel("loss (nats per token)")
    training = Figure(figsize=(9, 8), dpi=120, layout="constrained")
    panels = training.subplots(len(PANELS), 1, sharex=True)
    for (name, title), panel in zip(PANELS, panels, strict=True):
        for index, run in enumerate(runs):
            points = axis.points(run, name)
            line = points if name == "learning_rate" else smoothed(points)
            panel.plot(*columns(line), color=COLORS[index % len(COLORS)], label=run.name)
        panel.set_ylabel(title)
    files = {}
    for name, figure in (("loss", loss), ("training", training)):
        for part in figure.axes:
            part.grid(color="#e9edf1", linewidth=0.6)
            part.spines[["top", "right"]].set_visible(False)
        figure.axes[-1].set_xlabel(axis.name)
        figure.axes[0].legend(frameon=False, fontsize=8)
        file = io.BytesIO()
        figure.savefig(file, format="png")
        files[name] = file.getvalue()
    return files


def columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """xs and ys."""
    return [x for x, _ in points], [y for _, y in points]
