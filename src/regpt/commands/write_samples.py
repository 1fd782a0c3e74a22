"""What `regpt sample` prints: whole texts, one as it comes, or JSON with log-probabilities."""

import json as json_lines
import sys
from functools import partial
from typing import Any

from regpt.core.detokenize import cut_at_stop, stream_text
from regpt.core.generate import GenerateSteps, as_lists, check_lengths, complete, until_end
from regpt.core.model import GPT
from regpt.core.sampling import SamplingParams
from regpt.core.tokenizer import get_tokenizer
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
    start = get_tokenizer().encode(prompt)
    check_lengths(as_lists([start]), params, model)
    decoder, note = choose_decoder(model, engine=engine, dtype=dtype)
    sys.stderr.write(f"regpt: note: {note}\n" if note else "")
    how = speculate if top is None and can_draft(params, model) else "off"
    drafter = choose_drafter(decoder, how, rows=params.num_samples)
    write = partial(generate_steps, decoder=decoder, drafter=drafter)
    if top is not None:
        with_logprobs(model, start, params, write, stop, top=top)
    elif stream:
        as_it_comes(model, prompt, params, write, stop)
    else:
        whole(model, start, params, write, stop, json=json)


def as_it_comes(
    model: GPT, prompt: str, params: SamplingParams, write: GenerateSteps, stop: tuple[str, ...]
) -> None:
    """Print one text as its tokens come."""
    tokenizer = get_tokenizer()
    steps = write(model, [tokenizer.encode(prompt)], params)
    sys.stdout.write(prompt)
    for piece in stream_text((int(step.tokens) for step in steps), tokenizer, stop=stop):
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")


def whole(
    model: GPT,
    start: list[int],
    params: SamplingParams,
    write: GenerateSteps,
    stop: tuple[str, ...],
    *,
    json: bool,
) -> None:
    """Print every sample, a text or a JSON object each."""
    for index, row in enumerate(complete(model, start, params, generate=write)):
        row, text = cut_at_stop(row, len(start), get_tokenizer(), stop=stop)
        entry = {"index": index, "tokens": row, "text": text}
        sys.stdout.write((json_lines.dumps(entry) if json else f"> {text}") + "\n")


def with_logprobs(
    model: GPT,
    start: list[int],
    params: SamplingParams,
    write: GenerateSteps,
    stop: tuple[str, ...],
    *,
    top: int,
) -> None:
    """Print every sample as a JSON object with the log-probabilities of its drawn tokens."""
    tokenizer, prompt = get_tokenizer(), as_lists([start])[0]

    def told(token: int, logprob: float) -> dict[str, Any]:
        return {"token": token, "text": tokenizer.decode([token]), "logprob": logprob}

    steps = list(write(model, [prompt] * params.num_samples, params, top=top))
    for index in range(params.num_samples):
        drawn = until_end([int(step.tokens[index]) for step in steps], params)
        row, text = cut_at_stop(prompt + drawn, len(prompt), tokenizer, stop=stop)
        entries = []
        for step, token in zip(steps, row[len(prompt) :], strict=False):
            assert step.logprobs is not None
            assert step.top_ids is not None
            assert step.top_logprobs is not None
            best = zip(step.top_ids[index].tolist(), step.top_logprobs[index].tolist(), strict=True)
            likeliest = {"top": [told(*one) for one in best]}
            entries.append(told(token, float(step.logprobs[index])) | likeliest)
        line = {"index": index, "tokens": row, "text": text, "logprobs": entries}
        sys.stdout.write(json_lines.dumps(line) + "\n")
