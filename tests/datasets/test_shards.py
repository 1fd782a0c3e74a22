"""The file format, and a directory of files read as one stream."""

import json
import mmap
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regpt.core.data import ArrayDataset, BatchPlan, Loader
from regpt.core.tokenizer import DIGEST
from regpt.datasets.manifest import Manifest
from regpt.datasets.prepare import prepare
from regpt.datasets.shards import Shard, ShardDataset, find_shards, make_header, open_shard
from regpt.system.errors import UserError

exact = settings(deadline=None, derandomize=True)


def write_bin(path, tokens):
    """A shard as llm.c's data scripts write it, by struct and not by our own code."""
    header = struct.pack("<3i", 20240520, 1, len(tokens)) + bytes(1012)
    path.write_bytes(header + struct.pack(f"<{len(tokens)}H", *tokens))
    return path


@pytest.fixture
def prepared(tmp_path):
    """A small prepared directory: two training shards and a validation shard."""
    source = tmp_path / "in.jsonl"
    texts = [f"document number {i} has these words in it" for i in range(20)]
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    prepare([source], tmp_path / "out", processes=1, shard_tokens=70, val_every=4)
    return tmp_path / "out"


def edit_manifest(directory, **changes):
    path = directory / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# ---- files ----


def test_header_is_llm_c():
    assert make_header(7) == struct.pack("<256i", 20240520, 1, 7, *[0] * 253)


def test_foreign_bin_and_lecture_npy(tmp_path):
    tokens = [50256, 464, 3290, 0, 65535]
    np.save(tmp_path / "a.npy", np.array(tokens, dtype=np.uint16))
    np.save(tmp_path / "b.npy", np.array(tokens, dtype=np.int32))
    for path in (write_bin(tmp_path / "a.bin", tokens), tmp_path / "a.npy", tmp_path / "b.npy"):
        assert open_shard(path).tolist() == tokens


