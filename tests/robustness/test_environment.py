"""What a machine can lack: a home, a compiler, room, a reader; and outputs in odd places."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hunting import RUN_FLAGS, Hunt, Outcome, complaint, fingerprint
from hypothesis import example, given
from hypothesis import strategies as st
from shares import share

SAMPLE = ("sample", "the cat", "--model", "m", "--max-length", "6", "--num-samples", "1")
TRAIN = ("train", "quickstart", "--steps", "2", "--out", "out", "--data", "text.txt", *RUN_FLAGS)
WRITERS = {
    "sample": (*SAMPLE, "--batch", "prompts.jsonl", "--output", "out"),
    "train": TRAIN,
    "prepare": ("prepare", "text.txt", "--out", "out", "--processes", "1"),
    "export": ("export", "m", "out"),
    "gguf": ("export", "m", "out", "--gguf", "f16"),
    "explain": ("explain", "the cat", "--model", "m", "--out", "out"),
    "report": ("report", "r", "--out", "out"),
    "evaluate": (
        *("evaluate", "m", "--lambada", "words.jsonl", "--block-size", "8", "--details", "out"),
    ),
}
writers = st.sampled_from(sorted(WRITERS))


def furnished(hunt: Hunt, wide: Path, run: Path, text: Path) -> Path:
    """A folder with what the commands read."""
    folder = hunt.place()
    (folder / "m").symlink_to(wide)
    (folder / "r").symlink_to(run)
    (folder / "text.txt").write_bytes(text.read_bytes()[:3000])
    (folder / "words.jsonl").write_text('{"text": "the cat saw a bird"}\n')
    (folder / "prompts.jsonl").write_text('{"prompt": "the cat"}\n')
    return folder


def broken_compiler(place: Path) -> str:
    """A PATH on which every C compiler fails."""
    folder = place / "bin"
    folder.mkdir()
    for name in ("cc", "gcc", "clang"):
        (folder / name).write_text("#!/bin/sh\necho '[red]no[/red]' >&2\nexit 1\n")
        (folder / name).chmod(0o755)
    return f"{folder}:/usr/bin:/bin"


ENVIRONMENTS: dict[str, dict[str, str | None]] = {
    "no home": {"HOME": None, "XDG_CACHE_HOME": None},
    "home is nowhere": {"HOME": "/nowhere/at/all", "XDG_CACHE_HOME": None},
    "home is a file": {"HOME": "/proc/version", "XDG_CACHE_HOME": None},
    "cache cannot be written": {"HOME": "/proc", "XDG_CACHE_HOME": "/proc/regpt"},
    "cache is a relative name": {"XDG_CACHE_HOME": "odd"},
    "no compiler": {"PATH": "/nowhere", "HOME": "HERE", "XDG_CACHE_HOME": "HERE/c"},
    "broken compiler": {"PATH": "BROKEN", "HOME": "HERE", "XDG_CACHE_HOME": "HERE/c"},
    "no terminal": {"TERM": "odd", "COLUMNS": "0", "LINES": "-1"},
    "odd torchrun": {"RANK": "odd", "WORLD_SIZE": "2", "LOCAL_RANK": "0"},
    "half of torchrun": {"WORLD_SIZE": "2"},
    "odd temporary folder": {"TMPDIR": "/nowhere/at/all"},
}
EARLY = {
    "no threads": {"OMP_NUM_THREADS": "0"},
    "odd threads": {"OMP_NUM_THREADS": "odd", "MKL_NUM_THREADS": "-1"},
    "ascii locale": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"},
}
"""Read when Python and torch begin: these take a process of their own."""


@share(0.3)
@given(
    name=st.sampled_from(sorted(ENVIRONMENTS)),
    command=st.sampled_from((SAMPLE, *WRITERS.values())),
)
@example(name="half of torchrun", command=WRITERS["evaluate"])
def test_environments(
    name: str, command: tuple[str, ...], hunt: Hunt, wide: Path, run: Path, text: Path
) -> None:
    place = furnished(hunt, wide, run, text)
    values = dict(ENVIRONMENTS[name])
    for variable, value in values.items():
        if value == "BROKEN":
            values[variable] = broken_compiler(place)
        elif value is not None:
            values[variable] = value.replace("HERE", str(place))
    machine = {"environment": values}
    hunt.check("environment", command, cwd=place, inputs=wide, about=name, machine=machine)


@pytest.mark.parametrize("name", EARLY)
def test_early_environments(name: str, hunt: Hunt, wide: Path, run: Path, text: Path) -> None:
    place = furnished(hunt, wide, run, text)
    done = subprocess.run(
        [sys.executable, "-m", "regpt", *SAMPLE], cwd=place, capture_output=True, timeout=120,
        env=os.environ | {"PYTHONWARNINGS": "ignore"} | EARLY[name], check=False,
    )  # fmt: skip
    outcome = Outcome(done.returncode, 0, "", done.stderr.decode())
    hunt.note("environment", complaint("sample", outcome), name, outcome.code)


@share(0.3)
@given(
    command=st.sampled_from((SAMPLE, (*SAMPLE, "--stream"), ("runs", "."), ("--help",),
                             ("data", "show", "r"), ("sample", "--help"), *WRITERS.values())),
    stdout=st.sampled_from(("closed", "full", "unread")),
)  # fmt: skip
def test_stdout(
    command: tuple[str, ...], stdout: str, hunt: Hunt, wide: Path, run: Path, text: Path
) -> None:
    place = furnished(hunt, wide, run, text)
    machine = {"stdout": stdout}
    hunt.check("stdout", command, cwd=place, inputs=wide, about=stdout, machine=machine)


@share(0.4)
@given(command=writers, size=st.sampled_from((0, 100, 3000, 30_000, 300_000, 1_000_000)))
@example(command="evaluate", size=100)
def test_files_cannot_grow(
    command: str, size: int, hunt: Hunt, wide: Path, run: Path, text: Path
) -> None:
    """A limit on the size of files, which ends a write as a full disk does: in the middle."""
    place = furnished(hunt, wide, run, text)

    def sound(outcome: Outcome) -> str | None:
        if outcome.code == 0 or command in ("train", "prepare", "sample"):
            return None  # these keep what they have, to go on with
        found = [path for path in (place / "out").rglob("*") if path.is_file()]
        if command == "evaluate" and all(is_whole(path) for path in found):
            return None  # the words after it did not find room
        return f"half of an output: {found}" if found or (place / "out").is_file() else None

    machine = {"file_size": size}
    hunt.check(
        "file size", WRITERS[command], cwd=place, inputs=wide, about=size, machine=machine,
        sound=sound,
    )  # fmt: skip


def is_whole(path: Path) -> bool:
    """Whether a file of JSON lines ends with a line's end."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return bool(lines) and all(line.endswith("\n") and json.loads(line) for line in lines)


