"""Draws: each stream against a plain statement of what it means."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from regpt import SamplingParams, UserError, sample

seeds = st.integers(min_value=0, max_value=2**31)


def peaked(seed: int, rows: int = 4, vocabulary: int = 301) -> torch.Tensor:
    """Logits like a trained model's: a few likely tokens, a long tail, some ties."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, vocabulary, generator=generator) * 3
    return (logits * 8).round() / 8


@settings(max_examples=60, deadline=None)
@given(
    seed=seeds,
    temperature=st.floats(0.2, 2.0),
    top_k=st.none() | st.integers(1, 400),
    top_p=st.none() | st.floats(0.05, 1.0),
    min_p=st.none() | st.floats(0.0, 0.9),
    penalty=st.sampled_from([1.0, 1.3, 0.8]),
)
def test_hf_stream_is_transformers_processors_and_draw(
    seed: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
    penalty: float,
) -> None:
    logits = peaked(seed)
    context = torch.randint(0, 301, (4, 9), generator=torch.Generator().manual_seed(seed))
    processors = LogitsProcessorList()
    if penalty != 1.0:
        processors.append(RepetitionPenaltyLogitsProcessor(penalty))
    if temperature != 1.0:
        processors.append(TemperatureLogitsWarper(temperature))
    if top_k is not None:
        processors.append(TopKLogitsWarper(top_k))
    if top_p is not None and top_p < 1.0:
        processors.append(TopPLogitsWarper(top_p))
    if min_p is not None:
        processors.append(MinPLogitsWarper(min_p))
    scores = processors(context, logits.clone())
    torch.manual_seed(seed)
    expected = torch.multinomial(scores.softmax(dim=-1), 1).squeeze(1)
    params = SamplingParams(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=penalty,
        seed=seed,
    )
    before = logits.clone()
    token = sample(logits, params, params.generator(logits.device), context=context)
    assert torch.equal(token, expected)
    assert torch.equal(logits, before), "the caller's logits must not change"


@settings(max_examples=40, deadline=None)
@given(seed=seeds, top_k=st.integers(1, 60))
def test_lecture_stream_is_the_lectures_loop(seed: int, top_k: int) -> None:
    logits = peaked(seed)
    torch.manual_seed(seed)
    probabilities = torch.softmax(logits, dim=-1)
    largest, ids = torch.topk(probabilities, top_k, dim=-1)
    choice = torch.multinomial(largest, 1)
    expected = torch.gather(ids, -1, choice).squeeze(1)
    params = SamplingParams(top_k=top_k, rng="lecture", seed=seed)
    assert torch.equal(sample(logits, params, params.generator(logits.device)), expected)


@settings(max_examples=40, deadline=None)
@given(seed=seeds, top_k=st.none() | st.integers(1, 60), position=st.integers(0, 1023))
def test_portable_rows_do_not_know_their_neighbours(
    seed: int, top_k: int | None, position: int
) -> None:
    logits = peaked(seed, rows=8)
    params = SamplingParams(top_k=top_k, rng="portable", seed=seed)
    positions = torch.full((8,), position)
    together = sample(logits, params, positions=positions)
    for row in range(8):
        alone = sample(
            logits[row : row + 1],
            params,
            rows=torch.tensor([row]),
            positions=torch.tensor([position]),
        )
        assert alone.item() == together[row].item()


@pytest.mark.parametrize("rng", ["hf", "lecture", "portable"])
def test_every_stream_draws_the_distribution(rng: str) -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0, -9.0]]).expand(20_000, 5)
    params = SamplingParams(top_k=4, rng=rng, temperature=1.5)
    token = sample(logits, params, params.generator(logits.device))
    expected = (torch.tensor([2.0, 1.0, 0.0, -1.0]) / 1.5).softmax(0)
    frequency = torch.bincount(token, minlength=5)[:4] / 20_000
    assert (token < 4).all()
    torch.testing.assert_close(frequency, expected, atol=0.012, rtol=0.0)


def test_temperature_zero_is_greedy() -> None:
    logits = peaked(3)
    assert torch.equal(sample(logits, SamplingParams(temperature=0.0)), logits.argmax(dim=-1))


def test_temperature_zero_respects_the_penalty() -> None:
    logits = torch.tensor([[3.0, 2.9, -1.0]])
    params = SamplingParams(temperature=0.0, repetition_penalty=1.5)
    assert sample(logits, params, context=torch.tensor([[0]])).item() == 1


def test_a_top_k_above_the_vocabulary_keeps_all() -> None:
    logits = peaked(1)
    everything, most = SamplingParams(top_k=None), SamplingParams(top_k=10_000)
    generator = everything.generator
    cpu = torch.device("cpu")
    assert torch.equal(
        sample(logits, everything, generator(cpu)), sample(logits, most, generator(cpu))
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"top_k": 0}, "top_k must be at least 1, got 0"),
        ({"temperature": -0.5}, "temperature must be 0"),
        ({"temperature": float("nan")}, "temperature must be 0"),
        ({"top_p": 0.0}, "top_p must be in"),
        ({"min_p": 1.5}, "min_p must be in"),
        ({"num_samples": 0}, "num_samples must be at least 1"),
        ({"max_length": 0}, "max_length must be at least 1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be"),
        ({"rng": "cuda"}, "rng 'cuda' is not one of"),
        ({"seed": 2**70}, "seed must fit"),
    ],
)
def test_impossible_parameters_are_refused(change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        SamplingParams(**change)
