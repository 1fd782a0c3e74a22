"""config.json, weights in every form, tokenizer files; and GGUF read back."""

import json
import pickle
import shutil
import struct
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hunting import Hunt, Outcome
from hypothesis import given
from hypothesis import strategies as st
from mutations import ODD_TEXTS, damaged, json_files
from shares import share

from regpt.weights.tokenizer_files import tokenizer_files

COMMANDS = (
    ("sample", "!", "--model", "m", "--max-length", "4", "--num-samples", "1"),
    ("sample", "!", "--model", "m", "--max-length", "4", "--dtype", "int8", "--engine", "fast"),
    ("sample", "!", "--model", "m", "--max-length", "4", "--temperature", "0", "--json"),
    ("export", "m", "out"),
    ("export", "m", "out", "--gguf", "f16"),
    ("evaluate", "m", "--lambada", "words.jsonl", "--block-size", "8"),
    ("explain", "!", "--model", "m", "--out", "out"),
)
commands = st.sampled_from(COMMANDS)


def copied(hunt: Hunt, model: Path) -> tuple[Path, Path]:
    """A folder for a case, and the model's copy in it."""
    place = hunt.place()
    (place / "words.jsonl").write_text(json.dumps({"text": '! " # $'}) + "\n")
    return place, Path(shutil.copytree(model, place / "m"))


def tried(hunt: Hunt, kind: str, command: tuple[str, ...], place: Path, about: object) -> None:
    """The command on the model in `place`/m."""
    hunt.check(kind, command, cwd=place, inputs=place / "m", about=about, outputs=[place / "out"])


@share(0.9)
@given(data=st.data(), command=commands)
def test_config(data: st.DataObject, command: tuple[str, ...], hunt: Hunt, narrow: Path) -> None:
    place, model = copied(hunt, narrow)
    file = model / "config.json"
    content = data.draw(json_files(json.loads(file.read_bytes())))
    file.write_bytes(content)
    tried(hunt, "config.json", command, place, content[:900])


def header_of(content: bytes) -> tuple[dict[str, Any], bytes]:
    """The two parts of a safetensors file."""
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


@st.composite
def tensor_files(draw: st.DrawFn, content: bytes) -> bytes:
    """A safetensors file: header, length or bytes mutated, numbers not finite."""
    header, body = header_of(content)
    how = draw(
        st.sampled_from(("header", "header", "length", "bytes", "overlap", "numbers", "dtype"))
    )
    if how == "bytes":
        return draw(damaged(content))
    if how == "length":
        odd = st.sampled_from((0, 1, 7, 2**32, 2**63, 2**64 - 1, len(content), 10**8))
        return struct.pack("<Q", draw(odd)) + content[8:]
    if how == "numbers":
        odd_float = draw(st.sampled_from((np.nan, np.inf, -np.inf, 3e38, -3e38)))
        numbers = np.frombuffer(body, np.float32).copy()
        start = draw(st.integers(0, len(numbers) - 1))
        numbers[start : start + draw(st.sampled_from((1, 64, len(numbers))))] = odd_float
        return content[: -len(body)] + numbers.tobytes()
    names = [name for name in header if name != "__metadata__"]
    name = draw(st.sampled_from(names))
    if how == "overlap":
        other = header[draw(st.sampled_from(names))]
        header[name] = header[name] | {"data_offsets": other["data_offsets"]}
    elif how == "dtype":
        kinds = ("F64", "F16", "BF16", "I8", "U8", "BOOL", "F8_E4M3", "C64", "I64", "X")
        header[name] = header[name] | {"dtype": draw(st.sampled_from(kinds))}
    text = json.dumps(header).encode() if how != "header" else draw(json_files(header))
    return struct.pack("<Q", len(text)) + text + body


@share(0.9)
@given(data=st.data(), command=commands)
def test_safetensors(
    data: st.DataObject, command: tuple[str, ...], hunt: Hunt, narrow: Path
) -> None:
    place, model = copied(hunt, narrow)
    file = model / "model.safetensors"
    content = data.draw(tensor_files(file.read_bytes()))
    file.write_bytes(content)
    tried(hunt, "safetensors", command, place, content[:900])


