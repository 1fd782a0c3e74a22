"""The report of one run or several: curves, samples over time, settings and what is published."""

import json
from collections.abc import Sequence

from regpt.report.history import History
from regpt.report.page import render
from regpt.report.references import Reference, Unit, find_references
from regpt.system.plot import COLORS, Chart, Curve, Level, Points, charts_png
from regpt.training.loss_plot import TITLE, loss_curves, quick_tokens, smooth, uniform_loss

FIRST = 0.1
"""The share of a run, its fall from the first loss, that the close-up leaves out."""
UNITS: tuple[Unit, ...] = ("val_loss", "val_nats_per_character", "hellaswag_acc_norm")
PYDOCS = (
    "On this text it stays above training mostly because its text is another: the manual's topics "
    "come first, then the standard library's modules by name, and the last tenth are modules that "
    "training never meets."
)
NOT_COMPARED = {"out", "device", "threads"}


class Axis:
    """What the curves of a page are drawn over: steps, or tokens where runs' steps differ."""

    def __init__(self, runs: Sequence[History]) -> None:
        self.in_tokens = len({round(run.tokens / run.step) for run in runs if run.step}) > 1
        self.name = "tokens" if self.in_tokens else "steps"
        self.end = float(max(run.tokens if self.in_tokens else run.step for run in runs))

    def points(self, run: History, name: str) -> Points:
        """A run's numbers over this axis."""
        if not self.in_tokens:
            return run.points(name)
        exact, rate = dict(run.points("tokens")), run.tokens / max(run.step, 1)
        return [(exact.get(step, step * rate), value) for step, value in run.points(name)]


def loss_charts(runs: Sequence[History], axis: Axis) -> tuple[Chart, Chart]:
    """The whole curve, below what guessing costs; and closer, without the fall at the beginning."""
    curves: list[Curve] = []
    for index, run in enumerate(runs):
        curves += loss_curves(
            lambda name, run=run: axis.points(run, name),
            quick_tokens=quick_tokens(run.entries),
            run=run.name if len(runs) > 1 else "",
            color=COLORS[index % len(COLORS)],
        )
    found = {run.settings.get("model.vocab_size") for run in runs}
    sizes = sorted(size for size in found if isinstance(size, int) and size > 0)
    whole = Chart(title=TITLE.capitalize(), curves=tuple(curves), x_name=axis.name,
                  levels=tuple(map(uniform_loss, sizes)), until=axis.end)  # fmt: skip
    close = Chart(title="Loss, closer", curves=tuple(curves), x_name=axis.name,
                  levels=published(runs, "val_loss"), until=axis.end,
                  y_from=axis.end * FIRST)  # fmt: skip
    return whole, close


def published(runs: Sequence[History], unit: Unit) -> tuple[Level, ...]:
    """Level lines of the figures that the runs can be held against."""
    return tuple(Level(name=r.name, value=r.value) for r in find_references(runs, unit))


def number_chart(
    title: str, name: str, runs: Sequence[History], axis: Axis, *, noisy: bool = False
) -> Chart:
    """One number of all runs; noisy ones smoothed, over the single steps where there is one run.

    A point beside nothing is no chart.
    """
    curves = []
    for index, run in enumerate(runs):
        color, points = COLORS[index % len(COLORS)], axis.points(run, name)
        if noisy and len(runs) == 1:
            curves.append(Curve(name="each step", points=points, color=color, faint=True))
        label = run.name if len(runs) > 1 else "smoothed" if noisy else name.replace("_", " ")
        curves.append(Curve(name=label, points=smooth(points) if noisy else points, color=color,
                            marker="o" if name.startswith("val_") else ""))  # fmt: skip
    levels = published(runs, name) if name in UNITS else ()
    drawn = tuple(curve for curve in curves if curve.points)
    if not levels and all(len(curve.points) < 2 for curve in drawn):
        drawn = ()
    return Chart(title=title, curves=drawn, x_name=axis.name, levels=levels, until=axis.end)


