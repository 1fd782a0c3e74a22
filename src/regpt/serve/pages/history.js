// What was written, step by step: undo, redo, and a copy in this browser.

const MOST = 60;
const LARGEST = 1_500_000;

export class History {
  /** `key`: its name in this browser's storage. */
  constructor(key) {
    this.key = key;
    this.past = [];
    this.future = [];
    this.now = null;
    this.timer = null;
    this.typed = 0;
    addEventListener("pagehide", () => this.save());
  }

  /** A new state. Typing that follows typing within a moment is one step. */
  push(state, { typing = false } = {}) {
    const time = performance.now();
    const together = typing && this.typed && time - this.typed < 900;
    if (this.now && !together) {
      this.past.push(this.now);
      if (this.past.length > MOST) this.past.shift();
    }
    this.typed = typing ? time : 0;
    this.future = [];
    this.replace(state);
  }

  /** The same step, better known. */
  replace(state) {
    this.now = state;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.save(), 250);
  }

  undo() {
    return this.step(this.past, this.future);
  }

  redo() {
    return this.step(this.future, this.past);
  }

  step(from, to) {
    if (!from.length) return null;
    to.push(this.now);
    this.typed = 0;
    this.replace(from.pop());
    return this.now;
  }

  /** Keep it in this browser, as many steps as there is room for. */
  save() {
    clearTimeout(this.timer);
    if (!this.now) return;
    const compact = (state) => ({
      text: state.text,
      tokens: state.tokens.map(({ id, logprob }) => [id, logprob === null ? null : Number(logprob.toFixed(4))]),
      origin: state.origin,
      fingerprint: state.fingerprint,
    });
    const past = this.past.map(compact);
    for (;;) {
      const text = JSON.stringify({ now: compact(this.now), past });
      try {
        if (text.length < LARGEST) {
          localStorage.setItem(this.key, text);
          return;
        }
      } catch {
        // no storage, or none left
      }
      if (!past.length) return;
      past.splice(0, Math.ceil(past.length / 2));
    }
  }

  /** What was kept, if anything. */
  load() {
    try {
      const { now, past } = JSON.parse(localStorage.getItem(this.key));
      const whole = (state) => ({
        ...state,
        tokens: state.tokens.map(([id, logprob]) => ({ id, logprob, top: null })),
        next: null,
      });
      this.past = past.map(whole);
      this.now = whole(now);
    } catch {
      this.now = null;
    }
    return this.now;
  }
}
