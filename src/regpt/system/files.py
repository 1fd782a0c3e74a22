"""Files that are there whole or not at all.

A run can be killed, a disk can fill up, at any byte. So nothing is ever written in its own place:

- `replace_files` writes every file beside its place under a hidden name, forces it to the disk,
  and only when all of them lie there renames them, in the order given. A reader sees each old file
  or each new one, never half of one; a process that still maps the old file keeps it.
- `new_directory` does the same for a whole directory: it is filled under a hidden name next to its
  place and renamed when complete.

What the operating system refuses (full disk, no permission) becomes one line for a person. A kill
that cannot be caught leaves at most a hidden `.NAME.xxxxxxxx.tmp`, which nothing ever reads and
which the next writer of NAME removes. A living writer's hidden file is safe from it: who writes
into a directory holds a shared lock on it, and only who can have it alone cleans up there.
"""

import contextlib
import errno
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from regpt.system.errors import UserError

Content = bytes | Callable[[BinaryIO], None]
"""What a file shall hold: its bytes, or a function that writes them to an open file."""

_HIDDEN = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{8}\.tmp")
ABANDONED_SECONDS = 86_400.0

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_PERMISSION = {errno.EACCES, errno.EPERM, errno.EROFS}


@contextlib.contextmanager
def writing_to(place: Path) -> Iterator[None]:
    """Turn what the system refuses while we write into one `UserError` naming `place`."""
    try:
        yield
    except OSError as error:
        hidden = _HIDDEN.fullmatch(place.name)
        place = place.parent / hidden["name"] if hidden else place
        reason = error.strerror or type(error).__name__
        if error.errno in _NO_SPACE:
            message = f"{place}: no space left ({reason}); free some or choose another place"
        elif error.errno in _NO_PERMISSION:
            message = f"{place}: not writable ({reason}); choose another place"
        else:
            message = f"{place}: cannot be written ({reason}); choose another place"
        raise UserError(message) from error


def make_directory(directory: Path) -> None:
    """Make a directory and its parents, if need be. Raises `UserError` if the system refuses."""
    with writing_to(directory):
        directory.mkdir(parents=True, exist_ok=True)


def replace_files(directory: Path, contents: Mapping[str, Content]) -> None:
    """Write or replace the named files of an existing directory, the last one as the seal.

    Raises `UserError` if the system refuses; then every file is as it was before.
    """
    for name in contents:
        refuse_special(directory / name)
    beside = {name: _hidden(directory / name) for name in contents}
    with writing_to(directory), _one_of_the_writers(directory, contents.keys()):
        try:
            for name, content in contents.items():
                _write(beside[name], content)
            for name, path in beside.items():
                os.replace(path, directory / name)
        except BaseException:
            for path in beside.values():
                _remove(path)
            raise
        _sync_directory(directory)


@contextlib.contextmanager
def new_directory(directory: Path) -> Iterator[Path]:
    """A hidden directory to fill, renamed to `directory` on success and removed on failure.

    `directory` must not exist; its parents are made. Raises `UserError` if the system refuses.
    """
    with _renamed(directory) as hidden:
        with writing_to(directory):
            hidden.mkdir()
        yield hidden
        with writing_to(directory):
            _sync_directory(hidden)


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A hidden file to fill by its name, renamed to `path` on success and removed on failure.

    A file that is there is replaced; parents are made. Raises `UserError` if the system refuses.
    """
    refuse_special(path)
    with _renamed(path) as hidden, writing_to(path):
        yield hidden
        with hidden.open("rb+") as file:
            os.fsync(file.fileno())


@contextlib.contextmanager
def _renamed(place: Path) -> Iterator[Path]:
    """A hidden name, renamed to `place` on success; on failure nothing is left."""
    hidden = _hidden(place)
    made = [parent for parent in place.parents if not parent.exists()]
    with contextlib.ExitStack() as writers:
        with writing_to(place):
            place.parent.mkdir(parents=True, exist_ok=True)
            writers.enter_context(_one_of_the_writers(place.parent, {place.name}))
        try:
            yield hidden
            with writing_to(place):
                os.replace(hidden, place)
                _sync_directory(place.parent)
        except BaseException:
            _remove(hidden)
            for parent in made:
                with contextlib.suppress(OSError):
                    parent.rmdir()
            raise


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def refuse_device(path: Path) -> None:
    """Raise OSError for an input that is a device: /dev/zero has no end."""
    if path.is_char_device() or path.is_block_device():
        raise OSError(errno.EINVAL, "it is a device, not a file", str(path))


def refuse_special(path: Path) -> None:
    """A rename would put a file in the place of /dev/null, for whoever may do so."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise UserError(f"{path} is a device or a pipe: name a file")


def is_leftover(path: Path) -> bool:
    """Whether this is what a killed writer left behind (or a living one is filling)."""
    return _HIDDEN.fullmatch(path.name) is not None


def _hidden(path: Path) -> Path:
    return path.parent / f".{path.name}.{secrets.token_hex(4)}.tmp"


@contextlib.contextmanager
def _one_of_the_writers(directory: Path, names: Collection[str]) -> Iterator[None]:
    """Remove what killed writers left, if nobody is writing in the directory; then be a writer.

    The system takes the lock back however its holder ends. Where there are no locks (Windows, some
    network file systems) a file that nobody touched for `ABANDONED_SECONDS` counts as left.
    """
    try:
        import fcntl
    except ImportError:
        _remove_leftovers(directory, names, older=ABANDONED_SECONDS)
        yield
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove_leftovers(directory, names)
        except BlockingIOError:
            pass  # somebody writes
        except OSError:
            _remove_leftovers(directory, names, older=ABANDONED_SECONDS)
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield
    finally:
        os.close(descriptor)


def _remove_leftovers(directory: Path, names: Collection[str], *, older: float = 0.0) -> None:
    """Remove what earlier writers of these names left behind, as far as the system lets us."""
    for path in directory.iterdir():
        found = _HIDDEN.fullmatch(path.name)
        if found is None or found["name"] not in names:
            continue
        if older and time.time() - path.lstat().st_mtime < older:
            continue
        _remove(path)


def _write(path: Path, content: Content) -> None:
    """Make a new file and force its content to the disk."""
    with path.open("xb") as file:
        if callable(content):
            content(file)
        else:
            file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(directory: Path) -> None:
    """Force the names in a directory to the disk, where the system lets one open a directory."""
    if os.name == "nt":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
