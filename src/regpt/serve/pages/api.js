// Asking the server: JSON, server-sent events, and the key where it wants one.

import { byId, element } from "./dom.js";

const KEY = "regpt-key";

/** What the server refused, in its words. */
export class Refused extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/** Where the server's root is, seen from this page: pages work under any prefix. */
export const root = new URL(document.documentElement.dataset.root ?? "./", document.baseURI);

/** A response of the server. `body` makes it a POST. Throws `Refused`, or a TypeError without a network. */
export async function ask(path, { body, signal, headers = {} } = {}) {
  const key = sessionStorage.getItem(KEY);
  if (key) headers = { ...headers, authorization: `Bearer ${key}` };
  const options = { signal, headers, cache: "no-cache" };
  if (body !== undefined) {
    options.method = "POST";
    options.body = JSON.stringify(body);
    options.headers = { ...headers, "content-type": "application/json" };
  }
  const response = await fetch(new URL(path, root), options);
  if (response.ok) return response;
  if (response.status === 401) {
    if (sessionStorage.getItem(KEY) === key) await keyFromPerson(key !== null);
    return ask(path, { body, signal, headers });
  }
  let message = `the server answered ${response.status}`;
  try {
    message = (await response.json()).error.message;
  } catch {
    // not one of our own answers: a proxy's, perhaps
  }
  throw new Refused(message, response.status);
}

/** The same, as JSON. */
export const askJson = async (path, options) => (await ask(path, options)).json();

let asking = null;

/** Ask the person for the key, once for all requests that wait for it. */
function keyFromPerson(wrong) {
  asking ??= new Promise((resolve) => {
    const field = element("input", { type: "password", "aria-label": "API key", autocomplete: "off" });
    const done = () => {
      if (!field.value) return;
      sessionStorage.setItem(KEY, field.value.trim());
      notice.remove();
      asking = null;
      resolve();
    };
    field.addEventListener("keydown", (event) => event.key === "Enter" && done());
    const words = wrong ? "This is not the server's key. Its key:" : "This server asks for its API key:";
    const notice = element(
      "div", { className: "notice", role: "group", "aria-label": "API key" },
      element("p", {}, words),
      element("div", { className: "row" }, field, element("button", { onclick: done }, "Use it")),
    );
    (document.querySelector("main") ?? document.body).prepend(notice);
    field.focus();
  });
  return asking;
}

/** The events of a response, as {id, event, data}. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      text += value;
      const blocks = text.split("\n\n");
      text = blocks.pop();
      for (const block of blocks) {
        const found = { event: "message", data: "" };
        for (const line of block.split("\n")) {
          const colon = line.indexOf(": ");
          if (colon > 0) found[line.slice(0, colon)] = line.slice(colon + 2);
        }
        if (found.data) yield found;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** Fill the head of a page with what the server has; returns that. */
export async function about() {
  const found = await askJson("about");
  const { model, runs } = found;
  if (model) byId("served").textContent = model.id;
  for (const link of document.querySelectorAll("[data-needs=model]")) link.hidden = !model;
  const run = byId("run-link");
  if (run && runs.length) {
    run.hidden = false;
    run.href = new URL(`runs/${encodeURIComponent(runs[0])}`, root);
  }
  return found;
}
