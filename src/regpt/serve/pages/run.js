// The page of a run: lines come as they are written, and are drawn a few times a second.

import { about } from "./api.js";
import { Chart, smooth } from "./chart.js";
import { byId, duration, element, shown } from "./dom.js";
import { follow } from "./follow.js";

const DRAW_MILLISECONDS = 250;
const RECENT = 50;
const RESTS_SECONDS = 90;

let record = {};
let lines = [];
let heard = { at: 0, age: 0 };
let link = "connecting";
let drawing = null;

const charts = {
  whole: new Chart("Loss, nats per token", { wide: true }),
  close: new Chart("Loss, closer"),
  val_nats_per_character: new Chart("Validation, nats per character"),
  hellaswag_acc_norm: new Chart("HellaSwag acc_norm"),
  learning_rate: new Chart("Learning rate"),
  grad_norm: new Chart("Gradient norm"),
  tokens_per_second: new Chart("Tokens per second"),
};
byId("charts").append(...Object.values(charts).map((chart) => chart.node));

const numbers = (name) => lines.filter((line) => Number.isFinite(line[name])).map((line) => [line.step, line[name]]);
const levels = (...units) => (record.levels ?? []).filter((level) => units.includes(level.unit));
const last = (name) => lines.findLast((line) => Number.isFinite(line[name]))?.[name];

/** Draw soon, and not more often than a few times a second. */
function drawSoon() {
  drawing ??= setTimeout(() => {
    drawing = null;
    requestAnimationFrame(draw);
  }, DRAW_MILLISECONDS);
}

function draw() {
  const until = record.steps;
  const train = numbers("loss");
  const curves = [
    { name: "training, each step", kind: "faint", points: train },
    { name: "training, smoothed", kind: "line", points: smooth(train) },
    { name: "validation, a part", kind: "third", points: numbers("quick_val_loss") },
    { name: "validation", kind: "second", points: numbers("val_loss") },
  ];
  charts.whole.draw({ curves, levels: levels("loss"), until });
  charts.close.draw({ curves: curves.slice(1), levels: levels("val_loss"), until, skip: 0.1 });
  for (const name of ["val_nats_per_character", "hellaswag_acc_norm"]) {
    const points = numbers(name);
    charts[name].draw({ curves: [{ name: "validation", kind: "second", points }], levels: levels(name), until });
  }
  for (const name of ["grad_norm", "tokens_per_second"]) {
    const points = numbers(name);
    const both = [
      { name: "each step", kind: "faint", points },
      { name: "smoothed", kind: "line", points: smooth(points) },
    ];
    charts[name].draw({ curves: both, until });
  }
  charts.learning_rate.draw({ curves: [{ name: "learning rate", kind: "line", points: numbers("learning_rate") }], until });
  drawFigures();
  drawSamples();
}

/** The median of the newest speeds, in tokens a second. */
function speed() {
  const newest = numbers("tokens_per_second").slice(-RECENT).map(([, y]) => y).sort((a, b) => a - b);
  return newest[newest.length >> 1];
}

function drawFigures() {
  const step = lines.reduce((most, line) => Math.max(most, line.step), 0);
  const [tokens, rate, planned] = [last("tokens"), speed(), record.steps];
  const left = planned > step && rate && tokens ? ((planned - step) * (tokens / step)) / rate : 0;
  const recent = smooth(numbers("loss")).at(-1);
  const rows = [
    ["step", shown(step), planned ? `of ${shown(planned)}` : ""],
    ["time left", record.finished ? "done" : left ? duration(left) : "", left ? "at this speed" : ""],
    ["training loss", recent ? recent[1].toFixed(3) : "", "smoothed"],
    ["validation loss", last("val_loss")?.toFixed(3) ?? last("quick_val_loss")?.toFixed(3) ?? "", ""],
    ["tokens a second", rate ? shown(Math.round(rate)) : "", ""],
    ["tokens", tokens ? Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 }).format(tokens) : "", ""],
  ];
  const used = rows.filter(([, value]) => value);
  byId("figures").replaceChildren(
    ...used.map(([name, value, more]) =>
      element("div", {}, element("dt", {}, name), element("dd", {}, value, more ? element("small", {}, more) : ""))),
  );
  const share = planned ? Math.min(100, (100 * step) / planned) : 0;
  byId("bar").style.width = `${share}%`;
  byId("progress").setAttribute("aria-valuenow", share.toFixed(0));
  document.title = `${record.name ?? "Run"}${planned && !record.finished ? ` ${share.toFixed(0)}%` : ""} · regpt`;
}

