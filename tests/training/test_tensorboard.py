"""Event files: what TensorBoard's own reader finds in them, and what a resume leaves there."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from runs import forget_the_end, losses, tiny

from regpt.training.loop import train
from regpt.training.tensorboard import TAGS, TensorBoard, checksum, read_records, step_of

SPEED = "train/tokens_per_second"  # differs from run to run
SETTINGS = {"tensorboard": True, "eval_every": 3, "sample_tokens": 5, "prompts": ("the",)}


def files(out: Path) -> list[Path]:
    return sorted(out.glob("events.out.tfevents.*"))


def read(out: Path) -> tuple[dict[str, list[tuple[int, float]]], dict[str, list[Any]]]:
    """Scalars and texts by tag, as TensorBoard reads them."""
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="tensorboard is not installed: pip install 'regpt[tensorboard]'",
    )
    events = accumulator.EventAccumulator(str(out), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    scalars = {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
        if tag != SPEED
    }
    texts = {
        tag: [
            (event.step, [part.decode() for part in event.tensor_proto.string_val])
            for event in events.Tensors(tag)
        ]
        for tag in events.Tags()["tensors"]
    }
    return scalars, texts


def test_the_checksum_is_castagnolis() -> None:
    crc = 0xE3069283  # of "123456789", RFC 3720's polynomial
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    assert checksum(b"123456789") == masked.to_bytes(4, "little")


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
    assert [step for step, _ in texts["samples/the"]] == [0, 6]
    for (_, found), line in zip(texts["samples/the"], written, strict=True):
        plain = ["    " + part.replace("\n", "\n    ") for part in line["samples"]["the"]]
        assert found == plain


@pytest.mark.parametrize("cut", [0, 11])
def test_a_resumed_run_has_each_step_once(text_file: Path, tmp_path: Path, cut: int) -> None:
    out = tmp_path / "run"
    config = tiny(text_file, out, save_every=4, **SETTINGS)
    train(config)
    first = files(out)[0]
    expected = read(out)
    kept = [data for data in read_records(first) if 0 < step_of(data) <= 4]
    if cut:  # a kill in the middle of a record
        first.write_bytes(first.read_bytes()[:-cut])
    (out / "checkpoints" / "step-00000006").rename(out / "moved")
    forget_the_end(out)
    train(config, resume=True)
    assert len(files(out)) == 1
    assert files(out)[0].name > first.name
    assert read(out) == expected
    assert [data for data in read_records(files(out)[0]) if 0 < step_of(data) <= 4] == kept


def test_switched_on_at_a_resume(text_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    config = tiny(text_file, out, save_every=4, **(SETTINGS | {"tensorboard": False}))
    train(config)
    assert files(out) == []
    train(replace(config, tensorboard=True, steps=8), resume=True)
    scalars, texts = read(out)
    assert [value for _, value in scalars["train/loss"]] == pytest.approx(losses(out))
    assert [step for step, _ in scalars["train/loss"]] == list(range(1, 9))
    assert [step for step, _ in texts["samples/the"]] == [0, 6, 8]


def test_odd_numbers_and_prompts(tmp_path: Path) -> None:
    board = TensorBoard(tmp_path, [], step=0)
    board.write({"step": 2**40, "loss": float("nan"), "grad_norm": 1e300, "learning_rate": 3})
    board.write({"step": 2**40 + 1, "samples": {"": ["a\n# b", ""], "é\ud800": ["ü"]}})
    board.write({"step": 7, "other": 1})
    scalars, texts = read(tmp_path)
    assert math.isnan(scalars["train/loss"][0][1])
    assert scalars["train/grad_norm"] == [(2**40, math.inf)]
    assert scalars["train/learning_rate"] == [(2**40, 3.0)]
    assert texts["samples/"] == [(2**40 + 1, ["    a\n    # b", "    "])]
    assert texts["samples/é?"] == [(2**40 + 1, ["    ü"])]
    assert sum(1 for _ in read_records(files(tmp_path)[0])) == 3
