"""Texts to shards: the same bytes whatever the processes, the format, and the kills on the way."""

import gzip
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from regpt.core.tokenizer import END_OF_TEXT_ID, get_tokenizer
from regpt.datasets import encode, sources
from regpt.datasets.encode import cut_pieces, encode_pieces, find_safe_cut, read_pieces
from regpt.datasets.manifest import Manifest
from regpt.datasets.prepare import prepare
from regpt.datasets.shards import ShardDataset
from regpt.datasets.sources import find_sources
from regpt.system.errors import UserError

exact = settings(deadline=None, derandomize=True)
pyarrow = pytest.importorskip("pyarrow", reason="the extra 'data' is not installed")
from pyarrow import parquet  # noqa: E402

TEXTS = [
    f"Document {i}. " + "Ünïcödé words, numbers 12345 and\n\nparagraphs! " * (i % 7) + "终"
    for i in range(60)
]


def write_jsonl(path, texts=TEXTS):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps({"id": 1, "text": text}) + "\n" for text in texts))
    return path


def zstd(data):
    return pyarrow.compress(data, codec="zstd", asbytes=True)


def expected_tokens(texts, *, val_every, split):
    """The rule of documents.py, written down a second time."""
    tokens = []
    for text in texts:
        number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
        if (val_every and number % val_every == 0) == (split == "val"):
            tokens += [END_OF_TEXT_ID, *get_tokenizer().encode(text)]
    return tokens


def read_all(directory, split="train"):
    data = ShardDataset.open(directory, split=split, verify=True)
    return data.read(0, len(data)).tolist()


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


# ---- the tokens ----


def test_documents_become_the_expected_tokens(tmp_path):
    manifest = prepare(
        [write_jsonl(tmp_path / "in.jsonl")], tmp_path / "out", processes=1, val_every=5
    )
    for split in ("train", "val"):
        tokens = expected_tokens(TEXTS, val_every=5, split=split)
        assert read_all(tmp_path / "out", split) == tokens
        assert manifest.splits[split].tokens == len(tokens)
        assert manifest.splits[split].documents == tokens.count(END_OF_TEXT_ID) > 0
    num_bytes = sum(record.text_bytes for record in manifest.splits.values())
    assert num_bytes == sum(len(text.encode()) for text in TEXTS)


def test_shards_are_cut_at_the_size_asked_for(tmp_path):
    source = write_jsonl(tmp_path / "in.jsonl")
    manifest = prepare([source], tmp_path / "out", processes=1, shard_tokens=100, val_every=5)
    for split in ("train", "val"):
        sizes = [shard.tokens for shard in manifest.shards if shard.split == split]
        assert set(sizes[:-1]) == {100}
        assert 0 < sizes[-1] <= 100
        assert read_all(tmp_path / "out", split) == expected_tokens(TEXTS, val_every=5, split=split)


def test_special_text_stays_text(tmp_path):
    source = write_jsonl(tmp_path / "in.jsonl", ["a <|endoftext|> b"])
    prepare([source], tmp_path / "out", processes=1, val_every=0)
    tokens = read_all(tmp_path / "out")
    assert tokens[0] == END_OF_TEXT_ID
    assert END_OF_TEXT_ID not in tokens[1:]