let shownSample = null;

function drawSamples() {
  const found = lines.filter((line) => line.samples);
  byId("samples").hidden = !found.length;
  if (!found.length) return;
  const choice = byId("sample-choice");
  const atEnd = Number(choice.value) === Number(choice.max);
  choice.max = found.length - 1;
  choice.hidden = found.length < 2;
  if (atEnd) choice.value = choice.max;
  const line = found[Number(choice.value)];
  if (line === shownSample) return;
  shownSample = line;
  const step = line.step ? `after ${shown(line.step)} steps` : "before training";
  byId("sample-step").textContent = step;
  choice.setAttribute("aria-valuetext", step);
  const texts = Object.entries(line.samples).flatMap(([prompt, written]) =>
    written.map((text) => {
      const begins = String(text).startsWith(prompt) ? prompt : "";
      return element("blockquote", {}, element("span", { className: "prompt" }, begins), String(text).slice(begins.length));
    }));
  byId("sample-texts").replaceChildren(...texts);
}

function drawRecord() {
  byId("name").textContent = record.name;
  const words = [
    record.preset && `preset ${record.preset}`,
    record.parameters && `${Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 }).format(record.parameters)} parameters`,
    record.sources && `on ${record.sources}`,
    record.runtime,
  ];
  byId("about").textContent = record.error ?? words.filter(Boolean).join(" · ");
  byId("settings").replaceChildren(
    ...Object.entries(record.settings ?? {}).flatMap(([name, value]) => [
      element("dt", {}, name), element("dd", {}, typeof value === "string" ? value : JSON.stringify(value))]),
  );
  byId("sources").textContent = (record.levels ?? [])
    .filter((level) => level.source && numbers(level.unit).length)
    .map((level) => `${level.name}, ${shown(level.value)}: ${level.source}.`).join(" ");
}

/** Say whether it grows. */
function drawState() {
  const age = heard.age + (performance.now() - heard.at) / 1000;
  const live = link === "open" && !record.finished && heard.at > 0 && age < RESTS_SECONDS;
  let words = link;
  if (record.finished) words = "finished";
  else if (link === "open") words = heard.at ? (live ? "training" : `no line for ${duration(age)}`) : "waiting for the first line";
  else if (link === "lost") words = "connection lost, trying again";
  const state = byId("state");
  state.classList.toggle("live", live);
  if (state.textContent !== words) state.textContent = words;
}

function take({ event, data }) {
  const value = JSON.parse(data);
  if (event === "record") {
    record = value;
    drawRecord();
  } else if (event === "again") {
    lines = [];
    shownSample = null;
  } else if (event === "lines") {
    lines = lines.concat(value.lines);
    heard = { at: performance.now(), age: value.age };
    if (value.lines.some((line) => "val_loss" in line)) drawRecord();
  }
  drawState();
  drawSoon();
}

byId("sample-choice").addEventListener("input", drawSamples);
setInterval(() => document.hidden || drawState(), 1000);
const name = decodeURIComponent(location.pathname.replace(/\/$/, "").split("/").at(-1));
byId("name").textContent = name;
about().catch(() => {});
follow(`runs/${encodeURIComponent(name)}/events`, take, (state, message = "") => {
  link = message || state;
  drawState();
});
