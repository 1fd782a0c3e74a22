// The list of a text's tokens with ids and bytes, drawn while it is open.

import { byId, element, percent } from "./dom.js";

let drawn = null;

/** Draw it, if it is open and has changed. */
export function drawTokens(tokens, vocabulary) {
  byId("token-count").textContent = tokens.length;
  const list = byId("token-list");
  if (!byId("tokens").open) {
    byId("tokens").ontoggle = () => drawTokens(tokens, vocabulary);
    return;
  }
  byId("tokens").ontoggle = null;
  if (drawn === tokens) return;
  drawn = tokens;
  list.replaceChildren(...tokens.map(({ id, logprob }) =>
    element("li", {},
      element("b", {}, vocabulary.visible(id)),
      element("span", {}, logprob === null ? `${id}` : `${id} · ${percent(Math.exp(logprob))}`),
      element("code", {}, vocabulary.hex(id)))));
}
