// The sliders: how tokens are drawn, and how many.

import { byId } from "./dom.js";

const KEY = "regpt-settings";
const DEFAULTS = { temperature: 1, "top-k": 50, "top-p": 1, length: 40, seed: 42 };
const ALL = 101;
const SHOWN = {
  temperature: (value) => (value === 0 ? "greedy" : value.toFixed(2)),
  "top-k": (value) => (value >= ALL ? "all" : String(value)),
  "top-p": (value) => (value >= 1 ? "all" : value.toFixed(2)),
  length: (value) => String(value),
};

export class Settings {
  /** `changed` is called whenever one moves. */
  constructor(changed) {
    let kept = {};
    try {
      kept = JSON.parse(localStorage.getItem(KEY)) ?? {};
    } catch {
      // none, or no storage
    }
    this.values = {};
    for (const [name, value] of Object.entries(DEFAULTS)) {
      this.set(name, Number.isFinite(kept[name]) ? kept[name] : value);
      byId(name).addEventListener("input", () => {
        this.set(name, byId(name).valueAsNumber);
        changed();
      });
    }
  }

  set(name, value) {
    if (!Number.isFinite(value)) return; // a seed that is being typed
    this.values[name] = name === "seed" ? Math.min(Math.max(Math.trunc(value), 0), Number.MAX_SAFE_INTEGER) : value;
    if (byId(name).valueAsNumber !== value) byId(name).value = value;
    const output = byId(`${name}-shown`);
    if (output) {
      output.textContent = SHOWN[name](value);
      byId(name).setAttribute("aria-valuetext", output.textContent);
    }
    try {
      localStorage.setItem(KEY, JSON.stringify(this.values));
    } catch {
      // no storage: they hold for this page
    }
  }

  /** How tokens are drawn; topK null: from all. */
  get params() {
    const { temperature, "top-k": topK, "top-p": topP, seed } = this.values;
    return { temperature, topK: topK >= ALL ? null : topK, topP, seed };
  }

  get length() {
    return this.values.length;
  }

  set seed(value) {
    this.set("seed", value);
  }
}
