"""Cached decoding is uncached decoding; a row does not know its neighbours."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_model import in_transformers, sharpen

from packings import texts
from regpt import GPT, GPTConfig, SamplingParams, UserError
from regpt.core.generate import generate, generate_steps
from regpt.core.kv_cache import KeyValueCache, PlainDecoder, check_memory
from regpt.core.sampling import sample
from regpt.fast.decoding.decoders import KernelDecoder
from regpt.fast.decoding.kernel_model import KernelModel, unavailable_format
from regpt.system.memory import available_memory

CONFIG = GPTConfig(block_size=48, vocab_size=50257, n_layer=3, n_head=2, n_embd=32)


@pytest.fixture(scope="module")
def model() -> GPT:
    torch.manual_seed(4)
    return sharpen(GPT(CONFIG), 0.3).eval()


@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    steps=st.integers(1, 12),
)
@torch.no_grad()
def test_cached_equals_uncached(model: GPT, lengths: list[int], steps: int) -> None:
    rows = texts(*lengths)
    decoder = PlainDecoder(model)
    logits = decoder.prefill(rows, length=48)
    for _ in range(steps):
        for row, text in enumerate(rows):
            expected, _ = model(torch.tensor([text]))
            torch.testing.assert_close(logits[row], expected[0, -1], atol=1e-4, rtol=0.0)
        tokens = logits.argmax(dim=-1)
        rows = [[*text, int(token)] for text, token in zip(rows, tokens, strict=True)]
        logits = decoder.step(tokens)


@torch.no_grad()
def test_a_prompt_in_two_parts_equals_one(model: GPT) -> None:
    idx = torch.tensor(texts(20))
    whole, _ = model(idx)
    cache = KeyValueCache(CONFIG, rows=1, length=20)
    first, _ = model(idx[:, :13], cache=cache)
    second, _ = model(idx[:, 13:], cache=cache)
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole, atol=1e-4, rtol=0.0)


@pytest.mark.parametrize("packed", [False, True])
@torch.no_grad()
def test_rows_of_different_lengths_read_several_tokens_and_forget_some(
    model: GPT, packed: bool
) -> None:
    decoder = PlainDecoder(model)
    if packed:
        if (reason := unavailable_format("fp32")) is not None:
            pytest.skip(reason)
        decoder = KernelDecoder(KernelModel(model, "fp32"))
    rows = texts(5, 11, 2)
    decoder.prefill(rows, length=48)
    cache = decoder.cache
    assert cache is not None
    decoder.read(torch.tensor(texts(4, 4, 4)), cache)  # wrong guesses, to be forgotten
    cache.cut([5, 11, 2])
    more = texts(3, 3, 3)
    found = decoder.read(torch.tensor(more), cache)
    for row, (text, new) in enumerate(zip(rows, more, strict=True)):
        expected, _ = model(torch.tensor([text + new]))
        torch.testing.assert_close(found[row], expected[0, -1], atol=1e-4, rtol=0.0)
    assert cache.lengths == [8, 14, 5]


def greedy(model: GPT, rows: list[list[int]], length: int) -> list[list[int]]:
    params = SamplingParams(max_length=length, temperature=0.0, stop_at_eot=False)
    steps = torch.stack(list(generate(model, rows, params)), dim=1).tolist()
    return [(row + drawn)[:length] for row, drawn in zip(rows, steps, strict=True)]


def test_rows_of_different_lengths_write_what_they_write_alone(model: GPT) -> None:
    rows = texts(3, 17, 8, 17)
    together = greedy(model, rows, 26)
    assert together == [greedy(model, [row], 26)[0] for row in rows]
    assert [len(row) for row in together] == [26] * 4


def test_portable_samples_do_not_change_when_rows_are_added(model: GPT) -> None:
    rows = texts(5, 9, 7)
    params = SamplingParams(max_length=20, rng="portable", stop_at_eot=False)
    few = torch.stack(list(generate(model, rows[:2], params)), dim=1)
    many = torch.stack(list(generate(model, rows, params)), dim=1)
    assert torch.equal(many[0, :15], few[0, :15])
    assert torch.equal(many[1, :11], few[1, :11])


@pytest.mark.parametrize("seed", range(4))
def test_rows_that_end_leave_the_others_text_alone(model: GPT, seed: int) -> None:
    prompt = texts(4)[0]
    often = sharpen(GPT(CONFIG), 0.3).eval()
    often.load_state_dict(model.state_dict())
    with torch.no_grad():  # make end-of-text likely
        often.wte.weight[50256] = often.wte.weight[:50256].mean(0) + 0.05
    reference = in_transformers(often).eval()
    torch.manual_seed(seed)
    expected = reference.generate(
        torch.tensor([prompt]), max_length=40, do_sample=True, top_k=0, temperature=0.7,
        num_return_sequences=6, pad_token_id=50256, eos_token_id=[50256, *range(0, 50256, 9)],
    )  # fmt: skip
    # transformers can end at many tokens, which makes rows end; the same by hand, step by step
    params = SamplingParams(seed=seed, top_k=None, temperature=0.7, max_length=40)
    ends = {50256, *range(0, 50256, 9)}
    rows, generator = [list(prompt) for _ in range(6)], params.generator(torch.device("cpu"))
    running = list(range(6))
    decoder = PlainDecoder(often)
    with torch.no_grad():
        logits = decoder.prefill(rows, length=48)
        while running and len(rows[running[0]]) < 40:
            tokens = sample(logits, params, generator, rows=torch.tensor(running), batch=6)
            for row, token in zip(running, tokens.tolist(), strict=True):
                rows[row].append(token)
            places = [i for i, token in enumerate(tokens.tolist()) if token not in ends]
            running = [running[i] for i in places]
            if running:
                decoder.keep(torch.tensor(places))
                logits = decoder.step(tokens[places])
    assert len({len(row) for row in rows}) > 1, "some rows must end early for this to say anything"
    width = expected.shape[1]
    assert [row + [50256] * (width - len(row)) for row in rows] == expected.tolist()


def test_past_the_last_position_is_an_error_or_slides(model: GPT) -> None:
    (prompt,) = texts(40)
    with pytest.raises(UserError, match="overflow=slide"):
        next(generate(model, [prompt], SamplingParams(max_length=60)))
    params = SamplingParams(max_length=90, temperature=0.0, overflow="slide", stop_at_eot=False)
    drawn = [int(token) for token in generate(model, [prompt], params)]
    assert len(drawn) == 50
    text, held = list(prompt), list(prompt)
    for token in drawn:
        with torch.no_grad():
            logits, _ = model(torch.tensor([held]))
        assert int(logits[0, -1].argmax()) == token
        text.append(token)
        held = [*held, token] if len(held) < 48 else text[-36:]


def test_log_probabilities_are_the_models(model: GPT) -> None:
    rows = texts(6, 9)
    params = SamplingParams(max_length=12, stop_at_eot=False)
    for step in generate_steps(model, rows, params, top=3):
        for row in range(2):
            if len(rows[row]) == 12:
                continue
            with torch.no_grad():
                logits, _ = model(torch.tensor([rows[row]]))
            logprobs = logits[0, -1].log_softmax(-1)
            token = int(step.tokens[row])
            assert step.logprobs[row].item() == pytest.approx(logprobs[token].item(), abs=1e-4)
            torch.testing.assert_close(
                step.top_logprobs[row], logprobs.topk(3).values, atol=1e-4, rtol=0.0
            )
            rows[row].append(token)


def test_a_full_cache_says_so() -> None:
    cache = KeyValueCache(CONFIG, rows=1, length=4)
    with pytest.raises(UserError, match="5 tokens do not fit in a cache of 4"):
        cache.positions(5)


def test_what_torch_keeps_of_a_gpu_unused_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """As while training: the device is full, but of memory that torch has freed."""
    gpu = torch.device("cuda", 1)
    asked = []

    def answer(value: object) -> Callable[[torch.device], object]:
        return lambda device: asked.append(device) or value

    monkeypatch.setattr(torch.cuda, "mem_get_info", answer((1_000, 80_000)))
    monkeypatch.setattr(torch.cuda, "memory_reserved", answer(70_000))
    monkeypatch.setattr(torch.cuda, "memory_allocated", answer(20_000))
    assert available_memory(gpu) == 51_000
    assert asked == [gpu] * 3
    check_memory(51, 1_000, gpu)
    with pytest.raises(UserError, match="ask for at most 51 samples"):
        check_memory(52, 1_000, gpu)


def test_a_batch_too_large_for_the_memory_is_told_its_limit(
    model: GPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    each = 3 * 2 * 32 * 20 * 4
    monkeypatch.setattr("regpt.core.kv_cache.available_memory", lambda device: 7 * each + 5)
    params = SamplingParams(max_length=20)
    assert len(next(generate(model, texts(4) * 7, params))) == 7
    with pytest.raises(UserError, match=r"cache of 8 rows.*ask for at most 7 samples"):
        next(generate(model, texts(4) * 8, params))
