"""Kernel decoding in every dtype against the plain path, and who decodes where there is none."""

import pytest
import torch

from packings import ERROR, small_gpt, texts, usable
from regpt import GPT, UserError
from regpt.core.kv_cache import PlainDecoder
from regpt.fast.decoding.decoders import KernelDecoder, choose_decoder
from regpt.fast.decoding.kernel_model import KernelCache, KernelModel
from regpt.fast.decoding.panels import WEIGHT_FORMATS, WeightFormat


@pytest.fixture(scope="module")
def model() -> GPT:
    return small_gpt()


@pytest.mark.parametrize("kind", WEIGHT_FORMATS)
@pytest.mark.parametrize("lengths", [(9,), (5, 5, 5, 5, 5, 5, 5), (1, 30, 7)])
@torch.no_grad()
def test_logits_stay_near_the_plain_ones(
    model: GPT, kind: WeightFormat, lengths: tuple[int, ...]
) -> None:
    usable(kind)
    plain = PlainDecoder(model)
    fast = KernelDecoder(KernelModel(model, kind))
    rows = texts(*lengths)
    expected, found = plain.prefill(rows, length=48), fast.prefill(rows, length=48)
    for _ in range(6):
        assert found.shape == expected.shape
        assert (found - expected).norm() <= ERROR[kind] * expected.norm()
        tokens = expected.argmax(dim=-1)
        expected, found = plain.step(tokens), fast.step(tokens)
    if len(rows) > 1:
        kept = torch.tensor([len(rows) - 1])
        plain.keep(kept)
        fast.keep(kept)
        tokens = expected.argmax(dim=-1)[kept]
        assert (fast.step(tokens) - plain.step(tokens)).norm() <= ERROR[kind] * expected.norm()


def test_a_machine_without_kernels_falls_back(model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "regpt.fast.decoding.kernel_model.unavailable_format", lambda kind: f"no {kind} kernel here"
    )
    decoder, note = choose_decoder(model, engine="auto", dtype="fp32")
    assert type(decoder) is PlainDecoder
    assert note == "no fp32 kernel here; decoding on the plain path"
    with pytest.raises(UserError, match="no int8 kernel here"):
        choose_decoder(model, engine="auto", dtype="int8")
    with pytest.raises(UserError, match="no bf16 kernel here"):
        choose_decoder(model, engine="fast", dtype="bf16")


def test_engines_and_dtypes_that_do_not_exist(model: GPT) -> None:
    with pytest.raises(UserError, match="dtype 'fp8' is not one of fp32, bf16, int8"):
        choose_decoder(model, engine="auto", dtype="fp8")
    with pytest.raises(UserError, match="fast engine only"):
        choose_decoder(model, engine="plain", dtype="int8")


@pytest.mark.parametrize("kind", WEIGHT_FORMATS)
@torch.no_grad()
def test_rows_of_one_prompt_read_its_keys_once_and_change_no_bit(
    model: GPT, kind: WeightFormat
) -> None:
    usable(kind)
    first, other = texts(21, 33)
    together = KernelDecoder(KernelModel(model, kind))
    logits = together.prefill([first, other, first, first], length=48)
    assert isinstance(together.cache, KernelCache)
    prefixes = together.cache.prefixes()
    assert prefixes is not None
    assert [part.tolist() for part in prefixes] == [[0, 1, 0, 0], [21, 0, 21, 21]]
    alone = [KernelDecoder(together.kernel) for _ in range(4)]
    for decoder, prompt in zip(alone, [first, other, first, first], strict=True):
        decoder.prefill([prompt], length=48)
    tokens = torch.tensor([5, 6, 7, 8])
    for keep in (None, [2, 1, 3], [2, 0]):
        if keep is not None:
            together.keep(torch.tensor(keep))
            alone, tokens = [alone[row] for row in keep], tokens[keep]
        for _ in range(3):
            logits = together.step(tokens)
            for row, decoder in enumerate(alone):
                assert torch.equal(decoder.step(tokens[row : row + 1])[0], logits[row])
            tokens = logits.argmax(dim=-1)
    assert together.cache.leaders == [0, 0]
    assert together.cache.shared == [21, 21]


def test_what_is_forgotten_is_not_shared(model: GPT) -> None:
    cache = KernelCache(model.config, rows=1, length=48)
    cache.lengths = [20]
    cache.keep(torch.tensor([0, 0, 0]))
    cache.cut([20, 12, 20])
    assert cache.shared == [20, 12, 20]
    cache.cut([9, 9, 20])
    assert cache.shared == [9, 9, 9]
    cache.keep(torch.tensor([2]))
    assert cache.prefixes() is None
