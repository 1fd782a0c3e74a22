"""The report of one run or several: curves, samples over time, settings and what is published."""

import json
from collections.abc import Iterator, Sequence
from functools import partial
from math import inf

from regpt.report.history import History, shown
from regpt.report.page import render
from regpt.report.references import find_references
from regpt.system.plot import COLORS, Chart, Curve, Level, Points, charts_png
from regpt.training.loss_plot import TITLE, loss_curves, quick_tokens, smooth, uniform_loss

FIRST = 0.1
"""The share of a run, its fall from the first loss, that the close-up leaves out."""
UNITS = ("val_loss", "val_nats_per_character", "hellaswag_acc_norm")
PYDOCS = (
    "On this text it stays above training mostly because its text is another: the manual's topics "
    "come first, then the standard library's modules by name, and the last tenth are modules that "
    "training never meets."
)
NOT_COMPARED = {"out", "device", "threads"}


class Axis:
    """What the curves of a page are drawn over: steps, or tokens where runs' steps differ."""

    def __init__(self, runs: Sequence[History]) -> None:
        self.runs = runs
        self.in_tokens = len({round(run.tokens / run.step) for run in runs if run.step}) > 1
        self.name = "tokens" if self.in_tokens else "steps"
        self.end = float(max(run.tokens if self.in_tokens else run.step for run in runs))

    def each(self) -> Iterator[tuple[History, str, str]]:
        """The runs; what the names of their curves begin with, nothing of a single one; colors."""
        for index, run in enumerate(self.runs):
            yield run, f"{run.name}, " if len(self.runs) > 1 else "", COLORS[index % len(COLORS)]

    def points(self, run: History, name: str) -> Points:
        """A run's numbers over this axis."""
        if not self.in_tokens:
            return run.points(name)
        exact, rate = dict(run.points("tokens")), run.tokens / max(run.step, 1)
        return [(exact.get(step, step * rate), value) for step, value in run.points(name)]

    def published(self, unit: str) -> tuple[Level, ...]:
        """Level lines of the figures that the runs can be held against."""
        found = find_references(self.runs, unit)
        return tuple(Level(name=one.name, value=one.value) for one in found)

    def chart(
        self, title: str, curves: Sequence[Curve], levels: tuple[Level, ...], y_from: float = -inf
    ) -> Chart:
        """A chart over this axis."""
        return Chart(title=title, curves=tuple(curves), x_name=self.name, levels=levels,
                     until=self.end, y_from=y_from)  # fmt: skip


def loss_charts(axis: Axis) -> tuple[Chart, Chart]:
    """The whole curve, below what guessing costs; and closer, without the fall at the beginning."""
    curves: list[Curve] = []
    for run, prefix, color in axis.each():
        points, quick = partial(axis.points, run), quick_tokens(run.entries)
        curves += loss_curves(points, quick_tokens=quick, prefix=prefix, color=color)
    found = {run.settings.get("model.vocab_size") for run in axis.runs}
    sizes = sorted(size for size in found if isinstance(size, int) and size > 0)
    return (
        axis.chart(TITLE.capitalize(), curves, tuple(map(uniform_loss, sizes))),
        axis.chart("Loss, closer", curves, axis.published("val_loss"), y_from=axis.end * FIRST),
    )


def number_chart(title: str, name: str, axis: Axis, *, noisy: bool = False) -> Chart:
    """One number of all runs; noisy ones smoothed, over the single steps where there is one run.

    A point beside nothing is no chart.
    """
    curves = []
    for run, prefix, color in axis.each():
        points = axis.points(run, name)
        if noisy and not prefix:
            curves.append(Curve(name="each step", points=points, color=color, faint=True))
        label = run.name if prefix else "smoothed" if noisy else name.replace("_", " ")
        curves.append(Curve(name=label, points=smooth(points) if noisy else points, color=color,
                            marker="o" if name.startswith("val_") else ""))  # fmt: skip
    levels, most = axis.published(name), max(len(curve.points) for curve in curves)
    drawn = [curve for curve in curves if curve.points and (levels or most > 1)]
    return axis.chart(title, drawn, levels)


def hellaswag_chart(axis: Axis) -> Chart:
    """acc_norm with its standard error, beside chance and what is published."""
    name, curves = "hellaswag_acc_norm", []
    for run, prefix, color in axis.each():
        if points := axis.points(run, name):
            examples = int(max((y for _, y in run.points("hellaswag_examples")), default=0))
            curves.append(
                Curve(name=f"{prefix}{examples:,} examples, ± standard error", points=points,
                      errors=standard_errors(run), color=color, marker="o")
            )  # fmt: skip
    levels = (*axis.published(name), Level(name="chance", value=0.25))
    return axis.chart("HellaSwag acc_norm, the lecture's scoring", curves, levels)


