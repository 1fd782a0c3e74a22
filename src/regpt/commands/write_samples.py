"""What `regpt sample` prints: whole texts, one as it comes, or JSON with log-probabilities."""

import json as json_lines
import sys
from functools import partial
from typing import Any

from regpt.core.detokenize import cut_at_stop, stream_text
from regpt.core.generate import Step, as_lists, check_lengths, until_end
from regpt.core.model import GPT
from regpt.core.sampling import SamplingParams
from regpt.core.tokenizer import Tokenizer, get_tokenizer
from regpt.fast.decoding.decoders import Engine, choose_decoder
from regpt.fast.decoding.drafters import Speculation, choose_drafter
from regpt.fast.decoding.speculative import can_draft, generate_steps


def write_samples(
    model: GPT,
    prompt: str,
    params: SamplingParams,
    stop: tuple[str, ...],
    *,
    engine: Engine,
    dtype: str,
    speculate: Speculation,
    stream: bool,
    json: bool,
    top: int | None,
) -> None:
    """Continue a prompt, by the decoder and the drafter that were asked for, and print."""
    tokenizer = get_tokenizer()
    start = as_lists([tokenizer.encode(prompt)])[0]
    check_lengths([start], params, model)
    decoder, note = choose_decoder(model, engine=engine, dtype=dtype)
    sys.stderr.write(f"regpt: note: {note}\n" if note else "")
    how = speculate if top is None and can_draft(params, model) else "off"
    drafter = choose_drafter(decoder, how, rows=params.num_samples)
    write = partial(generate_steps, model, decoder=decoder, drafter=drafter)
    if stream:
        sys.stdout.write(prompt)
        tokens = (int(step.tokens) for step in write([start], params))
        for piece in stream_text(tokens, tokenizer, stop=stop):
            sys.stdout.write(piece)
            sys.stdout.flush()
        sys.stdout.write("\n")
        return
    steps = list(write([start] * params.num_samples, params, top=top))
    drawn = [step.tokens.tolist() for step in steps]
    for index in range(params.num_samples):
        row = start + until_end([tokens[index] for tokens in drawn], params)
        row, text = cut_at_stop(row, len(start), tokenizer, stop=stop)
        entry: dict[str, Any] = {"index": index, "tokens": row, "text": text}
        if top is not None:
            own = zip(row[len(start) :], steps, strict=False)
            entry["logprobs"] = [logprobs(tokenizer, *one, index) for one in own]
        sys.stdout.write((json_lines.dumps(entry) if json else f"> {text}") + "\n")


def logprobs(tokenizer: Tokenizer, token: int, step: Step, index: int) -> dict[str, Any]:
    """A drawn token of a row with its log-probability, and the most likely ones at its place."""
    assert step.logprobs is not None
    assert step.top_ids is not None
    assert step.top_logprobs is not None

    def told(token: int, logprob: float) -> dict[str, Any]:
        return {"token": token, "text": tokenizer.decode([token]), "logprob": logprob}

    best = map(told, step.top_ids[index].tolist(), step.top_logprobs[index].tolist())
    return told(token, float(step.logprobs[index])) | {"top": list(best)}
