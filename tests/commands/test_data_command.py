"""`regpt prepare` and `regpt data show`, as typed."""

import hashlib
import json
from pathlib import Path

import pytest

from regpt.cli import main
from regpt.datasets.shards import ShardDataset, digest_file


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    texts = tmp_path / "texts.jsonl"
    lines = [json.dumps({"text": f"Document {n} says {'hm ' * 20}."}) for n in range(300)]
    texts.write_text("\n".join(lines) + "\n")
    out = tmp_path / "shards"
    main(["prepare", str(texts), "--out", str(out), "--processes", "1", "--val-every", "10"])
    return out


def test_prepare_says_what_it_made(prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    texts, more = prepared.parent / "texts.jsonl", ["--processes", "1", "--val-every", "10"]
    main(["prepare", str(texts), "--out", str(prepared), *more])  # made already: says it again
    printed = capsys.readouterr().out
    train = ShardDataset.open(prepared)
    assert f"{len(train):,} tokens" in printed
    assert f"regpt train gpt2-124m --data {prepared}" in printed


def test_show_prints_the_batch_of_a_data_set(
    prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["data", "show", str(prepared), "--block-size", "32", "--sequences", "3"]
    capsys.readouterr()
    main([*arguments, "--step", "5"])
    first = capsys.readouterr().out
    assert first.count("-- sequence") == 3
    assert "hm" in first
    main([*arguments, "--step", "5"])
    assert capsys.readouterr().out == first
    main([*arguments, "--step", "6"])
    assert capsys.readouterr().out != first


def test_verify_reads_every_shard_against_the_manifest(
    prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    main(["data", "verify", str(prepared)])
    printed = capsys.readouterr().out
    for split in ("train", "val"):
        assert f"{len(ShardDataset.open(prepared, split=split)):,} tokens, as" in printed
    shard = prepared / "val_000000.bin"
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    found, expected = digest_file(shard), hashlib.sha256(content).hexdigest()
    with pytest.raises(SystemExit) as stop:
        main(["data", "verify", str(prepared)])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{shard} has sha256 {found[:12]}, the manifest says {expected[:12]}" in line
    (prepared / "manifest.json").unlink()
    with pytest.raises(SystemExit):
        main(["data", "verify", str(prepared)])
    assert "no manifest.json to verify its shards against" in capsys.readouterr().err


def test_show_prints_the_batch_of_a_run(
    text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    shape = ["--model.n-layer", "1", "--model.n-head", "1", "--model.n-embd", "8",
             "--model.block-size", "16", "--block-size", "16", "--batch-size", "2",
             "--steps", "1"]  # fmt: skip
    main(["train", "quickstart", "--data", str(text_file), "--out", str(out), *shape])
    capsys.readouterr()
    main(["data", "show", str(out), "--step", "1"])
    printed = capsys.readouterr().out
    assert printed.count("-- sequence") == 2
    assert "saw" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prepare", "no/such.txt", "--out", "x"], "no/such.txt"),
        (["data", "show", "no/such/folder"], "no/such/folder"),
        (["data", "show", ".", "--step", "0"], "step must be at least 1"),
    ],
)
def test_wrong_input_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
