"""Line charts as SVG: curves, level lines with their labels, and a reading under the mouse."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from regpt.report.history import Points
from regpt.report.page import text

COLORS = ("#2a5fa5", "#d9822b", "#3a8f5c", "#a23e6f", "#7a6cc4", "#5c6670")
MOST_POINTS = 600
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 28


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A line of a chart."""

    name: str
    points: Points
    color: str
    width: float = 1.8
    opacity: float = 1.0
    dots: bool = False
    dash: str = ""
    """SVG's stroke-dasharray."""
    shapes: bool = True
    """Whether the vertical range must hold it; noise may be cut off."""
    errors: tuple[float, ...] = ()
    """A standard error for each point, drawn as a bar."""
    calm_from: float = -math.inf
    """The vertical range need not hold what is left of this."""

    def extent(self) -> list[float]:
        """The values that the vertical range must hold."""
        if not self.shapes:
            return []
        errors = self.errors or (0.0,) * len(self.points)
        calm = [
            pair for pair in zip(self.points, errors, strict=True) if pair[0][0] >= self.calm_from
        ]
        calm = calm or list(zip(self.points, errors, strict=True))
        return [y + sign * error for (_, y), error in calm for sign in (-1, 1)]


@dataclass(frozen=True, kw_only=True)
class Level:
    """A horizontal line with a label."""

    name: str
    value: float


def thin(points: Points) -> Points:
    """At most about MOST_POINTS of them: of each stretch the lowest and the highest."""
    size = -(-len(points) // (MOST_POINTS // 2))
    if size <= 2:
        return points
    kept: Points = []
    for start in range(0, len(points), size):
        stretch = points[start : start + size]
        kept += sorted({min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])})
    if kept[-1] != points[-1]:
        kept.append(points[-1])
    return kept


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers from low to high."""
    rough = (high - low) / count
    size = 10 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= rough)
    first = math.ceil(low / step)
    return [step * i for i in range(first, math.floor(high / step + 1e-9) + 1)]


def short(value: float) -> str:
    """A tick's label: 1.5, 0.0003, 12k, 3M."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{unit}"
    return f"{value:.4g}"


def widen(low: float, high: float, share: float) -> tuple[float, float]:
    """A range with some room, never empty."""
    room = (high - low) * share or abs(high) * share or 1.0
    return low - room, high + room


@dataclass(frozen=True, kw_only=True)
class Frame:
    """From numbers to places on the drawing."""

    x: tuple[float, float]
    y: tuple[float, float]
    width: int
    height: int

    def across(self, x: float) -> float:
        """Horizontal place."""
        share = (x - self.x[0]) / (self.x[1] - self.x[0])
        return round(LEFT + share * (self.width - LEFT - RIGHT), 1)

    def down(self, y: float) -> float:
        """Vertical place."""
        share = (y - self.y[0]) / (self.y[1] - self.y[0])
        return round(self.height - BOTTOM - share * (self.height - TOP - BOTTOM), 1)

    def rule(self, y: float, style: str) -> str:
        """A horizontal line."""
        return f'<path d="M{LEFT},{self.down(y)}H{self.width - RIGHT}" {style}/>'


def draw_chart(
    title: str,
    curves: Sequence[Curve],
    *,
    x_name: str,
    levels: Sequence[Level] = (),
    until: float | None = None,
    width: int = 520,
    height: int = 260,
) -> str:
    """A figure with its legend; empty if there is nothing to draw. Titles on a page differ.

    With `until` it reaches from 0 to there, so that the charts of a page stand under each other.
    """
    curves = [curve for curve in curves if curve.points]
    if not curves:
        return ""
    xs = [x for curve in curves for x, _ in curve.points]
    xs += [] if until is None else [0.0, until]
    ys = [y for curve in curves for y in curve.extent()]
    ys += [level.value for level in levels]
    frame = Frame(
        x=widen(min(xs), max(xs), 0.01),
        y=widen(min(ys), max(ys), 0.05),
        width=width,
        height=height,
    )
    clip = "clip-" + re.sub(r"\W+", "-", title.lower())
    parts = [
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{text(title)}">',
        f'<clipPath id="{clip}"><rect x="{LEFT}" y="0" width="{width - LEFT - RIGHT}" '
        f'height="{height - BOTTOM}"/></clipPath>',
        *draw_axes(frame),
        *(draw_level(frame, level) for level in levels),
        f'<g clip-path="url(#{clip})" fill="none" stroke-linejoin="round">',
        *(draw_curve(frame, curve) for curve in curves),
        '</g><path class="cursor" d="" stroke="#8a94a0"/></svg>',
    ]
    legend = "".join(
        f'<span><i style="border-top: 3px {"dotted" if curve.dash else "solid"} {curve.color}; '
        f'opacity: {curve.opacity}"></i>{text(curve.name)}</span>'
        for curve in curves
        if len(curves) > 1 or curve.errors
    )
    return (
        f'<figure class="chart"><figcaption>{text(title)} <span>over {text(x_name)}</span>'
        "</figcaption>"
        f'<div class="reading"></div>{"".join(parts)}<div class="legend">{legend}</div>'
        f'<script type="application/json">{chart_data(frame, curves)}</script></figure>'
    )


