"""`regpt sample`: let a model continue a prompt, or a file of prompts."""

import json as json_lines
import sys
from pathlib import Path
from typing import Literal

import torch

from regpt.commands.batch import write_batch
from regpt.errors import UserError
from regpt.fast import Engine, choose_decoder
from regpt.generate import Decoder, as_lists, check_lengths, complete, generate
from regpt.model import GPT, GPTConfig
from regpt.runtime import find_runtime
from regpt.sampling import SamplingParams, Stream
from regpt.tokenizer import get_tokenizer
from regpt.tokenizer_files import check_tokenizer
from regpt.weights import locate
from regpt.writing import cut_at_stop, stream_text

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
    dtype: Literal["fp32", "bf16", "int8"] = "fp32",
    engine: Engine = "auto",
    stream: bool = False,
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
        top_k: Draw among the k most likely tokens; None for all.
        top_p: Draw among the most likely tokens that together hold this probability.
        min_p: Draw among tokens at least this share as likely as the most likely one.
        temperature: Divides the logits; 0 takes the most likely token (greedy).
        repetition_penalty: Above 1 makes tokens already in the text less likely.
        stop: End a text before any of these strings.
        seed: Same seed, same device: same text.
        rng: Random stream: hf writes what transformers' generate writes (default; portable for
            a batch file).
        overflow: Past the model's last position: error, or slide (forget the oldest text).
        device: auto (cuda, else mps, else cpu), cpu, cuda, cuda:N or mps.
        dtype: Compute dtype: fp32 (exact), bf16, or int8 (CPU); the lower, the faster.
        engine: fast (packed matrices, CPU), plain (through the model), or whichever works.
        stream: Print the text of one sample as it comes.
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
    if stream and (json or batch):
        raise UserError("--stream prints one text as it comes: leave --json and --batch out")
    runtime = find_runtime(device, dtype="bf16" if dtype == "bf16" else "fp32")
    gpt = load(model, seed=seed).to(runtime.device)
    with runtime.autocast():
        if batch:
            source = Path(batch)
            write_batch(gpt, source, output, params, stop=stop, engine=engine, dtype=dtype)
            return
        start = get_tokenizer().encode(prompt)
        check_lengths(as_lists([start]), params, gpt)
        length = min(max_length, gpt.config.block_size)
        decoder, note = choose_decoder(gpt, engine=engine, dtype=dtype, length=length)
        if note:
            sys.stderr.write(f"regpt: note: {note}\n")
        if stream:
            write_stream(gpt, prompt, params, decoder, stop)
        else:
            write_samples(gpt, start, params, decoder, stop, json=json)


def write_stream(
    model: GPT, prompt: str, params: SamplingParams, decoder: Decoder, stop: tuple[str, ...]
) -> None:
    """Print one text as its tokens come."""
    tokenizer = get_tokenizer()
    steps = generate(model, [tokenizer.encode(prompt)], params, decoder=decoder)
    sys.stdout.write(prompt)
    for piece in stream_text((int(token) for token in steps), tokenizer, stop=stop):
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")


def write_samples(
    model: GPT,
    start: list[int],
    params: SamplingParams,
    decoder: Decoder,
    stop: tuple[str, ...],
    *,
    json: bool,
) -> None:
    """Print every sample, a text or a JSON object each."""
    for index, row in enumerate(complete(model, start, params, decoder=decoder)):
        row, text = cut_at_stop(row, len(start), get_tokenizer(), stop=stop)
        line = f"> {text}"
        if json:
            line = json_lines.dumps({"index": index, "tokens": row, "text": text})
        sys.stdout.write(line + "\n")
