// The scratchpad: a text that a person and the model write together.

import { about, Refused } from "./api.js";
import { showCommands } from "./commands.js";
import { byId } from "./dom.js";
import { History } from "./history.js";
import { Panel } from "./panel.js";
import { Paper } from "./paper.js";
import { Samples } from "./samples.js";
import { Settings } from "./settings.js";
import { drawTokens } from "./tokens.js";
import { Vocabulary } from "./vocabulary.js";
import { context, score, tokenize, write } from "./writer.js";

const REST_MILLISECONDS = 450;
const EMPTY = { text: "", tokens: [], origin: null, next: null, fingerprint: "" };

class Scratchpad {
  constructor(facts, vocabulary) {
    this.facts = facts;
    this.positions = facts.model.max_model_len;
    this.vocabulary = vocabulary;
    this.history = new History("regpt-scratchpad");
    this.settings = new Settings(() => this.drawPlace());
    this.panel = new Panel(vocabulary, facts.model.vocab_size, (...args) => this.branch(...args));
    this.paper = new Paper(byId("text"), byId("back"), vocabulary, (...args) => this.look(...args));
    this.samples = new Samples(vocabulary, (tokens, origin) => this.adopt(tokens, origin));
    this.pointed = null;
    this.writing = null;
    this.reading = null;
    this.drawing = false;
    this.history.push(this.history.load() ?? EMPTY);
    this.history.past.pop();
    if (this.state.fingerprint !== facts.model.system_fingerprint) this.forget(facts.model.system_fingerprint);
    this.draw({ caret: this.state.text.length });
    this.readSoon(0);
  }

  get state() {
    return this.history.now;
  }

  get ids() {
    return this.state.tokens.map((token) => token.id);
  }

  /** Whether every character has its token. */
  get whole() {
    return this.vocabulary.decode(this.ids).text === this.state.text;
  }

  say(words, wrong = false) {
    byId("status").textContent = words;
    byId("status").classList.toggle("wrong", wrong);
  }

  /** Another model answers: what the last one thought is gone. */
  forget(fingerprint) {
    const tokens = this.state.tokens.map(({ id }) => ({ id, logprob: null, top: null }));
    this.history.replace({ ...this.state, tokens, next: null, fingerprint, origin: null });
  }

  draw({ caret = null } = {}) {
    this.paper.show(this.state, { caret });
    this.drawPlace();
    this.drawButtons();
    drawTokens(this.state.tokens, this.vocabulary);
  }

  drawSoon() {
    if (this.drawing) return;
    this.drawing = true;
    requestAnimationFrame(() => {
      this.drawing = false;
      this.draw();
    });
  }

  drawButtons() {
    const { origin, tokens } = this.state;
    const done = origin !== null && origin.end === tokens.length && this.whole;
    byId("stop").disabled = !this.writing;
    for (const name of ["continue", "step", "five", "compare"]) byId(name).disabled = this.writing !== null;
    byId("undo").disabled = !this.history.past.length;
    byId("redo").disabled = !this.history.future.length;
    byId("another").disabled = !done || this.writing !== null;
    byId("copy").disabled = !done || this.writing !== null;
  }

  /** Look at a token: where the pointer rests, else where the caret stands. */
  look(place) {
    this.pointed = place;
    this.drawPlace();
  }

  drawPlace() {
    const { tokens, next } = this.state;
    const place = Math.min(this.pointed ?? this.paper.caretPlace(), tokens.length);
    const token = tokens[place] ?? null;
    this.paper.mark(place);
    this.panel.show({ number: place, token, top: token ? token.top : next }, this.settings.params);
  }

  /** A person edited the text. */
  edited() {
    this.writing?.abort();
    const text = byId("text").value;
    const { tokens } = this.state;
    const { text: old, ends } = this.vocabulary.decode(this.ids);
    let same = 0;
    while (same < old.length && same < text.length && old[same] === text[same]) same++;
    const count = ends.findIndex((end) => end > same);
    const kept = old === text.slice(0, old.length) ? tokens : tokens.slice(0, Math.max(count, 0));
    this.pointed = null;
    this.history.push({ ...this.state, text, tokens: kept, next: null, origin: null }, { typing: true });
    this.draw();
    this.readSoon();
  }

  readSoon(wait = REST_MILLISECONDS) {
    clearTimeout(this.reading?.timer);
    this.reading?.stop.abort();
    const stop = new AbortController();
    const timer = setTimeout(() => this.read(stop).catch((error) => this.failed(error, stop)), wait);
    this.reading = { stop, timer };
  }

