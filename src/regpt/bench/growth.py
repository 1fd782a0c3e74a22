"""How the cost of a step grows: with the sequence, with the batch, with the model.

The same jobs as `regpt bench train`, along three axes, drawn as tokens per second. The limit in the
picture is what the step would reach if it were matrix products alone, at the rate measured on this
machine: it falls with T because attention's products grow, and as 1/N with the model.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass

from regpt.bench.machine import Machine
from regpt.bench.rows import Row
from regpt.bench.train import Step, count_parameters, flops_per_token, parse_job

COLORS = {"regpt": "#2a5fa5", "lecture": "#d9822b", "lecture-compiled": "#d9822b"}
GREY = "#5c6670"


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One panel: jobs that differ in one thing."""

    title: str
    jobs: tuple[str, ...]

    def place(self, step: Step) -> float:
        """Where a job stands on the axis."""
        if self.title.startswith("sequence"):
            return step.block_size
        return step.batch_size if self.title.startswith("batch") else count_parameters(step.shape)


def axes_for(machine: Machine) -> tuple[Axis, ...]:
    """The panels: small batches on a CPU, large ones on a GPU."""
    if machine.device == "cuda":
        lengths, batches, block, usual = (128, 256, 512, 1024), (4, 8, 16, 32, 64), 1024, 64
        sizes = (("124M", 16), ("355M", 16), ("774M", 16), ("1558M", 8))
    else:
        lengths, batches, block, usual = (32, 64, 128, 256, 512, 1024), (1, 2, 4, 8, 16), 256, 4
        sizes = (("16M", 4), ("30M", 4), ("124M", 4), ("355M", 4))
    return (
        Axis(
            title=f"sequence length T (124M, B={usual})",
            jobs=tuple(f"step-124M-B{usual}-T{length}" for length in lengths),
        ),
        Axis(
            title=f"batch B (124M, T={block})",
            jobs=tuple(f"step-124M-B{batch}-T{block}" for batch in batches),
        ),
        Axis(
            title=f"parameters N (T={block})",
            jobs=tuple(f"step-{size}-B{batch}-T{block}" for size, batch in sizes),
        ),
    )


def jobs_of(axes: Sequence[Axis]) -> list[str]:
    """Every job of the panels, once."""
    return list(dict.fromkeys(job for axis in axes for job in axis.jobs))


def draw(rows: Sequence[Row], axes: Sequence[Axis], machine: Machine) -> bytes:
    """The picture, a PNG: a panel for each axis, a line for each system, and the limit."""
    from matplotlib.figure import Figure  # half a second: only when a picture is drawn

    limit = machine.bf16_flops_per_second or machine.fp32_flops_per_second
    figure = Figure(figsize=(5 * len(axes), 5), dpi=120, layout="constrained")
    systems = dict.fromkeys((row.system, row.dtype) for row in rows)
    for axis, panel in zip(axes, figure.subplots(1, len(axes), squeeze=False)[0], strict=True):
        steps = {axis.place(step): step for step in map(parse_job, axis.jobs)}
        ceilings = {
            place: limit / flops_per_token(step.shape, step.block_size)
            for place, step in steps.items()
            if limit is not None
        }
        if ceilings:
            panel.plot(list(ceilings), list(ceilings.values()), color=GREY, linestyle="--",
                       linewidth=1.2, label="matrix products alone")  # fmt: skip
        for system, dtype in systems:
            found = {
                place: row.tokens_per_second
                for place, step in steps.items()
                for row in rows
                if (row.job, row.system, row.dtype) == (step.name, system, dtype)
            }
            panel.plot(list(found), list(found.values()), color=COLORS.get(system, GREY),
                       marker="o", markersize=4, label=f"{system} {dtype}")  # fmt: skip
            for place, speed in found.items():
                if place in ceilings:
                    panel.annotate(f"{speed / ceilings[place]:.0%}", (place, speed), (0, -13),
                                   textcoords="offset points", ha="center", fontsize=8,
                                   color=COLORS.get(system, GREY))  # fmt: skip
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.set_xticks(list(steps), [label(place) for place in steps])
        panel.minorticks_off()
        panel.set_xlabel(axis.title)
        panel.grid(color="#e9edf1", linewidth=0.6)
        panel.spines[["top", "right"]].set_visible(False)
    first = figure.axes[0]
    first.set_ylabel("tokens per second (at a point: share of the limit)")
    first.legend(frameon=False, fontsize=8)
    figure.suptitle(f"A training step on {machine.describe()}", x=0.01, ha="left", fontsize=10)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def label(place: float) -> str:
    """A number of an axis, millions as M."""
    return f"{place / 1e6:.0f}M" if place >= 1e6 else f"{place:.0f}"
