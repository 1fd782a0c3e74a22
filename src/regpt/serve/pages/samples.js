// Several continuations side by side: of one seed, or of two models.

import { byId, element } from "./dom.js";
import { shade } from "./paper.js";

export class Samples {
  /** `adopt(tokens, origin)`: a person goes on with one; `origin.model` is a name where it is not the page's model. */
  constructor(vocabulary, adopt) {
    Object.assign(this, { vocabulary, adopt, cards: [] });
    byId("samples-close").addEventListener("click", () => {
      byId("samples").hidden = true;
    });
  }

  /** Empty cards, one for each origin; `names` of the cards, if they have any. */
  open(title, origins, names = []) {
    this.cards = origins.map((origin, index) => {
      const heading = names[index] ? [element("h3", {}, names[index])] : [];
      const text = element("p");
      const label = `Go on with ${names[index] ?? `sample ${index + 1}`}`;
      const button = element("button", { disabled: true, "aria-label": label }, "Go on with it");
      const card = { tokens: [], text, button, item: element("li", {}, ...heading, text, button) };
      button.addEventListener("click", () => {
        byId("samples").hidden = true;
        this.adopt(card.tokens, origin);
      });
      return card;
    });
    byId("samples-title").textContent = title;
    byId("sample-list").replaceChildren(...this.cards.map((card) => card.item));
    byId("samples").hidden = false;
    byId("samples").scrollIntoView({ block: "nearest" });
  }

  /** More tokens of one. */
  take(index, tokens) {
    const card = this.cards[index];
    card.tokens.push(...tokens);
    const { text, ends } = this.vocabulary.decode(card.tokens.map((token) => token.id));
    const pieces = card.tokens.map((token, place) => {
      const piece = element("span", { textContent: text.slice(place ? ends[place - 1] : 0, ends[place]) });
      const strength = shade(token.logprob);
      if (strength) piece.style.backgroundColor = `rgb(var(--accent-rgb) / ${strength.toFixed(3)})`;
      return piece;
    });
    card.text.replaceChildren(...pieces);
  }

  /** No more come. */
  done() {
    for (const card of this.cards) card.button.disabled = !card.tokens.length;
  }
}
