"""Periodic evaluation: when it is due, what is recorded, and that training does not notice."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import TINY, forget_the_end, losses, notes, tiny
from torch._dynamo.utils import counters

from evaluation.choices import write_examples
from regpt import GPT, UserError, find_runtime
from regpt.core.data import ArrayDataset
from regpt.evaluation import hellaswag as swag
from regpt.evaluation.validation import validate
from regpt.evaluation.windows import cut_windows
from regpt.system.distributed import World
from regpt.training.config import RunConfig
from regpt.training.loop import train

EVERYTHING = {
    "eval_every": 2, "quick_eval_every": 2, "sample_every": 2,
    "hellaswag_every": 2, "hellaswag_examples": 2,
    "prompts": ("the cat", "a dog"), "sample_tokens": 6,
}  # fmt: skip


def lines(out: Path, key: str) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl that have this number."""
    found = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if key in line]


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    path = tmp_path / "hellaswag_val.jsonl"
    write_examples(path, 12)
    return path


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # torch.compile reads it
@pytest.mark.parametrize("compiled", [False, True])
def test_training_does_not_notice(
    text_file: Path, examples: Path, tmp_path: Path, compiled: bool, monkeypatch: Any
) -> None:
    changes: dict[str, Any] = {"compile": compiled, "batch_tokens": 8 * 16}
    if compiled:
        plain = torch.nn.Module.compile
        # everything of torch.compile but the C++ compiler
        monkeypatch.setattr(torch.nn.Module, "compile", lambda m: plain(m, backend="aot_eager"))
    else:
        changes["model"] = replace(TINY, dropout=0.2)  # draws from the global stream
    seen: list[dict[str, Any]] = []
    graphs = []
    for name, more in (("quiet", {"prompts": ()}), ("busy", EVERYTHING)):
        torch.compiler.reset()
        counters.clear()
        hellaswag = {"hellaswag": str(examples)} if name == "busy" else {}
        seen.clear()
        train(tiny(text_file, tmp_path / name, **(changes | hellaswag | more)), seen.append)
        graphs.append(counters["stats"]["unique_graphs"])
    assert losses(tmp_path / "busy") == losses(tmp_path / "quiet")
    expected = [2, 2] if compiled else [0, 0]  # one to train, one to validate
    assert graphs == expected
    evaluations = ("val_loss", "quick_val_loss", "hellaswag_acc", "samples")
    assert [sum(key in line for line in seen) for key in evaluations] == [3, 3, 3, 4]


