// The text: a text field that can be edited anywhere, and behind it the same text in tokens, shaded.

import { element } from "./dom.js";

const REST_MILLISECONDS = 90;

/** How strongly a token is shaded: not at all if it was likely, up to 12 bits of surprise. */
export function shade(logprob) {
  if (logprob === null || logprob === undefined) return 0;
  return Math.min(Math.max((-logprob / Math.LN2 - 1) / 11, 0), 1) * 0.5;
}

export class Paper {
  /** `field`: the textarea; `back`: the element behind it; `look(place)`: a token's number was
   * pointed at; null: the caret has moved. */
  constructor(field, back, vocabulary, look) {
    Object.assign(this, { field, back, vocabulary, look });
    this.drawn = [];
    this.ends = [];
    this.tail = element("span", { className: "tail" });
    this.back.replaceChildren(this.tail);
    this.timer = null;
    field.addEventListener("pointermove", (event) => this.point(event));
    field.addEventListener("pointerleave", () => this.rest(null));
    document.addEventListener("selectionchange", () => {
      if (document.activeElement === field) this.look(null);
    });
  }

  /** Show a state. The caret goes to `caret`; or stays where it is, if that is the end, at the end. */
  show(state, { caret = null } = {}) {
    const { text, ends } = this.vocabulary.decode(state.tokens.map((token) => token.id));
    this.ends = ends;
    let start = 0;
    let same = true;
    const spans = state.tokens.map((token, index) => {
      const piece = text.slice(start, ends[index]);
      start = ends[index];
      const old = this.drawn[index];
      same = same && old !== undefined && old.textContent === piece;
      const span = same ? old : element("span", { className: "token", textContent: piece });
      span.dataset.place = index;
      const strength = shade(token.logprob);
      span.style.backgroundColor = strength ? `rgb(var(--accent-rgb) / ${strength.toFixed(3)})` : "";
      return span;
    });
    const kept = spans.findIndex((span, index) => span !== this.drawn[index]);
    const from = kept < 0 ? spans.length : kept;
    for (const span of this.drawn.slice(from)) span.remove();
    this.tail.before(...spans.slice(from));
    this.drawn = spans;
    this.tail.textContent = `${state.text.slice(text.length)}\u200b`; // a last line end takes room too
    if (this.field.value !== state.text) {
      const { selectionStart, value } = this.field;
      this.field.value = state.text;
      const length = state.text.length;
      const place = caret ?? (selectionStart === value.length ? length : Math.min(selectionStart, length));
      this.field.setSelectionRange(place, place);
    } else if (caret !== null) {
      this.field.setSelectionRange(caret, caret);
    }
  }

  /** Mark the token that is looked at. */
  mark(place) {
    this.back.querySelector(".looked")?.classList.remove("looked");
    this.drawn[place]?.classList.add("looked");
  }

  /** The token at a place of the text; behind the last one: their count. */
  placeOf(offset) {
    const place = this.ends.findIndex((end) => offset < end);
    return place < 0 ? this.ends.length : place;
  }

  caretPlace() {
    return this.placeOf(this.field.selectionStart);
  }

  /** Where a token begins. */
  startOf(place) {
    return place > 0 ? this.ends[place - 1] : 0;
  }

  point(event) {
    const under = document.elementsFromPoint(event.clientX, event.clientY);
    const span = under.find((one) => one.dataset?.place !== undefined);
    this.rest(span ? Number(span.dataset.place) : null);
  }

  /** Look only where the pointer rests, so that it can pass over the text to the alternatives. */
  rest(place) {
    clearTimeout(this.timer);
    if (place !== null) this.timer = setTimeout(() => this.look(place), REST_MILLISECONDS);
  }
}