  /** Find the text's tokens, then what the model thinks of them. */
  async read(stop) {
    await this.split(stop.signal);
    if (this.writing || stop.signal.aborted) return;
    const { tokens, next } = this.state;
    if (next && tokens.slice(Math.max(1, tokens.length - this.positions + 2)).every((token) => token.top)) return;
    const found = await score(tokens, this.positions, stop.signal);
    if (stop.signal.aborted) return;
    if (found.fingerprint !== this.state.fingerprint && this.state.fingerprint) {
      this.forget(found.fingerprint);
      return this.read(stop);
    }
    this.history.replace({ ...this.state, ...found });
    this.draw();
  }

  /** The text's tokens, as the tokenizer has them; those that stay keep what is known of them. */
  async split(signal) {
    if (this.whole) return;
    const { text, tokens } = this.state;
    const ids = await tokenize(text, signal);
    if (this.state.text !== text) return;
    const changed = ids.findIndex((id, index) => id !== tokens[index]?.id);
    const same = changed < 0 ? ids.length : changed;
    const fresh = ids.slice(same).map((id) => ({ id, logprob: null, top: null }));
    this.history.replace({ ...this.state, tokens: [...tokens.slice(0, same), ...fresh] });
    this.draw();
  }

  /** Let the model write `count` tokens, behind the text or behind another state of it. */
  async go(count, { base = null } = {}) {
    if (this.writing) return;
    const stop = (this.writing = new AbortController());
    clearTimeout(this.reading?.timer);
    this.reading?.stop.abort();
    this.drawButtons();
    this.say("writing");
    try {
      if (!base) await this.split(stop.signal);
      const before = base ?? this.state;
      const { origin, room } = this.originOf(before, count);
      const ids = before.tokens.slice(origin.start).map((token) => token.id);
      this.history.push({ ...before, origin, next: null });
      this.pointed = null;
      this.draw({ caret: before.text.length });
      const asked = { ...origin, prompt: [...origin.prompt, ...ids] };
      const { fingerprint, ends } = await write(asked, room, (_, tokens) => this.take(tokens, stop), stop.signal);
      this.history.replace({ ...this.state, fingerprint });
      if (ends[0] === "stop") this.say("The model ends the text here.");
      else this.say(room < count ? `${room} tokens: the model has ${this.positions} positions` : "");
    } catch (error) {
      this.failed(error, stop);
    } finally {
      if (this.writing === stop) this.writing = null;
      this.draw();
      this.readSoon(0);
    }
  }

  /** Where a continuation begins: where the last one did, if nothing was changed since. The random
   * stream depends on a token's place only, so that both together are one longer request's. */
  originOf({ tokens, origin: last }, count) {
    const { params } = this.settings;
    const end = tokens.length;
    const same = last && last.n === 1 && last.end === end && JSON.stringify(last.params) === JSON.stringify(params);
    if (same && last.prompt.length + (end - last.start) + count <= this.positions) return { origin: last, room: count };
    const { prompt, room } = context(tokens.map((token) => token.id), this.positions, count);
    return { origin: { prompt, params, n: 1, start: end, end }, room };
  }

  take(tokens, stop) {
    if (stop.signal.aborted || !tokens.length) return;
    const all = [...this.state.tokens, ...tokens];
    this.history.replace(this.stateOf(all, { ...this.state.origin, end: all.length }));
    this.drawSoon();
  }

  failed(error, stop) {
    if (stop.signal.aborted) this.say("");
    else this.say(`${error instanceof Refused ? error.message : "the server cannot be reached"}. The text is kept.`, true);
  }

  /** Put a token in the place of another, and go on from there. */
  async branch(place, id, only) {
    this.writing?.abort();
    const kept = this.state.tokens.slice(0, place);
    const top = this.state.tokens[place]?.top ?? this.state.next;
    const logprob = top?.find(([one]) => one === id)?.[1] ?? null;
    const base = this.stateOf([...kept, { id, logprob, top }], null);
    this.pointed = this.writing = null;
    byId("text").focus();
    if (!only) {
      await this.go(this.settings.length, { base });
      return;
    }
    this.history.push(base);
    this.draw({ caret: base.text.length });
    this.readSoon(0);
  }

  /** These tokens and nothing else. */
  stateOf(tokens, origin) {
    const { text } = this.vocabulary.decode(tokens.map((token) => token.id));
    return { ...this.state, tokens, text, origin, next: null };
  }

