"""Validation scores every token once, in units that compare."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_model import sharpen

from regpt import GPT, GPTConfig, UserError, find_runtime, get_tokenizer
from regpt.core.data import ArrayDataset
from regpt.core.optimizer import Optimizer, OptimizerConfig
from regpt.core.tokenizer import END_OF_TEXT_ID
from regpt.evaluation.scoring import score_targets
from regpt.evaluation.validation import token_sizes, validate

CPU = find_runtime("cpu", dtype="fp32")
TEXT = "Ünïcödé — “quotes”, 日本語 and plain words. " * 12
SHAPE = GPTConfig(block_size=16, n_layer=1, n_head=2, n_embd=16)


@pytest.fixture(scope="module")
def model() -> GPT:
    torch.manual_seed(2)
    return GPT(SHAPE)


@pytest.fixture(scope="module")
def trained(model: GPT) -> GPT:
    """A model that has learned something, so that its losses are not all alike."""
    ids = torch.from_numpy(dataset().tokens.astype("int64"))
    torch.manual_seed(3)
    gpt = sharpen(GPT(SHAPE), 0.1)
    optimizer = Optimizer(gpt, OptimizerConfig(), lr=1e-2)
    for step in range(30):
        start = 16 * step % (len(ids) - 17)
        _, loss = gpt(ids[None, start : start + 16], ids[None, start + 1 : start + 17])
        assert loss is not None
        loss.backward()
        optimizer.step()
        gpt.zero_grad()
    return gpt.eval()


def dataset(text: str = TEXT) -> ArrayDataset:
    return ArrayDataset(np.array(get_tokenizer().encode(text), dtype=np.uint16))


def transformers_loss(model: GPT, ids: torch.Tensor, *, stride: int, directory: str) -> float:
    """The loop of transformers' documentation: windows a stride apart, old tokens masked."""
    transformers = pytest.importorskip("transformers")
    model.save_pretrained(directory)
    peer = transformers.GPT2LMHeadModel.from_pretrained(directory).eval()
    nats, before = 0.0, 0
    for begin in range(0, len(ids), stride):
        end = min(begin + 16, len(ids) - 1)
        labels = ids[begin + 1 : end + 1].clone()
        labels[: max(before - begin, 0)] = -100
        with torch.no_grad():
            logits = peer(input_ids=ids[None, begin:end]).logits[0]
        nats += F.cross_entropy(logits, labels, reduction="sum").item()
        before = end
        if end == len(ids) - 1:
            return nats / (len(ids) - 1)
    raise AssertionError


@pytest.mark.parametrize("stride", [16, 5, 1])
@pytest.mark.parametrize("which", ["model", "trained"])
def test_equals_transformers(
    request: pytest.FixtureRequest, tmp_path: object, which: str, stride: int
) -> None:
    gpt = request.getfixturevalue(which)
    ids = torch.from_numpy(dataset().tokens.astype("int64"))
    expected = transformers_loss(gpt, ids, stride=stride, directory=f"{tmp_path}/model")
    result = validate(gpt, dataset(), CPU, block_size=16, stride=stride)
    assert result.loss == pytest.approx(expected, rel=1e-5)
    assert result.perplexity == pytest.approx(math.exp(expected), rel=1e-3)
    assert result.stride == stride


def test_a_shorter_stride_is_another_figure(trained: GPT) -> None:
    figures = [
        validate(trained, dataset(), CPU, block_size=16, stride=stride).loss for stride in (16, 4)
    ]
    assert abs(figures[0] - figures[1]) > 1e-4


def test_counts_bytes_and_characters(model: GPT) -> None:
    result = validate(model, dataset(), CPU, block_size=16)
    ids = dataset().tokens
    rest = get_tokenizer().decode_bytes(ids[1:].tolist())
    assert result.tokens == len(ids) - 1
    assert result.bytes == len(rest)
    assert result.bits_per_byte == pytest.approx(result.nll / math.log(2) / len(rest))
    assert result.characters == len(TEXT) - 1  # the first token is the one character Ü


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("rows", [1, 4, 16])
def test_the_batch_size_does_not_matter(trained: GPT, rows: int, documents: bool) -> None:
    ids = dataset().tokens.copy()
    ids[[7, 8, 60, 200]] = END_OF_TEXT_ID
    data = ArrayDataset(ids)
    options = {"block_size": 16, "stride": 9, "documents": documents}
    expected = validate(trained, data, CPU, **options).loss
    result = validate(trained, data, CPU, batch_tokens=16 * rows, **options)
    assert result.loss == pytest.approx(expected, rel=1e-6)


def test_documents_are_scored_as_if_alone(trained: GPT) -> None:
    tokenizer = get_tokenizer()
    texts = [tokenizer.encode(text) for text in ("One text.", TEXT, "日本 and the last one.")]
    stream = [END_OF_TEXT_ID]
    for ids in texts:
        stream += [*ids, END_OF_TEXT_ID]
    whole = ArrayDataset(np.array(stream, dtype=np.uint16))
    nats = 0.0
    for ids in texts:
        alone = ArrayDataset(np.array([END_OF_TEXT_ID, *ids, END_OF_TEXT_ID], dtype=np.uint16))
        nats += validate(trained, alone, CPU, block_size=16, stride=8).nll
    result = validate(trained, whole, CPU, block_size=16, stride=8, documents=True)
    assert result.nll == pytest.approx(nats, rel=1e-6)
    across = validate(trained, whole, CPU, block_size=16, stride=8)
    assert across.tokens == result.tokens
    assert abs(across.nll - nats) > 1e-3


def test_bf16_is_near(trained: GPT) -> None:
    expected = validate(trained, dataset(), CPU, block_size=16).loss
    autocast = validate(trained, dataset(), find_runtime("cpu", dtype="bf16"), block_size=16)
    assert autocast.loss == pytest.approx(expected, rel=1e-2)


def test_hits_are_the_likeliest_tokens(trained: GPT) -> None:
    ids = torch.from_numpy(dataset().tokens[:17].astype("int64"))[None]
    logits, _ = trained(ids[:, :-1])
    targets = ids[:, 1:].clone()
    targets[0, 3:6] = -100
    with torch.no_grad():
        _, hits = score_targets(trained, ids[:, :-1], targets, hits=True)
    expected = (logits.argmax(-1) == ids[:, 1:])[targets != -100]
    assert hits.tolist() == expected.tolist()
    assert 0 < sum(expected.tolist()) < len(expected)


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


def test_a_token_the_model_does_not_have(model: GPT) -> None:
    small = GPT(GPTConfig(block_size=16, vocab_size=100, n_layer=1, n_head=2, n_embd=16))
    for ids in ([5, 6, 300], [300, 5, 6]):
        with pytest.raises(UserError, match="token 300 of the text is outside the model's"):
            validate(small, ArrayDataset(np.array(ids, dtype=np.uint16)), CPU, block_size=16)
