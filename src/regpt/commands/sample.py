"""`regpt sample`: let a model continue a prompt."""

import json as json_lines
import sys

import torch

from regpt.generate import complete
from regpt.model import GPT, GPTConfig
from regpt.runtime import find_runtime
from regpt.sampling import SamplingParams, Stream
from regpt.tokenizer import END_OF_TEXT_ID, get_tokenizer

DEFAULTS = SamplingParams()


def load(model: str, *, seed: int) -> GPT:
    """The model a person named: `random`, a directory, or a hub name."""
    if model == "random":
        torch.manual_seed(seed)
        return GPT(GPTConfig()).eval()
    return GPT.from_pretrained(model)


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
    seed: int = DEFAULTS.seed,
    rng: Stream = DEFAULTS.rng,
    device: str = "auto",
    dtype: str = "fp32",
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
        seed: Same seed, same device: same text.
        rng: Random stream: hf writes what transformers' generate writes.
        device: auto (cuda, else mps, else cpu), cpu, cuda, cuda:N or mps.
        dtype: Compute dtype: fp32 (exact), bf16, or auto.
        json: Print one JSON object per sample and nothing else.
    """
    params = SamplingParams(
        max_length=max_length,
        num_samples=num_samples,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        temperature=temperature,
        repetition_penalty=repetition_penalty,
        seed=seed,
        rng=rng,
    )
    runtime = find_runtime(device, dtype=dtype)
    tokenizer = get_tokenizer()
    gpt = load(model, seed=seed).to(runtime.device)
    with runtime.autocast():
        rows = complete(gpt, tokenizer.encode(prompt), params)
    for index, row in enumerate(rows):
        text = tokenizer.decode([token for token in row if token != END_OF_TEXT_ID])
        if json:
            line = json_lines.dumps({"index": index, "tokens": row, "text": text})
        else:
            line = f"> {text}"
        sys.stdout.write(line + "\n")
