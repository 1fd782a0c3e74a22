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
from typing import NamedTuple

import torch
from torch import Tensor

from regpt.core.generate import complete
from regpt.core.sampling import SamplingParams, sample
from regpt.core.tokenizer import END_OF_TEXT_ID, get_tokenizer
from regpt.parity.compare import Difference
from regpt.parity.model_pair import quiet

ROUNDING = 1e-3
"""Logits that differ by more than this are wrong; by less, rounded."""


class Cause(NamedTuple):
    """What made the first token differ."""

    name: str
    where: str
    """Step, row, token."""
    text: str
    """The cause, and what to do."""


class Switch(NamedTuple):
    """A setting to try."""

    name: str
    params: SamplingParams
    meaning: str
    """Completes: 'X drew ...'."""


def default_temperature() -> float:
    """The pipeline's own default; 0.7 in transformers 5."""
    from transformers import TextGenerationPipeline

    defaults = getattr(TextGenerationPipeline, "_default_generation_config", None)
    return getattr(defaults, "temperature", None) or 1.0


def switches(params: SamplingParams) -> Iterator[Switch]:
    """What may have been set otherwise than asked for, most frequent first."""
    temperature = default_temperature()
    if params.temperature not in (0, temperature):
        yield Switch(
            "temperature",
            replace(params, temperature=temperature),
            f"at temperature {temperature}, the pipeline's default: pass it "
            f"temperature={params.temperature}",
        )
    streams = {
        "hf": "in transformers' order, one number per vocabulary entry",
        "lecture": "in the lecture's order, one number per top-k entry, sorted",
        "portable": "from the counter-based stream",
    }
    for rng in ("lecture", "hf", "portable"):
        if rng != params.rng:
            yield Switch(
                "order of draw",
                replace(params, rng=rng),
                f"{streams[rng]}, and {params.rng} was asked for: same distribution, other numbers",
            )
    heeded = "without stopping at" if params.stop_at_eot else "and stopped at"
    yield Switch(
        "end-of-text",
        replace(params, stop_at_eot=not params.stop_at_eot),
        f"{heeded} end-of-text: give both sides the same eos_token_id ({END_OF_TEXT_ID})",
    )
    for top_k in (50, None):
        if top_k != params.top_k:
            yield Switch(
                "top-k",
                replace(params, top_k=top_k),
                f"with top_k {top_k}, and {params.top_k} was asked for",
            )


def place(difference: Difference) -> str:
    """Where the first difference is, and which tokens."""

    def name(token: int | None) -> str:
        return "nothing" if token is None else f"{token} {get_tokenizer().decode([token])!r}"

    ours, theirs = difference.tokens
    against = "transformers" if difference.against == "generate" else difference.against
    return (
        f"first difference: model {difference.pair.name}, seed {difference.params.seed}, step "
        f"{difference.step} (position {difference.position}), row {difference.row}: regpt drew "
        f"{name(ours)}, {against} {name(theirs)}."
    )


def explain(difference: Difference) -> Cause:
    """Find the setting that makes the two texts one, or what else it was."""
    where = place(difference)
    if found := find_switch(difference) or find_in_logits(difference):
        return Cause(found[0], where, f"Likely cause: {found[0]}: {found[1]}.")
    return Cause(
        "unknown",
        where,
        "Likely cause: unknown: no other temperature, stream, end-of-text or top-k gives this "
        "text, and both sides' logits draw the same token here. Something took a random "
        "number between the seed and the text, or a setting differs that is not tried here.",
    )


def find_switch(difference: Difference) -> tuple[str, str] | None:
    """The setting with which regpt writes the one text or the other."""
    prompt, model = difference.prompt, difference.pair.ours
    as_asked = complete(model, prompt, difference.params)
    for switch in switches(difference.params):
        rows = complete(model, prompt, switch.params)
        if rows == as_asked:
            continue  # this switch changes nothing here, so it explains nothing
        if rows == difference.theirs:
            return switch.name, f"{difference.against} drew {switch.meaning}"
        if rows == difference.ours:
            return switch.name, f"regpt drew {switch.meaning}"
    return None


@torch.no_grad()
def find_in_logits(difference: Difference) -> tuple[str, str] | None:
    """Whether the same random numbers give the two tokens because the logits are not the same."""
    idx = context(difference)  # (B, T)
    ours = difference.pair.ours(idx)[0][:, -1].float()
    with quiet():
        theirs = difference.pair.theirs(idx).logits[:, -1].float()
    row = difference.row
    drawn = [int(redraw(difference, idx, logits)[row]) for logits in (ours, theirs)]
    if tuple(drawn) != difference.tokens:
        return None
    gap = (ours[row] - theirs[row]).abs().max().item()
    if gap <= ROUNDING:
        return "rounding", (
            f"the logits agree to {gap:.1e}, and so close together lie the two tokens' chances; "
            "not a mistake, and gone under another seed"
        )
    return "logits", f"they differ by {gap:.1e} in this row: look at the numbers first"


def context(difference: Difference) -> Tensor:
    """What had been written in all rows when the step was drawn, (B, T); ended rows padded."""
    width = difference.position
    rows = [row[:width] + [END_OF_TEXT_ID] * (width - len(row)) for row in difference.theirs]
    return torch.tensor(rows, device=difference.pair.ours.device)


def redraw(difference: Difference, idx: Tensor, logits: Tensor) -> Tensor:
    """The step's tokens (B,) from these logits (B, V), with the random numbers of the step."""
    params = difference.params
    generator = params.generator(logits.device)

    def draw(width: int) -> Tensor:
        positions = torch.full((len(idx),), width, device=idx.device)
        return sample(logits, params, generator, context=idx[:, :width], positions=positions)

    # a draw takes the same count of numbers whatever the logits, so that drawing from these passes
    # over the numbers of the earlier steps
    for width in range(len(difference.prompt), idx.shape[1]):
        draw(width)
    return draw(idx.shape[1])
