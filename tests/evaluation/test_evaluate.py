"""`regpt evaluate`, as a person would start it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from choices import write_examples
from test_cli import fails
from test_model import sharpen

from forks import together
from regpt import GPT, GPTConfig, find_runtime, get_tokenizer
from regpt.cli import main
from regpt.core.data import ArrayDataset
from regpt.datasets.corpora import load_corpus
from regpt.datasets.shards import make_header
from regpt.evaluation.validation import validate

Capture = pytest.CaptureFixture[str]
CPU = find_runtime("cpu", dtype="fp32")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(6)
    gpt = sharpen(GPT(GPTConfig(block_size=64, n_layer=2, n_head=2, n_embd=32)), 0.15)
    directory = tmp_path_factory.mktemp("evaluate") / "model"
    gpt.save_pretrained(directory)
    return directory


def evaluate(model: Path, *arguments: object, capsys: Capture) -> dict[str, Any]:
    """The object in the last line."""
    main(["evaluate", str(model), *map(str, arguments), "--device", "cpu", "--json"])
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_the_last_line_is_the_figure(model: Path, text_file: Path, capsys: Capture) -> None:
    found = evaluate(model, "--data", text_file, "--stride", 40, capsys=capsys)
    tokens = ArrayDataset(load_corpus([text_file]).tokens(get_tokenizer()))
    gpt = GPT.from_pretrained(model)
    expected = validate(gpt, tokens, CPU, block_size=64, stride=40)
    assert found["loss"] == pytest.approx(expected.loss, rel=1e-6)
    assert found["perplexity"] == pytest.approx(expected.perplexity, rel=1e-5)
    assert found["bits_per_byte"] == pytest.approx(expected.bits_per_byte, rel=1e-6)
    assert found["nats_per_character"] == pytest.approx(expected.nats_per_character, rel=1e-6)
    assert found["tokens"] == len(tokens) - 1
    assert (found["stride"], found["block_size"], found["documents"]) == (40, 64, False)


def test_every_form_of_a_text_gives_one_figure(
    model: Path, text_file: Path, tmp_path: Path, capsys: Capture
) -> None:
    text = text_file.read_text()
    expected = evaluate(model, "--data", text_file, capsys=capsys)["loss"]
    tokens = np.array(get_tokenizer().encode(text), dtype="<u2")
    binary = tmp_path / "tokens.bin"
    binary.write_bytes(make_header(len(tokens)) + tokens.tobytes())
    shards = tmp_path / "shards"
    shards.mkdir()
    np.save(shards / "val_0.npy", tokens)
    lines = tmp_path / "text.jsonl"
    lines.write_text(json.dumps({"text": text}) + "\n")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "one.txt").write_text(text)
    for source in (binary, shards, lines, folder):
        found = evaluate(model, "--data", source, capsys=capsys)
        assert found["loss"] == pytest.approx(expected, rel=1e-6), source


def test_documents_and_the_held_out_part(
    model: Path, text_file: Path, tmp_path: Path, capsys: Capture
) -> None:
    other = tmp_path / "other.txt"
    other.write_text("Another document, with words of its own. " * 9)
    within = evaluate(model, "--data", text_file, other, "--documents", capsys=capsys)
    across = evaluate(model, "--data", text_file, other, capsys=capsys)
    assert within["documents"] is True
    assert within["tokens"] == across["tokens"]
    assert abs(within["loss"] - across["loss"]) > 1e-5
    held_out = evaluate(model, "--data", text_file, "--validation-fraction", 0.1, capsys=capsys)
    _, corpus = load_corpus([text_file]).split(0.1)
    assert held_out["tokens"] == len(corpus.tokens(get_tokenizer())) - 1


def test_one_and_two_processes(
    model: Path, text_file: Path, tmp_path: Path, capsys: Capture
) -> None:
    path = tmp_path / "made.jsonl"
    write_examples(path, 15)
    arguments = ["--data", str(text_file), "--hellaswag", str(path), "--details"]
    alone = evaluate(model, *arguments, tmp_path / "one", capsys=capsys)
    flags = [str(tmp_path / "two"), "--device", "cpu", "--json"]
    done = together(2, "evaluate", str(model), *arguments, *flags)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("model ") == 1, "only the first process prints"
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["loss"] == pytest.approx(alone["loss"], rel=1e-6)
    assert found["hellaswag"] == alone["hellaswag"]
    for name in ("hellaswag-lecture.jsonl", "hellaswag-harness.jsonl"):
        one, two = (
            [json.loads(line) for line in (tmp_path / run / name).read_text().splitlines()]
            for run in ("one", "two")
        )
        assert len(one) == len(two) == 15
        for a, b in zip(one, two, strict=True):
            assert b["nll"] == pytest.approx(a["nll"], rel=1e-6)
            assert (a["choice"], a["choice_norm"]) == (b["choice"], b["choice_norm"])


def test_hellaswag_and_lambada(model: Path, tmp_path: Path, capsys: Capture) -> None:
    write_examples(tmp_path / "made.jsonl", 12)
    (tmp_path / "lambada.jsonl").write_text('{"text": "the dog saw the dog"}\n')
    found = evaluate(
        *[model, "--hellaswag", tmp_path / "made.jsonl", "--scoring", "harness", "--limit", 10],
        *["--lambada", tmp_path / "lambada.jsonl", "--details", tmp_path / "out"],
        capsys=capsys,
    )
    assert set(found["hellaswag"]) == {"examples", "harness"}
    assert found["hellaswag"]["examples"] == 10
    figures = found["hellaswag"]["harness"]
    assert set(figures) == {"acc", "acc_stderr", "acc_norm", "acc_norm_stderr"}
    assert found["lambada"]["examples"] == 1
    assert found["lambada"]["perplexity"] > 1
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["hellaswag-harness.jsonl", "lambada.jsonl"]


def test_bad_input(model: Path, tmp_path: Path, capsys: Capture) -> None:
    short, empty = tmp_path / "short.txt", tmp_path / "empty"
    short.write_text("a")
    empty.mkdir()
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "fine words"}\n{"text": 5}\n')
    blank = tmp_path / "blank.jsonl"
    blank.write_text("\n")
    assert "nothing to score" in fails(capsys, "evaluate", model)
    assert "has 1 tokens, but 2 are needed" in fails(capsys, "evaluate", model, "--data", short)
    assert "has no documents" in fails(capsys, "evaluate", model, "--data", empty)
    assert "has no examples" in fails(capsys, "evaluate", model, "--data", blank)
    blank.write_text('{"text": ""}\n')
    assert "blank.jsonl has no documents" in fails(capsys, "evaluate", model, "--data", blank)
    assert "line 2: field 'text' is not text" in fails(capsys, "evaluate", model, "--data", bad)
    assert "not both" in fails(capsys, "evaluate", model, "--data", bad, short)
    assert "no such file" in fails(capsys, "evaluate", model, "--data", tmp_path / "absent.txt")
    assert "above the model's 64" in fails(
        capsys, "evaluate", model, "--data", bad, "--block-size", 65
    )
    assert "at least 1, got 0" in fails(capsys, "evaluate", model, "--data", bad, "--limit", 0)
    assert "takes one file" in fails(capsys, "evaluate", model, "--hellaswag", bad, blank)
    assert "line 1 has no field 'endings'" in fails(capsys, "evaluate", model, "--hellaswag", bad)
    assert "stride 99 is not between" in fails(
        capsys, "evaluate", model, "--data", "README.md", "--stride", 99
    )
