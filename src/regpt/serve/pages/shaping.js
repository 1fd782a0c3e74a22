// What temperature, top-k and top-p make of a distribution, from its likeliest tokens.
//
// The server tells the 20 likeliest. What they become is exact where top-k leaves no others. Where
// the tail takes part, only its sum is known; it is taken to fall as a power of the rank, from the
// last known probability, and figures that depend on it are marked as estimates (`exact` false).

/** The exponent s with which p20 (r / n)^-s, summed over ranks r above n, holds `rest`. */
function tailExponent(n, last, rest, size) {
  let [low, high] = [0, 40];
  for (let round = 0; round < 50; round++) {
    const middle = (low + high) / 2;
    if (last * tailSum(n, middle, size) > rest) low = middle;
    else high = middle;
  }
  return (low + high) / 2;
}

/** The sum of (r / n)^-s for r from n + 1 to size, as an integral. */
function tailSum(n, s, size) {
  const from = (n + 0.5) / n;
  const to = (size + 0.5) / n;
  const integral = Math.abs(s - 1) < 1e-6 ? Math.log(to / from) : (to ** (1 - s) - from ** (1 - s)) / (1 - s);
  return n * integral;
}

/** [[id, log-probability]], the likeliest first, to rows {id, before, after, cut}.
 * `cut` names what took a token out. Also {rest: {before, after}, exact}. */
export function reshape(top, { temperature, topK, topP }, size) {
  const rows = top.map(([id, logprob]) => ({ id, before: Math.exp(logprob), after: 0, cut: null }));
  const n = rows.length;
  const restBefore = Math.max(0, 1 - rows.reduce((sum, row) => sum + row.before, 0));
  const rest = { before: restBefore, after: 0 };
  if (temperature === 0) {
    rows.forEach((row, rank) => {
      row.after = rank === 0 ? 1 : 0;
      row.cut = rank === 0 ? null : "temperature 0";
    });
    return { rows, rest, exact: true };
  }
  const best = top[0][1];
  const weights = top.map(([, logprob]) => Math.exp((logprob - best) / temperature));
  const kept = topK ? Math.min(topK, size) : size;
  let tail = 0;
  if (kept > n && restBefore > 1e-9 && size > n) {
    const s = tailExponent(n, rows[n - 1].before, restBefore, size);
    tail = weights[n - 1] * tailSum(n, s / temperature, kept);
  }
  const inK = weights.map((weight, rank) => (rank < kept ? weight : 0));
  const sum = inK.reduce((a, b) => a + b, 0) + tail;
  let before = 0; // what likelier tokens hold: top-p keeps a token while that is below p
  let left = 0;
  rows.forEach((row, rank) => {
    const share = inK[rank] / sum;
    if (rank >= kept) row.cut = `top-k ${topK}`;
    else if (rank > 0 && before >= topP) row.cut = `top-p ${topP}`;
    else left += row.after = share;
    before += share;
  });
  const tailShare = tail / sum;
  rest.after = before >= topP ? 0 : Math.min(tailShare, Math.max(topP - before, 0));
  left += rest.after;
  for (const row of rows) row.after /= left;
  rest.after /= left;
  const exact = tail === 0 || (temperature === 1 && kept === size);
  return { rows, rest, exact };
}
