"""Guessing ahead writes the same text, token for token, in fewer steps."""

from collections.abc import Callable, Iterator
from functools import cache

import pytest
import torch
from test_model import sharpen

from regpt import GPT, GPTConfig, SamplingParams
from regpt.core.generate import generate
from regpt.core.kv_cache import KeyValueCache, PlainDecoder
from regpt.fast.decoding.decoders import KernelDecoder
from regpt.fast.decoding.drafters import Drafter, ModelDrafter, NGramDrafter
from regpt.fast.decoding.kernel_model import KernelModel, unavailable_format
from regpt.fast.decoding.speculative import generate_steps

CONFIG = GPTConfig(block_size=64, vocab_size=50257, n_layer=2, n_head=2, n_embd=32)


class Counting(PlainDecoder):
    """Counts the steps."""

    steps = 0

    def read_all(self, idx: torch.Tensor, cache: KeyValueCache) -> torch.Tensor:
        self.steps += 1
        return super().read_all(idx, cache)


def speculative(*arguments, **named) -> Iterator[torch.Tensor]:
    """The tokens of speculative decoding."""
    for step in generate_steps(*arguments, **named):
        yield step.tokens


@pytest.fixture(scope="module")
def model() -> GPT:
    torch.manual_seed(4)
    model = sharpen(GPT(CONFIG), 0.3).eval()
    with torch.no_grad():  # end-of-text now and then
        model.wte.weight[50256] = model.wte.weight[:50256].mean(0) + 0.05
    return model


def nearly(model: GPT) -> GPT:
    """The same model, a little off: right mostly, not always."""
    other = GPT(CONFIG).eval()
    other.load_state_dict(model.state_dict())
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in other.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise * 0.02 * parameter.std().nan_to_num())
    return other


def prompts(kind: str) -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    if kind == "one":
        return [torch.randint(0, 50257, (6,), generator=generator).tolist()]
    if kind == "equal":
        return [torch.randint(0, 50257, (6,), generator=generator).tolist()] * 4
    return [torch.randint(0, 50257, (n,), generator=generator).tolist() for n in (3, 11, 7)]


def settings(rng: str, seed: int) -> SamplingParams:
    return SamplingParams(
        max_length=40,
        seed=seed,
        top_k=(50, 3, 50)[seed],
        temperature=0.0 if rng == "greedy" else 0.7,
        rng="hf" if rng == "greedy" else rng,
        stop_at_eot=seed != 1,
    )


@pytest.fixture(scope="module")
def plain(model: GPT) -> Callable[[str, str, int], tuple[torch.Tensor, torch.Tensor]]:
    """The text without guesses, and where it left the generator."""

    @cache
    def written(kind: str, rng: str, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        params = settings(rng, seed)
        generator = params.generator(model.device)
        steps = list(generate(model, prompts(kind), params, generator=generator))
        return torch.stack(steps), generator.get_state()

    return written


@pytest.mark.parametrize("drafting", ["lookup", "draft"])
@pytest.mark.parametrize("kind", ["one", "equal", "ragged"])
@pytest.mark.parametrize("rng", ["hf", "lecture", "portable", "greedy"])
def test_the_text_is_the_same_and_the_stream_where_it_was(
    model: GPT,
    plain: Callable[[str, str, int], tuple[torch.Tensor, torch.Tensor]],
    drafting: str,
    kind: str,
    rng: str,
) -> None:
    for seed in range(3):
        params = settings(rng, seed)
        expected, state = plain(kind, rng, seed)
        generator = params.generator(model.device)
        drafter: Drafter = NGramDrafter(depth=5)
        if drafting == "draft":
            drafter = ModelDrafter(PlainDecoder(nearly(model)), depth=4)
        decoder = Counting(model)
        found = list(
            speculative(
                model, prompts(kind), params, generator=generator, decoder=decoder, drafter=drafter
            )
        )
        assert torch.equal(torch.stack(found), expected)
        assert torch.equal(generator.get_state(), state)
        if drafting == "draft" and kind == "one" and len(found) > 20:
            assert decoder.steps < len(found)


def test_a_perfect_guesser_costs_one_step_in_its_depth(model: GPT) -> None:
    decoder = Counting(model)
    drafter = ModelDrafter(PlainDecoder(model), depth=4)
    params = SamplingParams(max_length=46, stop_at_eot=False)
    steps = list(speculative(model, prompts("one"), params, decoder=decoder, drafter=drafter))
    assert len(steps) == 40
    assert decoder.steps == 8  # after the first token 39 are left: 7 x 5 + 4


def test_lookup_repeats_what_followed() -> None:
    lookup = NGramDrafter(depth=3)
    assert lookup.find([1, 2, 3, 9, 1, 2], 3) == [3, 9, 1]
    assert lookup.find([7, 1, 2, 3, 4, 8, 1, 2, 5, 1, 2], 1) == [5], "the latest place"
    assert lookup.find([0, 1, 2, 3, 4, 8, 1, 2, 5, 0, 1, 2], 1) == [3], "the longest run"
    assert lookup.find([1, 2, 3], 3) == []


def test_int8_drafts_leave_the_exact_text_of_the_kernel(model: GPT) -> None:
    if (reason := unavailable_format("fp32") or unavailable_format("int8")) is not None:
        pytest.skip(reason)
    exact, cheap = KernelModel(model, "fp32"), KernelModel(model, "int8")
    for seed in range(4):
        params = SamplingParams(max_length=48, seed=seed)
        rows = prompts("equal")
        expected = list(generate(model, rows, params, decoder=KernelDecoder(exact)))
        drafter = ModelDrafter(KernelDecoder(cheap))
        found = list(
            speculative(model, rows, params, decoder=KernelDecoder(exact), drafter=drafter)
        )
        assert torch.equal(torch.stack(found), torch.stack(expected))