def draw_axes(frame: Frame) -> list[str]:
    """Rules and ticks."""
    parts = []
    for y in ticks(*frame.y):
        parts.append(frame.rule(y, 'stroke="#e9edf1"'))
        parts.append(
            f'<text x="{LEFT - 8}" y="{frame.down(y)}" dy=".32em" text-anchor="end">'
            f"{short(y)}</text>"
        )
    foot = frame.height - BOTTOM + 16
    for x in ticks(*frame.x, 6):
        parts.append(
            f'<text x="{frame.across(x)}" y="{foot}" text-anchor="middle">{short(x)}</text>'
        )
    return parts


def draw_level(frame: Frame, level: Level) -> str:
    """A dashed line with its label above it."""
    label = f"{text(level.name)}: {level.value:g}"
    above = frame.down(level.value) - 4
    return frame.rule(level.value, 'stroke="#8a94a0" stroke-dasharray="5 4"') + (
        f'<text class="level" x="{frame.width - RIGHT}" y="{above:.1f}" text-anchor="end">'
        f"{label}</text>"
    )


def draw_curve(frame: Frame, curve: Curve) -> str:
    """A line, with dots if asked for."""
    places = [(frame.across(x), frame.down(y)) for x, y in thin(curve.points)]
    line = "M" + "L".join(f"{x},{y}" for x, y in places)
    style = f'stroke="{curve.color}" opacity="{curve.opacity}"'
    if curve.dash:
        style += f' stroke-dasharray="{curve.dash}"'
    drawn = f'<path d="{line}" {style} stroke-width="{curve.width}"/>'
    if curve.dots or len(places) == 1:
        drawn += "".join(
            f'<circle cx="{x}" cy="{y}" r="2.6" fill="{curve.color}"/>' for x, y in places
        )
    for (x, y), error in zip(curve.points, curve.errors, strict=False):
        drawn += (
            f'<path d="M{frame.across(x)},{frame.down(y - error)}V{frame.down(y + error)}" '
            f'class="error" {style}/>'
        )
    return drawn


def chart_data(frame: Frame, curves: Sequence[Curve]) -> str:
    """What the script needs to read values under the mouse."""
    data = {
        "x": frame.x,
        "box": [LEFT, frame.width - RIGHT, TOP, frame.height - BOTTOM, frame.width],
        "curves": [
            {"name": curve.name, "points": [[x, float(f"{y:.5g}")] for x, y in thin(curve.points)]}
            for curve in curves
            if curve.opacity == 1
        ],
    }
    return json.dumps(data).replace("<", "\\u003c")


SCRIPT = """
for (const figure of document.querySelectorAll("figure.chart")) {
  const data = JSON.parse(figure.querySelector("script").textContent);
  const [left, right, top, bottom, width] = data.box;
  const svg = figure.querySelector("svg");
  const cursor = svg.querySelector(".cursor");
  const reading = figure.querySelector(".reading");
  const show = (event) => {
    const frame = svg.getBoundingClientRect();
    const place = (event.clientX - frame.left) / frame.width * width;
    const share = Math.min(Math.max((place - left) / (right - left), 0), 1);
    const x = data.x[0] + share * (data.x[1] - data.x[0]);
    const nearest = (points) => points.reduce((best, point) =>
      Math.abs(point[0] - x) < Math.abs(best[0] - x) ? point : best);
    const found = data.curves.map((curve) => [curve.name, ...nearest(curve.points)]);
    cursor.setAttribute("d", `M${left + share * (right - left)},${top}V${bottom}`);
    reading.textContent = found.map(([name, at, value]) => `${name} ${value} (${at})`).join("   ");
  };
  svg.addEventListener("mousemove", show);
  svg.addEventListener("mouseleave", () => {
    cursor.setAttribute("d", "");
    reading.textContent = "";
  });
}
"""
