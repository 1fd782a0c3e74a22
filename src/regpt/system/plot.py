"""Charts with matplotlib: SVG inside a page, PNG for a file. Importing this loads nothing heavy.

Used by training (loss.png), bench (scaling) and report, of which none may import another.
"""

import contextlib
import io
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

Points = list[tuple[float, float]]

COLORS = ("#2a5fa5", "#d9822b", "#3a8f5c", "#a23e6f", "#7a6cc4", "#5c6670")
GREY = "#66717f"
FAINT = 0.28
MOST_POINTS = 600
MOST_LABELS = 48
"""A heatmap of more positions is drawn without its labels."""
STYLE = {
    "font.size": 9,
    "font.sans-serif": ["DejaVu Sans"],  # matplotlib brings it
    "text.parse_math": False,  # names of runs and tokens may hold dollar signs
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.edgecolor": "#8a94a0",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "grid.color": "#e9edf1",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.dpi": 120,
    "svg.fonttype": "none",  # text stays text, which a page can enlarge on a phone
    "svg.hashsalt": "regpt",  # the same file every time
}


@dataclass(frozen=True, kw_only=True)
class Curve:
    name: str
    points: Points
    color: str
    style: str = "-"
    """matplotlib's line style."""
    marker: str = ""
    faint: bool = False
    """Drawn pale, and may leave the frame: single steps under their average."""
    errors: tuple[float, ...] = ()
    """A standard error for each point, drawn as a bar."""


@dataclass(frozen=True, kw_only=True)
class Level:
    name: str
    value: float


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Curves over one axis, and level lines."""

    title: str
    curves: tuple[Curve, ...]
    x_name: str
    levels: tuple[Level, ...] = ()
    until: float | None = None
    """Reach from 0 to here, so that the charts of a page stand under each other."""
    y_from: float = -math.inf
    """The vertical range need not hold what is left of this."""

    @property
    def legend(self) -> tuple[Curve, ...]:
        """The curves that need a name: all, or none where the title says it."""
        several = len(self.curves) > 1 or any(curve.errors for curve in self.curves)
        return self.curves if several else ()

    def y_range(self) -> tuple[float, float]:
        """From the lowest to the highest value that must be seen, with some room."""
        values = [level.value for level in self.levels]
        for curve in self.curves:
            errors = curve.errors or (0.0,) * len(curve.points)
            bars = list(zip(curve.points, errors, strict=True)) if not curve.faint else []
            seen = [(y, error) for (x, y), error in bars if x >= self.y_from]
            seen = seen or [(y, error) for (_, y), error in bars]
            values += [y + sign * error for y, error in seen for sign in (-1, 1)]
        low, high = min(values), max(values)
        room = (high - low) * 0.05 or abs(high) * 0.05 or 1.0
        return low - room, high + room


@contextlib.contextmanager
def style() -> Iterator[None]:
    """The looks of every picture; a context, or a decorator of what draws."""
    import matplotlib  # half a second: only when a picture is drawn

    with matplotlib.rc_context(STYLE):  # pyright: ignore[reportArgumentType]
        yield


def thin(points: Points) -> Points:
    """At most about MOST_POINTS of them: of each stretch the lowest and the highest."""
    size = -(-len(points) // (MOST_POINTS // 2))
    if size <= 2:
        return points
    kept: Points = []
    for start in range(0, len(points), size):
        stretch = points[start : start + size]
        kept += sorted({min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])})
    return kept if kept[-1] == points[-1] else [*kept, points[-1]]


def short(value: float) -> str:
    """A number in few characters: 1.5, 0.0003, 12k, 3M."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{unit}"
    return f"{value:.4g}"


def draw_chart(axes: "Axes", chart: Chart) -> None:
    """Curves, levels and ticks of a chart with at least one point."""
    for curve in chart.curves:
        xs, ys = zip(*(curve.points if curve.errors else thin(curve.points)), strict=True)
        axes.errorbar(
            xs, ys, yerr=curve.errors or None, color=curve.color, label=curve.name, markersize=4,
            linestyle=curve.style, linewidth=0.8 if curve.faint else 1.6,
            marker=curve.marker or ("o" if len(xs) == 1 else ""),
            alpha=FAINT if curve.faint else 1.0,
        )  # fmt: skip
    for level in chart.levels:
        axes.axhline(level.value, color="#8a94a0", linestyle="--", linewidth=1)
        axes.annotate(f"{level.name}: {level.value:.6g}", (1, level.value), (0, 3), color=GREY,
                      xycoords=("axes fraction", "data"), textcoords="offset points",
                      ha="right")  # fmt: skip
    axes.set_ylim(*chart.y_range())
    if chart.until:
        axes.set_xlim(-0.01 * chart.until, 1.01 * chart.until)
    axes.locator_params(nbins=6, steps=(1, 2, 5, 10))
    axes.xaxis.set_major_formatter(lambda value, _: short(value))
    axes.yaxis.set_major_formatter(lambda value, _: short(value))


@style()
def svg(chart: Chart, *, width: int, height: int) -> str:
    """An <svg> element of so many units, without title and legend: these are the page's."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / 72, height / 72))
    figure.subplots_adjust(48 / width, 24 / height, 1 - 8 / width, 1 - 12 / height)
    draw_chart(figure.add_subplot(), chart)
    file = io.StringIO()
    figure.savefig(
        file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
    )
    markup = file.getvalue()
    markup = markup[markup.index("<svg") :]
    # HTML knows the namespaces; numbered ids would be there once for each chart of a page
    return re.sub(r' (xmlns(:\w+)?="[^"]*"|id="[\w.]+_\d+")', "", markup)


@style()
def charts_png(charts: Sequence[Chart], *, title: str = "") -> bytes:
    """Charts under each other, with their legends."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5 if len(charts) == 1 else 2.7 * len(charts)), layout="constrained")
    panels = figure.subplots(len(charts), 1, sharex=True, squeeze=False)[:, 0]
    for chart, panel in zip(charts, panels, strict=True):
        draw_chart(panel, chart)
        panel.set_ylabel(chart.title)
        if chart.legend:
            panel.legend()
    panels[0].set_title(title)
    panels[-1].set_xlabel(charts[-1].x_name)
    return png(figure)


@style()
def heatmaps_png(maps: "Tensor", labels: Sequence[str], *, title: str) -> bytes:
    """Attention (heads, T, T), a square for each head: rows look, columns are looked at."""
    from matplotlib.figure import Figure

    heads, T = len(maps), len(labels)
    columns = min(heads, 4)
    rows = -(-heads // columns)
    side = 7.5 if heads == 1 else 3.2
    figure = Figure(figsize=(side * columns, side * rows + 0.4), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[heads:]:
        axes.set_axis_off()
    for head, axes in zip(range(heads), grid.flat, strict=False):
        axes.imshow(maps[head].numpy(), vmin=0, cmap="Blues")
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        if heads > 1:
            axes.set_title(f"head {head}")
        elif T <= MOST_LABELS:
            axes.set_xticks(range(T), labels, rotation=90)
            axes.set_yticks(range(T), labels)
    figure.suptitle(title, x=0.01, ha="left")
    return png(figure)


def png(figure: "Figure") -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()
