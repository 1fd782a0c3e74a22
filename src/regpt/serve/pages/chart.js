// A chart of curves over steps as SVG. `draw` may be called as often as there is news.

import { element, shown } from "./dom.js";

const HEIGHT = 250;
const MARGIN = { top: 10, right: 12, bottom: 24, left: 46 };

function svg(tag, attributes = {}, text = null) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== null) made.textContent = text;
  return made;
}

/** Round numbers from low to high, about `count` of them. */
export function ticks(low, high, count) {
  const raw = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((one) => one * power).find((one) => one >= raw);
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high + step * 1e-9; at += step) found.push(at);
  return found;
}

/** Bias-corrected moving average over about a fiftieth of the values, as the report has it. */
export function smooth(points) {
  const beta = 1 - 1 / Math.min(Math.max(points.length / 50, 1), 100);
  let average = 0;
  let weight = 0;
  return points.map(([x, y]) => {
    average = beta * average + (1 - beta) * y;
    weight = beta * weight + (1 - beta);
    return [x, average / weight];
  });
}

/** At most two points a pixel, the lowest and the highest: what more there is cannot be seen. */
export function thin(points, pixels) {
  if (points.length <= 2 * pixels) return points;
  const size = points.length / pixels;
  const kept = [];
  for (let bucket = 0; bucket < pixels; bucket++) {
    const part = points.slice(Math.floor(bucket * size), Math.floor((bucket + 1) * size));
    const low = part.reduce((a, b) => (b[1] < a[1] ? b : a));
    const high = part.reduce((a, b) => (b[1] > a[1] ? b : a));
    kept.push(...(low[0] <= high[0] ? [low, high] : [high, low]));
  }
  return kept;
}

const compact = (value) =>
  Math.abs(value) >= 10000 ? Intl.NumberFormat("en", { notation: "compact" }).format(value) : shown(value, 3);

/** The point of a curve at x or last before it. */
function pointAt(points, x) {
  let [low, high] = [0, points.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (points[middle][0] <= x) low = middle + 1;
    else high = middle;
  }
  return points[low - 1];
}

export class Chart {
  /** `wide`: over the whole width. */
  constructor(title, { wide = false } = {}) {
    this.title = title;
    this.heading = element("h2", {}, title);
    this.legend = element("div", { className: "legend" });
    this.svg = svg("svg", { height: HEIGHT, role: "img", tabindex: "0" });
    this.node = element("figure", { className: wide ? "chart wide" : "chart" });
    this.node.append(element("figcaption", {}, this.heading, this.legend), this.svg);
    this.x = null;
    this.svg.addEventListener("pointermove", (event) => this.pointAt(event.offsetX));
    this.svg.addEventListener("pointerleave", () => this.look(null));
    this.svg.addEventListener("blur", () => this.look(null));
    this.svg.addEventListener("keydown", (event) => this.onKey(event));
    new ResizeObserver(() => this.last && this.draw(this.last)).observe(this.node);
  }

  pointAt(pixel) {
    if (this.scale) this.look(this.scale.back(pixel));
  }

