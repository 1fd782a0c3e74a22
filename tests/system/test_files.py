"""Files are there whole or not at all, whatever the system refuses and whenever."""

import contextlib
import errno
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest

from regpt import UserError
from regpt.datasets.corpora import load_corpus
from regpt.system.files import is_leftover, new_directory, new_file, replace_files
from regpt.system.json_text import read_json, read_objects


@contextlib.contextmanager
def unprivileged() -> Iterator[Path]:
    """A directory that this process, for the time being, may not write to."""
    if sys.platform == "win32":
        pytest.skip("needs POSIX permissions")
    directory = Path(tempfile.mkdtemp())
    (directory / "config.json").write_text("old")
    directory.chmod(0o555)
    root = os.geteuid() == 0
    try:
        if root:
            os.seteuid(65534)  # permissions do not bind root
        yield directory
    finally:
        if root:
            os.seteuid(0)
        directory.chmod(0o755)
        shutil.rmtree(directory)


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Let the system refuse to write a file beyond `size` bytes: a full disk for any user."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def contents(directory: Path) -> dict[str, bytes]:
    """Every file in a directory, hidden ones too."""
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_files_are_written_and_replaced_in_order(tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(b"old")
    (tmp_path / "other").write_bytes(b"other")
    seen = []

    def late(file: BinaryIO) -> None:
        seen.append((tmp_path / "a").exists())  # nothing shows before everything is written
        file.write(b"new b")

    replace_files(tmp_path, {"a": b"new a", "b": late})
    assert seen == [False]
    assert contents(tmp_path) == {"a": b"new a", "b": b"new b", "other": b"other"}


def test_the_renames_come_in_the_order_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    renamed = []
    replace = os.replace

    def record(source: Path, target: Path) -> None:
        renamed.append(target.name)
        replace(source, target)

    monkeypatch.setattr(os, "replace", record)
    replace_files(tmp_path, {"z": b"", "a": b"", "config.json": b""})
    assert renamed == ["z", "a", "config.json"]


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, MemoryError])
def test_a_failure_half_way_leaves_the_old_files(
    tmp_path: Path, failure: type[BaseException]
) -> None:
    (tmp_path / "a").write_bytes(b"old")

    def fail(file: BinaryIO) -> None:
        file.write(b"half")
        raise failure

    with pytest.raises(failure):
        replace_files(tmp_path, {"a": b"new", "b": fail})
    assert contents(tmp_path) == {"a": b"old"}


def test_a_full_disk(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    with (
        files_of_at_most(100_000),
        pytest.raises(UserError, match=f"{tmp_path.name}: no space left"),
    ):
        replace_files(tmp_path, {"a": b"new", "b": bytes(200_000)})
    assert contents(tmp_path) == {"a": b"old"}


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "no space left"),
        (errno.EDQUOT, "no space left"),
        (errno.EROFS, "not writable"),
        (errno.EIO, "cannot be written"),
    ],
)
def test_what_the_system_refuses_at_the_last_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    (tmp_path / "a").write_bytes(b"old")

    def fsync(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(UserError, match=words) as raised:
        replace_files(tmp_path, {"a": b"new"})
    assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match=words), new_directory(tmp_path / "new") as hidden:
        (hidden / "a").touch()
    assert contents(tmp_path) == {"a": b"old"}


def test_a_directory_we_may_not_write_to() -> None:
    with unprivileged() as directory:
        with pytest.raises(UserError, match="not writable"):
            replace_files(directory, {"config.json": b"new"})
        with (
            pytest.raises(UserError, match="not writable"),
            new_directory(directory / "new"),
        ):
            raise AssertionError("there is a directory to fill")
        assert contents(directory) == {"config.json": b"old"}


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: cannot be written"):
        replace_files(tmp_path / "nowhere", {"a": b""})


def test_a_new_directory_shows_when_it_is_complete(tmp_path: Path) -> None:
    with new_directory(tmp_path / "deep" / "new") as hidden:
        (hidden / "a").write_bytes(b"a")
        assert hidden.name.startswith(".new.")
        assert not (tmp_path / "deep" / "new").exists()
    assert contents(tmp_path / "deep" / "new") == {"a": b"a"}
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["new"]


def test_the_place_is_named_as_the_person_named_it(tmp_path: Path) -> None:
    def fill() -> None:
        with new_directory(tmp_path / "new") as hidden:
            replace_files(hidden, {"a": bytes(200_000)})

    with files_of_at_most(100_000), pytest.raises(UserError) as raised:
        fill()
    assert str(raised.value).startswith(f"{tmp_path / 'new'}: no space left")
    assert not any(tmp_path.iterdir())


def test_a_new_directory_that_fails_is_gone_with_the_parents_made_for_it(tmp_path: Path) -> None:
    def fail() -> None:
        with new_directory(tmp_path / "deep" / "er" / "new") as hidden:
            (hidden / "a").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert not any(tmp_path.iterdir())


def test_a_directory_that_appeared_meanwhile_is_kept(tmp_path: Path) -> None:
    def race() -> None:
        with new_directory(tmp_path / "new"):
            (tmp_path / "new").mkdir()
            (tmp_path / "new" / "theirs").touch()

    with pytest.raises(UserError, match="cannot be written"):
        race()
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    assert contents(tmp_path / "new") == {"theirs": b""}


def test_a_living_writers_file_is_left_alone(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from regpt.system.files import new_file\n"
        "with new_file(Path(sys.argv[1])) as hidden:\n"
        "    hidden.write_text('theirs'); print('writing', flush=True); sys.stdin.readline()\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "a")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with other:
        assert other.stdout is not None
        assert other.stdout.readline() == "writing\n"
        replace_files(tmp_path, {"a": b"ours"})
        with new_file(tmp_path / "a") as hidden:
            hidden.write_text("ours again")
        assert contents(tmp_path)["a"] == b"ours again"
        other.communicate("go on\n")
    assert other.returncode == 0
    assert contents(tmp_path) == {"a": b"theirs"}


def test_what_a_killed_writer_left_is_removed_by_the_next_and_nothing_else(tmp_path: Path) -> None:
    left = [tmp_path / f".{name}.0123abcd.tmp" for name in ("a", "new", "b")]
    left[0].touch()
    left[1].mkdir()
    (left[1] / "half").touch()
    left[2].touch()
    for name in (".a.tmp", ".a.0123abcd.tmp.txt", "a.0123abcd.tmp", ".aa.0123abcd.tmp"):
        (tmp_path / name).touch()
    before = {path.name for path in tmp_path.iterdir()}
    replace_files(tmp_path, {"a": b""})
    with new_directory(tmp_path / "new"):
        pass
    gone = {left[0].name, left[1].name}
    assert {path.name for path in tmp_path.iterdir()} == before - gone | {"a", "new"}
    assert [is_leftover(path) for path in left] == [True] * 3
    assert not is_leftover(tmp_path / "a.0123abcd.tmp")


def test_a_device_without_an_end_is_not_read() -> None:
    endless = Path("/dev/zero")
    with pytest.raises(UserError, match="it is a device, not a file"):
        next(read_objects(endless))
    with pytest.raises(UserError, match="it is a device, not a file"):
        load_corpus([endless])
    with pytest.raises(OSError, match="it is a device, not a file"):
        read_json(endless)


def test_a_pipe_or_a_device_is_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(UserError, match="is a device or a pipe: name a file"):
        replace_files(tmp_path, {"pipe": b"text"})
    with pytest.raises(UserError, match="is a device or a pipe: name a file"):
        new_file(pipe).__enter__()
    assert pipe.is_fifo()
