// Inside a text: how likely each token was, who looks where, and what each layer would have said.

import { about, askJson, Refused } from "./api.js";
import { byId, element, percent } from "./dom.js";
import { shade } from "./paper.js";
import { Vocabulary } from "./vocabulary.js";

const FIRST = "The first rule of a language model is that it reads from left to right.";
const tint = (strength) => (strength > 0.004 ? `rgb(var(--accent-rgb) / ${strength.toFixed(3)})` : "");

class Inside {
  constructor(vocabulary) {
    this.vocabulary = vocabulary;
    this.found = null;
    this.place = 0;
    this.head = 0;
    this.maps = null;
    this.mode = "surprise";
    this.asked = 0;
  }

  say(words, wrong = false) {
    byId("status").textContent = words;
    byId("status").classList.toggle("wrong", wrong);
  }

  /** Ask for a text. */
  async look() {
    const number = ++this.asked;
    this.prompt = byId("text").value;
    this.say("looking");
    try {
      const found = await askJson("inside/text", { body: { prompt: this.prompt } });
      if (number !== this.asked) return;
      this.found = found;
      this.place = Math.min(this.place, found.tokens.length) || found.tokens.length;
      this.head = Math.min(this.head, found.heads - 1);
      byId("found").hidden = false;
      this.drawTokens();
      this.drawLens();
      this.drawLayers();
      this.choose(this.place);
      await this.attend(number);
      if (number === this.asked) this.say("");
    } catch (error) {
      this.say(error instanceof Refused ? error.message : "the server cannot be reached", true);
    }
  }

  /** Ask where the heads of the chosen layer look. */
  async attend(number = this.asked) {
    const layer = Number(byId("layer").value);
    const { size, maps } = await askJson("inside/attention", { body: { prompt: this.prompt, layer } });
    if (number !== this.asked || layer !== Number(byId("layer").value)) return;
    this.size = size;
    this.maps = Uint8Array.from(atob(maps), (one) => one.charCodeAt(0));
    this.drawHeads();
    this.shadeTokens();
  }

  /** How much of what position `row` takes in comes from `column`; 0 is the end-of-text. */
  share(head, row, column) {
    return this.maps[(head * this.size + row) * this.size + column] / 255;
  }

  drawTokens() {
    const { tokens } = this.found;
    const { text, ends } = this.vocabulary.decode(tokens);
    const buttons = tokens.map((_, place) => this.tokenButton(place, text.slice(place ? ends[place - 1] : 0, ends[place])));
    const end = this.tokenButton(tokens.length, "what comes next");
    end.classList.add("end");
    byId("tokens").replaceChildren(...buttons, end);
    byId("tokens").onkeydown = (event) => {
      const way = { ArrowLeft: -1, ArrowRight: 1, Home: -1e9, End: 1e9 }[event.key];
      if (!way) return;
      event.preventDefault();
      this.choose(Math.min(Math.max(this.place + way, 0), tokens.length));
      byId("tokens").children[this.place].focus();
    };
  }

  tokenButton(place, text) {
    const { tokens, places } = this.found;
    const { probability } = places[place];
    const name = place < tokens.length ? `${this.vocabulary.visible(tokens[place])}, ${percent(probability)}` : text;
    const properties = { onclick: () => this.choose(place), role: "button", "aria-label": name, tabIndex: -1 };
    return element("span", properties, text || "·"); // a real button cannot break over lines
  }

  /** Look at a place. */
  choose(place) {
    this.place = place;
    [...byId("tokens").children].forEach((button, index) => {
      button.setAttribute("aria-pressed", index === place);
      button.tabIndex = index === place ? 0 : -1;
    });
    this.drawPlace();
    this.shadeTokens();
    for (const cell of byId("lens").querySelectorAll(".chosen")) cell.classList.remove("chosen");
    for (const row of byId("lens").rows) row.cells[place + 1].classList.add("chosen");
  }

  drawPlace() {
    const { tokens, places } = this.found;
    const { probability, rank, likely } = places[this.place];
    const token = tokens[this.place];
    byId("place-name").textContent = token === undefined ? "What comes next" : this.vocabulary.visible(token);
    byId("place-facts").textContent = token === undefined ? "" :
      `${percent(probability)}, number ${rank} · token ${token} · bytes ${this.vocabulary.hex(token)}`;
    const most = likely[0][1];
    byId("likely").replaceChildren(...likely.map(([id, chance]) => {
      const bar = element("i");
      bar.style.width = `${(100 * chance) / most}%`;
      return element("li", {}, element("b", {}, this.vocabulary.visible(id)), bar, element("span", {}, percent(chance)));
    }));
  }

