"""Text against text: one prompt, one seed, every token.

Random weights have a likely end-of-text (model_pair.py), because endings are where a stream slips:
transformers goes on drawing for a row that has ended and throws the draw away, and the rows that
live on get their own numbers only if we do the same.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from regpt.core.generate import complete
from regpt.core.sampling import SamplingParams
from regpt.core.tokenizer import END_OF_TEXT_ID, get_tokenizer
from regpt.parity.compare import Texts, tally
from regpt.parity.diagnose import explain
from regpt.parity.model_pair import Pair, Tokenizer
from regpt.parity.references import Rows, generated, lecture_loop, piped_texts, piped_tokens
from regpt.parity.report import Check, judge

PROMPT = "Hello, I'm a language model,"
PROMPTS = (PROMPT, "The dog", "ROMEO:\n", "import torch\n", "Es war einmal")
LECTURE = SamplingParams()
VARIANTS = (
    SamplingParams(temperature=0.8),
    SamplingParams(top_k=None),
    SamplingParams(top_k=None, top_p=0.9),
    SamplingParams(top_k=None, min_p=0.05),
    SamplingParams(repetition_penalty=1.3),
    SamplingParams(top_k=40, top_p=0.95, min_p=0.02, temperature=1.2, repetition_penalty=0.9),
    SamplingParams(stop_at_eot=False),
)
"""The lecture's parameters with one thing changed, and with many."""


def draws(pair: Pair, seeds: int) -> Iterator[SamplingParams]:
    """The lecture's parameters under every seed; every variant under one seed in five."""
    length = min(LECTURE.max_length, pair.ours.config.block_size)
    for seed in range(seeds):
        yield replace(LECTURE, seed=seed, max_length=length)
    for number, variant in enumerate(VARIANTS):
        for seed in range(number % 5, max(seeds, number % 5 + 1), 5):
            yield replace(variant, seed=seed, max_length=length)


def prompt_tokens(pair: Pair, text: str) -> list[int]:
    """The tokens of a prompt; for a vocabulary that is not GPT-2's, ids that it has."""
    if pair.has_gpt2_vocabulary:
        return get_tokenizer().encode(text)
    return [ord(letter) % pair.ours.config.vocab_size for letter in text[:8]]


def text_of(row: Sequence[int]) -> str:
    """What a person reads: end-of-text has no characters."""
    return get_tokenizer().decode([token for token in row if token != END_OF_TEXT_ID])


def write(
    pair: Pair,
    text: str,
    params: SamplingParams,
    reference: Callable[[Pair, list[int], SamplingParams], Rows],
    against: str,
) -> Texts:
    """Our rows after a prompt, and a reference's."""
    prompt = prompt_tokens(pair, text)
    ours, theirs = complete(pair.ours, prompt, params), reference(pair, prompt, params)
    return Texts(pair=pair, params=params, prompt=prompt, ours=ours, theirs=theirs, against=against)


def report(name: str, calls: Sequence[Texts], detail: str) -> Check:
    """The check that calls amount to; at a difference, the detail is its explanation."""
    values: dict[str, float | int | str | None] = {**tally(calls)}
    if different := next((texts for texts in calls if texts.differ), None):
        (step, row), (ours, theirs) = different.first, different.tokens
        cause = explain(different)
        detail = f"{cause.where} {cause.text}"
        values |= {
            "model": different.pair.name, "seed": different.params.seed, "step": step, "row": row,
            "ours": ours, "theirs": theirs, "cause": cause.name,
        }  # fmt: skip
    elif decoding := next((texts.decoding for texts in calls if texts.decoding), ""):
        detail = decoding
        values["cause"] = "decoding"
    return Check(
        name=name,
        status=judge(bool(calls) and "cause" not in values),  # nothing compared is no agreement
        figure=f"{values['equal']:,} of {values['tokens']:,}",
        bound="every token",
        detail=detail,
        values=values,
    )


def piped(texts: Texts, tokenizer: Tokenizer) -> Texts:
    """Our rows against the pipeline's text; against its tokens, if the text is not the same."""
    pair, params, ours = texts.pair, texts.params, texts.ours
    found = [text_of(row) for row in ours]
    expected = piped_texts(pair, tokenizer, PROMPT, params)
    theirs = ours if found == expected else piped_tokens(pair, tokenizer, PROMPT, params)
    decoding = ""
    if found != expected and ours == theirs:
        row = next(i for i in range(len(found)) if found[i] != expected[i])
        decoding = (
            f"model {pair.name}, seed {params.seed}, row {row}: equal tokens became "
            f"{found[row]!r} in regpt and {expected[row]!r} in the pipeline"
        )
    return replace(texts, theirs=theirs, against="the pipeline", decoding=decoding)