class Calls:
    """A pickle of this runs a command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, (self.command,)


@share(0.4)
@given(data=st.data(), command=commands)
def test_pickles(data: st.DataObject, command: tuple[str, ...], hunt: Hunt, narrow: Path) -> None:
    place, model = copied(hunt, narrow)
    from safetensors.torch import load_file

    tensors: dict[Any, Any] = dict(load_file(model / "model.safetensors"))
    (model / "model.safetensors").unlink()
    file, told = model / "pytorch_model.bin", place / "told"
    how = data.draw(st.sampled_from(("bytes", "bytes", "code", "bare", "odd", "form", "zip")))
    odd = data.draw(st.sampled_from((1, "x", None, [], torch.zeros(0), torch.zeros(3), {1: 2})))
    if how == "odd":
        tensors[data.draw(st.sampled_from([*tensors, 7, ("a",), None, "odd\n"]))] = odd
    elif how == "code":
        tensors["code"] = Calls(f"touch {told}")
    torch.save(odd if how == "form" else tensors, file)
    if how == "bytes":
        file.write_bytes(data.draw(damaged(file.read_bytes())))
    elif how == "bare":
        file.write_bytes(pickle.dumps(Calls(f"touch {told}")))
    elif how == "zip":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("x/data.pkl", pickle.dumps(Calls(f"touch {told}")))

    def sound(outcome: Outcome) -> str | None:
        return "code in a pickle was run" if told.exists() else None

    arguments: Any = {"cwd": place, "inputs": model, "outputs": [place / "out"]}
    hunt.check("pickles", command, about=how, sound=sound, **arguments)


@share(0.3)
@given(data=st.data(), command=commands)
def test_index(data: st.DataObject, command: tuple[str, ...], hunt: Hunt, narrow: Path) -> None:
    place, model = copied(hunt, narrow)
    header, _ = header_of((model / "model.safetensors").read_bytes())
    (model / "model.safetensors").rename(model / "model-00001-of-00001.safetensors")
    names = [name for name in header if name != "__metadata__"]
    files = dict.fromkeys(names, "model-00001-of-00001.safetensors")
    odd = data.draw(
        st.sampled_from((*ODD_TEXTS, "../words.jsonl", "/dev/zero", "config.json", "."))
    )
    if data.draw(st.booleans()):
        files[data.draw(st.sampled_from(names))] = odd
        content = json.dumps({"metadata": {}, "weight_map": files}).encode()
    else:
        content = data.draw(json_files({"metadata": {"total_size": 7}, "weight_map": files}))
    (model / "model.safetensors.index.json").write_bytes(content)
    tried(hunt, "index of weights", command, place, content[:900])


WHOLE = ("vocab.json", "merges.txt", "tokenizer.json")


@cache
def whole() -> dict[str, bytes]:
    """The files as exported."""
    contents = tokenizer_files()
    return {name: content for name, content in contents.items() if isinstance(content, bytes)}


@share(0.3)
@given(data=st.data())
def test_tokenizer_files(data: st.DataObject, hunt: Hunt, narrow: Path) -> None:
    place, model = copied(hunt, narrow)
    name = data.draw(
        st.sampled_from(
            ("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json",
             "added_tokens.json")
        )
    )  # fmt: skip
    small = {
        "vocab.json": {"!": 0, "a": 1},
        "tokenizer.json": {
            "model": {"type": "BPE", "vocab": {"!": 0, "a": 1}, "merges": ["a b", ["c", "d"]]},
            "normalizer": {"type": "NFC"},
            "pre_tokenizer": {"type": "ByteLevel", "use_regex": True},
            "post_processor": {"type": "ByteLevel"},
            "added_tokens": [{"content": "<|endoftext|>", "id": 50256}],
        },
        "tokenizer_config.json": {
            "tokenizer_class": "GPT2Tokenizer",
            "add_prefix_space": False,
            "added_tokens_decoder": {"50256": {"content": "<|endoftext|>"}},
        },
        "added_tokens.json": {"<|endoftext|>": 50256},
    }
    if name == "merges.txt" or (name in WHOLE and data.draw(st.integers(0, 9)) == 0):
        content = data.draw(damaged(whole()[name]))
    elif name in small:
        content = data.draw(json_files(small[name]))
    else:
        content = data.draw(damaged(b"#version: 0.2\na b\nc d\n"))
    (model / name).write_bytes(content)
    command = data.draw(st.sampled_from(COMMANDS[:4]))
    tried(hunt, "tokenizer files", command, place, (name, content[:900]))


@share(0.1)
@given(
    heads=st.integers(1, 3),
    size=st.sampled_from((1, 5, 8, 32)),
    kind=st.sampled_from(("f32", "f16", "bf16", "q8_0")),
    odd=st.sampled_from((0.5, float("nan"), float("inf"), 3e38, 0.0)),
)
def test_gguf_is_read_back(heads: int, size: int, kind: str, odd: float, hunt: Hunt) -> None:
    from dataclasses import asdict

    from gguf import GGUFReader
    from hunting import NARROW

    from regpt import GPT, GPTConfig
    from regpt.weights import write_model_files

    place = hunt.place()
    config = GPTConfig(**asdict(NARROW) | {"n_head": heads, "n_embd": heads * size})
    model = GPT(config)
    with torch.no_grad():
        model.h[0].attn.c_attn.weight[0] = odd
    (place / "m").mkdir()
    write_model_files(place / "m", model.state_dict(), asdict(config))
    for path in (place / "m").glob("*[kms]*.*"):
        if path.name not in ("config.json", "model.safetensors"):
            path.unlink()

    def sound(outcome: Outcome) -> str | None:
        if outcome.code == 2:
            return None
        found = {tensor.name: tensor for tensor in GGUFReader(place / "out.gguf").tensors}
        wanted = model.state_dict()
        if len(found) != len(wanted):
            return f"{len(found)} tensors of {len(wanted)} in the file"
        embedding = found["position_embd.weight"].data
        same = np.array_equal(embedding, wanted["wpe.weight"].numpy())
        return None if same else "the position table is another"

    arguments = ("export", "m", "out.gguf", "--gguf", kind)
    more: Any = {"cwd": place, "inputs": place / "m", "outputs": [place / "out.gguf"]}
    hunt.check("GGUF read back", arguments, about=(heads, size, odd), sound=sound, **more)


@share(0.3)
@given(
    name=st.sampled_from(("config.json", "model.safetensors", "vocab.json", ".")),
    kind=st.sampled_from(("folder", "dangling", "loop", "/dev/zero", "/dev/null")),
    command=commands,
)
def test_model_files_of_another_kind(
    name: str, kind: str, command: tuple[str, ...], hunt: Hunt, narrow: Path
) -> None:
    place, model = copied(hunt, narrow)
    if name == ".":
        shutil.rmtree(model)
    else:
        (model / name).unlink(missing_ok=True)
    if kind == "folder":
        (model / name).mkdir()
    else:
        targets = {"dangling": "nowhere", "loop": (model / name).name}
        (model / name).symlink_to(targets.get(kind, kind))
    out = [place / "out"]
    hunt.check("paths", command, cwd=place, inputs=None, about=(name, kind), outputs=out)
