"""A run that was stopped, and goes on, is the run that was not stopped."""

import json
import random
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from runs import TINY, forget_the_end, losses, notes, steps, tiny

from forks import Fork
from regpt import GPT, GPTConfig, UserError
from regpt.core.optimizer import OptimizerConfig
from regpt.core.schedule import ScheduleConfig
from regpt.training.config import RunConfig
from regpt.training.loop import train


class StopAfter:
    """Asks a run to stop after so many steps."""

    def __init__(self, asked: int) -> None:
        self.left = asked

    def __call__(self) -> bool:
        self.left -= 1
        return self.left == 0


def stop_and_resume(config: RunConfig, after: int) -> None:
    """Run, stop after some steps, go on to the end."""
    said: list[str] = []
    train(config, say=said.append, stop=StopAfter(after))
    assert said[-1].startswith(f"stopped after step {after} and saved. Go on with:\n  regpt train")
    train(config, resume=True)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_losses_and_weights_are_bit_equal(text_file: Path, tmp_path: Path, optimizer: str) -> None:
    changes = {
        "steps": 9,
        "eval_every": 4,
        "model": replace(TINY, dropout=0.1),
        "optimizer": OptimizerConfig(name=optimizer),
        "schedule": ScheduleConfig(name="cosine", warmup_steps=2),
        "batch_tokens": 8 * 16,
    }
    unbroken = train(tiny(text_file, tmp_path / "one", **changes))
    config = tiny(text_file, tmp_path / "two", **changes)
    stop_and_resume(config, 5)
    assert losses(tmp_path / "two") == losses(tmp_path / "one")
    assert steps(tmp_path / "two") == list(range(1, 10))
    again = GPT.from_pretrained(tmp_path / "two")
    for name, tensor in unbroken.model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


@pytest.mark.parametrize("padded", [False, True])
def test_a_compact_vocabulary_resumes_and_is_saved_whole(
    text_file: Path, tmp_path: Path, padded: bool
) -> None:
    changes = {
        "compact_vocabulary": True,
        "zero_projections": True,
        "pad_vocabulary": padded,
        "optimizer": OptimizerConfig(clip=None),
        "eval_every": 2,
    }
    unbroken = train(tiny(text_file, tmp_path / "one", **changes))
    assert len(unbroken.model.wte.weight) < 200
    stop_and_resume(tiny(text_file, tmp_path / "two", **changes), 4)
    assert losses(tmp_path / "two") == losses(tmp_path / "one")
    model = GPT.from_pretrained(tmp_path / "two")
    assert len(model.wte.weight) == 50257
    for name, tensor in unbroken.whole_model().state_dict().items():
        assert torch.equal(tensor[:50257], model.state_dict()[name]), name


def test_padding_the_vocabulary_changes_nothing(text_file: Path, tmp_path: Path) -> None:
    train(tiny(text_file, tmp_path / "plain"))
    config = tiny(text_file, tmp_path / "padded", pad_vocabulary=True)
    stop_and_resume(config, 3)
    assert losses(tmp_path / "padded") == pytest.approx(losses(tmp_path / "plain"), rel=1e-6)
    assert len(GPT.from_pretrained(tmp_path / "padded").wte.weight) == 50257


def test_only_what_is_wanted_is_kept(text_file: Path, tmp_path: Path) -> None:
    said: list[str] = []
    train(tiny(text_file, tmp_path / "run", save_every=1, eval_every=1, keep=2), say=said.append)
    saved = [int(text.split()[1]) for text in said if "  checkpoint, " in text]
    assert saved == [1, 2, 3, 4, 5, 6]
    folder = tmp_path / "run" / "checkpoints"
    best = (folder / "best").read_text().strip()
    assert (folder / "latest").read_text().strip() == "step-00000006"
    expected = {"step-00000005", "step-00000006", best, "latest", "best"}
    assert {path.name for path in folder.iterdir()} == expected
    GPT.from_pretrained(folder / best)


def test_a_damaged_checkpoint_is_passed_over(text_file: Path, tmp_path: Path) -> None:
    config = tiny(text_file, tmp_path / "run", save_every=2, keep=9)
    train(config)
    expected = losses(tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    damaged = folder / "step-00000006" / "optimizer.safetensors"
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    (folder / "step-00000004" / "model.safetensors").unlink()
    forget_the_end(tmp_path / "run")
    said: list[str] = []
    train(config, say=said.append, resume=True)
    assert "step-00000006 is not sound (optimizer.safetensors does not match" in notes(said)[0]
    assert "step-00000004 is not sound (model.safetensors is missing)" in notes(said)[1]
    assert "resumed after step 2" in notes(said)[2]
    assert losses(tmp_path / "run") == expected


def test_without_a_sound_checkpoint_nothing_is_touched(text_file: Path, tmp_path: Path) -> None:
    config = tiny(text_file, tmp_path / "run")
    train(config)
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match="no sound checkpoint"):
        train(replace(config, steps=9), resume=True)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": GPTConfig(block_size=16, n_layer=1, n_head=1, n_embd=16)}, "model.n_head"),
        ({"model": GPTConfig(block_size=16, n_layer=2, n_head=2, n_embd=16)}, "model.n_layer"),
        ({"validation_fraction": 0.2}, "the training split has changed"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    text_file: Path, tmp_path: Path, change: dict, message: str
) -> None:
    config = tiny(text_file, tmp_path / "run", save_every=3)
    train(config)
    with pytest.raises(UserError, match=message):
        train(replace(config, steps=9, **change), resume=True)


