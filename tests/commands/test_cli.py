"""The command line as a person meets it: in a process of its own, or through `main`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from forks import warm_python
from regpt.cli import COMMANDS, first_paragraph, main

SHAPE = [
    "--model.n-layer", "1", "--model.n-head", "2", "--model.n-embd", "16",
    "--model.block-size", "32", "--block-size", "16", "--steps", "3", "--batch-size", "2",
    "--device", "cpu",
]  # fmt: skip


def fails(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run a command that must fail; returns its one line."""
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("regpt: error: ")
    assert error.count("\n") == 1, error
    return error


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three steps."""
    folder = tmp_path_factory.mktemp("cli")
    text = folder / "text.txt"
    text.write_text("It is a truth universally acknowledged, that a single man. " * 40)
    out = folder / "run"
    main(["train", "quickstart", "--data", str(text), "--out", str(out), *SHAPE])
    return out


def test_train_prints_where_everything_is_and_how_to_sample(
    text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    main(["train", "quickstart", "--data", str(text_file), "--out", str(out), *SHAPE])
    printed = capsys.readouterr().out
    assert "samples before training:" in printed
    assert "samples after 3 steps:" in printed
    assert "nats per token" in printed
    assert "bits per byte" in printed
    command = next(line for line in printed.splitlines() if line.startswith("  regpt sample"))
    assert f"--model {out}" in command


def test_sample_json_prints_objects_and_nothing_else(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model", str(run), "--num-samples", "2", "--max-length", "12", "--device", "cpu"]
    main(["sample", "Hello there", *arguments, "--json"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [list(line) for line in lines] == [["index", "tokens", "text"]] * 2
    assert [line["index"] for line in lines] == [0, 1]
    assert all(len(line["tokens"]) == 12 for line in lines)
    assert all(line["text"].startswith("Hello there") for line in lines)
    main(["sample", "Hello there", *arguments])
    assert capsys.readouterr().out.startswith("> Hello there")


def test_help_names_every_command_and_flag(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    printed = capsys.readouterr().out
    assert all(name in printed for name in COMMANDS)
    main(["train", "--help"])
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("quickstart", "lecture", "overfit"))
    with pytest.raises(SystemExit) as stop:
        main(["train", "lecture", "--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert all(
        flag in printed
        for flag in ("--steps", "--out", "--seed", "--batch-size", "--batch-tokens", "--dtype",
                     "--block-size", "--lr", "--eval-every", "--device", "--model.n-layer")
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dance"], "unknown command 'dance': choose one of train, "),
        (["train", "fast"], "unknown preset 'fast': choose one of quickstart, lecture, overfit"),
        (["train", "lecture", "--steps", "many"], "--steps"),
        (["train", "lecture", "--stepz", "3"], "--stepz"),
        (["train", "lecture", "--block-size", "2048"], "2048 is above the model's 1024"),
        (["train", "lecture", "--data", "no/such/file.txt"], "no/such/file.txt"),
        (["train", "lecture", "--device", "tpu"], "device 'tpu'"),
        (["sample", "--top-k", "0"], "top_k must be at least 1, got 0"),
        (["sample", "--temperature", "-1"], "temperature must be 0"),
        (["sample", "--rng", "dice"], "--rng"),
        (["sample", "--model", "./nowhere"], "nowhere"),
        (["sample", "--model", "gpt2"], "HF_HUB_OFFLINE"),
    ],
)
def test_wrong_input_is_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert message in fails(capsys, *arguments)


@pytest.mark.parametrize(
    ("command", "call"),
    [
        ("explain", "regpt explain PROMPT [FLAGS]"),
        ("sample", "regpt sample [PROMPT] [FLAGS]"),
        ("export", "regpt export MODEL OUT [FLAGS]"),
        ("runs", "regpt runs [FOLDER] [FLAGS]"),
        ("train quickstart", "regpt train quickstart [FLAGS]"),
        ("bench generate", "regpt bench generate [MODEL] [FLAGS]"),
    ],
)
def test_a_stray_argument_is_told_how_the_command_is_called(
    capsys: pytest.CaptureFixture[str], command: str, call: str
) -> None:
    error = fails(capsys, *command.split(), "one", "two", "some text")
    assert f"some text: call it as {call} (see regpt {command} --help)" in error


def test_wrong_lengths_are_one_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "below the prompt's 8" in fails(capsys, "sample", "--model", run, "--max-length", 5)
    assert "above the model's block_size 32" in fails(
        capsys, "sample", "--model", run, "--max-length", 33
    )


def test_wrong_texts_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty, latin, out = tmp_path / "empty.txt", tmp_path / "latin.txt", tmp_path / "run"
    empty.touch()
    latin.write_bytes(b"plain then caf\xe9 then more")
    for path in (empty, latin):
        assert str(path) in fails(capsys, "train", "lecture", "--data", path, "--out", out)
        assert not out.exists()


def test_wrong_model_directories_are_one_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "config.json" in fails(capsys, "sample", "--model", tmp_path)
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    config = json.loads((run / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "n_positions": 31, "n_ctx": 31}))
    message = fails(capsys, "sample", "--model", tmp_path)
    assert "wpe.weight" in message
    assert "31" in message
    assert "32" in message


def test_an_output_that_is_taken_or_cannot_be_written(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = run.parent / "text.txt"
    arguments = ["train", "quickstart", "--data", text, *SHAPE]
    assert "already holds a run" in fails(capsys, *arguments, "--out", run)
    (tmp_path / "file").touch()
    assert "cannot write" in fails(capsys, *arguments, "--out", tmp_path / "file" / "run")


@pytest.mark.parametrize(
    ("flags", "prompts"),
    [
        (["--resume", "{run}", "--prompts", "x=1"], ("x=1",)),
        (["--resume={run}", "--prompts", "x=1", "y = 2"], ("x=1", "y = 2")),
        (["--prompts", "a=b=c", "--resume", "{run}"], ("a=b=c",)),
        (["quickstart", "--prompts=--resume=x", "--resume", "{run}"], ("--resume=x",)),
    ],
)
def test_a_resume_changes_what_its_flags_say(
    run: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], prompts: tuple[str, ...]
) -> None:
    resumed = []
    monkeypatch.setattr("regpt.commands.train.train", lambda config, resume: resumed.append(config))
    main(["train", *(flag.format(run=run) for flag in flags)])
    (config,) = resumed
    assert config.prompts == prompts
    assert config.out == str(run)
    assert config.steps == 3


@pytest.mark.parametrize("flags", [["--resume"], ["--resume", "--steps", "3"]])
def test_a_resume_without_a_run(capsys: pytest.CaptureFixture[str], flags: list[str]) -> None:
    assert "--resume needs the directory of a run" in fails(capsys, "train", *flags)


def test_a_resume_of_another_preset(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = fails(capsys, "train", "lecture", "--resume", run)
    assert "is a run of preset quickstart, not lecture: leave the preset out" in error


def test_the_installed_command_runs() -> None:
    environment = {**os.environ, "PYTHONWARNINGS": "error"}
    done = subprocess.run(
        [sys.executable, "-m", "regpt", "--version"],
        capture_output=True, text=True, env=environment, check=True,
    )  # fmt: skip
    assert done.stdout.startswith("regpt 0.")
    assert "\nC kernels: " in done.stdout


def test_an_unknown_set_of_instructions_is_one_line() -> None:
    done = subprocess.run(
        [warm_python(), "-m", "regpt", "--version"],
        capture_output=True, text=True, env={**os.environ, "REGPT_CPU": "mmx"}, check=True,
    )  # fmt: skip
    assert "\nC kernels: none: REGPT_CPU=mmx is not one of amx, " in done.stdout


def test_a_framed_message_becomes_a_line() -> None:
    box = "╭─ Error ─╮\n│ wrong   │\n│ thing   │\n│ ─────── │\n│ more    │\n╰─────────╯\n"
    assert first_paragraph(box) == "wrong thing"
    plain = " Error  \n ------ \n  wrong \n  thing \n  ------\n  more  \n\n"
    assert first_paragraph(plain) == "wrong thing"
