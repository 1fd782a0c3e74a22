// What might stand at a place of the text: bars before and after temperature, top-k and top-p.

import { byId, element, percent } from "./dom.js";
import { reshape } from "./shaping.js";

const ROWS = 12;

export class Panel {
  /** `take(place, id, only)`: a person wants this token there, and (`only`) nothing behind it. */
  constructor(vocabulary, size, take) {
    Object.assign(this, { vocabulary, size, take });
    this.place = null;
    this.rows = byId("alternatives");
  }

  /** Show a place: {number, token or null at the end, top or null if it is not known}. */
  show(place, params) {
    this.place = place;
    this.drawHead(place);
    if (!place.top) {
      this.rows.replaceChildren();
      byId("rest").textContent = "";
      return;
    }
    const { rows, rest, exact } = reshape(place.top, params, this.size);
    const first = rows.slice(0, ROWS);
    const chosen = rows.find((row) => row.id === place.token?.id);
    if (chosen && !first.includes(chosen)) first.push(chosen);
    const most = Math.max(...rows.map((row) => Math.max(row.before, row.after)), 0.02);
    while (this.rows.children.length > first.length) this.rows.lastChild.remove();
    while (this.rows.children.length < first.length) this.rows.append(this.row());
    first.forEach((row, index) => this.fill(this.rows.children[index], row, most, exact));
    const shares = `${percent(rest.before)} before, ${exact ? "" : "≈ "}${percent(rest.after)} after`;
    byId("rest").textContent = `All others: ${shares}.`;
  }

  drawHead({ token, top }) {
    const name = byId("place-name");
    if (!token) {
      name.textContent = "What comes next";
      byId("place-facts").textContent = top ? "The model's expectation at the end of the text." : "";
      return;
    }
    name.replaceChildren("In place of ", element("mark", {}, this.vocabulary.visible(token.id)));
    const facts = [`token ${token.id}`, `bytes ${this.vocabulary.hex(token.id)}`];
    if (token.logprob !== null) {
      const rank = top ? top.findIndex(([id]) => id === token.id) : -1;
      const where = rank >= 0 ? `, number ${rank + 1}` : "";
      facts.unshift(`${percent(Math.exp(token.logprob))}${where}`);
    } else facts.unshift("nothing stands before it");
    byId("place-facts").textContent = facts.join(" · ");
  }

  row() {
    const bars = element("span", { className: "bars" }, element("i"), element("i"));
    const button = element("button", { className: "alternative" },
      element("span", { className: "what" }), bars,
      element("span", { className: "chance number" }), element("span", { className: "chance number" }));
    button.addEventListener("click", (event) =>
      this.take(this.place.number, Number(button.dataset.id), event.shiftKey));
    return element("li", {}, button);
  }

  fill(item, row, most, exact) {
    const button = item.firstChild;
    const [what, bars, before, after] = button.children;
    const name = this.vocabulary.visible(row.id);
    const about = exact || row.cut ? "" : "≈ ";
    const later = row.cut ? `cut by ${row.cut}` : about + percent(row.after);
    button.dataset.id = row.id;
    button.classList.toggle("chosen", row.id === this.place.token?.id);
    button.classList.toggle("cut", row.cut !== null);
    button.title = `token ${row.id} · bytes ${this.vocabulary.hex(row.id)}${row.cut ? ` · cut by ${row.cut}` : ""}`;
    button.setAttribute("aria-label", `${name}: ${percent(row.before)} before, ${later} after; go on from it`);
    what.textContent = name;
    bars.children[0].style.width = `${(100 * row.before) / most}%`;
    bars.children[1].style.width = `${(100 * row.after) / most}%`;
    before.textContent = percent(row.before);
    after.textContent = row.cut ? "cut" : about + percent(row.after);
  }
}
