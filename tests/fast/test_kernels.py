"""The C kernel against itself, to the last bit, in any company; its panels, build and refusals."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from test_model import sharpen

from packings import ERROR, SHAPE, kernels, small_gpt, texts, usable
from regpt import GPT, GPTConfig, SamplingParams, UserError
from regpt.core.generate import generate
from regpt.core.kv_cache import KeyValueCache, PlainDecoder
from regpt.fast.decoding import topk_sampling
from regpt.fast.decoding.decoders import KernelDecoder, choose_decoder
from regpt.fast.decoding.kernel_model import KernelModel, Panels, misshapen, unavailable_format
from regpt.fast.decoding.panels import WEIGHT_FORMATS, WeightFormat
from regpt.fast.kernels import build, check, training
from regpt.fast.kernels.variants import chosen_variant, why_not_better
from regpt.fast.training import adamw, muon

__all__ = ["kernels"]
pytestmark = pytest.mark.usefixtures("kernels")


@pytest.fixture(scope="module")
def model() -> GPT:
    return small_gpt()


@pytest.mark.parametrize("kind", WEIGHT_FORMATS)
@torch.no_grad()
def test_logits_are_near_the_plain_ones(model: GPT, kind: WeightFormat) -> None:
    usable(kind)
    idx = torch.tensor(texts(17, 17))
    native = KernelModel(model, kind)
    cache = KeyValueCache(SHAPE, rows=2, length=17, dtype=native.cache_dtype)
    expected = model(idx)[0]
    assert (native.all_logits(idx, cache) - expected).norm() <= ERROR[kind] * expected.norm()


@pytest.mark.parametrize("seed", range(3))
def test_fp32_writes_the_plain_paths_text(model: GPT, seed: int) -> None:
    usable("fp32")
    params = SamplingParams(max_length=48, seed=seed, top_k=50)
    decoders = PlainDecoder(model), KernelDecoder(KernelModel(model, "fp32"))
    plain, packed = (list(generate(model, texts(5, 5), params, decoder=d)) for d in decoders)
    assert torch.equal(torch.stack(packed), torch.stack(plain))


@pytest.mark.parametrize("heads", [4, 2, 1])
@torch.no_grad()
def test_every_size_of_head(heads: int) -> None:
    usable("fp32")
    torch.manual_seed(heads)
    shape = GPTConfig(block_size=40, vocab_size=91, n_layer=1, n_head=heads, n_embd=128)
    model = sharpen(GPT(shape), 0.2).eval()
    idx = torch.randint(0, 91, (2, 33))
    cache = KeyValueCache(shape, rows=2, length=40)
    found = KernelModel(model, "fp32").all_logits(idx, cache)
    torch.testing.assert_close(found, model(idx)[0], atol=1e-4, rtol=0.0)


@pytest.mark.parametrize("kind", WEIGHT_FORMATS)
@torch.no_grad()
def test_a_token_has_the_same_bits_in_any_company(model: GPT, kind: WeightFormat) -> None:
    usable(kind)
    native = KernelModel(model, kind)
    rows = texts(13, 13, 13)

    def new(count: int) -> KeyValueCache:
        return KeyValueCache(SHAPE, rows=count, length=20, dtype=native.cache_dtype)

    together = native.all_logits(torch.tensor(rows), new(3))
    for row, text in enumerate(rows):
        cache = new(1)
        for place, token in enumerate(text):
            one = native.logits(torch.tensor([[token]]), cache)
            assert torch.equal(one[0], together[row, place])


@torch.no_grad()
def test_threads_do_not_change_a_bit(model: GPT) -> None:
    usable("fp32")
    native = KernelModel(model, "fp32")
    idx = torch.tensor(texts(9))
    expected = native.all_logits(idx, KeyValueCache(SHAPE, rows=1, length=9))
    native.threads = 3
    native._tokens = native._longest = 0
    assert torch.equal(native.all_logits(idx, KeyValueCache(SHAPE, rows=1, length=9)), expected)


@pytest.mark.parametrize("kind", WEIGHT_FORMATS)
@torch.no_grad()
def test_two_threads_share_a_model(model: GPT, kind: WeightFormat) -> None:
    usable(kind)
    native = KernelModel(model, kind)
    rows = [torch.tensor(texts(length, length)) for length in (30, 7)]

    def decode(idx: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            cache = KeyValueCache(SHAPE, rows=2, length=40, dtype=native.cache_dtype)
            steps = [native.logits(idx, cache)]
            steps += [native.logits(idx[:, :1], cache) for _ in range(5)]
            return torch.stack(steps)

    expected = [decode(idx) for idx in rows]
    with ThreadPoolExecutor(2) as pool:
        for _ in range(20):
            found = list(pool.map(decode, rows))
            assert all(map(torch.equal, found, expected))


@torch.no_grad()
def test_a_long_prompt_takes_several_calls(model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    usable("fp32")
    native = KernelModel(model, "fp32")
    rows = torch.tensor(texts(40, 40))
    whole = native.logits(rows, KeyValueCache(SHAPE, rows=2, length=40))
    monkeypatch.setattr("regpt.fast.decoding.kernel_model.MOST_TOKENS", 14)
    assert torch.equal(native.logits(rows, KeyValueCache(SHAPE, rows=2, length=40)), whole)


def test_int8_panels_are_the_rounded_matrix() -> None:
    usable("int8")
    weight = torch.randn(100, 32, generator=torch.Generator().manual_seed(2))
    panels = Panels(weight, None, "int8")
    assert panels.scale is not None
    assert panels.sums is not None
    scale = weight.abs().amax(dim=1) / 127
    expected = (weight / scale[:, None]).round().to(torch.int8)
    back = panels.weight.view(2, 8, 64, 4).transpose(1, 2).reshape(128, 32)
    assert torch.equal(back[:100], expected)
    assert not back[100:].any()
    assert torch.equal(panels.scale, scale)
    torch.testing.assert_close(panels.sums, expected.sum(dim=1) * scale)


def test_shapes_it_is_not_made_for_go_through_the_plain_path() -> None:
    shape = GPTConfig(block_size=8, vocab_size=50, n_layer=1, n_head=3, n_embd=24)
    assert "heads of 16, 32, ... 128 channels, not 8" in (misshapen(shape) or "")
    with pytest.raises(UserError, match="not 8: use --engine plain"):
        KernelModel(GPT(shape), "fp32")
    decoder, note = choose_decoder(GPT(shape), engine="auto", dtype="fp32")
    assert type(decoder) is PlainDecoder
    assert note is not None
    assert note.endswith("not 8; decoding on the plain path")


def test_what_is_missing_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\necho 'decode.c:1: no such header' >&2; exit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr("shutil.which", lambda name: str(broken))
    with pytest.raises(UserError, match=r"cannot compile the kernel \(decode.c:1: no such header"):
        build.compile_into(tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [".decode.so.lock"]
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(UserError, match="file"):
        build.compile_into(file / "cache")
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(UserError, match="no C compiler"):
        build.compile_into(tmp_path / "cache")


COMPILER = """#!/bin/sh
echo compiled >> "$(dirname "$0")/log"
sleep 0.5
while [ "$1" != -o ]; do shift; done
echo library > "$2"
"""


def test_several_processes_compile_once(tmp_path: Path) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text(COMPILER)
    compiler.chmod(0o755)
    code = (
        "import sys; from pathlib import Path; from regpt.fast.kernels import build\n"
        "build.shutil.which = lambda name: sys.argv[1]\n"
        "print(build.compile_into(Path(sys.argv[2])).read_text(), end='')\n"
    )
    command = [sys.executable, "-c", code, str(compiler), str(tmp_path / "kernels")]
    several = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert [process.communicate()[0] for process in several] == ["library\n"] * 4
    assert (tmp_path / "log").read_text() == "compiled\n"


def test_libraries_long_unused_go_when_a_new_one_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text(COMPILER)
    compiler.chmod(0o755)
    monkeypatch.setattr("shutil.which", lambda name: str(compiler))
    folder = tmp_path / "cache" / "kernels"
    folder.mkdir(parents=True, mode=0o700)
    old, recent, first = folder / "decode-1.so", folder / "decode-2.so", tmp_path / "cache"
    for path in (old, recent, first / "decode-3.so"):
        path.touch()
    for path, days in ((old, 31), (recent, 29), (first / "decode-3.so", 31)):
        os.utime(path, (time.time() - days * 86_400,) * 2)
    new = build.compile_into(folder)
    left = {path.name for path in folder.iterdir()} - {".decode.so.lock"}
    assert left == {recent.name, new.name}
    assert not (first / "decode-3.so").exists()
    os.utime(new, (0, 0))
    build.compile_into(folder)
    assert time.time() - new.stat().st_mtime < 60  # loading is use


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The kernel's, into the gradient."""
    columns = logits.shape[1]
    return training.loss(logits, targets, columns, ignored=-100, more=0.0, gradient=True)


