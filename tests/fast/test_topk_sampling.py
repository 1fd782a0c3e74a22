"""The cheap noise is torch's own, and the cheap draw is the long one."""

import pytest
import torch

from regpt import SamplingParams
from regpt.core.sampling import draw_hf
from regpt.fast.decoding import topk_sampling
from regpt.fast.decoding.topk_sampling import (
    DRAW,
    draw_in_c,
    draw_noise,
    draw_words,
    exponential_of,
    race_in_c,
    race_topk,
    sample,
    words_are_exponential,
    words_are_known,
)
from regpt.fast.kernels.build import unavailable_reason

CPU = torch.device("cpu")


def test_words_become_the_numbers_of_exponential() -> None:
    assert words_are_exponential(), "this torch makes exponential numbers in another way"
    for shape in ((1, 7), (3, 50257)):
        one, other = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
        expected = torch.empty(shape).exponential_(generator=one)
        assert torch.equal(exponential_of(draw_words(*shape, other)), expected)
        assert torch.equal(one.get_state(), other.get_state())


@pytest.mark.parametrize("before", [0, 1, 2, 623, 624, 625])
def test_words_in_c_are_the_generators(before: int) -> None:
    if not words_are_known():
        pytest.skip("there is no C kernel here, or this torch has another generator")
    one, other = torch.Generator().manual_seed(before), torch.Generator().manual_seed(before)
    for generator in (one, other):
        torch.empty(before, dtype=torch.int32).random_(generator=generator)
    for shape in ((1, 1), (5, 311), (2, 50257), (1, 312)):
        expected = torch.empty(shape, dtype=torch.int64).random_(generator=one)
        assert torch.equal(draw_in_c(*shape, other), expected)
        assert torch.equal(one.get_state(), other.get_state())


def test_another_generator_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    words_are_known.cache_clear()
    monkeypatch.setattr(topk_sampling, "WORDS", 623)
    try:
        assert not words_are_known()
    finally:
        words_are_known.cache_clear()


def test_another_way_to_make_them_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    words_are_exponential.cache_clear()
    monkeypatch.setattr(topk_sampling, "exponential_of", lambda words: words.float())
    assert not words_are_exponential()
    words_are_exponential.cache_clear()


@pytest.fixture(params=["c", "torch"])
def racing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The race among few in C, where there is a kernel, and in torch's operators."""
    if request.param == "torch":
        monkeypatch.setattr(topk_sampling, "unavailable_reason", lambda *group: "none here")
    elif reason := unavailable_reason(*DRAW):
        pytest.skip(reason)
    return request.param


@pytest.mark.usefixtures("racing")
@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("coarse", [False, True])
def test_the_cheap_draw_is_multinomials(seed: int, coarse: bool) -> None:
    params = SamplingParams(seed=seed, top_k=(1, 50, 200)[seed % 3], temperature=1 + seed % 2 / 3)
    logits = torch.randn(5, 50257, generator=torch.Generator().manual_seed(seed)) * 3
    if coarse:  # many equal logits: among them the k-th
        logits = (logits * 2).round() / 2
    generator, plain = params.generator(CPU), params.generator(CPU)
    for _ in range(3):
        scores = logits / params.temperature
        kth = scores.topk(params.top_k or 1).values[:, -1:]
        probabilities = scores.masked_fill(scores < kth, -torch.inf).softmax(dim=-1)
        expected = torch.multinomial(probabilities, 1, generator=plain).squeeze(1)
        assert torch.equal(sample(logits, params, generator), expected)
        assert torch.equal(generator.get_state(), plain.get_state())


@pytest.mark.parametrize("columns", [70, 1000, 1024, 50257])
@pytest.mark.parametrize("top_k", [1, 7, 50])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_race_in_c_is_the_one_in_torch(columns: int, top_k: int, temperature: float) -> None:
    if reason := unavailable_reason(*DRAW):
        pytest.skip(reason)
    generator = torch.Generator().manual_seed(columns + top_k)
    params = SamplingParams(top_k=top_k, temperature=temperature)
    logits = torch.randn(9, columns + 3, generator=generator)[:, :columns] * 4
    logits[2] = logits[2].round()  # ties with the k-th
    logits[3] = -torch.inf
    logits[3, :60] = logits[4, :60]  # fewer than all
    logits[5] = 1.5  # all equal
    logits[6, 3] = torch.nan
    logits[7, 1:] = -torch.inf
    chosen = draw_words(9, columns, generator)
    ours, undecided = race_in_c(logits, params, list(chosen))
    theirs, open_too = race_topk(logits, params, list(chosen))
    decided = ~(undecided | open_too)
    assert torch.equal(ours[decided], theirs[decided])
    assert undecided[6], "what is no number is left to torch"
    assert decided[[0, 1, 3, 4, 8]].all()
    whole = draw_hf(logits, params, exponential_of(chosen))
    assert torch.equal(ours[~undecided], whole[~undecided])
    assert torch.equal(sample(logits, params, noise=list(chosen)), whole)


@pytest.mark.usefixtures("racing")
def test_candidates_as_good_as_equal_go_the_long_way(monkeypatch: pytest.MonkeyPatch) -> None:
    params = SamplingParams(seed=3)
    logits = torch.randn(4, 50257, generator=torch.Generator().manual_seed(3))
    expected = sample(logits, params, params.generator(CPU))
    seen = []
    monkeypatch.setattr(topk_sampling, "TIE_TOLERANCE", torch.inf)
    monkeypatch.setattr(
        topk_sampling, "draw_hf", lambda *a: (seen.append(len(a[0])), draw_hf(*a))[1]
    )
    assert torch.equal(sample(logits, params, params.generator(CPU)), expected)
    assert seen == [4]


@pytest.mark.parametrize("rng", ["hf", "lecture", "portable"])
def test_noise_drawn_apart_gives_the_same_tokens(rng: str) -> None:
    params = SamplingParams(seed=5, rng=rng, top_k=20)
    logits = torch.randn(3, 999, generator=torch.Generator().manual_seed(5))
    generator = params.generator(CPU)
    noise = draw_noise(params, generator, batch=3, vocab_size=999, device=CPU)
    apart = sample(logits, params, noise=noise)
    assert torch.equal(apart, sample(logits, params, params.generator(CPU)))
    assert (noise is None) == (rng == "portable")
    last = sample(logits[2:], params, rows=torch.tensor([2]), batch=3, noise=noise)
    assert last.item() == apart[2].item()
