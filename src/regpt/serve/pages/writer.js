// Asking the model: tokens of a text, what it thinks of them, and how it goes on.

import { ask, askJson, events, Refused } from "./api.js";
import { bodyOf } from "./command.js";
import { END_OF_TEXT } from "./vocabulary.js";

const TOP = 20;
const idOf = (name) => Number(name.slice("token_id:".length));

/** The entries of a logprobs object, as tokens {id, logprob, top}. */
function tokensOf({ tokens, token_logprobs: logprobs, top_logprobs: tops }) {
  return tokens.map((name, index) => {
    const found = tops[index] && Object.entries(tops[index]).map(([key, value]) => [idOf(key), value]);
    const top = found?.sort((a, b) => b[1] - a[1] || a[0] - b[0]).slice(0, TOP) ?? null;
    return { id: idOf(name), logprob: logprobs[index], top };
  });
}

/** A text's tokens. */
export async function tokenize(text, signal) {
  return text ? (await askJson("tokenize", { body: { prompt: text }, signal })).tokens : [];
}

/** What the model reads of a text's ids, with room to write `count` tokens or fewer; where it begins. */
export function context(ids, positions, count) {
  if (!ids.length) return { prompt: [END_OF_TEXT], start: 0, room: Math.min(count, positions - 1) };
  const start = ids.length < positions ? 0 : ids.length - Math.floor((positions * 3) / 4);
  return { prompt: ids.slice(start), start, room: Math.min(count, positions - (ids.length - start)) };
}

/** The tokens with what the model thinks of each, and of what comes next. */
export async function score(tokens, positions, signal) {
  const start = Math.max(0, tokens.length - (positions - 1));
  const seen = tokens.slice(start);
  const known = seen.slice(1).every((token) => token.top);
  const prompt = seen.length ? seen.map((token) => token.id) : [END_OF_TEXT];
  const body = { prompt, max_tokens: 1, temperature: 0, logprobs: TOP, return_tokens_as_token_ids: true };
  const answer = await askJson("v1/completions", { body: { ...body, echo: !known }, signal });
  const found = tokensOf(answer.choices[0].logprobs);
  const next = found.pop().top;
  const scored = known || !seen.length
    ? tokens
    : tokens.map((token, index) => (index > start ? found[index - start] : token));
  return { tokens: scored, next, fingerprint: answer.system_fingerprint };
}

/** Continue: `take(index, tokens)` is called as they come. The model's fingerprint and how each
 * choice ended. */
export async function write(origin, count, take, signal) {
  const body = { ...bodyOf(origin, count), stream: true, logprobs: TOP, return_tokens_as_token_ids: true };
  const response = await ask("v1/completions", { body, signal });
  const ends = {};
  let fingerprint = "";
  for await (const { data } of events(response)) {
    if (data === "[DONE]") return { fingerprint, ends };
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Refused(chunk.error.message, 500);
    fingerprint = chunk.system_fingerprint;
    for (const { index, logprobs, finish_reason: reason } of chunk.choices) {
      const tokens = tokensOf(logprobs);
      if (tokens.at(-1)?.id === END_OF_TEXT) tokens.pop(); // it is no text
      take(index, tokens);
      if (reason) ends[index] = reason;
    }
  }
  throw new Refused("the connection ended before the text did", 0);
}
