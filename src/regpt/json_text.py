"""JSON that others wrote: whatever is wrong with it is a ValueError."""

import errno
import json
from pathlib import Path
from typing import Any


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is not JSON, not Unicode, or nested deeper than Python's parser goes.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deep") from None


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises:
        OSError: it cannot be read, or is a device, which may have no end.
        ValueError: as `parse_json`.
    """
    refuse_device(path)
    return parse_json(path.read_bytes())


def refuse_device(path: Path) -> None:
    """Raise OSError for a device: /dev/zero has no end."""
    if path.is_char_device() or path.is_block_device():
        raise OSError(errno.EINVAL, "it is a device, not a file", str(path))