OUTPUTS = (
    "/dev/null/x", "/dev/full", "/proc/x", "text.txt", "text.txt/x", "m", "x" * 300, "", ".",
    "a\nb[red]x[/]", "link", "loop",
)  # fmt: skip


@share(0.5)
@given(command=writers, out=st.sampled_from(OUTPUTS))
@example(command="sample", out="/dev/full")
@example(command="explain", out="m")
def test_outputs_in_odd_places(
    command: str, out: str, hunt: Hunt, wide: Path, run: Path, text: Path
) -> None:
    place = furnished(hunt, wide, run, text)
    (place / "link").symlink_to("nowhere/at/all")
    (place / "loop").symlink_to("loop")
    before, model = (place / "text.txt").read_bytes(), fingerprint(wide)
    arguments = [out if word == "out" else word for word in WRITERS[command]]

    def sound(outcome: Outcome) -> str | None:
        if out == "m" and not fingerprint(wide).items() >= model.items():
            return "the model was changed"
        changed = (place / "text.txt").read_bytes() != before
        # --output and --gguf name a file that may be there, of an earlier run
        return "text.txt was overwritten" if changed and command not in KEPT else None

    # beside a model, a page about it may lie
    inputs = None if out == "m" else wide
    hunt.check("outputs", arguments, cwd=place, inputs=inputs, about=repr(out), sound=sound)
    for name in fingerprint(wide).keys() - model.keys():
        (wide / os.fsdecode(bytes.fromhex(name))).unlink()


KEPT = ("sample", "gguf")


@pytest.mark.skipif(not Path("/usr/bin/unshare").exists(), reason="unshare is not here")
@pytest.mark.parametrize("command", ["prepare", "gguf"])
def test_full_disk(command: str, hunt: Hunt, wide: Path, run: Path, text: Path) -> None:
    """A file system of 100 kB, in a name space of its own, where this user may make one."""
    place = furnished(hunt, wide, run, text)
    (place / "small").mkdir()
    words = " ".join(f"'{word}'" for word in WRITERS[command]).replace("'out'", "small/out")
    script = f"mount -t tmpfs -o size=100k none small && exec {sys.executable} -m regpt {words}"
    done = subprocess.run(
        ["unshare", "-m", "-r", "sh", "-c", script], cwd=place, capture_output=True, timeout=120,
        check=False,
    )  # fmt: skip
    if b"unshare" in done.stderr or b"mount" in done.stderr:
        pytest.skip("no file system of our own can be mounted here")
    outcome = Outcome(done.returncode, 0, "", done.stderr.decode())
    hunt.note(
        "environment", complaint(command, outcome), f"{command} on a full disk", done.returncode
    )