def check_sampled(
    pairs: Sequence[Pair], tokenizer: Tokenizer, *, seeds: int
) -> tuple[Check, Check]:
    """The `hf` stream against `generate` and against the pipeline."""
    calls = [
        write(pair, PROMPT, params, generated, "generate")
        for pair in pairs
        for params in draws(pair, seeds)
    ]
    counts = tally(calls)
    detail = (
        f"{counts['texts']:,} texts under {seeds} seeds, {counts['ended']:,} of them ended early; "
        "top-k, top-p, min-p, temperature, repetition penalty"
    )
    generate = report("sampled text, generate", calls, detail)
    name = "sampled text, pipeline"
    calls = [piped(texts, tokenizer) for texts in calls if texts.pair.has_gpt2_vocabulary]
    if not calls:
        detail = "its vocabulary is not GPT-2's"
        return generate, Check(name=name, status="not checked", detail=detail)
    detail = f"the same {tally(calls)['texts']:,}, character by character"
    return generate, report(name, calls, detail)


def check_greedy(pairs: Sequence[Pair]) -> Check:
    """The most likely token at every step, with and without a repetition penalty."""
    calls = []
    for pair in pairs:
        greedy = replace(next(draws(pair, 1)), temperature=0.0, num_samples=1)
        for index, text in enumerate(PROMPTS):
            params = replace(greedy, repetition_penalty=1.2 if index % 2 else 1.0)
            calls.append(write(pair, text, params, generated, "generate"))
    return report("greedy text, generate", calls, f"{len(calls)} prompts")


def check_lecture(pairs: Sequence[Pair], *, seeds: int) -> Check:
    """The `lecture` stream against the lecture's loop, written out."""
    calls = []
    for pair in pairs:
        lecture = replace(next(draws(pair, 1)), rng="lecture", stop_at_eot=False)
        for seed in range(seeds):
            params = replace(lecture, seed=seed)
            calls.append(write(pair, PROMPT, params, lecture_loop, "the lecture's loop"))
    texts = tally(calls)["texts"]
    detail = f"{texts:,} texts under {seeds} seeds, against the lecture's loop"
    return report("stream `lecture`", calls, detail)


# ---- what is published about the released 124M weights ----

NAMES = ("gpt2", "openai-community/gpt2")
FILE_BYTES = 548_105_171
FILE_DIGEST = "248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707"
"""sha256 of the model.safetensors that the hub serves under these names."""

DOG = (464, 3290, 373, 1043, 287, 257, 2214, 1474, 262, 16246,
       286, 2688, 290, 2688, 27262, 13, 198, 198, 464, 3290)  # fmt: skip
"""transformers, tests/models/gpt2: greedy, 20 tokens, of which "The dog" are the first two."""


def are_released(model: str, directory: Path) -> bool:
    """Whether these are the weights OpenAI released as 124M, by name or by the file's digest."""
    if model in NAMES and not Path(model).is_dir():
        return True
    file = directory / "model.safetensors"
    if not file.is_file() or file.stat().st_size != FILE_BYTES:
        return False
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest() == FILE_DIGEST


def check_published(model: str, pair: Pair) -> Check:
    """The greedy continuation that transformers' test expects of the released weights; about random
    ones, or a fine-tuned model, nothing is published: then the line says "not checked"."""
    name = "published greedy text"
    if not are_released(model, pair.directory):
        detail = "only for the released weights: give the model gpt2, or its directory"
        return Check(name=name, status="not checked", detail=detail)
    params = SamplingParams(temperature=0.0, num_samples=1, max_length=len(DOG))
    (row,) = complete(pair.ours, DOG[:2], params)
    equal = sum(ours == theirs for ours, theirs in zip(row, DOG, strict=False))
    return Check(
        name=name,
        status=judge(tuple(row) == DOG),
        figure=f"{equal} of {len(DOG)}",
        bound="every token",
        detail=f"{get_tokenizer().decode(row)!r}, as in transformers' own test",
        values={"equal": equal},
    )
