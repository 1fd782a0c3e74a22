"""`regpt sample`: let a model continue a prompt, or a file of prompts."""

import json as json_lines
import sys
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from regpt.commands.batch import write_batch
from regpt.core.detokenize import cut_at_stop, stream_text
from regpt.core.generate import GenerateSteps, as_lists, check_lengths, complete, until_end
from regpt.core.model import GPT, GPTConfig
from regpt.core.sampling import SamplingParams, Stream
from regpt.core.tokenizer import get_tokenizer
from regpt.fast.decoding.decoders import Engine, choose_decoder, fastest_kind
from regpt.fast.decoding.drafters import Speculation, choose_drafter
from regpt.fast.decoding.panels import WeightFormat
from regpt.fast.decoding.speculative import can_draft, generate_steps
from regpt.system.errors import UserError
from regpt.system.runtime import find_runtime
from regpt.weights import locate
from regpt.weights.tokenizer_files import check_tokenizer

DEFAULTS = SamplingParams()


def load(model: str, *, seed: int) -> GPT:
    """The model a person named: `random`, a directory, or a hub name."""
    if model == "random":
        torch.manual_seed(seed)
        return GPT(GPTConfig()).eval()
    directory = locate(model)
    check_tokenizer(directory)
    return GPT.from_pretrained(directory)


def sample(
    prompt: str = "Hello, I'm a language model,",
    /,
    *,
    model: str = "gpt2",
    num_samples: int = DEFAULTS.num_samples,
    max_length: int = DEFAULTS.max_length,
    top_k: int | None = DEFAULTS.top_k,
    top_p: float | None = DEFAULTS.top_p,
    min_p: float | None = DEFAULTS.min_p,
    temperature: float = DEFAULTS.temperature,
    repetition_penalty: float = DEFAULTS.repetition_penalty,
    stop: tuple[str, ...] = (),
    seed: int = DEFAULTS.seed,
    rng: Stream | None = None,
    overflow: Literal["error", "slide"] = DEFAULTS.overflow,
    device: str = "auto",
    dtype: Literal["auto", "fp32", "bf16", "int8"] = "fp32",
    engine: Engine = "auto",
    speculate: Speculation = "auto",
    stream: bool = False,
    logprobs: int | None = None,
    batch: str | None = None,
    output: str | None = None,
    json: bool = False,
) -> None:
    """Write text: continue a prompt with a model.

    Args:
        prompt: What to continue.
        model: A run directory, a Hugging Face directory, a hub name, or `random` (untrained 124M).
        num_samples: How many continuations.
        max_length: Length of the text in tokens, the prompt included.
        top_k: Sample from the k most likely tokens; None for all.
        top_p: Nucleus sampling: from the most likely tokens that together have this probability.
        min_p: Sample from tokens with at least this fraction of the highest probability.
        temperature: Divides the logits; 0 is greedy.
        repetition_penalty: Above 1 makes tokens already in the text less likely.
        stop: End a text before any of these strings.
        seed: Same seed, same device: same text.
        rng: Random stream: hf writes what transformers' generate writes (default; portable for
            a batch file).
        overflow: Past the model's last position: error, or slide (forget the oldest text).
        device: auto (cuda, else mps, else cpu), cpu, cuda, cuda:N or mps.
        dtype: Compute dtype: fp32 (exact), bf16, int8 (CPU), or auto, the fastest measured here.
        engine: Decoder: fast (packed weights on a CPU, CUDA graphs on a GPU), plain (the model's
            own forward pass), or auto: fast on a CPU where it works.
        speculate: Speculative decoding, which changes no text. The drafter is draft (an int8 copy
            of the model), lookup (n-grams of the text so far) or off; auto drafts where it pays.
        stream: Print the text of one sample as it comes.
        logprobs: With --json: the log-probability of every sampled token, and of the N most
            likely tokens at its position.
        batch: Continue every line of this JSONL file ({"prompt": ...}), once each.
        output: With --batch: where the lines go; default FILE.out.jsonl. Kept after a kill.
        json: Print one JSON object per sample and nothing else.
    """
    params = SamplingParams(
        max_length=max_length,
        num_samples=1 if stream else num_samples,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        temperature=temperature,
        repetition_penalty=repetition_penalty,
        seed=seed,
        rng=rng or ("portable" if batch else "hf"),
        overflow=overflow,
    )
    check_flags(stream=stream, json=json, batch=batch, logprobs=logprobs)
    gpt = load(model, seed=seed).to(find_runtime(device, dtype="fp32").device)
    dtype = told_fastest(gpt, params.num_samples) if dtype == "auto" else dtype
    runtime = find_runtime(device, dtype="bf16" if dtype == "bf16" else "fp32")
    with runtime.autocast():
        if batch:
            file = Path(batch)
            return write_batch(gpt, file, output, params, stop=stop, engine=engine, dtype=dtype)
        start = get_tokenizer().encode(prompt)
        check_lengths(as_lists([start]), params, gpt)
        decoder, note = choose_decoder(gpt, engine=engine, dtype=dtype)
        sys.stderr.write(f"regpt: note: {note}\n" if note else "")
        how = speculate if logprobs is None and can_draft(params, gpt) else "off"
        drafter = choose_drafter(decoder, how, rows=params.num_samples)
        write = partial(generate_steps, decoder=decoder, drafter=drafter)
        if logprobs is not None:
            write_logprobs(gpt, start, params, write, stop, top=logprobs)
        elif stream:
            write_stream(gpt, prompt, params, write, stop)
        else:
            write_samples(gpt, start, params, write, stop, json=json)


