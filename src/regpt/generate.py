"""Writing: an iterator of tokens that the command line, a server and the tests all consume.

`generate` yields one (rows,) tensor per step and stops when every row has ended or the text is
`max_length` tokens long; the caller may stop earlier. Tokens in, tokens out: no text here.
`complete` collects them into lists.

A row ends at end-of-text. Like transformers, an ended row goes on yielding end-of-text and, under
the `hf` and `lecture` streams, goes on consuming random numbers, so the other rows do not notice.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from regpt.errors import UserError
from regpt.model import GPT
from regpt.sampling import SamplingParams, sample
from regpt.tokenizer import END_OF_TEXT_ID


def check_lengths(prompt_length: int, params: SamplingParams, block_size: int) -> None:
    """Refuse lengths that cannot work, before anything is computed."""
    if params.max_length > block_size:
        raise UserError(
            f"max_length {params.max_length} is above the model's block_size {block_size}: "
            "ask for fewer tokens"
        )
    if params.max_length < prompt_length:
        raise UserError(
            f"max_length {params.max_length} is below the prompt's {prompt_length} tokens: "
            "it counts the prompt too, so ask for more"
        )


@torch.no_grad()  # not inference_mode: a sharded model would keep what it gathered in it
def generate(
    model: GPT, idx: Tensor, params: SamplingParams, *, generator: torch.Generator | None = None
) -> Iterator[Tensor]:
    """Yield the next token of every row until all have ended.

    Args:
        model: the model; put in eval mode while the iterator runs.
        idx: (B, T) int64, B prompts of T tokens; rows are what is sampled, so repeat a prompt to
            continue it several times (`complete` does).
        params: lengths, filters, random stream. `num_samples` is the caller's business.
        generator: the random stream; default: a new one from `params.seed`.

    Yields:
        (B,) int64 tokens on the model's device.
    """
    check_lengths(idx.shape[1], params, model.config.block_size)
    idx = idx.to(model.device)
    generator = generator or params.generator(idx.device)
    ended = torch.zeros(len(idx), dtype=torch.bool, device=idx.device)
    was_training = model.training
    model.eval()
    try:
        while idx.shape[1] < params.max_length and not ended.all():
            logits = model.unembed(model.hidden(idx)[:, -1])  # (B, V): only the last position
            positions = torch.full((len(idx),), idx.shape[1], device=idx.device)
            token = sample(logits, params, generator, context=idx, positions=positions)
            if params.stop_at_eot:
                token = torch.where(ended, END_OF_TEXT_ID, token)
                ended |= token == END_OF_TEXT_ID
            idx = torch.cat([idx, token[:, None]], dim=1)
            yield token
    finally:
        model.train(was_training)


def complete(model: GPT, prompt: Sequence[int], params: SamplingParams) -> list[list[int]]:
    """`num_samples` continuations of one prompt, prompt included, cut after end-of-text.

    An empty prompt starts from end-of-text, as GPT-2 saw between documents.
    """
    start = list(prompt) or [END_OF_TEXT_ID]
    if max(start) >= model.config.vocab_size:
        raise UserError(
            f"token {max(start)} of the prompt is outside the model's vocabulary of "
            f"{model.config.vocab_size}"
        )
    idx = torch.tensor([start] * params.num_samples, dtype=torch.int64)
    steps = list(generate(model, idx, replace(params, num_samples=1)))
    drawn = torch.stack(steps, dim=1).tolist() if steps else [[] for _ in range(len(idx))]
    return [start + until_end(row, params) for row in drawn]


def until_end(row: list[int], params: SamplingParams) -> list[int]:
    """The drawn tokens up to and including the first end-of-text, if rows end there."""
    if params.stop_at_eot and END_OF_TEXT_ID in row:
        return row[: row.index(END_OF_TEXT_ID) + 1]
    return row
