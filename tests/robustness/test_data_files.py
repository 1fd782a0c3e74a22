"""Shards, manifests, and the texts that `prepare`, `train` and `evaluate` read."""

import gzip
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from hunting import RUN_FLAGS, SENTENCE, Hunt
from hypothesis import given
from hypothesis import strategies as st
from mutations import ODD_TEXTS, damaged, json_files, json_lines
from shares import share

TRAIN = ("train", "lecture", "--steps", "1", "--out", "out", *RUN_FLAGS, "--order", "shuffled")
SHOW = ("data", "show", "d", "--step", "1", "--block-size", "16", "--sequences", "2")
READERS = (
    (*TRAIN, "--data", "d"),
    SHOW,
    (*SHOW, "--split", "val"),
    SHOW,
    SHOW,
    (*SHOW, "--order", "shifted"),
    ("evaluate", "m", "--data", "d", "--block-size", "16"),
)


def placed(hunt: Hunt, shards: Path, wide: Path) -> tuple[Path, Path]:
    """A folder for a case, with the shards' copy `d` and the model `m` in it."""
    place = hunt.place()
    (place / "m").symlink_to(wide)
    return place, Path(shutil.copytree(shards, place / "d"))


def tried(hunt: Hunt, kind: str, command: Any, place: Path, about: object) -> None:
    """A command that reads `d`. A run that was refused may leave its empty folder, no model."""
    outputs = [place / "out" / name for name in ("run.json", "config.json", "model.safetensors")]
    hunt.check(kind, command, cwd=place, inputs=place / "d", about=about, outputs=outputs)


@share(0.5)
@given(data=st.data(), command=st.sampled_from(READERS))
def test_manifest(
    data: st.DataObject, command: tuple[str, ...], hunt: Hunt, shards: Path, wide: Path
) -> None:
    place, folder = placed(hunt, shards, wide)
    content = data.draw(json_files(json.loads((folder / "manifest.json").read_bytes())))
    (folder / "manifest.json").write_bytes(content)
    tried(hunt, "manifest", command, place, content[:900])


@share(0.4)
@given(data=st.data(), command=st.sampled_from(READERS), manifest=st.booleans())
def test_bin(
    data: st.DataObject,
    command: tuple[str, ...],
    manifest: bool,
    hunt: Hunt,
    shards: Path,
    wide: Path,
) -> None:
    place, folder = placed(hunt, shards, wide)
    if not manifest:
        (folder / "manifest.json").unlink()
    file = data.draw(st.sampled_from(sorted(folder.glob("*.bin"))))
    content = file.read_bytes()
    how = data.draw(st.sampled_from(("bytes", "header", "tokens")))
    if how == "bytes":
        content = data.draw(damaged(content))
    elif how == "header":
        field = data.draw(st.integers(0, 3))
        odd = data.draw(st.sampled_from((-1, 0, 1, 2**31 - 1, -(2**31), 799, 801)))
        content = (
            content[: 4 * field] + odd.to_bytes(4, "little", signed=True) + content[4 * field + 4 :]
        )
    else:
        tokens = np.frombuffer(content[1024:], "<u2").copy()
        tokens[data.draw(st.integers(0, max(len(tokens) - 1, 0))) :] = data.draw(
            st.sampled_from((50257, 65535, 50256, 0))
        )
        content = content[:1024] + tokens.tobytes()
    file.write_bytes(content)
    tried(hunt, "bin shards", command, place, (file.name, how))


@share(0.4)
@given(data=st.data(), command=st.sampled_from(READERS))
def test_npy(
    data: st.DataObject, command: tuple[str, ...], hunt: Hunt, shards: Path, wide: Path
) -> None:
    place, folder = placed(hunt, shards, wide)
    shutil.rmtree(folder)
    folder.mkdir()
    kind = data.draw(
        st.sampled_from(
            ("<u2", "<i8", "<i4", "<u8", "<u4", "|u1", "<f4", "|b1", "|S3", ">i4", "<c8", "O")
        )
    )
    odd = data.draw(st.sampled_from((1, 7, 255, -1, 50257, 2**31, 2**62)))
    tokens = np.arange(500) % 90
    if kind not in ("|S3", "O"):
        with np.errstate(all="ignore"):
            tokens = tokens.astype(kind)
            tokens[3] = np.array(odd).astype(kind)
    else:
        tokens = tokens.astype(kind)
    shape = data.draw(st.sampled_from(((500,), (500,), (500,), (5, 100), (0,), (), (500, 1))))
    tokens = tokens[:0] if shape == (0,) else tokens[0] if shape == () else tokens.reshape(shape)
    file = io.BytesIO()
    np.save(file, tokens, allow_pickle=True)
    content = file.getvalue()
    if data.draw(st.booleans()):
        content = data.draw(damaged(content))
    if data.draw(st.integers(0, 4)) == 0:
        shape_text = data.draw(
            st.sampled_from((b"(10**9,)", b"(-1,),  ", b"(9999999", b"(1,'a'), "))
        )
        content = content.replace(b"(500,), ", shape_text)
    for name in ("a_train_0.npy", "a_val_0.npy"):
        (folder / name).write_bytes(content)
    tried(hunt, "npy shards", command, place, (kind, odd, shape, content[:128]))


PREPARE = ("prepare", "d", "--out", "out", "--processes", "1", "--val-every", "3")


def texts() -> list[dict[str, Any]]:
    """Lines of a .jsonl file."""
    return [{"text": SENTENCE + str(i), "id": i} for i in range(6)]