@pytest.mark.parametrize("token", [-1, 97, 1 << 40])
@torch.no_grad()
def test_ids_outside_the_vocabulary_never_reach_memory(token: int) -> None:
    usable("fp32")
    with pytest.raises(UserError, match="outside the model's vocabulary"):
        cross_entropy(torch.zeros(3, 97).bfloat16(), torch.tensor([1, token, -100]))
    shape = GPTConfig(block_size=8, vocab_size=97, n_layer=1, n_head=1, n_embd=16)
    native = KernelModel(GPT(shape), "fp32")
    with pytest.raises(UserError, match="outside the model's vocabulary"):
        native.all_logits(torch.tensor([[1, token]]), KeyValueCache(shape, rows=1, length=8))


def test_fewer_instructions_can_be_asked_for(kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    used = {"avx512": "AVX-512", "avxvnni": "AVX2 VNNI", "portable": "plain C"}
    assert check.kernels_used().startswith(used.get(kernels, kernels.upper()))
    assert chosen_variant().name == kernels
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(
        "regpt.fast.kernels.variants.processor", lambda: ("old", frozenset({"avx2"}))
    )
    monkeypatch.setenv("REGPT_CPU", "avx2")
    with pytest.raises(UserError, match=r"REGPT_CPU=avx2: this processor lacks fma$"):
        chosen_variant()
    monkeypatch.setenv("REGPT_CPU", "mmx")
    with pytest.raises(UserError, match="REGPT_CPU=mmx is not one of amx, avx512, avxvnni, avx2, "):
        chosen_variant()
    monkeypatch.delenv("REGPT_CPU")
    assert chosen_variant().name == "portable"
    assert why_not_better(chosen_variant()) == "this processor lacks fma for avx2"


def test_a_compiler_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = tmp_path / "cc"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    monkeypatch.setattr("shutil.which", lambda name: str(slow))
    monkeypatch.setattr(build, "PATIENCE_SECONDS", 0.3)
    with pytest.raises(UserError, match="cc did not finish in 0 s"):
        build.compile_into(tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [".decode.so.lock"]


WRONG = {
    "AdamW": (adamw, "step", lambda *given: None),
    "LayerNorm": (training, "norm_backward", lambda *given, into: (into, into[:3])),
    "GELU": (training, "gelu", torch.relu),
    "causal softmax": (training, "causal_softmax", lambda scores, start: scores.softmax(-1)),
    "loss": (training, "loss", lambda logits, *given, **more: logits.sum(1).float()),
    "draw": (
        topk_sampling,
        "race_in_c",
        lambda logits, *given: (logits.argmin(1), logits[:, 0] > 9),
    ),
    "Muon": (muon, "step", lambda *given, **more: None),
}


@pytest.mark.parametrize("group", check.GROUPS, ids=lambda group: group[0])
def test_kernels_are_checked_before_they_are_used(
    group: tuple[str, Callable[[], bool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "TRIED", {})
    assert build.unavailable_reason(*group) is None
    assert build.refused() is None
    monkeypatch.setattr(*WRONG[group[0]])
    build.TRIED.clear()
    reason = f"the compiled kernels' numbers are wrong: {group[0]}"
    assert build.unavailable_reason(*group) == build.refused() == reason
    assert check.kernels_used() == f"none: {reason}"


def test_wrong_numbers_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    usable("fp32")
    right = KernelModel.all_logits
    monkeypatch.setattr(KernelModel, "all_logits", lambda *a: right(*a) * 1.01)
    monkeypatch.setattr(build, "TRIED", {})
    assert unavailable_format("fp32") == "the compiled kernels' numbers are wrong: fp32 decoding"


@pytest.fixture
def screening(model: GPT) -> KernelModel:
    usable("fp32")
    return KernelModel(model, "fp32")


@pytest.mark.parametrize("top_k", [1, 50, 512])
@pytest.mark.parametrize("lengths", [(1,), (9, 9), (7,) * 9])
@torch.no_grad()
def test_the_k_largest_logits_are_all_there_to_the_last_bit(
    screening: KernelModel, top_k: int, lengths: tuple[int, ...]
) -> None:
    idx = torch.tensor(texts(*lengths))

    def logits(top_k: int | None) -> torch.Tensor:
        cache = KeyValueCache(SHAPE, rows=len(idx), length=20)
        return screening.all_logits(idx, cache, top_k=top_k).flatten(0, 1)

    whole, found = logits(None), logits(top_k)
    there = found > -torch.inf
    assert torch.equal(found[there], whole[there])
    kth = whole.topk(top_k).values[:, -1:]
    assert bool(there[whole >= kth].all()), "none of the k largest is missing"
    assert there.float().mean() < (top_k + 2000) / SHAPE.vocab_size, "most are left out"
    assert screening._overflowed == 0


@torch.no_grad()
def test_what_cannot_be_screened_is_computed_whole(screening: KernelModel) -> None:
    flat = GPT(SHAPE).eval()
    flat.load_state_dict(screening.model.state_dict())
    flat.wte.weight[:] = flat.wte.weight[7]  # all logits equal: everything is a candidate
    for strange in (None, torch.nan, torch.inf):
        if strange is not None:
            flat.ln_f.bias[3] = strange
        native = KernelModel(flat, "fp32")
        for attempt in range(40):  # more than it wonders about
            cache = KeyValueCache(SHAPE, rows=1, length=20)
            whole = native.logits(torch.tensor([[7, 8]]), cache)
            cache.cut([0])
            found = native.logits(torch.tensor([[7, 8]]), cache, top_k=50)
            assert torch.equal(whole.nan_to_num(5.0), found.nan_to_num(5.0)), attempt
        assert native._screened < 40, "it stops looking for them"


@torch.no_grad()
def test_texts_do_not_notice_the_screening(screening: KernelModel) -> None:
    whole = KernelModel(screening.model, "fp32")
    whole.screens = False
    for seed in range(6):
        params = SamplingParams(
            max_length=40,
            seed=seed,
            top_k=(50, 5, 200)[seed % 3],
            temperature=(1.0, 0.8, 0.0)[seed // 2],
            top_p=0.9 if seed == 1 else None,
            rng="portable" if seed == 3 else "hf",
        )
        rows = texts(6, 6, 6)
        one, other = (
            list(generate(native.model, rows, params, decoder=KernelDecoder(native)))
            for native in (whole, screening)
        )
        assert torch.equal(torch.stack(one), torch.stack(other))
    assert screening._screened > 0