  /** Go on with one of the samples; the page's model has not seen another's. */
  adopt(tokens, origin) {
    const own = origin.model ? tokens.map(({ id }) => ({ id, logprob: null, top: null })) : tokens;
    const all = [...this.state.tokens.slice(0, origin.start), ...own];
    this.history.push(this.stateOf(all, origin.model ? null : { ...origin, end: all.length }));
    this.draw({ caret: this.state.text.length });
    byId("text").focus();
    this.readSoon(0);
  }

  /** The last continuation again, with the next seed. */
  async another() {
    const { origin, tokens } = this.state;
    this.settings.seed = origin.params.seed + 1;
    await this.go(origin.end - origin.start, { base: this.stateOf(tokens.slice(0, origin.start), null) });
  }

  /** Five continuations of one seed. */
  five() {
    return this.sideBySide(async (origin, room, signal) => {
      const origins = [1, 2, 3, 4, 5].map((n) => ({ ...origin, n }));
      this.samples.open(`Five of seed ${origin.params.seed}`, origins);
      await write(origins[4], room, (index, tokens) => this.samples.take(index, tokens), signal);
    });
  }

  /** Both models on one text. */
  compare() {
    const [other] = this.facts.compared;
    const names = [this.facts.model.id, other.id];
    return this.sideBySide(async (origin, room, signal) => {
      const origins = [origin, { ...origin, model: names[1] }];
      this.samples.open(`Two models, seed ${origin.params.seed}`, origins, names);
      await Promise.all(origins.map((one, card) =>
        write(one, room, (_, tokens) => this.samples.take(card, tokens), signal)));
    }, Math.min(this.positions, other.max_model_len));
  }

  /** Continuations that leave the text as it is; `ask(origin, room, signal)` asks for them. */
  async sideBySide(ask, positions = this.positions) {
    if (this.writing) return;
    const stop = (this.writing = new AbortController());
    this.drawButtons();
    try {
      await this.split(stop.signal);
      const { prompt, room } = context(this.ids, positions, this.settings.length);
      const { length } = this.ids;
      await ask({ prompt, params: this.settings.params, n: 1, start: length, end: length }, room, stop.signal);
      this.say("");
    } catch (error) {
      this.failed(error, stop);
    } finally {
      stop.abort(); // where one of several failed, the others end too
      if (this.writing === stop) this.writing = null;
      this.samples.done();
      this.drawButtons();
    }
  }

  back(state) {
    this.writing?.abort();
    if (!state) return;
    this.writing = this.pointed = null;
    this.say("");
    this.draw();
    this.readSoon();
  }

  bind() {
    byId("compare").hidden = !this.facts.compared.length;
    const text = byId("text");
    const undo = () => this.back(this.history.undo());
    const redo = () => this.back(this.history.redo());
    text.addEventListener("input", () => this.edited());
    text.addEventListener("beforeinput", (event) => {
      if (event.inputType === "historyUndo" || event.inputType === "historyRedo") {
        event.preventDefault();
        (event.inputType === "historyUndo" ? undo : redo)();
      }
    });
    const actions = {
      continue: () => this.go(this.settings.length),
      stop: () => this.writing?.abort(),
      step: () => this.go(1),
      another: () => this.another(),
      five: () => this.five(),
      compare: () => this.compare(),
      undo, redo,
      copy: () => showCommands(this.state, this.vocabulary, this.facts, tokenize),
    };
    for (const [name, action] of Object.entries(actions)) byId(name).addEventListener("click", action);
    document.addEventListener("keydown", (event) => {
      const key = event.key.toLowerCase();
      const control = event.ctrlKey || event.metaKey;
      let action = null;
      if (key === "enter" && control) action = actions.continue;
      else if (key === "enter" && event.altKey) action = actions.step;
      else if (key === "escape" && this.writing) action = actions.stop;
      else if (control && key === "z" && event.target === text) action = event.shiftKey ? redo : undo;
      else if (control && key === "y" && event.target === text) action = redo;
      if (!action) return;
      event.preventDefault();
      action();
    });
  }
}

try {
  const [facts, vocabulary] = await Promise.all([about(), Vocabulary.load()]);
  new Scratchpad(facts, vocabulary).bind();
  document.documentElement.dataset.ready = "";
} catch (error) {
  byId("status").textContent = `${error.message}: reload the page`;
  throw error;
}
