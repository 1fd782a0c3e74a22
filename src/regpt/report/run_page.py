"""The report: curves, samples over time, settings and what is published, of one run or several."""

import json
from collections.abc import Sequence
from typing import Any

from regpt.report.chart import COLORS, SCRIPT, Curve, Level, draw_chart, short
from regpt.report.history import History, Points
from regpt.report.page import make_page, table, text
from regpt.report.references import Reference, Unit, find_references
from regpt.training.loss_plot import level_of_guessing, smooth

NOISE = 0.28
"""How faint single steps are drawn."""
FIRST = 0.1
"""The share of a run, its fall from the first loss, that the close-up leaves out."""
FIGURES = ("run", "state", "parameters", "steps", "tokens", "validation loss", "bits per byte",
           "nats per character", "HellaSwag", "tokens/s")  # fmt: skip
PYDOCS = (
    "On this text it stays above training mostly because its text is another: the manual's topics "
    "come first, then the standard library's modules by name, and the last tenth are modules that "
    "training never meets."
)
NOT_COMPARED = {"out", "device", "threads"}


def smoothed(points: Points) -> Points:
    """The moving average of a curve."""
    return list(zip([x for x, _ in points], smooth([y for _, y in points]), strict=True))


class Axis:
    """What the curves of a page are drawn over: steps, or tokens where runs' steps differ."""

    def __init__(self, runs: Sequence[History]) -> None:
        per_step = {round(run.tokens / run.step) for run in runs if run.step}
        self.in_tokens = len(per_step) > 1
        self.name = "tokens" if self.in_tokens else "steps"
        self.end = float(
            max((run.tokens if self.in_tokens else run.step for run in runs), default=1)
        )
        self.rates = {id(run): run.tokens / max(run.step, 1) for run in runs}

    def points(self, run: History, name: str) -> Points:
        """A run's numbers over this axis."""
        return self.place(run, run.points(name))

    def place(self, run: History, points: Points) -> Points:
        """A run's (step, value) over this axis."""
        if not self.in_tokens:
            return points
        exact = {step: tokens for step, tokens in run.points("tokens")}
        rate = self.rates[id(run)]
        return [(exact.get(step, step * rate), value) for step, value in points]


def figures_of(run: History) -> list[str]:
    """A row of the overview, as plain text."""

    def best(name: str) -> str:
        found = run.best(name)
        return "" if found is None else f"{found[1]:.4f}"

    parameters, speed = run.num_parameters(), run.typical("tokens_per_second")
    planned, validation = run.settings.get("steps"), run.best("val_loss")
    return [
        run.name,
        "finished" if run.is_finished else f"step {run.step:,} of {planned}",
        "" if parameters is None else f"{parameters:,}",
        f"{run.step:,}",
        f"{run.tokens:,}",
        "" if validation is None else f"{validation[1]:.4f} (step {validation[0]:,})",
        best("val_bits_per_byte"),
        best("val_nats_per_character"),
        best_hellaswag(run),
        "" if speed is None else f"{speed:,.0f}",
    ]


def best_hellaswag(run: History) -> str:
    """The largest acc_norm and its standard error."""
    points, errors, _ = run.hellaswag()
    if not points:
        return ""
    (_, value), error = max(zip(points, errors, strict=True), key=lambda pair: pair[0][1])
    return f"{value:.4f} ± {error:.4f}"


def single_steps(name: str, points: Points, color: str) -> Curve:
    """What the smoothed curve is made of, faint."""
    return Curve(name=name, points=points, color=color, width=0.8, opacity=NOISE, shapes=False)


def loss_curves(runs: Sequence[History], axis: Axis, *, calm_from: float) -> list[Curve]:
    """Training loss (single steps faint, smoothed) and validation loss, of all and of a part."""
    curves: list[Curve] = []
    for index, run in enumerate(runs):
        color = COLORS[index % len(COLORS)]
        train, validation = axis.points(run, "loss"), axis.points(run, "val_loss")
        quick = axis.points(run, "quick_val_loss")
        prefix = f"{run.name}, " if len(runs) > 1 else ""
        other = color if len(runs) > 1 else COLORS[1]
        if len(runs) == 1:
            curves.append(single_steps("training, each step", train, color))
        curves += [
            Curve(name=f"{prefix}training, smoothed", points=smoothed(train), color=color,
                  calm_from=calm_from),
            Curve(name=f"{prefix}validation, {run.quick_tokens():,} of its tokens", points=quick,
                  color=other, dots=True, width=1.2, dash="2 3", calm_from=calm_from),
            Curve(name=f"{prefix}validation", points=validation, color=other, dots=True, width=1.2,
                  dash="" if len(runs) == 1 else "5 3", calm_from=calm_from),
        ]  # fmt: skip
    return curves


