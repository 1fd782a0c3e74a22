"""Many processes on one machine: gloo, started by torchrun or as torchrun would."""

import json
import subprocess
import sys
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from runs import forget_the_end, losses, steps

from evaluation.choices import write_examples
from forks import together

BASE = [
    "--device", "cpu", "--threads", "1", "--dtype", "fp32", "--block-size", "16",
    "--batch-size", "2", "--batch-tokens", "192", "--steps", "6", "--save-every", "3",
    "--model.block-size", "16", "--model.n-layer", "2", "--model.n-head", "2",
    "--model.n-embd", "16", "--optimizer.name", "adamw", "--no-compact-vocabulary",
]  # fmt: skip


def torchrun(processes: int, *arguments: str) -> CompletedProcess[str]:
    """`regpt train ...` on so many processes, as a person starts them."""
    start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, *start, "-m", "regpt", "train"]
    return subprocess.run([*command, *arguments], capture_output=True, text=True)


def launch(processes: int, *arguments: str) -> CompletedProcess[str]:
    """The same in forks."""
    return together(processes, "train", *arguments)


def figures(out: Path) -> list[float]:
    """What validation and HellaSwag found, in their order."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    keys = ("step", "val_loss", "val_bits_per_byte", "val_tokens", "hellaswag_acc_norm")
    found = [line for line in lines if "val_loss" in line or "hellaswag_acc_norm" in line]
    assert len(found) == 4
    assert sum("samples" in line for line in lines) == 3
    return [float(line[key]) for line in found for key in keys if key in line]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("parallel") / "text.txt"
    path.write_text("It is a truth universally acknowledged, that a single man is tired. " * 60)
    write_examples(path.parent / "hellaswag.jsonl", 4)
    return path


def evaluations(text: Path) -> list[str]:
    """The flags of everything that is evaluated, half way and at the end."""
    return [
        "--eval-every", "3", "--sample-every", "3", "--hellaswag-every", "3",
        "--hellaswag", str(text.parent / "hellaswag.jsonl"), "--hellaswag-examples", "3",
        "--sample-tokens", "6",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def alone(text: Path) -> Path:
    """The run on one process."""
    out = text.parent / "alone"
    done = launch(
        1, "quickstart", "--data", str(text), "--out", str(out), *BASE, *evaluations(text)
    )
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.parametrize(
    ("processes", "more"),
    [(2, ()), (3, ()), (2, ("--shard",))],
    ids=["2 replicas", "3 replicas", "2 shards"],
)
def test_the_same_losses_on_any_number(
    text: Path, alone: Path, tmp_path: Path, processes: int, more: tuple[str, ...]
) -> None:
    out = tmp_path / "run"
    arguments = ["quickstart", "--data", str(text), "--out", str(out), *BASE, *more]
    plain = processes == 2 and not more
    start = torchrun if plain else launch
    done = start(processes, *arguments, *evaluations(text))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("regpt train quickstart:") == 1, "only the first process prints"
    assert losses(out) == pytest.approx(losses(alone), rel=1e-5)
    assert figures(out) == pytest.approx(figures(alone), rel=1e-5)
    record = json.loads((out / "checkpoints" / "step-00000006" / "state.json").read_text())
    assert record["world_size"] == processes
    if plain:  # of two gradients there is one sum, so the losses repeat to the bit
        arguments[4] = str(tmp_path / "quiet")
        assert launch(processes, *arguments).returncode == 0
        assert losses(tmp_path / "quiet") == losses(out)


@pytest.mark.parametrize(("first", "second"), [(2, 1), (1, 2)], ids=["2 to 1", "1 to 2"])
def test_sharded_and_single_runs_read_each_others_checkpoints(
    text: Path, alone: Path, tmp_path: Path, first: int, second: int
) -> None:
    out = tmp_path / "run"
    arguments = ["quickstart", "--data", str(text), "--out", str(out), *BASE, "--shard"]
    assert launch(first, *arguments).returncode == 0
    for name in ("step-00000006", "latest"):
        path = out / "checkpoints" / name
        path.rename(out / f"moved-{name}")
    forget_the_end(out)
    done = launch(second, "--resume", str(out))
    assert done.returncode == 0, done.stderr
    assert "resumed after step 3" in done.stdout
    assert f"saved by {first} processes, resumed by {second}" in done.stdout
    assert steps(out) == [1, 2, 3, 4, 5, 6]
    assert losses(out) == pytest.approx(losses(alone), rel=1e-5)


def test_an_error_of_the_first_process_ends_all(text: Path, alone: Path) -> None:
    arguments = ["quickstart", "--data", str(text), "--out", str(alone), *BASE]
    done = launch(2, *arguments)
    assert done.returncode != 0
    assert f"{alone} already holds a run" in done.stderr