def test_figures_are_those_of_the_saved_model(
    text_file: Path, examples: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    train(tiny(text_file, out, hellaswag=str(examples), hellaswag_examples=5))
    runtime = find_runtime("cpu", dtype="fp32")
    chosen = swag.read_examples(examples)
    chosen = [chosen[index] for index in (0, 2, 4, 7, 9)]  # evenly spread over twelve
    answers = swag.answer_all(
        GPT.from_pretrained(out), chosen, runtime,
        scoring="lecture", batch_tokens=64, world=World(device=runtime.device),
    )  # fmt: skip
    found = swag.accuracies(answers)
    (line,) = lines(out, "hellaswag_acc_norm")
    assert line == {
        "step": 6, "hellaswag_acc": found["acc"], "hellaswag_acc_norm": found["acc_norm"],
        "hellaswag_acc_norm_stderr": found["acc_norm_stderr"], "hellaswag_examples": 5,
        "hellaswag_scoring": "lecture",
    }  # fmt: skip


def test_a_quick_validation_scores_windows_from_all_over(
    text_file: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr("regpt.training.periodic_evaluation.QUICK_TOKENS", 5 * 16)
    out = tmp_path / "run"
    state = train(tiny(text_file, out, quick_eval_every=2, steps=4, validation_fraction=0.1))
    runtime = find_runtime("cpu", dtype="fp32")
    held_out = state.data.validation
    assert held_out is not None
    starts = [int(start) for start in cut_windows(held_out, block_size=16).spread(5).starts]
    tokens = len(held_out) // 5
    assert [start // tokens for start in starts] == [0, 1, 2, 3, 4], "one of each fifth"
    nats = [
        validate(GPT.from_pretrained(out), ArrayDataset(held_out.read(start, start + 17)), runtime,
                 block_size=16).loss
        for start in starts
    ]  # fmt: skip
    first, last = lines(out, "quick_val_loss")
    assert (first["step"], last["step"], last["quick_val_tokens"]) == (2, 4, 80)
    assert last["quick_val_loss"] == pytest.approx(sum(nats) / 5, rel=1e-6)
    assert [line["step"] for line in lines(out, "val_loss")] == [4], "the whole text at the end"


def test_a_text_shorter_than_a_quick_validation_is_scored_whole(
    text_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    train(tiny(text_file, out, quick_eval_every=6, validation_tokens=100, validation_fraction=0.1))
    (quick,), (whole,) = lines(out, "quick_val_loss"), lines(out, "val_loss")
    assert quick["quick_val_tokens"] == whole["val_tokens"] == 99
    assert quick["quick_val_loss"] == pytest.approx(whole["val_loss"])
    train(tiny(text_file, tmp_path / "none", quick_eval_every=2, validation_fraction=0.0))
    assert lines(tmp_path / "none", "quick_val_loss") == []


def test_each_evaluation_has_its_own_schedule(
    text_file: Path, examples: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    config = tiny(
        text_file, out, hellaswag=str(examples), hellaswag_examples=2, steps=7, eval_every=3,
        hellaswag_every=5, sample_every=4, prompts=("the",),
    )  # fmt: skip
    train(config)
    assert [line["step"] for line in lines(out, "val_loss")] == [3, 6, 7]
    assert [line["step"] for line in lines(out, "hellaswag_acc")] == [5, 7]
    assert [line["step"] for line in lines(out, "samples")] == [0, 4, 7]


def test_samples_are_recorded_for_programs_and_for_people(text_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(tiny(text_file, out, sample_every=3, prompts=("the cat", "a dog"), sample_tokens=5))
    written = lines(out, "samples")
    assert [line["step"] for line in written] == [0, 3, 6]
    for line in written:
        assert list(line["samples"]) == ["the cat", "a dog"]
        for prompt, texts in line["samples"].items():
            assert len(texts) == 2
            assert all(text.startswith(prompt) and len(text) > len(prompt) for text in texts)
    people = (out / "samples.txt").read_text(encoding="utf-8")
    assert people.count("== after ") == 3
    for line in written:
        assert all(f"> {text}\n" in people for texts in line["samples"].values() for text in texts)


def test_a_resumed_run_evaluates_each_step_once(
    text_file: Path, examples: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    config = tiny(text_file, out, hellaswag=str(examples), save_every=4, **EVERYTHING)
    train(config)
    before = (out / "samples.txt").read_text(encoding="utf-8")
    keys = ("val_loss", "quick_val_loss", "hellaswag_acc", "samples")
    expected = {key: lines(out, key) for key in keys}
    (out / "checkpoints" / "step-00000006").rename(out / "moved")
    forget_the_end(out)
    train(config, resume=True)
    assert {key: lines(out, key) for key in expected} == expected
    assert (out / "samples.txt").read_text(encoding="utf-8") == before
    assert [line["step"] for line in expected["samples"]] == [0, 2, 4, 6]


def test_a_resume_reads_what_is_sound_and_says_what_was_not(
    text_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    config = tiny(text_file, out, save_every=4, prompts=())
    train(config)
    expected = losses(out)
    path = out / "metrics.jsonl"
    path.write_text(path.read_text().replace('{"step": 2,', '{"step', 1)[:-20])
    (out / "checkpoints" / "step-00000006").rename(out / "moved")
    forget_the_end(out)
    said: list[str] = []
    train(config, say=said.append, resume=True)
    assert any("2 lines dropped that are not whole (line 2, 7)" in note for note in notes(said))
    assert losses(out) == [expected[0], *expected[2:]]


def test_a_run_begun_again_samples_once(text_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    config = tiny(text_file, out, prompts=("the",))
    train(config)
    forget_the_end(out)
    train(config, resume=True)
    assert [line["step"] for line in lines(out, "samples")] == [0, 6]
    assert (out / "samples.txt").read_text(encoding="utf-8").count("== after 0 steps") == 1


def test_the_published_file_on_request(
    text_file: Path, examples: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(swag, "fetch", lambda: examples)
    train(tiny(text_file, tmp_path / "run", hellaswag="download", hellaswag_examples=2))
    assert len(lines(tmp_path / "run", "hellaswag_acc")) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read .*No such file"),
        ("\n\n", "has no examples"),
        ('{"ind": 1', "line 1 is not JSON"),
    ],
)
def test_a_bad_file_fails_before_the_run_begins(
    text_file: Path, tmp_path: Path, content: str | None, message: str
) -> None:
    path = tmp_path / "bad.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message):
        train(tiny(text_file, tmp_path / "run", hellaswag=str(path)))
    assert not (tmp_path / "run").exists()


def test_a_schedule_without_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="hellaswag_every without hellaswag: name a copy"):
        tiny(tmp_path / "text", tmp_path / "run", hellaswag_every=5)


def test_a_saved_run_with_a_token_interval_is_refused(tmp_path: Path) -> None:
    saved = tiny(tmp_path / "text", tmp_path / "run").to_json() | {"eval_every": "10M"}
    with pytest.raises(UserError, match=r"eval_every is '10M'.*resume with the version named"):
        RunConfig.from_json(saved)