def test_empty_documents_and_blank_lines_are_nothing(tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text('{"text": ""}\n\n{"text": "a"}\n  \n{"text": "b"}')
    manifest = prepare([source], tmp_path / "out", processes=1, val_every=0)
    assert manifest.splits["train"].documents == 2


def test_half_a_surrogate_pair_is_a_replacement_character(tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text('{"text": "a\\ud800b"}\n')
    prepare([source], tmp_path / "out", processes=1, val_every=0)
    assert get_tokenizer().decode(read_all(tmp_path / "out")[1:]) == "a\N{REPLACEMENT CHARACTER}b"


def write_parquet(path, texts, **options):
    table = pyarrow.table({"id": list(range(len(texts))), "text": texts})
    parquet.write_table(table, path, **options)


@pytest.mark.parametrize("block_bytes", [1 << 20, 200])
def test_every_format_gives_the_same_tokens(tmp_path, monkeypatch, block_bytes):
    monkeypatch.setattr(encode, "BLOCK_BYTES", block_bytes)
    lines = write_jsonl(tmp_path / "in.jsonl").read_bytes()
    # Two gzip members and two zstandard frames, as concatenated files have them.
    half = lines.index(b"\n", len(lines) // 2) + 1
    first, second = lines[:half], lines[half:]
    (tmp_path / "in.jsonl.gz").write_bytes(gzip.compress(first) + gzip.compress(second))
    (tmp_path / "in.jsonl.zst").write_bytes(zstd(first) + zstd(second))
    (tmp_path / "bom.jsonl").write_bytes(b"\xef\xbb\xbf" + lines)
    write_parquet(tmp_path / "in.parquet", TEXTS, row_group_size=17)
    write_parquet(tmp_path / "large.parquet", pyarrow.array(TEXTS, pyarrow.large_string()))
    folder = tmp_path / "texts"
    folder.mkdir()
    for number, text in enumerate(TEXTS):
        (folder / f"{number:02}.txt").write_text(text, encoding="utf-8")
    names = ["in.jsonl", "in.jsonl.gz", "in.jsonl.zst", "bom.jsonl", "in.parquet", "large.parquet"]
    if block_bytes > sources.BOOK_BYTES:  # a short text is always one block
        names.append("texts")
    for name in names:
        prepare([tmp_path / name], tmp_path / "out" / name, processes=1, val_every=5)
        for split in ("train", "val"):
            expected = expected_tokens(TEXTS, val_every=5, split=split)
            assert read_all(tmp_path / "out" / name, split) == expected, name


def test_text_field_can_be_named(tmp_path):
    (tmp_path / "in.jsonl").write_text('{"body": "hello"}\n')
    parquet.write_table(pyarrow.table({"body": ["hello"]}), tmp_path / "in.parquet")
    inputs = [tmp_path / "in.jsonl", tmp_path / "in.parquet"]
    prepare(inputs, tmp_path / "out", processes=1, val_every=0, text_field="body")
    assert read_all(tmp_path / "out") == [50256, 31373] * 2


# ---- long texts ----


@exact
@given(st.text(alphabet="ab1 \n\t'.s\u3000\x1c終", max_size=60), st.integers(0, 60))
def test_a_safe_cut_changes_no_token(text, start):
    tokenizer = get_tokenizer()
    cut = find_safe_cut(text, 0, start)
    assume(cut is not None)
    assert 0 < cut < start
    parts = tokenizer.encode(text[:cut]) + tokenizer.encode(text[cut:])
    assert parts == tokenizer.encode(text)


@pytest.mark.parametrize(
    ("text", "longest"),
    [
        ("word " * 60_000, 1 << 16),
        ("word " * 20_000 + "\n" * 300_000 + "word\n\n\n" * 30_000, 300_008),
        ("終" * 100_001 + " x" * 40_000 + "-" * 100_000, 100_002),
        ("x" * 200_000, 200_000),
        (" " * 1_200_000 + "x", encode.LONGEST_STRETCH),  # tiktoken itself fails on the whole
        ("ab" * 600_000, encode.LONGEST_STRETCH),
    ],
)
def test_pieces_have_the_tokens_of_the_whole(text, longest):
    pieces = list(cut_pieces(text))
    assert "".join(pieces) == text
    assert max(map(len, pieces)) <= longest
    ids = [i for piece in pieces for i in get_tokenizer().encode(piece)]
    assert get_tokenizer().decode(ids) == text
    if longest < encode.LONGEST_STRETCH:
        assert ids == get_tokenizer().encode(text)


PATHOLOGICAL = st.lists(
    st.tuples(
        st.sampled_from([" ", "\n", "\r\n", "\t", "a", "'s", "é", "終", "\u3000", "-", "7", "🙂"]),
        st.integers(1, 40),
    ),
    max_size=12,
).map(lambda runs: "".join(unit * count for unit, count in runs))


@exact
@given(PATHOLOGICAL, st.integers(2, 30), st.integers(4, 40))
def test_reading_and_cutting_anywhere_change_no_token(tmp_path_factory, text, piece, block):
    """Long runs of one thing, and characters of several bytes, at the places of both cuts."""
    path = tmp_path_factory.getbasetemp() / "runs.txt"
    path.write_bytes(text.encode())
    with pytest.MonkeyPatch.context() as patch, path.open("rb") as file:
        patch.setattr(encode, "BLOCK_BYTES", block)
        patch.setattr(encode, "PIECE_CHARACTERS", piece)
        size = path.stat().st_size
        texts = [part for part, _ in read_pieces(file, 0, size, path=path)]
        pieces = [ids for part in texts for ids in encode_pieces(part, get_tokenizer())]
    assert "".join(texts) == text
    assert [i for ids in pieces for i in ids] == get_tokenizer().encode(text)


@pytest.mark.parametrize("block_bytes", [1 << 20, 1000, 61])
def test_a_long_text_is_one_document_and_its_end_is_validation(tmp_path, monkeypatch, block_bytes):
    monkeypatch.setattr(encode, "BLOCK_BYTES", block_bytes)
    text = "".join(f"line {i} of a lông text,\n\n  indented\tthere\r\n" for i in range(2000))
    (tmp_path / "book.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    prepare([tmp_path / "book.txt"], tmp_path / "out", processes=1, val_every=10)
    data = ("\N{BYTE ORDER MARK}" + text).encode()
    border = data.index(b"\n", len(data) - len(data) // 10) + 1
    ids = get_tokenizer().encode
    assert read_all(tmp_path / "out") == [50256, *ids(data[3:border].decode())]
    assert read_all(tmp_path / "out", "val") == [50256, *ids(data[border:].decode())]


@pytest.mark.parametrize("val_every", [0, 7])
def test_a_text_without_line_ends_is_cut_between_characters(tmp_path, monkeypatch, val_every):
    monkeypatch.setattr(encode, "BLOCK_BYTES", 1000)
    text = "終わり" * 10_000
    (tmp_path / "book.txt").write_text(text, encoding="utf-8")
    manifest = prepare([tmp_path / "book.txt"], tmp_path / "out", processes=1, val_every=val_every)
    tokens = read_all(tmp_path / "out")[1:]
    if val_every:
        tokens += read_all(tmp_path / "out", "val")[1:]
        assert manifest.splits["val"].text_bytes == pytest.approx(90_000 / 7, abs=3)
    assert get_tokenizer().decode(tokens) == text


def test_tiny_shakespeare(tmp_path, shakespeare):
    manifest = prepare([shakespeare], tmp_path / "out", processes=1, val_every=10)
    assert [manifest.splits[split].documents for split in ("train", "val")] == [1, 1]
    assert sum(record.tokens for record in manifest.splits.values()) == 338_025 + 2
    assert read_all(tmp_path / "out")[:4] == [50256, 5962, 22307, 25]


# ---- inputs ----


def test_folders_are_read_in_order_and_files_once(tmp_path):
    folder = tmp_path / "in"
    for name in ("b.txt", "a/z.jsonl", "a.txt", ".gitignore", "notes.md", "c/deep/e.TXT"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    (folder / "empty.txt").write_text("")
    found = find_sources([folder / "b.txt", folder])
    names = ["b.txt", "in/a/z.jsonl", "in/a.txt", "in/c/deep/e.TXT"]
    assert sorted(source.name for source in found) == sorted(names)
    assert found[0].name == "b.txt"
    assert find_sources([folder / "b.txt", folder]) == found


# ---- processes, kills, and going on ----


@pytest.fixture
def inputs(tmp_path, monkeypatch):
    """A text, lines, compressed lines and rows, in blocks small enough to be many."""
    monkeypatch.setattr(encode, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(sources, "BOOK_BYTES", 1000)
    monkeypatch.setattr(sources, "PARQUET_ROWS", 4)
    folder = tmp_path / "in"
    write_jsonl(folder / "a.jsonl")
    (folder / "b.txt").write_text("a text of some length\nin lines of six words\n" * 60)
    (folder / "c.jsonl.gz").write_bytes(gzip.compress((folder / "a.jsonl").read_bytes()))
    write_parquet(folder / "d.parquet", TEXTS, row_group_size=9)
    return [folder]


OPTIONS = {"shard_tokens": 700, "val_every": 5}


class KilledError(BaseException):
    """Stands for the end of the process."""


def test_continues_after_a_kill_at_any_block(tmp_path, inputs):
    prepare(inputs, tmp_path / "unbroken", processes=1, **OPTIONS)
    blocks_left, started_with = 0, []

    def kill(progress):
        nonlocal blocks_left
        if blocks_left == lifetime:
            started_with.append(progress.documents)
        blocks_left -= 1
        if blocks_left == 0:
            raise KilledError

    for lifetime in [2, 3, 4, 6, 5] * 20 + [10**9]:
        blocks_left = lifetime
        with suppress(KilledError):
            prepare(inputs, tmp_path / "out", processes=1, progress=kill, **OPTIONS)
            break
    assert len(set(started_with)) > 5  # several shards were kept on the way
    assert contents(tmp_path / "out") == contents(tmp_path / "unbroken")


@pytest.mark.parametrize("call", ["fsync", "replace", "unlink"])
def test_continues_after_a_kill_at_any_step_of_a_commit(tmp_path, monkeypatch, inputs, call):
    """Every fsync, rename and removal in turn is the last thing a process does."""
    prepare(inputs, tmp_path / "unbroken", processes=1, shard_tokens=1500, val_every=5)
    original, kills = getattr(os, call), 0
    for last in [1, 2, 3, 4, 6, 9, 14, 22, 50, 100]:
        calls = 0

        def dying(*args, last=last, **kwargs):
            nonlocal calls
            calls += 1
            if calls >= last:
                raise KilledError
            return original(*args, **kwargs)

        out = tmp_path / f"out{last}"
        with monkeypatch.context() as context:
            context.setattr(os, call, dying)
            try:
                prepare(inputs, out, processes=1, shard_tokens=1500, val_every=5)
            except KilledError:
                kills += 1
        prepare(inputs, out, processes=1, shard_tokens=1500, val_every=5)
        assert contents(out) == contents(tmp_path / "unbroken")
        if calls < last:
            break
    assert 0 < kills < 10


SCRIPT = """
import sys
from regpt.datasets import encode
from regpt.datasets.prepare import prepare
encode.BLOCK_BYTES = 2000
if __name__ == "__main__":
    prepare(sys.argv[2:], sys.argv[1], processes=2, shard_tokens=500, val_every=5,
            progress=lambda p: print(p.documents, flush=True))
"""


def test_two_processes_and_a_real_kill_give_the_same_bytes(tmp_path):
    source = write_jsonl(tmp_path / "in.jsonl", [f"{i} {text}" for i in range(5) for text in TEXTS])
    prepare([source], tmp_path / "one", processes=1, shard_tokens=500, val_every=5)
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, "script.py", "out", "in.jsonl"]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        assert process.stdout is not None
        for _ in range(5):
            process.stdout.readline()
        process.kill()
    wait_for_the_workers_to_end(process.pid)
    assert not (tmp_path / "out/manifest.json").exists()
    again = subprocess.run(command, cwd=tmp_path, stdout=subprocess.PIPE, check=True)
    assert int(again.stdout.split()[0]) > 0  # it did not begin anew
    assert contents(tmp_path / "out") == contents(tmp_path / "one")


def wait_for_the_workers_to_end(group: int) -> None:
    """Workers must not outlive the process that was killed."""
    for _ in range(600):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    os.killpg(group, signal.SIGKILL)
    pytest.fail("a worker outlived its parent by half a minute")


def test_a_complete_directory_is_left_alone(tmp_path, inputs):
    first = prepare(inputs, tmp_path / "out", processes=1, **OPTIONS)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert prepare(inputs, tmp_path / "out", processes=2, **OPTIONS) == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before
    assert Manifest.read(tmp_path / "out") == first


def test_a_complete_directory_of_something_else_is_refused(tmp_path, inputs):
    prepare(inputs, tmp_path / "out", processes=1, **OPTIONS)
    with pytest.raises(UserError, match="already holds a data set of other inputs or settings"):
        prepare(inputs, tmp_path / "out", processes=1, shard_tokens=1500, val_every=6)
    (tmp_path / "out/train_000000.bin").unlink()
    with pytest.raises(UserError, match=r"cannot read shard .*train_000000.bin"):
        prepare(inputs, tmp_path / "out", processes=1, **OPTIONS)


def interrupt(inputs, out, **options):
    def stop(progress):
        if progress.documents:
            raise KilledError

    with pytest.raises(KilledError):
        prepare(inputs, out, processes=1, progress=stop, **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shard_tokens": 60}, "of other shard size"),
        ({"val_every": 3}, "of other validation rule"),
        ({"text_field": "body"}, "of other text field"),
    ],
)
def test_other_settings_do_not_continue(tmp_path, inputs, change, message):
    options = {"shard_tokens": 50, "val_every": 5}
    interrupt(inputs, tmp_path / "out", **options)
    with pytest.raises(UserError, match=message):
        prepare(inputs, tmp_path / "out", processes=1, **options | change)


def test_changed_inputs_do_not_continue(tmp_path, inputs):
    interrupt(inputs, tmp_path / "out", shard_tokens=50)
    source = inputs[0] / "a.jsonl"
    os.utime(source, ns=(0, 0))
    with pytest.raises(UserError, match=r"of other inputs \(or they have changed\)"):
        prepare(inputs, tmp_path / "out", processes=1, shard_tokens=50)


def test_with_less_than_a_shard_done_other_settings_begin_anew(tmp_path, inputs):
    """Who mends a broken line in the first minute need not remove anything."""
    interrupt(inputs, tmp_path / "out", shard_tokens=10**6, val_every=5)
    prepare(inputs, tmp_path / "out", processes=1, shard_tokens=10**6, val_every=0)
    prepare(inputs, tmp_path / "new", processes=1, shard_tokens=10**6, val_every=0)
    assert contents(tmp_path / "out") == contents(tmp_path / "new")


def test_beginning_anew_leaves_no_shard_of_the_other_settings(tmp_path, monkeypatch):
    """The first shard was full, but the process ended before progress.json said so."""
    source = write_jsonl(tmp_path / "in.jsonl")
    original = os.replace

    def dying(one, other):
        if str(other).endswith("progress.json") and list((tmp_path / "out").glob("*.bin")):
            raise KilledError
        original(one, other)

    with monkeypatch.context() as context:
        context.setattr(os, "replace", dying)
        with pytest.raises(KilledError):
            prepare([source], tmp_path / "out", processes=1, shard_tokens=100)
    assert (tmp_path / "out/train_000003.bin").exists()
    prepare([source], tmp_path / "out", processes=1, shard_tokens=10**6)
    prepare([source], tmp_path / "new", processes=1, shard_tokens=10**6)
    assert contents(tmp_path / "out") == contents(tmp_path / "new")


# ---- wrong input ----


def lines_with(third: bytes) -> bytes:
    return b'{"text": "one"}\n\n' + third + b'\n{"text": "four"}\n'


BAD_FILES = [
    ("a.jsonl", lines_with(b'{"text": "x"'), r"line 3 is not JSON \(.* column"),
    (
        "a.jsonl",
        lines_with(b'{"body": "x", "id": 1}'),
        "line 3 has no field 'text' .* body, id",
    ),
    ("a.jsonl", lines_with(b'{"text": 5}'), r"line 3: field 'text' is not text \(5\)"),
    ("a.jsonl", lines_with(b'{"text": null}'), r"line 3: field 'text' is not text \(None\)"),
    ("a.jsonl", lines_with(b'["text"]'), "line 3 is no JSON object"),
    (
        "a.jsonl",
        lines_with(b'{"text": "\xff"}'),
        "line 3 is not JSON .* 0xff in position 10",
    ),
    ("a.jsonl", lines_with(b"[" * 100_000), "line 3 is not JSON .nested too deep"),
    (
        "a.jsonl",
        lines_with(b'{"text": "x", "n": ' + b"1" * 5000 + b"}"),
        "line 3 is not JSON .Exceeds",
    ),
    ("a.jsonl.gz", gzip.compress(lines_with(b"") * 9999)[:-9], "cut short or damaged after line"),
    ("a.jsonl.gz", b"plain text", "cut short or damaged after line 0"),
    (
        "a.jsonl.zst",
        zstd(lines_with(b"") * 9999)[:-5],
        "cut short or damaged after line",
    ),
    ("a.jsonl.zst", b"plain text", "cut short or damaged after line 0"),
    ("a.parquet", b"plain text", "is damaged after row 0"),
    ("a.txt", b"abc\xe4def", "is not UTF-8: byte 0xe4 at offset 3"),
    ("a.txt", b"abc\xe4", "is not UTF-8: byte 0xe4 at offset 3"),
    ("b.txt", b"x" * 2_000_000 + b"\xff" + b"y" * 99, "is not UTF-8: byte 0xff at offset 2000000"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD_FILES)
def test_bad_files_are_named_in_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        prepare([tmp_path / name], tmp_path / "out", processes=1, val_every=0)
    assert name in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out/manifest.json").exists()


def test_the_line_is_named_from_another_process_too(tmp_path, monkeypatch):
    monkeypatch.setattr(encode, "BLOCK_BYTES", 600)
    lines = write_jsonl(tmp_path / "a.jsonl").read_bytes()
    later = lines + b"[]\n" + lines  # which any process may come to before the first
    (tmp_path / "a.jsonl").write_bytes(lines + b"{}\n" + later)
    with pytest.raises(UserError, match=r"a.jsonl line 61 has no field 'text' .*: none"):
        prepare([tmp_path / "a.jsonl"], tmp_path / "out", processes=2)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"body": ["x"], "id": [1]}, "has no column 'text', only body, id"),
        ({"text": ["x", None]}, r"row 2: field 'text' is not text \(None\)"),
        ({"text": [1, 2]}, r"row 1: field 'text' is not text \(1\)"),
        ({"text": pyarrow.array([b"x", b"\xff"]).cast(pyarrow.string(), safe=False)}, "row"),
    ],
)
def test_bad_parquet_is_named(tmp_path, table, message):
    parquet.write_table(pyarrow.table(table), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=rf"a.parquet.*{message}") as error:
        prepare([tmp_path / "a.parquet"], tmp_path / "out", processes=1)
    assert "\n" not in str(error.value)


def test_inputs_that_are_nothing(tmp_path):
    (tmp_path / "empty.txt").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/empty.txt").touch()
    (tmp_path / "notes.md").write_text("x")
    for names, message in [
        (["missing.txt"], r"missing.txt does not exist: give files or folders of .txt, .jsonl"),
        (["empty.txt"], r"empty.txt is empty"),
        (["folder"], "folder has no file with text in it"),
        (["notes.md"], r"notes.md is of an unknown kind"),
        ([], "no input"),
    ]:
        with pytest.raises(UserError, match=message):
            prepare([tmp_path / name for name in names], tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_nothing_to_train_on_leaves_nothing(tmp_path):
    (tmp_path / "in.jsonl").write_text('{"text": ""}\n')
    with pytest.raises(UserError, match="every document is empty"):
        prepare([tmp_path / "in.jsonl"], tmp_path / "out", processes=1)
    (tmp_path / "in.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(UserError, match=r"every document fell to validation \(1 in 1\)"):
        prepare([tmp_path / "in.jsonl"], tmp_path / "out", processes=1, val_every=1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"processes": 0}, "processes must be from 1 to 1024, got 0"),
        ({"shard_tokens": 0}, "tokens per shard must be from 1 to 2147483647, got 0"),
        ({"shard_tokens": 2**31}, "tokens per shard must be from 1 to 2147483647"),
        ({"val_every": -1}, "val_every must be from 0"),
    ],
)
def test_wrong_settings(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        prepare([write_jsonl(tmp_path / "in.jsonl")], tmp_path / "out", **options)


def test_places_that_cannot_take_shards(tmp_path, monkeypatch):
    source = write_jsonl(tmp_path / "in.jsonl")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"cannot write .*file"):
        prepare([source], tmp_path / "file", processes=1)
    (tmp_path / "foreign").mkdir()
    np.save(tmp_path / "foreign/web_train_0.npy", np.arange(3))
    with pytest.raises(UserError, match=r"already holds shards of another origin \(web_train_0"):
        prepare([source], tmp_path / "foreign", processes=1)
    assert [path.name for path in (tmp_path / "foreign").iterdir()] == ["web_train_0.npy"]


def test_a_damaged_progress_file_is_named(tmp_path, inputs):
    (tmp_path / "out").mkdir()
    for content in ("{", "[]", "{}", '{"settings": {}, "place": {"x": 1}}'):
        (tmp_path / "out/progress.json").write_text(content)
        with pytest.raises(UserError, match=r"progress.json is damaged .* start again"):
            prepare(inputs, tmp_path / "out", processes=1)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_is_one_line(tmp_path, inputs, monkeypatch):
    original = Path.open

    def open_on_a_full_disk(self, *args, **kwargs):
        full = self.name == "train_000001.bin.part"
        return original(Path("/dev/full") if full else self, *args, **kwargs)

    with monkeypatch.context() as context:
        context.setattr(Path, "open", open_on_a_full_disk)
        context.setattr(os, "ftruncate", lambda *_: None)
        with pytest.raises(UserError, match=r"cannot write .*out: .*; mend it and repeat"):
            prepare(inputs, tmp_path / "out", processes=1, **OPTIONS)
    prepare(inputs, tmp_path / "out", processes=1, **OPTIONS)
    prepare(inputs, tmp_path / "new", processes=1, **OPTIONS)
    assert contents(tmp_path / "out") == contents(tmp_path / "new")


def test_a_missing_extra_says_how_to_get_it(tmp_path, monkeypatch):
    write_parquet(tmp_path / "a.parquet", TEXTS)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"needs pyarrow: pip install .*regpt\[data\]"):
        prepare([tmp_path / "a.parquet"], tmp_path / "out", processes=1)


def test_a_process_that_cannot_start_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where memory or processes are limited."""

    def submit(*arguments: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("concurrent.futures.ProcessPoolExecutor.submit", submit)
    (tmp_path / "text.txt").write_text("the cat saw a dog")
    with pytest.raises(UserError, match=r"can be started .can't start new thread.: repeat with"):
        prepare((str(tmp_path / "text.txt"),), tmp_path / "out", processes=2)
