"""What a run leaves behind survives: damage, full disks, second resumes, changed minds."""

import json
import math
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import forget_the_end, losses, notes, steps, tiny

from regpt import UserError
from regpt.core.optimizer import OptimizerConfig
from regpt.core.train import StepResult
from regpt.system.distributed import World
from regpt.training.build import check_shares
from regpt.training.checkpoint import Snapshot, verify, write_checkpoint
from regpt.training.config import RunConfig
from regpt.training.loop import train


def contents(out: Path) -> dict[str, bytes]:
    """Every file of a run."""
    return {str(path): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_a_complete_run_is_left_alone(text_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    config = tiny(text_file, out, save_every=3)
    done = train(config)
    before, seen = contents(out), []
    again = train(config, say=seen.append, resume=True)
    assert len(seen) == 1
    assert "is complete, 6 steps: nothing is left to do" in notes(seen)[0]
    assert contents(out) == before
    for name, tensor in done.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name


def test_more_steps_go_on_and_are_written_down(text_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    config = tiny(text_file, out, save_every=3)
    train(config)
    forget_the_end(out)
    with pytest.raises(UserError, match=r"steps 4 is fewer than the 6 that are done"):
        train(replace(config, steps=4), resume=True)
    seen: list[str] = []
    train(replace(config, steps=9), say=seen.append, resume=True)
    assert steps(out) == list(range(1, 10))
    assert "from here on steps 9 (was 6)" in notes(seen)
    record = json.loads((out / "run.json").read_text())
    assert record["config"]["steps"] == record["finished"] == 9
    assert record["changes"] == [{"after_step": 6, "fields": {"steps": [6, 9]}}]
    samples = (out / "samples.txt").read_text()
    assert [line for line in samples.splitlines() if line.startswith("==")] == [
        "== after 0 steps", "== after 6 steps", "== after 9 steps"
    ]  # fmt: skip


def test_killed_while_finishing_it_finishes_once(text_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    config = tiny(text_file, out, save_every=3)
    train(config)
    before = contents(out)
    forget_the_end(out)
    (out / "model.safetensors").unlink()
    train(config, resume=True)
    after = contents(out)
    assert after.keys() == before.keys()
    different = {Path(name).name for name in before if before[name] != after[name]}
    assert different <= {"loss.png"}


def test_killed_before_its_first_checkpoint_it_begins_again(
    text_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    config = tiny(text_file, out)
    train(config)
    expected = losses(out)
    forget_the_end(out)
    seen: list[str] = []
    train(config, say=seen.append, resume=True)
    assert "has no checkpoint yet: it begins again" in notes(seen)[0]
    assert losses(out) == expected
    assert (out / "samples.txt").read_text().count("== after 0 steps") == 1


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def garble(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 64
    path.write_bytes(data)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def as_list(path: Path) -> None:
    path.write_text("[]\n")


def as_nothing_named(path: Path) -> None:
    path.write_text('{"sha256": {}}\n')


@pytest.fixture(scope="module")
def six_steps(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A run that was killed before it recorded its end: copied, and its copy damaged."""
    folder = tmp_path_factory.mktemp("six")
    (folder / "text.txt").write_text("the cat saw a dog and the dog saw a bird. " * 300)
    config = tiny(folder / "text.txt", folder / "run", save_every=2)
    train(config)
    forget_the_end(folder / "run")
    return config


@pytest.mark.parametrize(
    ("file", "damage", "said"),
    [
        ("state.json", garble, "state.json does not match"),
        ("state.json", truncate, "state.json does not match"),
        ("config.json", garble, "config.json does not match"),
        ("model.safetensors", truncate, "model.safetensors does not match"),
        ("optimizer.safetensors", empty, "optimizer.safetensors does not match"),
        ("optimizer.safetensors", Path.unlink, "optimizer.safetensors is missing"),
        ("manifest.json", Path.unlink, "manifest.json is missing"),
        ("manifest.json", truncate, "manifest.json is damaged"),
        ("manifest.json", as_list, "manifest.json is damaged"),
        ("manifest.json", as_nothing_named, "manifest.json does not name config.json"),
    ],
)
def test_any_damage_is_named_and_the_one_before_taken(
    six_steps: RunConfig, tmp_path: Path, file: str, damage: Callable[[Path], None], said: str
) -> None:
    out = tmp_path / "run"
    shutil.copytree(six_steps.out, out)
    expected, newest = losses(out), out / "checkpoints" / "step-00000006"
    damage(newest / file)
    seen: list[str] = []
    train(replace(six_steps, out=str(out)), say=seen.append, resume=True)
    assert f"step-00000006 is not sound ({said}" in notes(seen)[0]
    assert "resumed after step 4" in notes(seen)[1]
    assert losses(out) == expected
    assert verify(newest) is None, "the damaged one is written anew"


def test_a_damaged_newer_one_does_not_count_as_kept(text_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    config = tiny(text_file, out, steps=12, save_every=2, keep=9, validation_fraction=0.0)
    train(config)
    forget_the_end(out)
    folder = out / "checkpoints"
    for step in (10, 12):
        garble(folder / f"step-{step:08d}" / "state.json")
    shutil.rmtree(folder / "step-00000008")
    stop = iter([False, True])
    train(replace(config, keep=2), resume=True, stop=lambda: next(stop))
    sound = [path.name for path in sorted(folder.glob("step-*")) if verify(path) is None]
    assert sound == ["step-00000006", "step-00000008"]


def validation_losses(folder: Path) -> dict[int, float | None]:
    return {
        int(path.name[5:]): json.loads((path / "manifest.json").read_text())["val_loss"]
        for path in folder.glob("step-*")
    }


def test_the_best_is_chosen_among_all_checkpoints(text_file: Path, tmp_path: Path) -> None:
    config = tiny(text_file, tmp_path / "run", steps=7, save_every=2, eval_every=3, keep=9)
    folder = tmp_path / "run" / "checkpoints"
    train(config)
    found = validation_losses(folder)
    assert sorted(found) == [2, 4, 6, 7]
    assert None not in found.values()
    best = min(found, key=lambda step: found[step] or math.inf)
    assert (folder / "best").read_text().strip() == f"step-{best:08d}"
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "val_loss" in line] == [2, 3, 4, 6, 7]


def test_what_was_not_validated_is_never_the_best(text_file: Path, tmp_path: Path) -> None:
    asked = iter([False, False, True])
    config = tiny(text_file, tmp_path / "run", steps=7, save_every=2, eval_every=7, keep=9)
    train(config, stop=lambda: next(asked))
    assert validation_losses(tmp_path / "run" / "checkpoints")[3] is None
    unasked = replace(config, out=str(tmp_path / "unasked"), eval_every=None)
    train(unasked)
    found = validation_losses(tmp_path / "unasked" / "checkpoints")
    assert found[2] is found[4] is found[6] is None
    assert (tmp_path / "unasked" / "checkpoints" / "best").read_text() == "step-00000007\n"


def test_a_run_of_skipped_steps_only_can_be_resumed(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = True

    def refuse_the_first(result: StepResult) -> str | None:
        nonlocal first
        first, refused = False, first
        return "made up" if refused else None

    monkeypatch.setattr("regpt.training.loop.nonfinite_reason", refuse_the_first)
    config = tiny(text_file, tmp_path / "run", save_every=1, skip_bad_steps=1)
    train(config, stop=lambda: True)
    train(config, resume=True)
    first = True
    train(replace(config, out=str(tmp_path / "whole")))
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


def test_an_optimizer_that_does_not_fit_is_refused(text_file: Path, tmp_path: Path) -> None:
    config = tiny(text_file, tmp_path / "run", save_every=3)
    train(config)
    muon = OptimizerConfig(name="muon")
    with pytest.raises(UserError, match=r"no optimizer state .*momentum.*--optimizer.name"):
        train(replace(config, steps=9, optimizer=muon), resume=True)


def test_a_save_that_fails_stops_the_training_in_one_line(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Path, snapshot: Snapshot, *, keep: int) -> Path:
        if snapshot.progress["step"] >= 4:
            raise UserError("no space left")
        return write_checkpoint(folder, snapshot, keep=keep)

    monkeypatch.setattr("regpt.training.checkpoint.write_checkpoint", refuse)
    out = tmp_path / "run"
    config = tiny(text_file, out, steps=100_000, save_every=2, validation_fraction=0.0)
    with pytest.raises(UserError, match="no space left"):
        train(config)
    assert max(steps(out)) <= 6
    assert (out / "checkpoints" / "latest").read_text() == "step-00000002\n"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 36 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("mounting a small file system takes root")
    command = ["mount", "-t", "tmpfs", "-o", "size=36m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("this system does not let us mount a small file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("spare", [0, 4, 7])
def test_a_disk_that_fills_up_during_a_save(
    text_file: Path, tmp_path: Path, small_disk: Path, spare: int
) -> None:
    whole = tmp_path / "whole"
    config = tiny(text_file, whole, steps=8, save_every=2, keep=9)
    train(config)
    out = small_disk / "run"
    ballast = small_disk / "ballast"
    size = sum(path.stat().st_size for path in (whole / "checkpoints").glob("step-00000002/*"))

    def fill_up(entry: dict[str, Any]) -> None:
        if "loss" in entry and entry["step"] == 3:
            while not (out / "checkpoints" / "latest").exists():
                time.sleep(0.01)  # the save of step 2 is under way
            free = shutil.disk_usage(small_disk).free
            ballast.write_bytes(b"x" * (free - (spare << 20)))

    assert spare << 20 < size
    with pytest.raises(UserError, match=r"(?i)no space left") as stop:
        train(replace(config, out=str(out)), fill_up)
    assert "\n" not in str(stop.value)
    folder = out / "checkpoints"
    assert [path.name for path in folder.glob("step-*")] == ["step-00000002"]
    assert verify(folder / "step-00000002") is None
    ballast.unlink()
    train(replace(config, out=str(out), keep=1, save_every=4), resume=True)
    assert losses(out) == losses(whole)


def test_a_sharded_batch_must_divide(text_file: Path, tmp_path: Path) -> None:
    world = World(rank=0, size=2, device=torch.device("cpu"))
    config = tiny(text_file, tmp_path / "run", batch_tokens=5 * 16)
    check_shares(config, world)
    with pytest.raises(UserError, match=r"5 sequences is not a multiple of 2 processes"):
        check_shares(replace(config, shard=True), world)


def test_the_global_batch_is_named_in_the_record(text_file: Path, tmp_path: Path) -> None:
    train(tiny(text_file, tmp_path / "run"))
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["config"]["batch_tokens"] == 4 * 16
    assert tiny(text_file, tmp_path).with_batch_tokens(3).batch_tokens == 3 * 4 * 16


def write_shard(path: Path, tokens: np.ndarray) -> None:
    """A file of tokens in llm.c's layout."""
    header = np.zeros(256, dtype="<i4")
    header[:3] = 20240520, 1, len(tokens)
    path.write_bytes(header.tobytes() + tokens.astype("<u2").tobytes())


def test_a_folder_of_shards_is_trained_on(tmp_path: Path) -> None:
    folder = tmp_path / "tokens"
    folder.mkdir()
    numbers = np.random.default_rng(0).integers(0, 50257, 900)
    write_shard(folder / "some_train_000001.bin", numbers[:400])
    write_shard(folder / "some_train_000002.bin", numbers[400:700])
    config = tiny(folder, tmp_path / "one", steps=2)
    train(config)
    record = json.loads((tmp_path / "one" / "run.json").read_text())
    assert record["data"]["train_tokens"] == 700
    assert record["data"]["validation_tokens"] == 0
    with pytest.raises(UserError, match="has no val shards"):
        train(replace(config, out=str(tmp_path / "two"), validation_tokens=100))
    write_shard(folder / "some_val_000000.bin", numbers[700:])
    train(replace(config, out=str(tmp_path / "two"), validation_tokens=100, save_every=1))
    record = json.loads((tmp_path / "two" / "run.json").read_text())
    assert record["data"]["validation_tokens"] == 100
    assert len(record["data"]["fingerprint"].split()) == 2
    assert '"val_tokens": 99' in (tmp_path / "two" / "metrics.jsonl").read_text()
    write_shard(folder / "some_train_000002.bin", numbers[401:701])
    changed = replace(config, out=str(tmp_path / "two"), steps=4, validation_tokens=100)
    with pytest.raises(UserError, match="the data has changed"):
        train(changed, resume=True)
