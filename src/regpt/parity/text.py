"""Text against text: one prompt, one seed, every token.

Random weights have a likely end-of-text (model_pair.py), because endings are where a stream slips:
transformers goes on drawing for a row that has ended and throws the draw away, and the rows that
live on get their own numbers only if we do the same.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from regpt.core.generate import complete
from regpt.core.sampling import SamplingParams
from regpt.core.tokenizer import END_OF_TEXT_ID, get_tokenizer
from regpt.parity.compare import Tally
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


def report(name: str, tally: Tally, detail: str) -> Check:
    """The check that a tally amounts to; at a difference, the detail is its explanation."""
    values: dict[str, float | int | str | None] = {
        "texts": tally.texts, "tokens": tally.tokens, "equal": tally.equal, "ended": tally.ended,
    }  # fmt: skip
    if tally.first is not None:
        difference, (ours, theirs) = tally.first, tally.first.tokens
        cause = explain(difference)
        detail = f"{cause.where} {cause.text}"
        values |= {
            "model": difference.pair.name, "seed": difference.params.seed,
            "step": difference.step, "row": difference.row,
            "ours": ours, "theirs": theirs, "cause": cause.name,
        }  # fmt: skip
    elif tally.decoding:
        detail = tally.decoding
        values["cause"] = "decoding"
    return Check(
        name=name,
        status=judge(tally.agrees),
        figure=f"{tally.equal:,} of {tally.tokens:,}",
        bound="every token",
        detail=detail,
        values=values,
    )


def add_pipeline(
    tally: Tally, pair: Pair, tokenizer: Tokenizer, params: SamplingParams, ours: Rows
) -> None:
    """Compare with the pipeline's texts; with its tokens too, if the texts are not the same."""
    found = [text_of(row) for row in ours]
    expected = piped_texts(pair, tokenizer, PROMPT, params)
    theirs = ours if found == expected else piped_tokens(pair, tokenizer, PROMPT, params)
    prompt = prompt_tokens(pair, PROMPT)
    tally.add(pair, params, prompt, ours=ours, theirs=theirs, against="the pipeline")
    if found != expected and ours == theirs and not tally.decoding:
        row = next(i for i in range(len(found)) if found[i] != expected[i])
        tally.decoding = (
            f"model {pair.name}, seed {params.seed}, row {row}: equal tokens became "
            f"{found[row]!r} in regpt and {expected[row]!r} in the pipeline"
        )


def check_sampled(
    pairs: Sequence[Pair], tokenizer: Tokenizer, *, seeds: int
) -> tuple[Check, Check]:
    """The `hf` stream against `generate` and against the pipeline."""
    generate, pipeline = Tally(), Tally()
    for pair in pairs:
        prompt = prompt_tokens(pair, PROMPT)
        for params in draws(pair, seeds):
            ours, theirs = complete(pair.ours, prompt, params), generated(pair, prompt, params)
            generate.add(pair, params, prompt, ours=ours, theirs=theirs, against="generate")
            if pair.has_gpt2_vocabulary:
                add_pipeline(pipeline, pair, tokenizer, params, ours)
    detail = (
        f"{generate.texts:,} texts under {seeds} seeds, {generate.ended:,} of them ended early; "
        "top-k, top-p, min-p, temperature, repetition penalty"
    )
    name = "sampled text, pipeline"
    if not pipeline.texts:
        piped = Check(name=name, status="not checked", detail="its vocabulary is not GPT-2's")
    else:
        piped = report(name, pipeline, f"the same {pipeline.texts:,}, character by character")
    return report("sampled text, generate", generate, detail), piped


def check_greedy(pairs: Sequence[Pair]) -> Check:
    """The most likely token at every step, with and without a repetition penalty."""
    tally = Tally()
    for pair in pairs:
        for index, text in enumerate(PROMPTS):
            penalty = 1.2 if index % 2 else 1.0
            params = replace(next(draws(pair, 1)), temperature=0.0, repetition_penalty=penalty,
                             num_samples=1)  # fmt: skip
            prompt = prompt_tokens(pair, text)
            ours, theirs = complete(pair.ours, prompt, params), generated(pair, prompt, params)
            tally.add(pair, params, prompt, ours=ours, theirs=theirs, against="generate")
    return report("greedy text, generate", tally, f"{tally.texts} prompts")


def check_lecture(pairs: Sequence[Pair], *, seeds: int) -> Check:
    """The `lecture` stream against the lecture's loop, written out."""
    tally = Tally()
    for pair in pairs:
        prompt = prompt_tokens(pair, PROMPT)
        length = min(LECTURE.max_length, pair.ours.config.block_size)
        for seed in range(seeds):
            params = SamplingParams(rng="lecture", stop_at_eot=False, seed=seed, max_length=length)
            ours, theirs = complete(pair.ours, prompt, params), lecture_loop(pair, prompt, params)
            tally.add(pair, params, prompt, ours=ours, theirs=theirs, against="the lecture's loop")
    detail = f"{tally.texts:,} texts under {seeds} seeds, against the lecture's loop"
    return report("stream `lecture`", tally, detail)