@st.composite
def text_files(draw: st.DrawFn) -> dict[str, bytes]:
    """Files for `prepare`, one of them mutated."""
    kind = draw(
        st.sampled_from((".txt", ".jsonl", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet"))
    )
    if kind == ".txt":
        content = draw(st.one_of(damaged((SENTENCE * 20 + "é𝄞").encode()), st.binary(max_size=200)))
    elif kind == ".parquet":
        import pyarrow
        from pyarrow import parquet

        odd = draw(st.sampled_from((None, "x", "\ud800".encode("utf-8", "surrogatepass"), 7)))
        column: list[Any] = [SENTENCE] * 5
        if isinstance(odd, str) or odd is None:
            column[2] = odd
        else:
            column = [odd] * 5
        name = draw(st.sampled_from(("text", "text", "other", "te\nxt")))
        file = io.BytesIO()
        parquet.write_table(pyarrow.table({name: column}), file)
        content = draw(damaged(file.getvalue()))
    else:
        content = draw(json_lines(texts()))
        if kind == ".jsonl.gz":
            content = gzip.compress(content)
        elif kind == ".jsonl.zst":
            import pyarrow

            content = pyarrow.compress(content, codec="zstd", asbytes=True)
        if kind != ".jsonl" and draw(st.booleans()):
            content = draw(damaged(content))
    name = draw(st.sampled_from(("a", "a", "a", "[b]x[b]", "a\nb", "-x", "é")))
    return {name + kind: content, "z.txt": SENTENCE.encode() * 3}


@share(0.7)
@given(
    files=text_files(), more=st.sampled_from(((), ("--text-field", "id"), ("--shard-tokens", "40")))
)
def test_prepare(files: dict[str, bytes], more: tuple[str, ...], hunt: Hunt) -> None:
    place = hunt.place()
    (place / "d").mkdir()
    for name, content in files.items():
        (place / "d" / name).write_bytes(content)
    hunt.check(
        "prepare's texts",
        (*PREPARE, *more),
        cwd=place,
        inputs=place / "d",
        about=files,
        outputs=[place / "out" / "manifest.json"],
    )


@share(0.4)
@given(data=st.data())
def test_progress(data: st.DataObject, hunt: Hunt) -> None:
    """progress.json of a preparation that was stopped by a line that is no JSON."""
    place = hunt.place()
    (place / "d").mkdir()
    good = "".join(json.dumps(line) + "\n" for line in texts())
    (place / "d" / "a.jsonl").write_text(good)
    (place / "d" / "b.jsonl").write_text(good + "no json\n")
    command = (*PREPARE, "--shard-tokens", "40")
    assert hunt.server.run(command, cwd=place).code == 2
    file = place / "out" / "progress.json"
    content = data.draw(json_files(json.loads(file.read_bytes())))
    file.write_bytes(content)
    hunt.check("progress.json", command, cwd=place, inputs=place / "d", about=content[:900])


@share(0.3)
@given(
    content=st.one_of(
        damaged((SENTENCE * 10 + "é𝄞").encode()), json_lines(texts()), st.binary(max_size=99)
    ),
    suffix=st.sampled_from((".txt", ".jsonl", "", ".bin", ".npy")),
    train=st.booleans(),
)
def test_texts(content: bytes, suffix: str, train: bool, hunt: Hunt, wide: Path) -> None:
    place = hunt.place()
    (place / "m").symlink_to(wide)
    (place / "d").mkdir()
    name = f"d/text{suffix}"
    (place / name).write_bytes(content)
    read = ("evaluate", "m", "--block-size", "8", "--data", name)
    tried(hunt, "texts", (*TRAIN, "--data", name) if train else read, place, content[:900])


@share(0.3)
@given(
    name=st.sampled_from(("manifest.json", "train_000000.bin", "val_000000.bin", ".")),
    kind=st.sampled_from(("folder", "dangling", "loop", "/dev/zero", "/dev/null")),
    command=st.sampled_from(READERS),
)
def test_shards_of_another_kind(
    name: str, kind: str, command: tuple[str, ...], hunt: Hunt, shards: Path, wide: Path
) -> None:
    place, folder = placed(hunt, shards, wide)
    path = folder / name
    if name == ".":
        shutil.rmtree(folder)
        path = folder
    else:
        path.unlink()
    if kind == "folder":
        path.mkdir()
    else:
        path.symlink_to({"dangling": "nowhere", "loop": path.name}.get(kind, kind))
    hunt.check("paths", command, cwd=place, inputs=None, about=(name, kind))


NAMES = ("/dev/zero", "/dev/full", ".", "nowhere", *ODD_TEXTS)
NAMED = (
    (*TRAIN, "--data", "NAME"),
    ("evaluate", "m", "--data", "NAME"),
    ("evaluate", "m", "--lambada", "NAME"),
    ("evaluate", "m", "--hellaswag", "NAME"),
    ("prepare", "NAME", "--out", "out"),
    ("sample", "--model", "NAME"),
    ("sample", "--model", "m", "--batch", "NAME"),
    ("export", "m", "NAME"),
    ("explain", "a", "--model", "m", "--out", "NAME"),
    ("report", "NAME"),
    ("runs", "NAME"),
    ("replay", "NAME", "--step", "1"),
    ("data", "show", "NAME"),
    ("bench", "generate", "NAME"),
    ("train", "--resume", "NAME"),
    ("parity", "NAME"),
)


@share(0.7)
@given(
    name=st.sampled_from([name for name in NAMES if not {"\0", "\ud800"} & set(name)]),
    command=st.sampled_from(NAMED),
)
def test_names(name: str, command: tuple[str, ...], hunt: Hunt, wide: Path) -> None:
    place = hunt.place()
    (place / "m").symlink_to(wide)
    arguments = [name if word == "NAME" else word for word in command]
    hunt.check("names", arguments, cwd=place, inputs=wide, about=repr(name))
