"""Every flag of every command, found in the signatures, with values nobody should give."""

import dataclasses
import inspect
import shutil
from importlib import import_module
from pathlib import Path

import pytest
from hunting import RUN_FLAGS, Hunt
from hypothesis import given
from hypothesis import strategies as st
from shares import share

from regpt.commands.doctor import DoctorConfig
from regpt.training.config import RunConfig

VALUES = (
    "-1", "0", "1", "2", "3", "", " ", "nan", "inf", "-inf", "1e400", "1e-400", "0.5", "-0.0",
    "1.5", "1" * 30, "9223372036854775808", "None", "null", "true", "False", "a\nb", "[red]x[/]",
    "[/]",
    "../nowhere", "/dev/null", "/dev/full", "/dev/zero", "/proc/version", ".", "/", "--", "-", "-h",
    "é", "x" * 300, "x" * 5000, "{}", "[]", "()", "$(touch x)", "~", "cpu", "cuda", "cuda:9", "mps",
    "fp32", "bf16", "int8", "auto", "plain", "fast", "lookup", "draft", "portable", "lecture",
    "slide", "10M", "0M", "1.5", "2,3", "text.txt", "m", "r", "d", "words.jsonl", "\udcff",
)  # fmt: skip
SMALL = {"1" * 30, "9223372036854775808"}
TRAIN = ("quickstart", "--steps", "2", "--out", "out", "--data", "text.txt", *RUN_FLAGS)
WRITES = ("--max-length", "6", "--num-samples", "2")
BASES = {
    "sample": ("the cat", "--model", "m", *WRITES),
    "explain": ("the cat", "--model", "m", "--out", "out"),
    "export": ("m", "out"),
    "evaluate": ("m", "--lambada", "words.jsonl", "--block-size", "8"),
    "prepare": ("text.txt", "--out", "out", "--processes", "1"),
    "data": ("show", "d", "--block-size", "16", "--sequences", "2"),
    "report": ("r", "--out", "out.html"),
    "runs": (".",),
    "replay": ("r", "--step", "2"),
    "train": TRAIN,
    "doctor": (*TRAIN, "--json"),
}
LONG = {
    "--steps", "--sample-tokens", "--max-length", "--num-samples", "--processes", "--batch-tokens",
    "--batch-size", "--sequences", "--threads", "--hellaswag-examples", "--shard-tokens",
}  # fmt: skip
"""A thousand of these is work that was asked for."""


def spelled(target: type, prefix: str = "--") -> list[str]:
    """The flags of a configuration."""
    found = []
    for entry in dataclasses.fields(target):
        name = prefix + entry.name.replace("_", "-")
        factory = entry.default_factory
        if isinstance(factory, type) and dataclasses.is_dataclass(factory):
            found += spelled(factory, f"{name}.")
        else:
            found.append(name)
    return found


def flags_of(command: str) -> list[str]:
    """Every flag of a command."""
    if command in ("train", "doctor"):
        flags = spelled(RunConfig if command == "train" else DoctorConfig)
        return [*flags, "--resume"] if command == "train" else flags
    function = getattr(import_module(f"regpt.commands.{command}"), command)
    signature = inspect.signature(function).parameters.values()
    return ["--" + p.name.replace("_", "-") for p in signature if p.kind is p.KEYWORD_ONLY]


def placed(hunt: Hunt, *, run: Path, wide: Path, shards: Path, text: Path) -> Path:
    """A folder with all that a command could read."""
    place = hunt.place()
    (place / "m").symlink_to(wide)
    (place / "d").symlink_to(shards)
    (place / "text.txt").write_bytes(text.read_bytes()[:3000])
    (place / "words.jsonl").write_text('{"text": "the cat saw a bird"}\n')
    (place / "prompts.jsonl").write_text('{"prompt": "the cat"}\n')
    # a folder's texts are data, too: without the tokenizer's files, a million tokens' worth
    unread = shutil.ignore_patterns("step-00000004", "tokenizer.json", "vocab.json", "merges.txt")
    shutil.copytree(run, place / "r", ignore=unread)
    return place


@share(0.9)
@given(data=st.data(), command=st.sampled_from(sorted(BASES)))
def test_flags(
    data: st.DataObject,
    command: str,
    hunt: Hunt,
    run: Path,
    wide: Path,
    shards: Path,
    text: Path,
) -> None:
    place = placed(hunt, run=run, wide=wide, shards=shards, text=text)
    arguments = list(BASES[command])
    for _ in range(data.draw(st.sampled_from((1, 1, 1, 2, 3)))):
        flag, value = (
            data.draw(st.sampled_from(flags_of(command))),
            data.draw(st.sampled_from(VALUES)),
        )
        if flag in LONG and value in SMALL:
            value = "-7"
        form = data.draw(st.sampled_from(("two", "two", "two", "one", "bare", "twice", "no")))
        given_flag = {
            "two": [flag, value],
            "one": [f"{flag}={value}"],
            "bare": [flag],
            "twice": [flag, value, flag, value],
            "no": ["--no-" + flag[2:]],
        }[form]
        arguments += given_flag
    hunt.check("flags", [command, *arguments], cwd=place, inputs=place / "d", about="")


@share(0.3)
@given(
    words=st.lists(
        st.sampled_from((*BASES, "bench", "parity", "generate", "show", "quickstart", "m", "r", "d",
                         "text.txt", "--help", "--version", "--resume", "--step", *VALUES)),
        max_size=5,
    ),
)  # fmt: skip
def test_words(
    words: list[str], hunt: Hunt, run: Path, wide: Path, shards: Path, text: Path
) -> None:
    """Words in any order, short of those that start a long command."""
    place = placed(hunt, run=run, wide=wide, shards=shards, text=text)
    if words[:1] in (["parity"], ["doctor"], ["bench"], ["train"]):
        words = [*words, "--no-such-flag"]
    hunt.check("words", words, cwd=place, inputs=place / "d", about="")


BENCHES = (
    ("bench", "generate", "nowhere/at/all"),
    ("bench", "generate", "--jobs", "odd"),
    ("bench", "generate", "--rounds", "-1"),
    ("bench", "generate", "--seconds", "nan"),
    ("bench", "train", "--jobs", "odd"),
    ("bench", "train", "--jobs", "step-124M-B0-T0"),
    ("bench", "train", "--rounds", "0"),
    ("bench", "train", "--seconds", "nan"),
    ("bench", "train", "--device", "odd"),
    ("bench", "train", "--threads", "0"),
    ("bench", "odd"),
    ("parity", "nowhere/at/all"),
    ("parity", "--device", "odd"),
    ("parity", "--seeds", "-1", "--quick", "--device", "cuda:9"),
)


@pytest.mark.parametrize("command", BENCHES, ids=" ".join)
def test_benches_refuse_at_once(command: tuple[str, ...], hunt: Hunt) -> None:
    hunt.check("flags", command, cwd=hunt.place(), inputs=None, about="")
