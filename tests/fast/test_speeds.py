"""What is measured is kept, read again, and decides only what is fast."""

import json
from pathlib import Path

import pytest
import torch

from regpt import GPT, GPTConfig
from regpt.fast.decoding import speeds
from regpt.fast.decoding.decoders import fastest_kind
from regpt.fast.decoding.drafters import MAX_DRAFT_LENGTH, best_draft_length
from regpt.fast.decoding.kernel_model import KernelModel, unavailable_format
from regpt.fast.decoding.panels import WEIGHT_FORMATS
from regpt.fast.decoding.speeds import COUNTS, Speed, known_speed, measure, speed_of
from regpt.system.runtime import DTYPES, find_dtype

SHAPE = GPTConfig(block_size=16, vocab_size=97, n_layer=1, n_head=2, n_embd=32)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "cache").mkdir()
    monkeypatch.setattr(speeds, "cache_folder", lambda: tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def kernel() -> KernelModel:
    if (reason := unavailable_format("fp32")) is not None:
        pytest.skip(reason)
    return KernelModel(GPT(SHAPE).eval(), "fp32")


def test_a_speed_is_measured_once_and_kept(folder: Path, kernel: KernelModel) -> None:
    assert known_speed(kernel.model, "fp32") is None
    speed = speed_of(kernel)
    assert all(second > 0 for second in speed.seconds)
    assert known_speed(kernel.model, "fp32") == speed == speed_of(kernel)
    assert known_speed(kernel.model, "bf16") is None
    (file,) = folder.iterdir()
    held = json.loads(file.read_text())
    assert held["shape"] == [1, 2, 32, 97]
    assert list(held["seconds"]) == [str(count) for count in COUNTS]


@pytest.mark.parametrize(
    "damage", ["", "{", "[]", '{"seconds": {"1": 1, "5": 1}}', "zero", "other"]
)
def test_a_damaged_table_is_made_again(folder: Path, kernel: KernelModel, damage: str) -> None:
    speed_of(kernel)
    (file,) = folder.iterdir()
    held = json.loads(file.read_text())
    if damage == "zero":
        held["seconds"]["5"] = 0
    held["threads"] += damage == "other"
    file.write_text(json.dumps(held) if damage in ("zero", "other") else damage)
    assert known_speed(kernel.model, "fp32") is None
    speed = speed_of(kernel)
    assert known_speed(kernel.model, "fp32") == speed


def test_a_home_that_cannot_be_written_to_is_no_error(
    tmp_path: Path, kernel: KernelModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(speeds, "cache_folder", lambda: tmp_path / "file")
    assert all(second > 0 for second in speed_of(kernel).seconds)


def test_between_what_was_measured_it_is_a_line() -> None:
    speed = Speed((1.0, 2.0, 9.0))
    assert [speed.of(count) for count in (1, 3, 5, 40, 75)] == pytest.approx([1, 1.5, 2, 9, 16])


def test_auto_is_the_fastest_dtype(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if any(unavailable_format(kind) for kind in WEIGHT_FORMATS):
        pytest.skip("there is no C kernel here for every dtype")
    model = GPT(SHAPE).eval()
    assert fastest_kind(model, 1) == "fp32", "small models are not measured"
    monkeypatch.setattr("regpt.fast.decoding.decoders.is_large", lambda model: True)
    times = {"fp32": (3.0, 3.0, 9.0), "bf16": (2.0, 2.0, 9.0), "int8": (1.0, 5.0, 9.0)}
    monkeypatch.setattr(
        "regpt.fast.decoding.decoders.speed_of", lambda kernel: Speed(times[kernel.kind])
    )
    assert fastest_kind(model, 1) == "int8"
    assert fastest_kind(model, 5) == "bf16"


@pytest.mark.parametrize(
    ("device", "capability", "kind"),
    [("cuda", (9, 0), "bf16"), ("cuda", (7, 5), "fp32"), ("mps", None, "fp32")],
)
def test_auto_off_a_cpu_is_what_the_table_says(
    device: str, capability: tuple[int, int] | None, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = GPT(SHAPE)
    monkeypatch.setattr(GPT, "device", torch.device(device))
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: capability)
    assert fastest_kind(model, 1) == "fp32", "small models stay exact"
    monkeypatch.setattr("regpt.fast.decoding.decoders.is_large", lambda model: True)
    assert fastest_kind(model, 1) == kind
    assert DTYPES[kind] == find_dtype("auto", model.device)


def test_measuring_leaves_the_model_alone(kernel: KernelModel) -> None:
    before = {name: tensor.clone() for name, tensor in kernel.model.state_dict().items()}
    state = torch.get_rng_state()
    measure(kernel)
    after = kernel.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(state, torch.get_rng_state())


def test_the_depth_follows_cost_and_luck() -> None:
    flat = Speed((1.0, 1.0, 1.0))  # memory decides: checking many costs what one costs
    steep = Speed((1.0, 5.0, 40.0))  # arithmetic decides
    fifth, half = Speed((0.2,) * 3), Speed((0.5,) * 3)
    assert best_draft_length(0.99, 1, flat, Speed((1e-9,) * 3))[0] == MAX_DRAFT_LENGTH
    assert best_draft_length(0.96, 5, steep, half) == (0, 1.0)
    depths = [best_draft_length(share, 1, flat, fifth)[0] for share in (0.3, 0.7, 0.9, 0.99)]
    assert depths == sorted(depths)
    assert depths[0] < depths[-1]
    gains = [best_draft_length(0.96, rows, flat, fifth)[1] for rows in (1, 2, 5, 20)]
    assert gains == sorted(gains, reverse=True), "the slowest row decides"
    # by hand, draws being nothing to seconds: two drafts and 0.8 more at 0.2 each, and one pass,
    # make 1 + 0.8 + 0.64 tokens; one draft makes 1.8 in 1.36, three 2.952 in 1.76
    depth, gain = best_draft_length(0.8, 1, flat, fifth)
    assert (depth, gain) == (4, pytest.approx(3.3616 / 1.96, rel=1e-3))
