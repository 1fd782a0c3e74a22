"""Runs from end to end, on a model of a few thousand parameters."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import TINY, losses, notes, tiny

from regpt import GPT, UserError, find_runtime
from regpt.core.optimizer import OptimizerConfig
from regpt.core.schedule import ScheduleConfig
from regpt.system.plot import svg
from regpt.training.build import decide_compile, uses_blocked_attention
from regpt.training.loop import train
from regpt.training.loss_plot import draw_loss, loss_chart
from regpt.training.presets import quickstart


def test_a_run_leaves_a_model_and_its_record(text_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    seen: list[dict[str, Any]] = []
    said: list[str] = []
    state = train(tiny(text_file, out, eval_every=4), seen.append, said.append)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6]
    keys = ("step", "loss", "learning_rate", "grad_norm", "tokens", "tokens_per_second")
    assert tuple(steps[0]) == (*keys, "peak_memory")
    if sys.platform == "linux":
        held = [line["peak_memory"] for line in steps]
        assert held == sorted(held), "a peak never falls"
        assert 50e6 < held[0] < 50e9  # torch is in it
    assert [line["tokens"] for line in steps] == [64, 128, 192, 256, 320, 384]
    validations = [line for line in lines if "val_loss" in line]
    assert [line["step"] for line in validations] == [4, 6]
    assert validations[0]["val_bits_per_byte"] > 0
    record = json.loads((out / "run.json").read_text())
    assert record["config"]["steps"] == 6
    assert record["config"]["model"]["n_embd"] == 16
    assert len(record["data"]["fingerprint"]) == 64
    assert record["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "samples.txt").read_text().count("> Hello, I'm") == 4
    assert not [path.name for path in out.iterdir() if path.name.startswith(".")]
    again = GPT.from_pretrained(out)
    for name, tensor in state.model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    assert seen == lines
    kinds = [next(key for key in ("samples", "loss", "val_loss") if key in line) for line in lines]
    assert kinds == ["samples", *["loss"] * 4, "val_loss", *["loss"] * 2, "val_loss", "samples"]
    assert said[0].startswith(f"regpt train custom: {text_file} -> {out}\nmodel      ")
    assert said[-1].startswith("done in ")


def test_missing_kernels_are_said_once(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("regpt.training.loop.refused", lambda: "no C compiler")
    train(tiny(text_file, tmp_path / "run", dtype="bf16"), say=said.append)
    assert notes(said) == ["no C compiler; training through torch's operators, which is slower"]


def test_a_large_text_is_spoken_of_before_it_is_read(text_file: Path, tmp_path: Path) -> None:
    text_file.write_text(text_file.read_text() * 80)
    said: list[str] = []
    train(tiny(text_file, tmp_path / "run", steps=1, validation_tokens=64), say=said.append)
    assert said[0] == "note: reading the text, 0 of 1 MB"
    assert said[1].startswith("regpt train custom: ")


def test_same_seed_same_losses(text_file: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        train(tiny(text_file, tmp_path / name))
    train(tiny(text_file, tmp_path / "three", seed=7))
    assert losses(tmp_path / "one") == losses(tmp_path / "two")
    assert losses(tmp_path / "one") != losses(tmp_path / "three")


def test_validation_and_samples_do_not_disturb_training(text_file: Path, tmp_path: Path) -> None:
    model = replace(TINY, dropout=0.2)  # dropout draws from the global stream
    train(tiny(text_file, tmp_path / "quiet", model=model))
    train(tiny(text_file, tmp_path / "busy", model=model, eval_every=1))
    assert losses(tmp_path / "quiet") == losses(tmp_path / "busy")


def test_the_picture_shows_where_guessing_stands(tmp_path: Path) -> None:
    metrics = [{"step": step, "loss": 11.0 - step} for step in range(1, 5)]
    metrics += [{"step": 2, "quick_val_loss": 9.5, "quick_val_tokens": 2048}]
    chart = loss_chart(metrics, vocab_size=50257)
    text = svg(chart, width=760, height=300)
    assert "ln 50257, all tokens equally likely: 10.82" in text
    assert "validation, 2,048 of its tokens" in [curve.name for curve in chart.curves]
    draw_loss(metrics, tmp_path / "loss.png", title="t", vocab_size=50257)
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_the_quickstart_has_a_validation_curve() -> None:
    config = quickstart()
    assert config.quick_eval_every is not None
    assert 8 <= config.steps // config.quick_eval_every <= 16
    assert config.eval_every is None, "the whole text at the end only"


def test_overfitting_one_batch_goes_towards_nothing(text_file: Path, tmp_path: Path) -> None:
    config = tiny(text_file, tmp_path / "run", overfit=True, steps=40, lr=3e-2, batch_size=1)
    train(config)
    assert losses(tmp_path / "run")[0] > 10
    assert losses(tmp_path / "run")[-1] < 1.0


def test_muon_with_a_schedule_learns(text_file: Path, tmp_path: Path) -> None:
    config = tiny(
        text_file,
        tmp_path / "run",
        steps=30,
        optimizer=OptimizerConfig(name="muon"),
        schedule=ScheduleConfig(name="wsd", warmup_steps=3, decay_fraction=0.5),
    )
    train(config)
    assert losses(tmp_path / "run")[-1] < 6


def test_a_directory_with_a_run_is_never_overwritten(text_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(tiny(text_file, out))
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(UserError, match="already holds a run"):
        train(tiny(text_file, out))
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_text_too_short_for_a_batch_makes_no_directory(tmp_path: Path) -> None:
    text = tmp_path / "short.txt"
    text.write_text("too short for a batch")
    with pytest.raises(UserError, match=r"5 tokens.*4 x 16 needs 65"):
        train(tiny(text, tmp_path / "run", validation_fraction=0.0))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("split", [None, "train", "val"])
def test_ids_beyond_the_models_vocabulary_are_one_line_and_leave_nothing(
    text_file: Path, tmp_path: Path, split: str | None
) -> None:
    small = replace(TINY, vocab_size=300)
    data = text_file
    if split is not None:
        data = tmp_path / "shards"
        data.mkdir()
        for name in ("train", "val"):
            tokens = np.arange(600, dtype=np.uint16) % 300 + 300 * (name == split)
            np.save(data / f"some_{name}_000000.npy", tokens)
    config = tiny(data, tmp_path / "run", model=small, validation_fraction=0.0, prompts=())
    with pytest.raises(UserError, match="vocabulary") as raised:
        train(config)
    assert len(str(raised.value).splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_validation_part_too_short_makes_no_directory(text_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="validation text"):
        train(tiny(text_file, tmp_path / "run", validation_fraction=1e-5))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block_size": 17}, "block_size 17 is above the model's 16"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"lr": 0.0}, "lr must be positive"),
        ({"batch_tokens": 40}, "batch_tokens 40 is not a multiple of block_size 16"),
        ({"validation_fraction": 1.0}, "validation_fraction must be in"),
        ({"eval_every": 0}, "eval_every must be at least 1"),
    ],
)
def test_impossible_configurations_are_refused(change: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        tiny(tmp_path / "text", tmp_path / "run", **change)


def test_attention_in_blocks_learns_the_same(text_file: Path, tmp_path: Path) -> None:
    for name in ("plain", "blocks"):
        train(tiny(text_file, tmp_path / name, attention=name))
    pairs = zip(losses(tmp_path / "plain"), losses(tmp_path / "blocks"), strict=True)
    assert all(one == pytest.approx(other, rel=1e-4) for one, other in pairs)


@pytest.mark.parametrize(
    ("dtype", "changes", "blocks"),
    [
        ("bf16", {}, True),
        ("fp32", {}, False),
        ("bf16", {"compile": True}, False),
        ("bf16", {"attention": "plain"}, False),
        ("fp32", {"attention": "blocks"}, True),
    ],
)
def test_attention_is_chosen(
    text_file: Path, tmp_path: Path, dtype: str, changes: dict, blocks: bool
) -> None:
    runtime = find_runtime("cpu", dtype=dtype)
    assert uses_blocked_attention(tiny(text_file, tmp_path, **changes), runtime) == blocks


def test_a_run_compiles_where_it_pays(text_file: Path, tmp_path: Path) -> None:
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    short, long = (tiny(text_file, tmp_path, steps=steps) for steps in (499, 500))
    cases = [(short, gpu), (long, gpu), (long, cpu)]
    assert [decide_compile(*case)[0] for case in cases] == [False, True, False]
    assert decide_compile(short, gpu)[1] == "499 steps are over before it has paid (from 500 on)"
    for asked in (True, False):
        assert decide_compile(replace(long, compile=asked), cpu)[0] == asked
        assert decide_compile(replace(short, compile=asked), gpu)[0] == asked
