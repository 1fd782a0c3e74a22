"""Validation scores every token once, in units that compare."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from regpt import GPT, GPTConfig, UserError, find_runtime, get_tokenizer
from regpt.data.loader import ArrayDataset
from regpt.evaluate import validation
from regpt.evaluate.validation import token_sizes, validate

CPU = find_runtime("cpu", dtype="fp32")
TEXT = "Ünïcödé — “quotes”, 日本語 and plain words. " * 12


@pytest.fixture(scope="module")
def model() -> GPT:
    torch.manual_seed(2)
    return GPT(GPTConfig(block_size=16, n_layer=1, n_head=2, n_embd=16))


def dataset(text: str = TEXT) -> ArrayDataset:
    return ArrayDataset(np.array(get_tokenizer().encode(text), dtype=np.uint16))


def test_equals_a_plain_loop_over_windows(model: GPT) -> None:
    data = dataset()
    ids = torch.from_numpy(data.tokens.astype("int64"))
    nats, scored = 0.0, 0
    for start in range(0, len(ids) - 1, 16):
        piece = ids[start : start + 17]
        with torch.no_grad():
            logits, _ = model(piece[None, :-1])
        nats += F.cross_entropy(logits[0], piece[1:], reduction="sum").item()
        scored += len(piece) - 1
    result = validate(model, data, CPU, block_size=16)
    assert result.tokens == scored == len(ids) - 1
    assert result.loss == pytest.approx(nats / scored, rel=1e-6)
    rest = get_tokenizer().decode_bytes(ids[1:].tolist())
    assert result.bytes == len(rest)
    assert result.bits_per_byte == pytest.approx(nats / math.log(2) / len(rest), rel=1e-6)
    assert result.characters == len(TEXT) - 1  # the first token is the one character Ü


@pytest.mark.parametrize("batch_tokens", [1, 48, 10_000])
def test_the_batch_size_does_not_matter(
    model: GPT, monkeypatch: pytest.MonkeyPatch, batch_tokens: int
) -> None:
    expected = validate(model, dataset(), CPU, block_size=16).loss
    monkeypatch.setattr(validation, "BATCH_TOKENS", batch_tokens)
    assert validate(model, dataset(), CPU, block_size=16).loss == pytest.approx(expected, rel=1e-6)


def test_the_random_state_and_the_mode_are_left_alone(model: GPT) -> None:
    model.train()
    torch.manual_seed(9)
    expected = torch.rand(1)
    torch.manual_seed(9)
    validate(model, dataset(), CPU, block_size=16)
    assert torch.equal(torch.rand(1), expected)
    assert model.training


def test_token_sizes_add_up_to_the_text() -> None:
    num_bytes, characters = token_sizes()
    ids = get_tokenizer().encode(TEXT)
    assert num_bytes[ids].sum() == len(TEXT.encode())
    assert characters[ids].sum() == len(TEXT)
    assert num_bytes[50256] == characters[50256] == 0


def test_one_token_is_too_few(model: GPT) -> None:
    with pytest.raises(UserError, match="has 1 tokens"):
        validate(model, ArrayDataset(np.array([5], dtype=np.uint16)), CPU, block_size=16)
