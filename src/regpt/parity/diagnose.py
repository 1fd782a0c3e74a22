"""Why two texts differ: not guessed but tried.

A seed means a stream of random numbers, and a text is what a program makes of it; so when a text
differs there is usually one setting that differs, and with that setting changed the whole text
agrees. `explain` draws regpt's text again, once per candidate, and looks whether it becomes the
other's: the pipeline's default temperature, another stream, end-of-text heeded or not, top-k left
to a default. If no setting explains it, it replays the step: both sides' logits, the same random
numbers. Other draws from other logits mean rounding, or logits that are wrong.

Only the first difference is explained. What follows it is a different text.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from regpt.core.generate import complete
from regpt.core.sampling import SamplingParams, sample
from regpt.core.tokenizer import END_OF_TEXT_ID, get_tokenizer
from regpt.parity.compare import Texts
from regpt.parity.model_pair import quiet
from regpt.parity.references import Rows

ROUNDING = 1e-3
"""Logits that differ by more than this are wrong; by less, rounded."""


class Cause(NamedTuple):
    name: str
    where: str
    """Step, row, token."""
    text: str
    """The cause, and what to do."""


def default_temperature() -> float:
    """The pipeline's own default; 0.7 in transformers 5."""
    from transformers import TextGenerationPipeline

    defaults = getattr(TextGenerationPipeline, "_default_generation_config", None)
    return getattr(defaults, "temperature", None) or 1.0


def switches(params: SamplingParams) -> Iterator[tuple[str, dict[str, Any], str]]:
    """What may have been set otherwise than asked for, most frequent first: a name, the setting,
    and words that complete 'X drew ...'."""
    temperature = default_temperature()
    if params.temperature not in (0, temperature):
        yield (
            "temperature",
            {"temperature": temperature},
            (
                f"at temperature {temperature}, the pipeline's default: pass it "
                f"temperature={params.temperature}"
            ),
        )
    streams = {
        "lecture": "in the lecture's order, one number per top-k entry, sorted",
        "hf": "in transformers' order, one number per vocabulary entry",
        "portable": "from the counter-based stream",
    }
    for rng, order in streams.items():
        if rng != params.rng:
            yield (
                "order of draw",
                {"rng": rng},
                (f"{order}, and {params.rng} was asked for: same distribution, other numbers"),
            )
    heeded = "without stopping at" if params.stop_at_eot else "and stopped at"
    yield (
        "end-of-text",
        {"stop_at_eot": not params.stop_at_eot},
        (f"{heeded} end-of-text: give both sides the same eos_token_id ({END_OF_TEXT_ID})"),
    )
    for top_k in (50, None):
        if top_k != params.top_k:
            yield (
                "top-k",
                {"top_k": top_k},
                (f"with top_k {top_k}, and {params.top_k} was asked for"),
            )


def explain(texts: Texts) -> Cause:
    """Find the setting that makes the two texts one, or what else it was."""

    def name(token: int | None) -> str:
        return "nothing" if token is None else f"{token} {get_tokenizer().decode([token])!r}"

    (step, row), (ours, theirs) = texts.first, texts.tokens
    against = "transformers" if texts.against == "generate" else texts.against
    where = (
        f"first difference: model {texts.pair.name}, seed {texts.params.seed}, step {step} "
        f"(position {texts.position}), row {row}: regpt drew {name(ours)}, {against} "
        f"{name(theirs)}."
    )
    if found := find_switch(texts) or find_in_logits(texts):
        return Cause(found[0], where, f"Likely cause: {found[0]}: {found[1]}.")
    return Cause(
        "unknown",
        where,
        "Likely cause: unknown: no other temperature, stream, end-of-text or top-k gives this "
        "text, and both sides' logits draw the same token here. Something took a random "
        "number between the seed and the text, or a setting differs that is not tried here.",
    )


def find_switch(texts: Texts) -> tuple[str, str] | None:
    """The setting with which regpt writes the one text or the other."""

    def write(params: SamplingParams) -> Rows:
        return complete(texts.pair.ours, texts.prompt, params)

    as_asked = write(texts.params)
    for name, setting, meaning in switches(texts.params):
        rows = write(replace(texts.params, **setting))
        if rows == as_asked:
            continue  # this setting changes nothing here, so it explains nothing
        if rows == texts.theirs:
            return name, f"{texts.against} drew {meaning}"
        if rows == texts.ours:
            return name, f"regpt drew {meaning}"
    return None


@torch.no_grad()
def find_in_logits(texts: Texts) -> tuple[str, str] | None:
    """Whether the same random numbers give the two tokens because the logits are not the same."""
    idx = context(texts)  # (B, T)
    ours = texts.pair.ours(idx)[0][:, -1].float()
    with quiet():
        theirs = texts.pair.theirs(idx).logits[:, -1].float()
    row = texts.first[1]
    drawn = [int(redraw(texts, idx, logits)[row]) for logits in (ours, theirs)]
    if tuple(drawn) != texts.tokens:
        return None
    gap = (ours[row] - theirs[row]).abs().max().item()
    if gap <= ROUNDING:
        return "rounding", (
            f"the logits agree to {gap:.1e}, and so close together lie the two tokens' chances; "
            "not a mistake, and gone under another seed"
        )
    return "logits", f"they differ by {gap:.1e} in this row: look at the numbers first"


def context(texts: Texts) -> Tensor:
    """What had been written in all rows when the step was drawn, (B, T); ended rows padded."""
    width = texts.position
    rows = [row[:width] + [END_OF_TEXT_ID] * (width - len(row)) for row in texts.theirs]
    return torch.tensor(rows, device=texts.pair.ours.device)


def redraw(texts: Texts, idx: Tensor, logits: Tensor) -> Tensor:
    """The step's tokens (B,) from these logits (B, V), with the random numbers of the step."""
    params = texts.params
    generator = params.generator(logits.device)

    def draw(width: int) -> Tensor:
        positions = torch.full((len(idx),), width, device=idx.device)
        return sample(logits, params, generator, context=idx[:, :width], positions=positions)

    # a draw takes the same count of numbers whatever the logits, so that drawing from these passes
    # over the numbers of the earlier steps
    for width in range(len(texts.prompt), idx.shape[1]):
        draw(width)
    return draw(idx.shape[1])
