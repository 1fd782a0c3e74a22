"""Who regpt's text is compared with.

- `generated` and `piped`: transformers' `generate` and `pipeline("text-generation")`, told every
  parameter and left no default, because their defaults have changed since the lecture;
- `lecture_loop`: the loop as the lecture teaches it, written out on transformers' model.
"""

import contextlib
from collections.abc import Iterator, Sequence

import torch

from regpt.core.generate import until_end
from regpt.core.sampling import SamplingParams
from regpt.core.tokenizer import END_OF_TEXT_ID
from regpt.parity.model_pair import Pair, Tokenizer, quiet

Rows = list[list[int]]
"""Texts as token ids, the prompt included, cut after end-of-text where rows end there."""

NEVER = -1
"""An end-of-text that no row ever draws."""


@contextlib.contextmanager
def global_seed(seed: int, device: torch.device) -> Iterator[None]:
    """torch's global generators in the state of a seed; as they were before, afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def settings(pair: Pair, params: SamplingParams) -> dict[str, object]:
    """Our parameters in the words of transformers' `generate`, each one stated."""
    vocab_size = pair.ours.config.vocab_size
    ends = params.stop_at_eot and vocab_size > END_OF_TEXT_ID
    stated: dict[str, object] = {
        "max_length": params.max_length,
        "num_return_sequences": params.num_samples,
        "repetition_penalty": params.repetition_penalty,
        "eos_token_id": END_OF_TEXT_ID if ends else NEVER,
        "pad_token_id": min(END_OF_TEXT_ID, vocab_size - 1),
        "do_sample": params.temperature > 0,
    }
    if params.temperature > 0:
        stated |= {
            "temperature": params.temperature,
            "top_k": params.top_k or 0,  # 0: no limit
            "top_p": params.top_p or 1.0,
            "min_p": params.min_p,
        }
    return stated


def until_ends(rows: Sequence[Sequence[int]], prompt: list[int], params: SamplingParams) -> Rows:
    """Rows cut after the end-of-text they drew; one in the prompt ends nothing."""
    return [prompt + until_end(list(row[len(prompt) :]), params) for row in rows]


def generated(pair: Pair, prompt: list[int], params: SamplingParams) -> Rows:
    device = pair.theirs.device
    idx = torch.tensor([prompt], device=device)
    with quiet(), global_seed(params.seed, device):
        rows = pair.theirs.generate(  # pyright: ignore
            input_ids=idx, attention_mask=torch.ones_like(idx), **settings(pair, params)
        )
    return until_ends(rows.tolist(), prompt, params)  # pyright: ignore


def piped(
    pair: Pair, tokenizer: Tokenizer, text: str, params: SamplingParams, **options: object
) -> list[dict]:
    """The pipeline's records: `generated_text`, or with return_tensors `generated_token_ids`."""
    from transformers import pipeline

    device = pair.theirs.device
    with quiet():
        pipe = pipeline("text-generation", model=pair.theirs, tokenizer=tokenizer, device=device)
        with global_seed(params.seed, device):
            return pipe(text, **settings(pair, params), **options)  # pyright: ignore


def piped_texts(pair: Pair, tokenizer: Tokenizer, text: str, params: SamplingParams) -> list[str]:
    return [record["generated_text"] for record in piped(pair, tokenizer, text, params)]


def piped_tokens(pair: Pair, tokenizer: Tokenizer, text: str, params: SamplingParams) -> Rows:
    """The same as tokens: drawn once more, because the pipeline gives one or the other."""
    records = piped(pair, tokenizer, text, params, return_tensors=True)
    rows = [record["generated_token_ids"] for record in records]
    return until_ends(rows, tokenizer.encode(text), params)


@torch.no_grad()
def lecture_loop(pair: Pair, prompt: list[int], params: SamplingParams) -> Rows:
    """The lecture's loop, on transformers' model: no temperature, no end-of-text."""
    x = torch.tensor([prompt] * params.num_samples, device=pair.theirs.device)  # (B, T)
    with global_seed(params.seed, x.device):
        while x.size(1) < params.max_length:
            logits = pair.theirs(x).logits[:, -1, :]  # (B, V)
            probabilities = torch.softmax(logits, dim=-1)
            likely, ids = torch.topk(probabilities, params.top_k or logits.size(-1), dim=-1)
            choice = torch.multinomial(likely, 1)  # (B, 1), an index into the k sorted
            x = torch.cat((x, torch.gather(ids, -1, choice)), dim=1)
    return x.tolist()