@pytest.mark.parametrize("suffix", [".bin", ".npy"])
def test_shards_are_mapped_and_not_loaded(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    if suffix == ".bin":
        write_bin(path, range(1000))
    else:
        np.save(path, np.arange(1000, dtype=np.uint16))
    base = open_shard(path)
    while isinstance(base, np.ndarray):
        base = base.base
    assert isinstance(base, mmap.mmap)


def shorten(path, size):
    path.write_bytes(path.read_bytes()[:size])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: shorten(p, 1024 + 19), r"has 1,043 bytes, .* 10 tokens says 1,044.*cut short"),
        (lambda p: shorten(p, 100), "has 100 bytes, fewer than its header"),
        (lambda p: p.write_bytes(p.read_bytes() + b"!!"), "has 1,046 bytes.*damaged"),
        (lambda p: p.write_bytes(b"\0" * 2000), "begins with 0, 0 instead of 20240520, 1"),
        (lambda p: p.unlink(), "cannot read shard .*No such file"),
    ],
)
def test_damaged_bin_is_named_in_one_line(tmp_path, damage, message):
    path = write_bin(tmp_path / "train.bin", range(10))
    damage(path)
    with pytest.raises(UserError, match=message) as error:
        open_shard(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_negative_count_is_not_a_length(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(struct.pack("<256i", 20240520, 1, -5, *[0] * 253))
    with pytest.raises(UserError, match="damaged"):
        open_shard(path)


@pytest.mark.parametrize(
    ("array", "size", "message"),
    [
        (np.arange(100, dtype=np.uint16), 150, "not a whole .npy file"),
        (np.arange(100, dtype=np.uint16), 0, "not a whole .npy file"),
        (np.zeros((2, 3), dtype=np.uint16), None, "a 2-D array of uint16"),
        (np.zeros(3), None, "a 1-D array of float64"),
        (np.array(["a", None]), None, "not a whole .npy file"),
    ],
)
def test_damaged_npy_is_named_in_one_line(tmp_path, array, size, message):
    path = tmp_path / "train.npy"
    np.save(path, array)
    if size is not None:
        shorten(path, size)
    with pytest.raises(UserError, match=message) as error:
        open_shard(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_header_that_python_cannot_read_is_one_line(tmp_path):
    path = tmp_path / "train.npy"
    header = b"{'descr': '<u2', 'fortran_order': False, 'shape': (99" + b" " * 64 + b"\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
    with pytest.raises(UserError, match=r"not a whole \.npy file"):
        open_shard(path)


# ---- a stream of files ----


@exact
@given(lengths=st.lists(st.integers(0, 9), min_size=1, max_size=6), data=st.data())
def test_reads_cross_the_borders(lengths, data):
    total = sum(lengths)
    stream = np.arange(total)
    parts = np.split(stream, np.cumsum(lengths)[:-1])
    dataset = ShardDataset([Shard(None, part) for part in parts], fingerprint="")
    start = data.draw(st.integers(0, total))
    stop = data.draw(st.integers(start, total))
    assert len(dataset) == total
    assert dataset.read(start, stop).tolist() == list(range(start, stop))


def test_reading_outside_the_stream(tmp_path):
    dataset = ShardDataset.from_files([write_bin(tmp_path / "a.bin", range(10))])
    for start, stop in [(-1, 3), (5, 4), (0, 11)]:
        with pytest.raises(IndexError):
            dataset.read(start, stop)


def test_shards_give_the_batches_of_their_concatenation(tmp_path):
    tokens = np.random.default_rng(0).integers(0, 50257, size=101)
    paths = []
    for number, part in enumerate(np.split(tokens, [7, 50, 51])):
        paths.append(write_bin(tmp_path / f"{number}.bin", part.tolist()))
    for order in ("sequential", "shuffled"):
        plan = BatchPlan(num_tokens=101, block_size=8, sequences=3, order=order, seed=5)
        whole = Loader(ArrayDataset(tokens), plan)
        parts = Loader(ShardDataset.from_files(paths), plan)
        for step in range(2 * plan.steps_per_epoch):
            (x, y), (x_whole, y_whole) = parts.batch(step), whole.batch(step)
            assert torch.equal(x, x_whole)
            assert torch.equal(y, y_whole)


@pytest.mark.parametrize(("dtype", "bad"), [("uint16", 50257), ("int32", -1), ("int64", 2**40)])
def test_ids_outside_the_vocabulary_name_the_shard(tmp_path, dtype, bad):
    good, path = write_bin(tmp_path / "a.bin", range(10)), tmp_path / "b.npy"
    tokens = np.arange(5000, dtype=dtype)
    tokens[4321] = bad
    np.save(path, tokens)
    dataset = ShardDataset([Shard(p, open_shard(p)) for p in (good, path)], fingerprint="")
    assert dataset.read(0, 4331).tolist() == [*range(10), *range(4321)]
    with pytest.raises(UserError, match=rf"b.npy holds token id {bad}, the vocabulary has 0 to"):
        dataset.read(4000, 4332)


def test_fingerprint_of_foreign_shards(tmp_path):
    tokens = np.arange(50_000, dtype=np.uint16)
    first = ShardDataset.from_files([write_bin(tmp_path / "a.bin", tokens)])
    np.save(tmp_path / "b.npy", tokens)
    assert ShardDataset.from_files([tmp_path / "b.npy"]).fingerprint == first.fingerprint
    changed = tokens.copy()
    changed[-1] = 0
    for other in (tokens[:-1], changed):
        path = write_bin(tmp_path / "c.bin", other)
        assert ShardDataset.from_files([path]).fingerprint != first.fingerprint


def test_files_without_tokens(tmp_path):
    with pytest.raises(UserError, match=r"no tokens in shards .*a.bin"):
        ShardDataset.from_files([write_bin(tmp_path / "a.bin", [])])


# ---- directories ----


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("edufineweb_train_000001.npy", "train"),
        ("tiny_shakespeare_val.bin", "val"),
        ("VAL-3.bin", "val"),
        ("train01.bin", "train"),
        ("fineweb.validation.bin", "val"),
        ("interval_000.bin", None),
        ("trainer_values.bin", None),
        ("constraint.npy", None),
        ("train_manifest.json", None),
    ],
)
def test_split_is_a_whole_word_of_the_name(tmp_path, name, split):
    (tmp_path / name).write_bytes(b"")
    for asked in ("train", "val"):
        if asked == split:
            assert [path.name for path in find_shards(tmp_path, asked)] == [name]
        else:
            with pytest.raises(UserError, match=f"has no {asked} shards"):
                find_shards(tmp_path, asked)


def test_open_without_a_manifest(tmp_path):
    write_bin(tmp_path / "web_train_1.bin", [4, 5])
    write_bin(tmp_path / "web_train_0.bin", [1, 2, 3])
    np.save(tmp_path / "web_val_0.npy", np.array([6, 7], dtype=np.uint16))
    assert ShardDataset.open(tmp_path).read(0, 5).tolist() == [1, 2, 3, 4, 5]
    assert ShardDataset.open(tmp_path, split="val").read(0, 2).tolist() == [6, 7]
    with pytest.raises(UserError, match=r"no manifest.json to verify"):
        ShardDataset.open(tmp_path, verify=True)


def test_open_with_a_manifest(prepared):
    manifest = Manifest.read(prepared)
    (prepared / "train_other.bin").write_bytes(b"not one of ours")
    train = ShardDataset.open(prepared, verify=True)
    val = ShardDataset.open(prepared, split="val", verify=True)
    assert len(train) == manifest.splits["train"].tokens
    assert len(val) == manifest.splits["val"].tokens
    assert train.fingerprint == manifest.fingerprint("train") != val.fingerprint


def test_flipped_byte_is_found_on_request(prepared):
    path = prepared / "train_000001.bin"
    content = bytearray(path.read_bytes())
    content[1030] ^= 1
    path.write_bytes(content)
    ShardDataset.open(prepared)
    with pytest.raises(UserError, match=r"train_000001.bin has sha256 .* damaged"):
        ShardDataset.open(prepared, verify=True)


def test_shard_cut_short(prepared):
    shorten(prepared / "train_000001.bin", 1100)
    with pytest.raises(UserError, match=r"train_000001.bin has 1,100 bytes.*cut short"):
        ShardDataset.open(prepared)


def test_shard_of_another_length(prepared):
    write_bin(prepared / "train_000000.bin", range(10))
    with pytest.raises(UserError, match="has 10 tokens, the manifest says 70"):
        ShardDataset.open(prepared)


def test_shard_missing(prepared):
    (prepared / "train_000000.bin").unlink()
    with pytest.raises(UserError, match=r"cannot read shard .*train_000000.bin: No such file"):
        ShardDataset.open(prepared)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer": {"digest": "ab" * 32, "vocab_size": 5}}, f"abababababab, .* {DIGEST[:12]}"),
        ({"version": 9}, "has format version 9, this regpt reads 1"),
        ({"format": "other"}, "is not a manifest of regpt shards"),
        ({"shards": [{"file": "a.bin"}]}, "manifest.json is damaged"),
        ({"splits": {}}, "manifest.json is damaged"),
        ({"shards": []}, "has no train tokens"),
    ],
)
def test_manifest_of_something_else(prepared, changes, message):
    edit_manifest(prepared, **changes)
    with pytest.raises(UserError, match=message):
        ShardDataset.open(prepared)


def test_manifest_that_is_no_json(prepared):
    (prepared / "manifest.json").write_text("{")
    with pytest.raises(UserError, match=r"manifest.json is damaged"):
        ShardDataset.open(prepared)


def test_no_directory_and_an_unfinished_one(tmp_path):
    with pytest.raises(UserError, match="is not a directory of shards"):
        ShardDataset.open(tmp_path / "missing")
    (tmp_path / "progress.json").write_text("{}")
    with pytest.raises(UserError, match="not fully prepared: run the same regpt prepare again"):
        ShardDataset.open(tmp_path)
