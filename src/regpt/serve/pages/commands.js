// The dialog with the command lines that give the text on the page.

import { root } from "./api.js";
import { curl, sample } from "./command.js";
import { byId, element } from "./dom.js";
import { END_OF_TEXT } from "./vocabulary.js";

/** A command with a button that copies it. */
function block(title, text) {
  const button = element("button", {
    onclick: async () => {
      try {
        await navigator.clipboard.writeText(text);
        button.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(lines); // no clipboard here: at least select it
      }
    },
  }, "Copy");
  const lines = element("pre", { tabIndex: 0 }, text);
  return [element("h3", {}, title), lines, button];
}

/** Why `regpt sample` cannot write it; null if it can. */
function missing(origin, facts, canonical) {
  if (!facts.model.argument) return "the server follows a run, whose checkpoints come and go";
  if (facts.model.argument === "random") return "it draws random weights from its seed";
  if (facts.model.dtype !== "fp32") return `the server computes in ${facts.model.dtype}`;
  if (origin.prompt.includes(END_OF_TEXT)) return "the prompt has an end-of-text token";
  if (!canonical) return "the prompt's tokens are not those the tokenizer gives its text";
  return null;
}

/** Show how the text came to be. */
export async function showCommands({ tokens, origin }, vocabulary, facts, tokenize) {
  const count = tokens.length - origin.start;
  const { text } = vocabulary.decode(origin.prompt);
  const again = origin.prompt.includes(END_OF_TEXT) ? [] : await tokenize(text).catch(() => []);
  const canonical = again.join() === origin.prompt.join() && !text.startsWith("-");
  const reason = missing(origin, facts, canonical);
  const url = new URL("v1/completions", root).href;
  const which = origin.n > 1 ? `, text ${origin.n} of ${origin.n}` : "";
  const list = byId("command-list");
  list.replaceChildren(...block(`With curl${which}`, curl(origin, count, url, { withKey: facts.model.key })));
  if (reason) list.append(element("p", { className: "quiet small" }, `Not with regpt sample: ${reason}.`));
  else list.prepend(...block(`With regpt sample${which}`, sample(origin, count, text, facts.model.argument)));
  byId("commands-close").onclick = () => byId("commands").close();
  byId("commands").showModal();
}