def loss_charts(runs: Sequence[History], axis: Axis, levels: Sequence[Level]) -> tuple[str, str]:
    """The whole curve below what guessing costs; and closer, beside what is published."""
    sizes = sorted({size for run in runs if (size := run.vocab_size()) is not None})
    guessing = [Level(name=name, value=value) for name, value in map(level_of_guessing, sizes)]
    whole = draw_chart(
        "Loss (nats per token)", loss_curves(runs, axis, calm_from=0.0), x_name=axis.name,
        levels=guessing, until=axis.end, width=1060, height=400,
    )  # fmt: skip
    close = draw_chart(
        "Loss, closer", loss_curves(runs, axis, calm_from=axis.end * FIRST), x_name=axis.name,
        levels=levels, until=axis.end,
    )  # fmt: skip
    return whole, close


def validation_note(run: History) -> str:
    """What the validation curves were measured on."""
    held_out = run.record.get("data", {}).get("validation_tokens")
    if not held_out or not (run.points("val_loss") or run.points("quick_val_loss")):
        return ""
    note = f"Validation of {run.name}: {held_out:,} tokens that are not trained on"
    if run.points("quick_val_loss"):
        note += f", on the way {run.quick_tokens():,} of them, spread over all"
    reason = PYDOCS if run.settings.get("data") == ["pydocs"] else ""
    return f"<p>{text(note)}. {text(reason)}</p>"


def plain_chart(
    title: str,
    name: str,
    runs: Sequence[History],
    axis: Axis,
    *,
    levels: Sequence[Level] = (),
    noisy: bool = False,
) -> str:
    """One number of all runs; noisy ones smoothed. A point beside nothing is no chart."""
    if not levels and all(len(run.points(name)) < 2 for run in runs):
        return ""
    curves = []
    for index, run in enumerate(runs):
        color, points = COLORS[index % len(COLORS)], axis.points(run, name)
        if noisy and len(runs) == 1:
            curves.append(single_steps("each step", points, color))
        label = run.name if len(runs) > 1 else ("smoothed" if noisy else name.replace("_", " "))
        line = smoothed(points) if noisy else points
        curves.append(Curve(name=label, points=line, color=color, dots=name.startswith("val_")))
    return draw_chart(title, curves, x_name=axis.name, levels=levels, until=axis.end)


def hellaswag_chart(runs: Sequence[History], axis: Axis, levels: Sequence[Level]) -> str:
    """acc_norm with its standard error, beside chance and what is published."""
    curves = []
    for index, run in enumerate(runs):
        points, errors, examples = run.hellaswag()
        name = f"{run.name}, {examples:,} examples" if len(runs) > 1 else f"{examples:,} examples"
        curves.append(
            Curve(name=f"{name}, ± standard error", points=axis.place(run, points), errors=errors,
                  color=COLORS[index % len(COLORS)], dots=True)
        )  # fmt: skip
    title = "HellaSwag acc_norm, the lecture's scoring"
    chance = Level(name="chance", value=0.25)
    return draw_chart(title, curves, x_name=axis.name, levels=[*levels, chance], until=axis.end)


def charts(runs: Sequence[History], axis: Axis) -> tuple[list[str], list[Reference]]:
    """The figures, and the published ones drawn into them."""
    units: tuple[Unit, ...] = ("val_loss", "val_nats_per_character", "hellaswag_acc_norm")
    drawn = {unit: find_references(runs, unit) for unit in units}
    levels = {
        unit: [Level(name=reference.name, value=reference.value) for reference in drawn[unit]]
        for unit in units
    }
    wide, close = loss_charts(runs, axis, levels["val_loss"])
    notes = "".join(validation_note(run) for run in runs)
    small = [
        close,
        plain_chart(
            "Validation, nats per character", units[1], runs, axis, levels=levels[units[1]]
        ),
        hellaswag_chart(runs, axis, levels[units[2]]),
        plain_chart("Learning rate", "learning_rate", runs, axis),
        plain_chart("Gradient norm", "grad_norm", runs, axis, noisy=True),
        plain_chart("Tokens per second", "tokens_per_second", runs, axis, noisy=True),
    ]
    wide = f'<div class="wide">{wide}{notes}</div>' if wide else ""
    body = ['<div class="charts">', wide, *filter(None, small), "</div>"]
    return body, [reference for unit in units for reference in drawn[unit]]