def test_changed_data_are_refused(text_file: Path, tmp_path: Path) -> None:
    config = tiny(text_file, tmp_path / "run", save_every=3)
    train(config)
    text = text_file.read_text()
    text_file.write_text(text.replace("cat", "cow", 1))
    with pytest.raises(UserError, match="the data has changed"):
        train(replace(config, steps=9), resume=True)


def test_options_of_earlier_versions_are_read_at_their_default(tmp_path: Path) -> None:
    config = tiny(tmp_path / "text", tmp_path / "run")
    saved = config.to_json() | {"keep_copies": True}
    saved["optimizer"] |= {"muon_stacked": True}
    assert RunConfig.from_json(saved) == config
    with pytest.raises(UserError, match="keep_copies is no longer an option"):
        RunConfig.from_json(saved | {"keep_copies": False})


SHAPE = [
    "--device", "cpu", "--threads", "1", "--dtype", "fp32", "--batch-size", "2",
    "--block-size", "16", "--eval-every", "7", "--save-every", "1", "--steps", "25",
    "--model.block-size", "16", "--model.n-layer", "1", "--model.n-head", "1",
    "--model.n-embd", "8",
]  # fmt: skip


def test_killed_at_random_moments_it_still_comes_to_the_same_end(
    text_file: Path, tmp_path: Path
) -> None:
    preset = ["train", "quickstart", "--data", str(text_file), *SHAPE]
    assert Fork(*preset, "--out", str(tmp_path / "whole")).finish().returncode == 0
    run = tmp_path / "run"
    moments = random.Random(11)
    kills = 0
    arguments = [*preset, "--out", str(run)]
    for _ in range(3):
        fork = Fork(*arguments)
        until = losses_so_far(run) + moments.randint(2, 6)
        while fork.poll() is None and losses_so_far(run) < until:
            time.sleep(0.002)
        time.sleep(moments.uniform(0.0, 0.03))  # the next step, its save or what lies between
        fork.kill()
        kills += fork.finish().returncode == -signal.SIGKILL
        arguments = ["train", "--resume", str(run)]
    done = Fork(*arguments).finish()
    assert done.returncode == 0, done.stderr
    assert kills >= 1
    assert steps(run) == list(range(1, 26))
    assert losses(run) == losses(tmp_path / "whole")


def test_sigterm_saves_and_says_how_to_go_on(text_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = ["train", "quickstart", "--data", str(text_file), *SHAPE, "--steps", "100000"]
    arguments[arguments.index("--save-every") + 1] = "1000000"
    fork = Fork(*arguments, "--out", str(run))
    while not losses_so_far(run):
        time.sleep(0.02)
    fork.terminate()
    done = fork.finish()
    assert done.returncode == 0
    assert f"regpt train --resume {run}" in done.stdout
    (checkpoint,) = (run / "checkpoints").glob("step-*")
    assert int(checkpoint.name[5:]) == max(steps(run))


def losses_so_far(run: Path) -> int:
    """Whole lines in metrics.jsonl."""
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b"}\n") if path.exists() else 0


def test_bad_numbers_stop_the_run_and_are_kept(text_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    config = tiny(text_file, out, lr=1e20, optimizer=OptimizerConfig(clip=None))
    with pytest.raises(UserError, match=r"loss is nan|gradient norm is|loss is inf"):
        train(config)
    (incident,) = (out / "incidents").iterdir()
    report = json.loads((incident / "report.json").read_text())
    assert report["step"] == int(incident.name[5:])
    assert "sequence 0" in (incident / "batch.txt").read_text()
    GPT.from_pretrained(incident / "model")


def test_bad_steps_can_be_skipped(text_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    said: list[str] = []
    config = tiny(text_file, out, lr=1e20, skip_bad_steps=2, optimizer=OptimizerConfig(clip=None))
    with pytest.raises(UserError, match="was not applied"):
        train(config, say=said.append)
    skipped = notes(said)
    assert len(skipped) == 2
    assert "skipped" in skipped[0]
    assert len(list((out / "incidents").iterdir())) == 3
