"""Every engine and dtype against the plain path."""

import pytest
import torch

from packings import ERROR, MISSING, Packing, small_gpt, texts, usable
from regpt import GPT, SamplingParams, UserError, complete
from regpt.core.kv_cache import PlainDecoder
from regpt.fast.decoding import packed_linear as lowbit
from regpt.fast.decoding.decoders import PackedDecoder, PackedModel, choose_decoder
from regpt.fast.decoding.packed_linear import Kind, missing, pack


@pytest.fixture(scope="module")
def model() -> GPT:
    return small_gpt()


@pytest.mark.parametrize("packing", MISSING)
@pytest.mark.parametrize("kind", lowbit.KINDS)
@pytest.mark.parametrize("lengths", [(9,), (5, 5, 5, 5, 5, 5, 5), (1, 30, 7)])
@torch.no_grad()
def test_logits_stay_near_the_plain_ones(
    model: GPT, packing: Packing, kind: Kind, lengths: tuple[int, ...]
) -> None:
    usable(packing, kind)
    plain = PlainDecoder(model)
    fast = PackedDecoder(packing(model, kind))
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


@pytest.mark.parametrize("seed", range(12))
def test_fp32_writes_the_plain_paths_text(model: GPT, seed: int) -> None:
    usable(PackedModel, "fp32")
    params = SamplingParams(seed=seed, max_length=24)
    decoder = PackedDecoder(PackedModel(model, "fp32"))
    prompt = texts(6)[0]
    assert complete(model, prompt, params, decoder=decoder) == complete(model, prompt, params)


@pytest.mark.parametrize("kind", lowbit.KINDS)
@torch.no_grad()
def test_a_row_does_not_know_its_neighbours(model: GPT, kind: Kind) -> None:
    usable(PackedModel, kind)
    packed = PackedModel(model, kind)
    rows = texts(4, 11, 11)
    together, alone = PackedDecoder(packed), PackedDecoder(packed)
    both = together.prefill(rows, length=48)
    single = alone.prefill(rows[1:2], length=48)
    for _ in range(4):
        scale = single.norm()
        assert (both[1] - single[0]).norm() <= 0.2 * ERROR[kind] * scale
        tokens = both.argmax(dim=-1)
        both, single = together.step(tokens), alone.step(tokens[1:2])


def test_an_int8_row_has_the_same_numbers_alone_and_among_others() -> None:
    usable(PackedModel, "int8")
    x = torch.randn(4, 96) * torch.tensor([[1.0], [5.0], [0.1], [1.0]]) + 0.5
    layer = pack(torch.randn(80, 96), torch.randn(80), "int8")
    together = layer(x)
    for row in range(4):
        torch.testing.assert_close(layer(x[row : row + 1])[0], together[row], rtol=1e-5, atol=1e-5)


def test_int8_rows_have_their_own_scale() -> None:
    usable(PackedModel, "int8")
    weight = torch.randn(40, 32)
    x = torch.randn(2, 32) * torch.tensor([[1e-3], [1e3]])
    found = pack(weight, None, "int8")(x)
    expected = x @ weight.t()
    for row in range(2):
        assert (found[row] - expected[row]).norm() <= 0.03 * expected[row].norm()
    assert torch.equal(pack(weight, None, "int8")(torch.zeros(1, 32)), torch.zeros(1, 40))


def test_a_machine_without_the_operators_falls_back(
    model: GPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("regpt.fast.decoding.decoders.missing", lambda kind: f"no {kind} here")
    monkeypatch.setattr(
        "regpt.fast.decoding.decoders.missing_native", lambda kind: "no compiler here"
    )
    decoder, note = choose_decoder(model, engine="auto", dtype="fp32")
    assert type(decoder) is PlainDecoder
    assert note == "no fp32 here; decoding on the plain path"
    with pytest.raises(UserError, match="no int8 here"):
        choose_decoder(model, engine="auto", dtype="int8")
    with pytest.raises(UserError, match="no bf16 here"):
        choose_decoder(model, engine="fast", dtype="bf16")


def test_a_wrong_product_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    product = lowbit.FloatLinear.__call__
    monkeypatch.setattr(lowbit.FloatLinear, "__call__", lambda self, x: product(self, x) * 1.01)
    missing.cache_clear()
    reason = missing("fp32")
    missing.cache_clear()
    assert reason == "this torch's packed fp32 product is wrong"


def test_engines_and_dtypes_that_do_not_exist(model: GPT) -> None:
    with pytest.raises(UserError, match="dtype 'fp8' is not one of fp32, bf16, int8"):
        choose_decoder(model, engine="auto", dtype="fp8")
    with pytest.raises(UserError, match="fast engine only"):
        choose_decoder(model, engine="plain", dtype="int8")