def told_fastest(gpt: GPT, rows: int) -> WeightFormat:
    """The fastest dtype for so many rows, which the person is told."""
    kind = fastest_kind(gpt, rows)
    sys.stderr.write(f"regpt: note: --dtype {kind} is the fastest here\n")
    return kind


def check_flags(*, stream: bool, json: bool, batch: str | None, logprobs: int | None) -> None:
    """Refuse flags that do not go together."""
    if logprobs is not None and (batch or not json):
        raise UserError("--logprobs goes into the objects of --json, and not with --batch")
    if logprobs is not None and logprobs < 0:
        raise UserError(f"--logprobs is a count of tokens, 0 or more, not {logprobs}")
    if stream and (json or batch):
        raise UserError("--stream prints one text as it comes: leave --json and --batch out")


def write_stream(
    model: GPT,
    prompt: str,
    params: SamplingParams,
    write: GenerateSteps,
    stop: tuple[str, ...],
) -> None:
    """Print one text as its tokens come."""
    tokenizer = get_tokenizer()
    start = [tokenizer.encode(prompt)]
    steps = write(model, start, params)
    sys.stdout.write(prompt)
    for piece in stream_text((int(step.tokens) for step in steps), tokenizer, stop=stop):
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")


def write_samples(
    model: GPT,
    start: list[int],
    params: SamplingParams,
    write: GenerateSteps,
    stop: tuple[str, ...],
    *,
    json: bool,
) -> None:
    """Print every sample, a text or a JSON object each."""
    rows = complete(model, start, params, generate=write)
    for index, row in enumerate(rows):
        row, text = cut_at_stop(row, len(start), get_tokenizer(), stop=stop)
        line = f"> {text}"
        if json:
            line = json_lines.dumps({"index": index, "tokens": row, "text": text})
        sys.stdout.write(line + "\n")


def write_logprobs(
    model: GPT,
    start: list[int],
    params: SamplingParams,
    write: GenerateSteps,
    stop: tuple[str, ...],
    *,
    top: int,
) -> None:
    """Print every sample as a JSON object with the log-probabilities of its drawn tokens."""
    prompt = as_lists([start])[0]
    rows = [prompt] * params.num_samples
    steps = list(write(model, rows, params, top=top))
    for index in range(params.num_samples):
        drawn = until_end([int(step.tokens[index]) for step in steps], params)
        row, text = cut_at_stop(prompt + drawn, len(prompt), get_tokenizer(), stop=stop)
        entries = []
        for step, token in zip(steps, row[len(prompt) :], strict=False):
            assert step.logprobs is not None
            assert step.top_ids is not None
            assert step.top_logprobs is not None
            best = zip(step.top_ids[index].tolist(), step.top_logprobs[index].tolist(), strict=True)
            chosen = token_logprob(token, float(step.logprobs[index]))
            entries.append(chosen | {"top": [token_logprob(*one) for one in best]})
        line = {"index": index, "tokens": row, "text": text, "logprobs": entries}
        sys.stdout.write(json_lines.dumps(line) + "\n")


def token_logprob(token: int, logprob: float) -> dict[str, Any]:
    """The JSON object of a token."""
    return {"token": token, "text": get_tokenizer().decode([token]), "logprob": logprob}
