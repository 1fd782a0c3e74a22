"""Where regpt keeps what it can make again: compiled kernels, fetched texts, measured speeds.

The user's cache folder, as the system names it. A user without a home (a container's uid), or whose
home takes no new folder, has one of their own in the system's temporary folder; that is said once.
"""

import logging
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from regpt.system.errors import UserError

LOCK_SECONDS = 600.0
"""How long a process waits for another that makes the same thing."""


def usual_folder() -> Path:
    """Our folder in the user's caches; RuntimeError for a user without a home."""
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return (Path(local) if local else Path.home() / "AppData" / "Local") / "regpt/cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "regpt"
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))  # to be ignored if relative, says XDG
    return (given if given.is_absolute() else Path.home() / ".cache") / "regpt"


@lru_cache(maxsize=1)
def cache_folder() -> Path:
    """The usual folder, made if need be; where none can be made, one in the temporary folder.

    Raises:
        UserError: the one in the temporary folder is somebody else's.
    """
    try:
        folder = usual_folder()
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    except (RuntimeError, OSError) as error:
        reason = getattr(error, "strerror", None) or "this user has no home"
    owner = f"-{os.getuid()}" if hasattr(os, "getuid") else ""
    folder = private_folder(Path(tempfile.gettempdir()) / f"regpt{owner}")
    logging.getLogger("regpt").warning(
        "regpt: note: no cache folder (%s): using %s; XDG_CACHE_HOME names another", reason, folder
    )
    return folder


def private_folder(folder: Path) -> Path:
    """A folder that only this user writes to, made if need be: what lies in it may be loaded.

    Raises:
        UserError: it cannot be made, is somebody else's, or others may write to it.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made ({error.strerror})") from None
    require_own(folder)
    return folder


def require_own(path: Path) -> None:
    """Refuse what is not this user's own, or what others may write to; a link is nobody's own."""
    if not hasattr(os, "getuid"):
        return
    found = path.lstat()
    if found.st_uid != os.getuid() or stat.S_ISLNK(found.st_mode):
        raise UserError(f"{path} is not your own: remove it, or set XDG_CACHE_HOME")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UserError(f"{path} can be written by others: remove it, or set XDG_CACHE_HOME")


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Hold the lock of a file in the cache: who makes it, makes it once, and the others wait.

    Raises:
        OSError: the folder takes no lock, or its holder is not ready in `LOCK_SECONDS`.
    """
    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.parent / f".{path.name}.lock", timeout=LOCK_SECONDS):
        yield
