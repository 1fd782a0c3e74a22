"""Writing: lengths, ends, determinism, and transformers' own text."""

import pytest
import torch
from test_model import in_transformers, sharpen

from regpt import GPT, GPTConfig, SamplingParams, UserError, complete
from regpt.core.generate import generate

CONFIG = GPTConfig(block_size=40, n_layer=2, n_head=2, n_embd=16)
PROMPT = [15496, 11, 314, 1101]


@pytest.fixture(scope="module")
def model() -> GPT:
    torch.manual_seed(1)
    return sharpen(GPT(CONFIG), 0.5)


def test_rows_have_the_length_asked_for_and_keep_the_prompt(model: GPT) -> None:
    rows = complete(model, PROMPT, SamplingParams(max_length=12, num_samples=3))
    assert [len(row) for row in rows] == [12, 12, 12]
    assert all(row[:4] == PROMPT for row in rows)


def test_same_seed_same_text_and_another_seed_another(model: GPT) -> None:
    first = complete(model, PROMPT, SamplingParams(seed=1))
    assert complete(model, PROMPT, SamplingParams(seed=1)) == first
    assert complete(model, PROMPT, SamplingParams(seed=2)) != first


@pytest.mark.parametrize("seed", range(5))
def test_the_text_is_transformers_generates(model: GPT, seed: int) -> None:
    reference = in_transformers(model).eval()
    torch.manual_seed(seed)
    expected = reference.generate(
        torch.tensor([PROMPT]),
        max_length=30,
        do_sample=True,
        top_k=50,
        temperature=1.0,
        num_return_sequences=5,
        pad_token_id=50256,
    )
    assert complete(model, PROMPT, SamplingParams(seed=seed)) == expected.tolist()


def test_the_global_random_state_is_left_alone(model: GPT) -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    complete(model, PROMPT, SamplingParams())
    assert torch.equal(torch.rand(2), expected)


def test_mode_is_restored_and_eval_is_used(model: GPT) -> None:
    model.train()
    complete(model, PROMPT, SamplingParams(max_length=6))
    assert model.training
    model.eval()


def eot_model() -> GPT:
    """A model that always wants end-of-text next."""
    model = GPT(CONFIG)
    with torch.no_grad():
        model.ln_f.bias.fill_(1.0)
        model.ln_f.weight.zero_()
        model.wte.weight.zero_()
        model.wte.weight[50256] = 5.0
    return model


def test_a_row_ends_at_end_of_text() -> None:
    params = SamplingParams(num_samples=2, max_length=9)
    assert complete(eot_model(), PROMPT, params) == [[*PROMPT, 50256]] * 2
    steps = list(generate(eot_model(), torch.tensor([PROMPT]), params))
    assert len(steps) == 1


def test_rows_can_go_on_through_end_of_text() -> None:
    params = SamplingParams(num_samples=1, max_length=9, stop_at_eot=False)
    assert complete(eot_model(), PROMPT, params) == [[*PROMPT] + [50256] * 5]


def test_an_empty_prompt_starts_from_end_of_text(model: GPT) -> None:
    (row,) = complete(model, [], SamplingParams(num_samples=1, max_length=5))
    assert row[0] == 50256
    assert len(row) == 5


def test_the_caller_may_stop_early(model: GPT) -> None:
    model.train()
    tokens = generate(model, torch.tensor([PROMPT]), SamplingParams())
    assert next(tokens).shape == (1,)
    tokens.close()
    assert model.training
    model.eval()


def test_a_finished_length_yields_nothing(model: GPT) -> None:
    params = SamplingParams(max_length=4, num_samples=2)
    assert complete(model, PROMPT, params) == [PROMPT, PROMPT]


@pytest.mark.parametrize(
    ("max_length", "message"),
    [(3, "max_length 3 is below the prompt's 4"), (41, "41 is above the model's block_size 40")],
)
def test_impossible_lengths_are_refused(model: GPT, max_length: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        complete(model, PROMPT, SamplingParams(max_length=max_length))


@pytest.mark.parametrize("token", [-1, 97])
def test_ids_outside_the_vocabulary_are_refused_in_one_line(token: int) -> None:
    model = GPT(GPTConfig(block_size=8, vocab_size=97, n_layer=1, n_head=1, n_embd=16))
    params = SamplingParams(max_length=6, num_samples=1)
    message = f"token {token} of the prompt is outside the model's vocabulary of 97"
    with pytest.raises(UserError, match=message):
        complete(model, [1, token, 2], params)
    with pytest.raises(UserError, match=message):
        next(generate(model, torch.tensor([[1, token]]), params))


def test_a_prompt_outside_the_vocabulary_is_refused() -> None:
    small = GPT(GPTConfig(block_size=8, vocab_size=100, n_layer=1, n_head=1, n_embd=8))
    with pytest.raises(UserError, match="token 314 of the prompt"):
        complete(small, [1, 314], SamplingParams(max_length=6))
