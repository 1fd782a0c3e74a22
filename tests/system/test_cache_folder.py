"""One cache folder: the system's, one for users without a home, and nobody else's."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from regpt import UserError
from regpt.fast.kernels import build
from regpt.system import cache_folder
from regpt.system.cache_folder import private_folder, usual_folder

posix = pytest.mark.skipif(not hasattr(os, "getuid"), reason="needs POSIX owners")


@pytest.mark.parametrize(
    ("platform", "variable", "value", "expected"),
    [
        ("linux", "XDG_CACHE_HOME", None, "home/.cache/regpt"),
        ("linux", "XDG_CACHE_HOME", "", "home/.cache/regpt"),
        ("linux", "XDG_CACHE_HOME", "relative", "home/.cache/regpt"),
        ("linux", "XDG_CACHE_HOME", "xdg", "xdg/regpt"),
        ("darwin", "XDG_CACHE_HOME", None, "home/Library/Caches/regpt"),
        ("win32", "LOCALAPPDATA", None, "home/AppData/Local/regpt/cache"),
        ("win32", "LOCALAPPDATA", "local", "local/regpt/cache"),
    ],
)
def test_the_usual_folder(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    platform: str,
    variable: str,
    value: str | None,
    expected: str,
) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    monkeypatch.setattr(cache_folder.sys, "platform", platform)
    monkeypatch.delenv(variable, raising=False)
    if value is not None:
        absolute = str(tmp_path / value)
        monkeypatch.setenv(variable, value if value in ("", "relative") else absolute)
    assert usual_folder() == tmp_path / expected


HOMELESS = """
import os, sys
import filelock
from regpt.system.cache_folder import cache_folder
from regpt.fast.kernels import build
if os.getuid() == 0:
    os.setuid(int(sys.argv[1]))  # after the imports: Python itself may lie in root's home
print(cache_folder(), cache_folder(), (build.compile_into(cache_folder() / "kernels")).name)
"""
UNKNOWN = "54321"  # a user that no password file knows


def run_without_home(folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Ask for the cache folder and the kernels as a user without a home."""
    path = os.environ["PATH"]
    source = str(Path(build.__file__).parents[2])
    environment = {"PATH": path, "PYTHONPATH": source, "TMPDIR": str(folder), **variables}
    command = [sys.executable, "-c", HOMELESS, UNKNOWN]
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd="/", check=False
    )


def empty_compiler(folder: Path) -> Path:
    """A compiler that is done at once and has made an empty file."""
    compiler = folder / "cc"
    compiler.write_text('#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done; echo > "$2"\n')
    compiler.chmod(0o755)
    return compiler


@pytest.fixture
def shared_folder() -> Iterator[Path]:
    """A temporary folder that every user may write to, as /tmp; pytest's own are for one user."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o1777)
    yield folder
    shutil.rmtree(folder)


@posix
@pytest.mark.parametrize("home", [None, "/proc/nowhere"])
def test_a_user_without_a_home_has_a_folder_and_is_told_once(
    shared_folder: Path, home: str | None
) -> None:
    if home is None and os.getuid() != 0:
        pytest.skip("only root becomes a user that no password file knows")
    if build.unavailable_reason() is not None:
        pytest.skip("no C compiler")
    user = UNKNOWN if os.getuid() == 0 else str(os.getuid())
    if home is None:
        path = f"{empty_compiler(shared_folder).parent}:{os.environ['PATH']}"
        done = run_without_home(shared_folder, PATH=path)
    else:  # the kernels themselves, which take seconds, here only
        done = run_without_home(shared_folder, HOME=home)
    folder = shared_folder / f"regpt-{user}"
    assert done.returncode == 0, done.stderr
    first, second, kernel = done.stdout.split()
    assert first == second == str(folder)
    assert (folder / "kernels" / kernel).is_file()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("regpt: note: no cache folder")


@posix
def test_a_folder_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "kernels"
    private_folder(folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o770)
    with pytest.raises(UserError, match="can be written by others"):
        private_folder(folder)
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(UserError, match="not your own"):
        private_folder(tmp_path / "link")


@posix
def test_a_library_of_somebody_else_is_not_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = empty_compiler(tmp_path)
    monkeypatch.setattr("shutil.which", lambda name: str(compiler))
    path = build.compile_into(tmp_path / "kernels")
    assert build.compile_into(tmp_path / "kernels") == path
    path.chmod(0o666)
    with pytest.raises(UserError, match="can be written by others"):
        build.compile_into(tmp_path / "kernels")
    path.chmod(0o600)
    if os.getuid() == 0:
        os.chown(path, int(UNKNOWN), int(UNKNOWN))
        with pytest.raises(UserError, match="not your own"):
            build.compile_into(tmp_path / "kernels")
    else:
        monkeypatch.setattr(os, "getuid", lambda: path.stat().st_uid + 1)
        with pytest.raises(UserError, match="not your own"):
            build.compile_into(tmp_path / "kernels")
