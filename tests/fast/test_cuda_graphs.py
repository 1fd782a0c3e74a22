"""The step made for recording against the plain path; recorded, where there is a GPU."""

from functools import partial

import pytest
import torch

from packings import SHAPE, small_gpt, texts
from regpt import GPT, SamplingParams, UserError, complete
from regpt.core.generate import generate_steps
from regpt.core.kv_cache import PlainDecoder
from regpt.fast.decoding.cuda_graphs import GraphDecoder
from regpt.fast.decoding.decoders import choose_decoder


@pytest.fixture(scope="module")
def model() -> GPT:
    return small_gpt()


def compare(model: GPT, dtype: torch.dtype, bound: float, lengths: tuple[int, ...]) -> None:
    """Ten steps, then without the first row ten more: across a bucket's end."""
    plain = PlainDecoder(model)
    fast = GraphDecoder(model, dtype=dtype)
    rows = texts(*lengths)
    expected, found = plain.prefill(rows, length=48), fast.prefill(rows, length=48)
    for step in range(20):
        assert (found - expected).norm() <= bound * expected.norm()
        if step == 10 and len(rows) > 1:
            kept = torch.arange(1, len(rows))
            plain.keep(kept)
            fast.keep(kept)
            expected = expected[kept.to(expected.device)]
        tokens = expected.argmax(dim=-1)
        expected, found = plain.step(tokens), fast.step(tokens)


@pytest.mark.parametrize("lengths", [(9,), (5, 5, 5), (1, 26, 7)])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@torch.no_grad()
def test_a_static_step_is_a_plain_one(
    model: GPT,
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    bound: float,
    lengths: tuple[int, ...],
) -> None:
    monkeypatch.setattr("regpt.fast.decoding.cuda_graphs.BUCKET", 16)
    compare(model, dtype, bound, lengths)


@pytest.mark.parametrize("seed", range(4))
def test_it_writes_the_plain_paths_text(model: GPT, seed: int) -> None:
    params = SamplingParams(seed=seed, max_length=24)
    prompt = texts(6)[0]
    decoder = GraphDecoder(model, dtype=torch.float32)
    generate = partial(generate_steps, decoder=decoder)
    assert complete(model, prompt, params, generate=generate) == complete(model, prompt, params)


@torch.no_grad()
def test_a_full_cache_is_refused(model: GPT) -> None:
    decoder = GraphDecoder(model, dtype=torch.float32)
    logits = decoder.prefill(texts(9), length=10)
    decoder.step(logits.argmax(dim=-1))
    with pytest.raises(UserError, match="11 tokens do not fit in a cache of 10"):
        decoder.step(logits.argmax(dim=-1))


@pytest.mark.gpu
@torch.no_grad()
def test_a_recorded_step_is_a_plain_one(model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    monkeypatch.setattr("regpt.fast.decoding.cuda_graphs.BUCKET", 16)
    on_gpu = GPT(SHAPE).to(torch.device("cuda")).eval()
    on_gpu.load_state_dict(model.state_dict())
    for lengths in ((9,), (5, 5, 5), (1, 26, 7)):
        compare(on_gpu, torch.float32, 1e-4, lengths)
    decoder, note = choose_decoder(on_gpu, engine="fast", dtype="bf16")
    assert isinstance(decoder, GraphDecoder)
    assert note is None
    prompt, params = texts(6)[0], SamplingParams(max_length=24)
    generate = partial(generate_steps, decoder=decoder)
    one = complete(on_gpu, prompt, params, generate=generate)
    assert one == complete(on_gpu, prompt, params, generate=generate), (
        "a second text, the same graphs"
    )
