"""`regpt sample`: let a model continue a prompt, or a file of prompts."""

import sys
from pathlib import Path
from typing import Literal

from regpt.system.errors import UserError


def sample(
    prompt: str = "Hello, I'm a language model,",
    /,
    *,
    model: str = "gpt2",
    num_samples: int = 5,
    max_length: int = 30,
    top_k: int | None = 50,
    top_p: float | None = None,
    min_p: float | None = None,
    temperature: float = 1.0,
    repetition_penalty: float = 1.0,
    stop: tuple[str, ...] = (),
    seed: int = 42,
    rng: Literal["hf", "lecture", "portable"] | None = None,
    overflow: Literal["error", "slide"] = "error",
    device: str = "auto",
    dtype: Literal["auto", "fp32", "bf16", "int8"] = "fp32",
    engine: Literal["auto", "plain", "fast"] = "auto",
    speculate: Literal["auto", "off", "lookup", "draft"] = "auto",
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
    from regpt.commands.models import load_model
    from regpt.commands.write_samples import write_samples
    from regpt.core.sampling import SamplingParams
    from regpt.fast.decoding.decoders import fastest_kind
    from regpt.system.runtime import find_runtime

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
    gpt = load_model(model, seed=seed).to(find_runtime(device, dtype="fp32").device)
    if dtype == "auto":
        dtype = fastest_kind(gpt, params.num_samples)
        sys.stderr.write(f"regpt: note: --dtype {dtype} is the fastest here\n")
    with find_runtime(device, dtype="bf16" if dtype == "bf16" else "fp32").autocast():
        if batch:
            from regpt.commands.batch import write_batch

            file = Path(batch)
            return write_batch(gpt, file, output, params, stop=stop, engine=engine, dtype=dtype)
        write_samples(
            gpt, prompt, params, stop, engine=engine, dtype=dtype, speculate=speculate,
            stream=stream, json=json, top=logprobs,
        )  # fmt: skip


def check_flags(*, stream: bool, json: bool, batch: str | None, logprobs: int | None) -> None:
    """Refuse flags that do not go together."""
    if logprobs is not None and (batch or not json):
        raise UserError("--logprobs goes into the objects of --json, and not with --batch")
    if logprobs is not None and logprobs < 0:
        raise UserError(f"--logprobs is a count of tokens, 0 or more, not {logprobs}")
    if stream and (json or batch):
        raise UserError("--stream prints one text as it comes: leave --json and --batch out")