  onKey(event) {
    const way = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!way || !this.scale) return;
    event.preventDefault();
    const { from, until } = this.scale;
    this.look((this.x ?? until) + (way * (until - from)) / (event.shiftKey ? 10 : 100));
  }

  /** Show the values at x; at the end if null. */
  look(x) {
    this.x = x === null ? null : Math.min(Math.max(x, this.scale?.from ?? 0), this.scale?.until ?? 0);
    this.tell();
  }

  /** Draw {curves: [{name, kind, points}], levels: [{name, value}], until, skip}: `skip` is the
   * share of the beginning that need not be in sight. */
  draw(last) {
    this.last = last;
    const curves = last.curves.filter((curve) => curve.points.length);
    this.node.hidden = !curves.length;
    if (!curves.length) return;
    this.curves = curves;
    const width = this.node.clientWidth || 400;
    const until = Math.max(last.until ?? 0, ...curves.map((curve) => curve.points.at(-1)[0]), 1);
    const [low, high] = this.range(curves, last, until);
    const across = (x) => MARGIN.left + (x / until) * (width - MARGIN.left - MARGIN.right);
    const down = (y) => MARGIN.top + ((high - y) / (high - low)) * (HEIGHT - MARGIN.top - MARGIN.bottom);
    const back = (pixel) => ((pixel - MARGIN.left) / (width - MARGIN.left - MARGIN.right)) * until;
    this.scale = { across, down, back, from: 0, until };
    const drawn = [...this.axes(width, low, high, until)];
    for (const level of last.levels ?? []) drawn.push(...this.level(level, width));
    for (const curve of curves) drawn.push(...this.curve(curve, width, high));
    this.cross = svg("line", { class: "cross", y1: MARGIN.top, y2: HEIGHT - MARGIN.bottom });
    this.svg.replaceChildren(...drawn, this.cross);
    this.tell();
  }

  range(curves, { levels = [], skip = 0 }, until) {
    const inSight = (curve) => {
      const found = curve.points.filter(([x]) => x >= skip * until);
      return (found.length ? found : curve.points.slice(-1)).map(([, y]) => y);
    };
    const steady = curves.filter((curve) => curve.kind !== "faint");
    const values = (steady.length ? steady : curves).flatMap(inSight).concat(levels.map((one) => one.value));
    const low = values.reduce((a, b) => Math.min(a, b));
    const high = values.reduce((a, b) => Math.max(a, b));
    const room = (high - low || Math.abs(high) || 1) * 0.08;
    return [low >= 0 && low < (high - low) / 3 ? 0 : low - room, high + room];
  }

  *axes(width, low, high, until) {
    const { across, down } = this.scale;
    for (const y of ticks(low, high, 4)) {
      yield svg("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: down(y), y2: down(y) });
      yield svg("text", { class: "tick", x: MARGIN.left - 8, y: down(y) + 4, "text-anchor": "end" }, compact(y));
    }
    for (const x of ticks(0, until, Math.min(width / 110, 8))) {
      yield svg("text", { class: "tick", x: across(x), y: HEIGHT - 4, "text-anchor": "middle" }, compact(x));
    }
  }

  *level({ name, value }, width) {
    const y = this.scale.down(value);
    const label = y < MARGIN.top + 18 ? y + 16 : y - 6;
    yield svg("line", { class: "level", x1: MARGIN.left, x2: width - MARGIN.right, y1: y, y2: y });
    const text = { class: "level-name", x: width - MARGIN.right, y: label, "text-anchor": "end" };
    yield svg("text", text, `${name}: ${shown(value)}`);
  }

  *curve({ kind, points }, width, high) {
    const { across, down } = this.scale;
    const top = MARGIN.top;
    const place = ([x, y]) => `${across(x).toFixed(1)},${Math.max(y > high ? top : down(y), top).toFixed(1)}`;
    const begin = Math.max(points.findIndex(([, y]) => y <= high), 0); // what comes down from above
    const path = thin(points.slice(begin), Math.ceil(width)).map(place);
    yield svg("path", { class: kind, d: `M${path.join("L")}` });
    if (kind === "second" && points.length < width / 12) {
      for (const [x, y] of points) if (y <= high) yield svg("circle", { cx: across(x), cy: down(y), r: 3 });
    }
  }

  /** The legend with the values at the cross, and the whole in words. */
  tell() {
    if (!this.curves) return;
    const x = this.x ?? Infinity;
    const items = this.curves.map((curve) => {
      const point = pointAt(curve.points, x) ?? curve.points[0];
      return element("span", { className: curve.kind }, curve.name, element("b", {}, shown(point[1])));
    });
    const where = this.x === null ? [] : [element("b", {}, `step ${shown(Math.round(this.x))}`)];
    this.legend.replaceChildren(...items, ...where);
    if (this.x === null) this.cross.setAttribute("visibility", "hidden");
    else {
      const at = this.scale.across(this.x);
      for (const name of ["x1", "x2"]) this.cross.setAttribute(name, at);
      this.cross.setAttribute("visibility", "visible");
    }
    const words = this.curves.map(({ name, points }) => {
      const [first, last] = [points[0], points.at(-1)];
      return `${name} from ${shown(first[1])} at step ${first[0]} to ${shown(last[1])} at step ${last[0]}`;
    });
    this.svg.setAttribute("aria-label", `${this.title}: ${words.join("; ")}`);
  }
}