  /** By surprise; or by the attention of the chosen head, where the chosen token was read. */
  shadeTokens() {
    const { tokens, places } = this.found;
    const row = Math.min(this.place + 1, tokens.length);
    const shares = this.maps && this.mode === "attention" ? tokens.map((_, index) => this.share(this.head, row, index + 1)) : null;
    const most = shares && Math.max(...shares, 0.02);
    [...byId("tokens").children].slice(0, tokens.length).forEach((button, index) => {
      const strength = shares ? (shares[index] / most) * 0.6 : shade(Math.log(places[index].probability));
      button.style.backgroundColor = tint(strength);
      button.title = shares ? `${percent(shares[index])} of what is taken in` : "";
    });
  }

  drawLayers() {
    const layer = byId("layer");
    if (layer.options.length === this.found.layers) return;
    layer.replaceChildren(...Array.from({ length: this.found.layers }, (_, index) => element("option", { value: index }, index)));
    layer.value = this.found.layers - 1;
  }

  drawHeads() {
    const color = getComputedStyle(document.documentElement).getPropertyValue("--accent-rgb").split(" ").map(Number);
    const { size } = this;
    const buttons = Array.from({ length: this.found.heads }, (_, head) => {
      const canvas = element("canvas", { width: size, height: size });
      const picture = canvas.getContext("2d").createImageData(size, size);
      for (let index = 0; index < size * size; index++) {
        const strength = Math.sqrt(this.maps[head * size * size + index] / 255);
        picture.data.set([...color, 255 * strength], 4 * index);
      }
      canvas.getContext("2d").putImageData(picture, 0, 0);
      const button = element("button", { "aria-pressed": head === this.head }, canvas, `head ${head}`);
      button.addEventListener("click", () => {
        this.head = head;
        for (const one of byId("heads").children) one.setAttribute("aria-pressed", one === button);
        this.shadeBy("attention");
      });
      return button;
    });
    byId("heads").replaceChildren(...buttons);
  }

  shadeBy(mode) {
    this.mode = mode;
    for (const name of ["surprise", "attention"]) byId(`by-${name}`).setAttribute("aria-pressed", name === mode);
    this.shadeTokens();
  }

  drawLens() {
    const { tokens, lens } = this.found;
    const names = [...tokens.map((id) => this.vocabulary.visible(id)), "next"];
    const head = element("tr", {}, element("th", { scope: "col" }, "after"), ...names.map((name) => element("th", { scope: "col" }, name)));
    const rows = lens.map((guesses, layer) => {
      const cells = guesses.map(([id, chance, actual], place) => {
        const cell = element("td", { className: id === tokens[place] ? "right" : "" }, this.vocabulary.visible(id));
        cell.title = `${percent(chance)}${actual === null ? "" : `; ${names[place]} ${percent(actual)}`}`;
        cell.style.backgroundColor = tint(chance * 0.6);
        return cell;
      });
      const name = layer === 0 ? "embedding" : `layer ${layer - 1}`;
      return element("tr", {}, element("th", { scope: "row" }, name), ...cells);
    });
    byId("lens").replaceChildren(element("thead", {}, head), element("tbody", {}, ...rows));
  }

  bind() {
    byId("look").addEventListener("click", () => this.look());
    byId("text").addEventListener("keydown", (event) => event.key === "Enter" && (event.ctrlKey || event.metaKey) && this.look());
    byId("layer").addEventListener("change", () => this.attend().catch((error) => this.say(error.message, true)));
    for (const mode of ["surprise", "attention"]) byId(`by-${mode}`).addEventListener("click", () => this.shadeBy(mode));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.maps && this.drawHeads());
  }
}

try {
  byId("text").value = JSON.parse(localStorage.getItem("regpt-scratchpad"))?.now.text || FIRST;
} catch {
  byId("text").value = FIRST;
}
try {
  const [, vocabulary] = await Promise.all([about(), Vocabulary.load()]);
  const page = new Inside(vocabulary);
  page.bind();
  await page.look();
  document.documentElement.dataset.ready = "";
} catch (error) {
  byId("status").textContent = `${error.message}: reload the page`;
  throw error;
}