def standard_errors(run: History) -> tuple[float, ...]:
    """One for each acc_norm; 0 where a line has none."""
    found = dict(run.points("hellaswag_acc_norm_stderr"))
    return tuple(found.get(step, 0.0) for step, _ in run.points("hellaswag_acc_norm"))


def dynamics_charts(axis: Axis) -> list[Chart]:
    """How the steps went."""
    return [
        number_chart("Learning rate", "learning_rate", axis),
        number_chart("Gradient norm", "grad_norm", axis, noisy=True),
        number_chart("Tokens per second", "tokens_per_second", axis, noisy=True),
    ]


def charts(runs: Sequence[History]) -> list[Chart]:
    """Every chart of the page that has a curve, the whole loss first."""
    axis = Axis(runs)
    found = [
        *loss_charts(axis),
        number_chart("Validation, nats per character", "val_nats_per_character", axis),
        hellaswag_chart(axis),
        *dynamics_charts(axis),
    ]
    return [chart for chart in found if chart.curves]


def pictures(runs: Sequence[History]) -> dict[str, bytes]:
    """The curves as PNGs, for places that take pictures only: `loss` and `training`."""
    axis = Axis(runs)
    drawn = [chart for chart in dynamics_charts(axis) if chart.curves]
    return {"loss": charts_png(loss_charts(axis)[:1]), "training": charts_png(drawn)}


def best_figures(run: History) -> dict[str, str]:
    """A row of the overview; empty where nothing was measured."""
    figures, planned = run.figures(), run.settings.get("steps")
    where = "" if figures["best_step"] is None else f" (step {figures['best_step']:,})"
    errors = dict(zip(run.points("hellaswag_acc_norm"), standard_errors(run), strict=True))
    best = run.best("hellaswag_acc_norm")
    return {
        "run": run.name,
        "state": "finished" if figures["finished"] else f"step {run.step:,} of {planned}",
        "parameters": shown(figures["parameters"], ","),
        "steps": f"{run.step:,}",
        "tokens": f"{run.tokens:,}",
        "validation loss": shown(figures["val_loss"]) + where,
        "bits per byte": shown(figures["val_bits_per_byte"]),
        "nats per character": shown(figures["val_nats_per_character"]),
        "HellaSwag": "" if best is None else f"{best[1]:.4f} ± {errors[best]:.4f}",
        "tokens/s": shown(figures["tokens_per_second"], ",.0f"),
    }


def validation_note(run: History) -> str:
    """What the validation curves were measured on."""
    held_out, quick = run.record["data"].get("validation_tokens"), quick_tokens(run.entries)
    if not held_out or not (run.points("val_loss") or quick):
        return ""
    note = f"Validation of {run.name}: {held_out:,} tokens that are not trained on"
    note += f", on the way {quick:,} of them, spread over all." if quick else "."
    return f"{note} {PYDOCS}" if run.settings.get("data") == ["pydocs"] else note


def all_settings(runs: Sequence[History]) -> list[list[str]]:
    """Name and the value in each run: the configuration, the data, versions, the machine."""
    groups = [[run.settings for run in runs]]
    for part in ("data", "versions"):
        found = [run.record.get(part, {}) for run in runs]
        groups.append([{f"{part}: {name}": values[name] for name in values} for values in found])
    groups.append([{"runtime": run.record.get("runtime")} for run in runs])
    return [
        [name, *(json.dumps(values.get(name), ensure_ascii=False) for values in group)]
        for group in groups
        for name in sorted(set().union(*group))
    ]


def run_page(runs: Sequence[History]) -> bytes:
    """The whole page."""
    rows = [best_figures(run) for run in runs]
    used = [name for name in rows[0] if any(row[name] for row in rows)]
    compared = set().union(*(run.settings for run in runs)) - NOT_COMPARED
    settings = all_settings(runs)
    presets = sorted({str(run.settings.get("preset", "")) for run in runs})
    sources = sorted({str(run.record["data"].get("sources", "")) for run in runs})
    return render(
        title=" and ".join(run.name for run in runs) if len(runs) < 4 else f"{len(runs)} runs",
        subtitle=f"preset {', '.join(presets)}, on {', '.join(sources)}",
        runs=runs,
        columns=used,
        figures=[[row[name] for name in used] for row in rows],
        charts=charts(runs),
        validation_notes=[note for run in runs if (note := validation_note(run))],
        references=[known for unit in UNITS for known in find_references(runs, unit)],
        settings=settings,
        differing=[row for row in settings if row[0] in compared and len(set(row[1:])) > 1],
    )
