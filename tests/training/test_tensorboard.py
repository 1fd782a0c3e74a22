"""Event files: what TensorBoard's own reader finds in them, and what a resume leaves there."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from runs import forget_the_end, losses, tiny

from regpt.system.errors import UserError
from regpt.training.loop import train
from regpt.training.tensorboard import TAGS, TensorBoard

SPEED = "train/tokens_per_second"  # differs from run to run
SETTINGS = {"tensorboard": True, "eval_every": 3, "sample_tokens": 5, "prompts": ("the",)}


def files(out: Path) -> list[Path]:
    return sorted(out.glob("events.out.tfevents.*"))


def read(out: Path) -> tuple[dict[str, list[tuple[int, float]]], dict[str, list[Any]]]:
    """Scalars and texts by tag, as TensorBoard reads and shows them."""
    reader = pytest.importorskip(
        "tensorboard.backend.event_processing.plugin_event_accumulator",
        reason="tensorboard is not installed: pip install 'regpt[tensorboard]'",
    )
    events = reader.EventAccumulator(str(out), size_guidance={"tensors": 0})
    events.Reload()
    found = {
        tag: [(event.step, event.tensor_proto) for event in events.Tensors(tag)]
        for tag in events.Tags()["tensors"]
        if tag != SPEED
    }
    texts = {
        tag: [(step, [part.decode() for part in proto.string_val]) for step, proto in found[tag]]
        for tag in found
        if tag.startswith("samples/")
    }
    scalars = {
        tag: [(step, proto.float_val[0]) for step, proto in found[tag]]
        for tag in found.keys() - texts.keys()
    }
    return scalars, texts


def test_tensorboard_reads_what_metrics_has(text_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(tiny(text_file, out, **SETTINGS))
    assert len(files(out)) == 1
    scalars, texts = read(out)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    for name, tag in TAGS.items():
        if tag == SPEED:
            continue
        expected = [(line["step"], pytest.approx(line[name])) for line in lines if name in line]
        assert scalars.get(tag, []) == expected, name
    assert len(scalars["train/loss"]) == 6
    assert len(scalars["validation/loss"]) == 2
    written = [line for line in lines if "samples" in line]
    assert [step for step, _ in texts["samples/the/text_summary"]] == [0, 6]
    for (_, found), line in zip(texts["samples/the/text_summary"], written, strict=True):
        plain = ["    " + part.replace("\n", "\n    ") for part in line["samples"]["the"]]
        assert found == ["\n\n---\n\n".join(plain)]


@pytest.mark.parametrize(("save_every", "cut"), [(4, 0), (4, 11), (None, 11)])
def test_a_resumed_run_has_each_step_once(
    text_file: Path, tmp_path: Path, cut: int, save_every: int | None
) -> None:
    out = tmp_path / "run"
    config = tiny(text_file, out, save_every=save_every, **SETTINGS)
    train(config)
    first = files(out)[0]
    expected = read(out)
    if cut:  # a kill in the middle of a record
        first.write_bytes(first.read_bytes()[:-cut])
    if save_every:
        (out / "checkpoints" / "step-00000006").rename(out / "moved")
    forget_the_end(out)
    train(config, resume=True)
    assert len(files(out)) == 2
    assert read(out) == expected


def test_what_a_kill_leaves_is_whole(text_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    steps = 0

    def die(entry: dict[str, Any]) -> None:
        nonlocal steps
        steps += "loss" in entry
        if steps == 5:  # no file is closed: what has been recorded must be there already
            found.update({name: points[-1][0] for name, points in read(out)[0].items()})

    found: dict[str, int] = {}
    train(tiny(text_file, out, **SETTINGS), die)
    assert found["train/loss"] == 5
    assert found["validation/loss"] == 3


def test_without_the_package(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match=r"pip install 'regpt\[tensorboard\]'"):
        train(tiny(text_file, tmp_path / "run", **SETTINGS))
    assert not (tmp_path / "run").exists()


def test_switched_on_at_a_resume(text_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    config = tiny(text_file, out, save_every=4, **(SETTINGS | {"tensorboard": False}))
    train(config)
    assert files(out) == []
    train(replace(config, tensorboard=True, steps=8), resume=True)
    scalars, texts = read(out)
    assert [value for _, value in scalars["train/loss"]] == pytest.approx(losses(out))
    assert [step for step, _ in scalars["train/loss"]] == list(range(1, 9))
    assert [step for step, _ in texts["samples/the/text_summary"]] == [0, 6, 8]


def test_odd_numbers_and_prompts(tmp_path: Path) -> None:
    board = TensorBoard(tmp_path, [], step=0)
    board.write({"step": 2**40, "loss": float("nan"), "grad_norm": 1e300, "learning_rate": 3})
    board.write({"step": 2**40 + 1, "samples": {"": ["a\n# b", ""], "é\ud800": ["ü"]}})
    board.write({"step": 7, "other": 1})
    board.close()
    scalars, texts = read(tmp_path)
    assert math.isnan(scalars["train/loss"][0][1])
    assert scalars["train/grad_norm"] == [(2**40, math.inf)]
    assert scalars["train/learning_rate"] == [(2**40, 3.0)]
    assert texts["samples//text_summary"] == [(2**40 + 1, ["    a\n    # b\n\n---\n\n    "])]
    assert texts["samples/é?/text_summary"] == [(2**40 + 1, ["    ü"])]
