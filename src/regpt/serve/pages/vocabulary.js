// GPT-2's tokens as bytes, so that a page can say what a token is, and where in a text it stands.

import { ask } from "./api.js";

/** The token that begins and ends texts. */
export const END_OF_TEXT = 50256;

export class Vocabulary {
  /** From the server: a string for each token, a character for each byte. */
  static async load() {
    return new Vocabulary(await (await ask("vocabulary")).json());
  }

  constructor(tokens) {
    this.tokens = tokens;
  }

  bytes(id) {
    return Uint8Array.from(this.tokens[id] ?? "", (one) => one.charCodeAt(0));
  }

  hex(id) {
    return Array.from(this.bytes(id), (one) => one.toString(16).padStart(2, "0")).join(" ");
  }

  /** Text of ids and where each of them ends in it, in JavaScript's characters. A character that is
   * not whole counts to the token that completes it. */
  decode(ids) {
    const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
    let text = "";
    const ends = [];
    for (const id of ids) {
      text += decoder.decode(this.bytes(id), { stream: true });
      ends.push(text.length);
    }
    text += decoder.decode();
    if (ends.length) ends[ends.length - 1] = text.length;
    return { text: text.replaceAll("\r", "\n"), ends }; // a text field knows no other line end
  }

  /** A token for people: blanks and line ends made visible, parts of characters as bytes. */
  visible(id) {
    if (id === END_OF_TEXT) return "end of text";
    try {
      const text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(this.bytes(id));
      return text.replace(/^ /, "␣").replaceAll("\n", "⏎").replaceAll("\r", "␍").replaceAll("\t", "⇥").replaceAll(/^ +| +$/g, (one) => "␣".repeat(one.length));
    } catch {
      return `‹${this.hex(id)}›`;
    }
  }
}
