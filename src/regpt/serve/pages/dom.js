// Elements and numbers. Text becomes text nodes, always: nothing here reads markup.

/** An element: `properties` by name, "aria-" and "data-" ones and `role` as attributes. */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role") made.setAttribute(name, value);
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made[name] = value;
  }
  made.append(...children);
  return made;
}

/** The element of an id. */
export const byId = (id) => document.getElementById(id);

/** 12,345 or 0.0123: a number with as many digits as say something. */
export function shown(value, digits = 4) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "";
  if (Number.isInteger(value) || Math.abs(value) >= 1000) return Math.round(value).toLocaleString("en");
  return Math.abs(value) < 0.001 ? value.toExponential(1) : String(Number(value.toPrecision(digits)));
}

/** A probability with two digits that count, however small. */
export function percent(chance) {
  if (chance >= 0.9995) return chance >= 1 ? "100%" : ">99.9%";
  if (chance >= 0.1) return `${(100 * chance).toFixed(0)}%`;
  if (chance >= 0.001) return `${(100 * chance).toFixed(chance >= 0.01 ? 1 : 2)}%`;
  return chance > 0 ? "<0.1%" : "0";
}

/** Seconds in words: 2 h 05 min. */
export function duration(seconds) {
  if (seconds < 60) return `${Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return `${hours} h ${String(minutes % 60).padStart(2, "0")} min`;
  return `${Math.floor(hours / 24)} days ${hours % 24} h`;
}