def reference_section(references: Sequence[Reference]) -> list[str]:
    """What the dashed lines are."""
    if not references:
        return [
            "<p>No line of a published GPT-2 is drawn: none of those known here was measured on "
            "this validation text, and a loss on another text says nothing.</p>"
        ]
    rows = [[text(r.name), f"{r.value:g}", text(r.text.name), text(r.source)] for r in references]
    return [
        "<h2>Published figures</h2>",
        table(("dashed line", "value", "measured on", "source"), rows, numbers=(1,)),
    ]


def sample_section(run: History, *, titled: bool) -> list[str]:
    """What the model wrote, newest first."""
    if not run.samples:
        return []
    body = [f"<h3>{text(run.name)}</h3>"] if titled else []
    for number, (step, samples) in enumerate(reversed(run.samples)):
        when = "before training" if step == 0 else f"after {short(step)} steps"
        inside = "".join(
            f"<p>prompt: {text(prompt)}</p>"
            + "".join(f"<pre>{text(sample)}</pre>" for sample in texts)
            for prompt, texts in samples.items()
        )
        opened = " open" if number == 0 else ""
        body.append(f"<details{opened}><summary>{when}</summary>{inside}</details>")
    return body


def value_text(value: Any) -> str:
    """A setting as text."""
    return text(json.dumps(value, ensure_ascii=False))


def settings_section(runs: Sequence[History]) -> list[str]:
    """What differs between runs, then everything."""
    names = sorted({name for run in runs for name in run.settings})
    missing = object()
    body = []
    if len(runs) > 1:
        differing = [
            [text(name), *(value_text(run.settings.get(name)) for run in runs)]
            for name in names
            if name not in NOT_COMPARED
            and len({repr(run.settings.get(name, missing)) for run in runs}) > 1
        ]
        body.append("<h2>What differs</h2>")
        if differing:
            body.append(table(("setting", *(run.name for run in runs)), differing))
        else:
            body.append("<p>Nothing: the runs have the same settings.</p>")
    rows = [[text(name), *(value_text(run.settings.get(name)) for run in runs)] for name in names]
    for name in ("data", "versions"):
        parts = [run.record.get(name, {}) for run in runs]
        for key in sorted({key for part in parts for key in part}):
            rows.append([f"{name}: {text(key)}", *(value_text(part.get(key)) for part in parts)])
    rows.append(["runtime", *(value_text(run.record.get("runtime")) for run in runs)])
    whole = table(("setting", *(run.name for run in runs)), rows)
    body += [
        "<h2>Settings</h2>",
        f"<details><summary>all of them</summary>{whole}</details>",
    ]
    return body


def run_page(runs: Sequence[History]) -> bytes:
    """The whole page."""
    axis = Axis(runs)
    drawn, references = charts(runs, axis)
    rows = [[text(cell) for cell in figures_of(run)] for run in runs]
    used = [i for i in range(len(FIGURES)) if any(row[i] for row in rows)]
    overview = table(
        [FIGURES[i] for i in used],
        [[row[i] for i in used] for row in rows],
        numbers=[place for place, i in enumerate(used) if i > 1],
    )
    samples = [part for run in runs for part in sample_section(run, titled=len(runs) > 1)]
    body = [
        *(f'<p class="note">{text(note)}</p>' for run in runs for note in run.notes),
        "<h2>Best figures</h2>",
        overview,
        "<h2>Curves</h2>",
        *drawn,
        *reference_section(references),
        *(["<h2>Samples over time</h2>", *samples] if samples else []),
        *settings_section(runs),
    ]
    title = " and ".join(run.name for run in runs) if len(runs) < 4 else f"{len(runs)} runs"
    data = ", ".join(sorted({str(run.record.get("data", {}).get("sources", "")) for run in runs}))
    preset = ", ".join(sorted({str(run.settings.get("preset", "")) for run in runs}))
    return make_page(title, f"preset {preset}, on {data}", body, script=SCRIPT)
