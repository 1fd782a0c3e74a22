"""How the cost of a training step grows: with the sequence, with the batch, with the model.

    python benchmarks/scaling.py --out scaling.md

The jobs of `regpt bench train` along three axes; beside --out a picture, tokens per second. The
limit in it is what the step would reach if it were matrix products alone, at the rate measured on
this machine: it falls with T because attention's products grow, and as 1/N with the model.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from regpt.bench.hardware_limits import Machine
from regpt.bench.harness import Benchmark
from regpt.bench.results import Row
from regpt.bench.scripts import run_script, script_options
from regpt.bench.train import (
    FORMULA,
    Step,
    choose_systems,
    columns,
    flops,
    flops_per_token,
    parse_job,
    run_step,
)
from regpt.system import plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLORS = {
    "regpt": plot.COLORS[0],
    "lecture": plot.COLORS[1],
    "lecture-compiled": plot.COLORS[1],
}


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One panel: jobs that differ in one thing."""

    title: str
    jobs: tuple[str, ...]

    def place(self, step: Step) -> float:
        """Where a job stands on the axis."""
        if self.title.startswith("sequence"):
            return step.block_size
        return step.batch_size if self.title.startswith("batch") else step.shape.num_parameters()


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


@plot.style()
def draw(rows: Sequence[Row], axes: Sequence[Axis], machine: Machine) -> bytes:
    """The picture, a PNG: a panel for each axis, a line for each system, and the limit."""
    from matplotlib.figure import Figure  # half a second: only when a picture is drawn

    figure = Figure(figsize=(5 * len(axes), 5), layout="constrained")
    panels = figure.subplots(1, len(axes), squeeze=False)[0]
    limit = machine.bf16_flops_per_second or machine.fp32_flops_per_second
    limit = limit and max(limit, *map(flops, rows))
    for axis, panel in zip(axes, panels, strict=True):
        draw_panel(panel, axis, rows, limit)
    panels[0].set_ylabel("tokens per second (at a point: share of the limit)")
    lines, names = panels[0].get_legend_handles_labels()
    figure.legend(lines, names, loc="outside upper right", ncols=len(names))
    figure.suptitle(f"A training step on {machine.describe()}", x=0.01, ha="left", fontsize=10)
    return plot.png(figure)


def draw_panel(panel: "Axes", axis: Axis, rows: Sequence[Row], limit: float | None) -> None:
    """One axis; `limit` in FLOP/s."""
    steps = {axis.place(step): step for step in map(parse_job, axis.jobs)}
    ceilings = {}
    if limit is not None:
        for place, step in steps.items():
            ceilings[place] = limit / flops_per_token(step.shape, step.block_size)
        panel.plot(list(ceilings), list(ceilings.values()), color=plot.GREY, linestyle="--",
                   linewidth=1.2, label="matrix products alone")  # fmt: skip
    for system, dtype in dict.fromkeys((row.system, row.dtype) for row in rows):
        speeds = {row.job: row.tokens_per_second for row in rows
                  if (row.system, row.dtype) == (system, dtype)}  # fmt: skip
        found = {place: speeds[step.name] for place, step in steps.items() if step.name in speeds}
        color = COLORS.get(system, plot.GREY)
        panel.plot(list(found), list(found.values()), color=color, marker="o", markersize=4,
                   label=f"{system} {dtype}")  # fmt: skip
        for place in found.keys() & ceilings.keys():
            panel.annotate(f"{found[place] / ceilings[place]:.0%}", (place, found[place]), (0, -13),
                           textcoords="offset points", ha="center", fontsize=8,
                           color=color)  # fmt: skip
    panel.set_xscale("log", base=2)
    if axis.title.startswith("parameters"):  # spans decades; the others begin at nothing
        panel.set_yscale("log")
        low, high = panel.get_ylim()
        panel.set_ylim(low / 1.2, high)
        panel.set_yticks(*round_numbers(low / 1.2, high))
    else:
        panel.set_ylim(bottom=0)
    panel.set_xticks(list(steps), [label(place) for place in steps])
    panel.minorticks_off()
    panel.set_xlabel(axis.title)


def round_numbers(low: float, high: float) -> tuple[list[float], list[str]]:
    """1, 2 and 5 times the powers of ten between the two, and how they are written."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
    found = [number for number in found if low <= number <= high]
    return found, [f"{number:,.0f}" for number in found]


def label(place: float) -> str:
    """A number of an axis, millions as M."""
    return f"{place / 1e6:.0f}M" if place >= 1e6 else f"{place:.0f}"


def main() -> None:
    """Measure, draw, print."""
    parser = script_options(__doc__, seconds=60.0, rounds=8)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--peers", action="store_true", help="the lecture's loop too")
    parser.add_argument("--data", nargs="+", default=["pydocs"])
    given = parser.parse_args()
    bench = Benchmark(
        name="scaling",
        seconds=given.seconds,
        rounds=given.rounds,
        columns=columns,
        definitions=[f"shares: {FORMULA}"],
        device=given.device,
        threads=given.threads,
        out=given.out,
        json=True,
    )
    with bench.running():
        axes = axes_for(bench.machine)
        systems = choose_systems(bench.machine, peers=given.peers, few=True)
        for name in jobs_of(axes):
            run_step(bench, parse_job(name), systems, data=given.data)
        if given.out is not None:
            picture = given.out.with_suffix(".png")
            picture.write_bytes(draw(bench.rows, axes, bench.machine))
            bench.note(f"picture: {picture.name}")


if __name__ == "__main__":
    run_script(main)