def hellaswag_chart(runs: Sequence[History], axis: Axis) -> Chart:
    """acc_norm with its standard error, beside chance and what is published."""
    name, curves = "hellaswag_acc_norm", []
    for index, run in enumerate(runs):
        if not (points := axis.points(run, name)):
            continue
        examples = int(max((y for _, y in run.points("hellaswag_examples")), default=0))
        prefix = f"{run.name}, " if len(runs) > 1 else ""
        curves.append(
            Curve(name=f"{prefix}{examples:,} examples, ± standard error", points=points,
                  errors=standard_errors(run), color=COLORS[index % len(COLORS)], marker="o")
        )  # fmt: skip
    levels = (*published(runs, name), Level(name="chance", value=0.25))
    return Chart(title="HellaSwag acc_norm, the lecture's scoring", curves=tuple(curves),
                 x_name=axis.name, levels=levels, until=axis.end)  # fmt: skip


def standard_errors(run: History) -> tuple[float, ...]:
    """One for each acc_norm; 0 where a line has none."""
    found = dict(run.points("hellaswag_acc_norm_stderr"))
    return tuple(found.get(step, 0.0) for step, _ in run.points("hellaswag_acc_norm"))


def dynamics_charts(runs: Sequence[History], axis: Axis) -> list[Chart]:
    """How the steps went."""
    return [
        number_chart("Learning rate", "learning_rate", runs, axis),
        number_chart("Gradient norm", "grad_norm", runs, axis, noisy=True),
        number_chart("Tokens per second", "tokens_per_second", runs, axis, noisy=True),
    ]


def charts(runs: Sequence[History]) -> list[Chart]:
    """Every chart of the page that has a curve, the whole loss first."""
    axis = Axis(runs)
    title = "Validation, nats per character"
    found = [
        *loss_charts(runs, axis),
        number_chart(title, "val_nats_per_character", runs, axis),
        hellaswag_chart(runs, axis),
        *dynamics_charts(runs, axis),
    ]
    return [chart for chart in found if chart.curves]


def pictures(runs: Sequence[History]) -> dict[str, bytes]:
    """The curves as PNGs, for places that take pictures only: `loss` and `training`."""
    axis = Axis(runs)
    drawn = [chart for chart in dynamics_charts(runs, axis) if chart.curves]
    return {
        "loss": charts_png(loss_charts(runs, axis)[:1]),
        "training": charts_png(drawn),
    }


def best_figures(run: History) -> dict[str, str]:
    """A row of the overview; empty where nothing was measured."""
    figures = run.figures()

    def shown(name: str, form: str = ".4f") -> str:
        return "" if figures[name] is None else format(figures[name], form)

    where = "" if figures["best_step"] is None else f" (step {figures['best_step']:,})"
    errors = dict(zip(run.points("hellaswag_acc_norm"), standard_errors(run), strict=True))
    best = run.best("hellaswag_acc_norm", largest=True)
    planned = run.settings.get("steps")
    return {
        "run": run.name,
        "state": "finished" if figures["finished"] else f"step {run.step:,} of {planned}",
        "parameters": shown("parameters", ","),
        "steps": f"{run.step:,}",
        "tokens": f"{run.tokens:,}",
        "validation loss": shown("val_loss") + where,
        "bits per byte": shown("val_bits_per_byte"),
        "nats per character": shown("val_nats_per_character"),
        "HellaSwag": "" if best is None else f"{best[1]:.4f} ± {errors[best]:.4f}",
        "tokens/s": shown("tokens_per_second", ",.0f"),
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
    references: list[Reference] = [r for unit in UNITS for r in find_references(runs, unit)]
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
        references=references,
        settings=settings,
        differing=[row for row in settings if row[0] in compared and len(set(row[1:])) > 1],
    )
