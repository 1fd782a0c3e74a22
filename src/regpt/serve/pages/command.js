// The command line that gives a text again.

/** A word as a shell reads it. */
export const quote = (word) => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`);

/** The body of the request that wrote a text. */
export function bodyOf({ prompt, params, n = 1, model }, count) {
  const { temperature, topK, topP, seed } = params;
  const body = { prompt, max_tokens: count, temperature, seed };
  if (topK) body.top_k = topK;
  if (topP < 1) body.top_p = topP;
  if (n > 1) body.n = n;
  if (model) body.model = model;
  return body;
}

/** With curl, for any server. */
export function curl(origin, count, url, { withKey = false } = {}) {
  const key = withKey ? ' \\\n  -H "authorization: Bearer $REGPT_API_KEY"' : "";
  const data = JSON.stringify(bodyOf(origin, count));
  return `curl ${quote(url)} -H 'content-type: application/json'${key} \\\n  -d ${quote(data)}`;
}

/** With `regpt sample`; `text` is the prompt's, `argument` what the server was given as MODEL. */
export function sample({ prompt, params, n = 1 }, count, text, argument) {
  const { temperature, topK, topP, seed } = params;
  const words = ["regpt", "sample", quote(text), "--model", quote(argument)];
  words.push("--rng", "portable", "--seed", seed, "--num-samples", n);
  words.push("--max-length", prompt.length + count, "--top-k", topK || "None");
  if (temperature !== 1) words.push("--temperature", temperature);
  if (topP < 1) words.push("--top-p", topP);
  return words.join(" ");
}
