"""A run's figures as TensorBoard reads them, without its package: the file format is small.

A file is records: length, checksum, data, checksum (TFRecord). The data is a protocol buffer
`Event` of a time, a step and summaries: a float with a tag, or, for samples, a text. Both are
written out here in a page; TensorBoard's own reader is held against it in the tests. (torch's
SummaryWriter would do the same by way of eight packages, and cannot take back what it wrote.)

What goes to metrics.jsonl goes here, line by line. A resumed run starts a new file with the events
up to its checkpoint, their times kept, and removes the old one: no step is there twice. A run that
is resumed with TensorBoard switched on gets what it did before from metrics.jsonl.
"""

import struct
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from regpt.system.files import replace_files, writing_to

PREFIX = "events.out.tfevents."
TAGS = {
    "loss": "train/loss",
    "learning_rate": "train/learning_rate",
    "grad_norm": "train/grad_norm",
    "tokens_per_second": "train/tokens_per_second",
    "tokens": "train/tokens",
    "val_loss": "validation/loss",
    "quick_val_loss": "validation/quick_loss",
    "val_bits_per_byte": "validation/bits_per_byte",
    "val_nats_per_character": "validation/nats_per_character",
    "hellaswag_acc": "hellaswag/acc",
    "hellaswag_acc_norm": "hellaswag/acc_norm",
}
STRING, TENSOR = 7, 2
"""The types `string` of a tensor and `tensor` of a summary, in TensorFlow's numbering."""


class TensorBoard:
    """Event files in a run's directory; open one, write lines of metrics.jsonl, close."""

    def __init__(self, directory: Path, earlier: Iterable[dict[str, Any]], *, step: int) -> None:
        """Begin, or go on after `step` steps; `earlier` are the lines of metrics.jsonl so far."""
        old = sorted(directory.glob(f"{PREFIX}*"))
        kept: list[bytes] = []
        if step:
            found = (data for path in old for data in read_records(path) if is_summary(data))
            kept = [data for data in found if step_of(data) <= step]
        if step and not kept:
            kept = [data for entry in earlier if (data := encode_entry(entry, time.time()))]
        now = time.time()
        number = max([int(now), *(1 + stamp(path) for path in old)])
        self.path = directory / f"{PREFIX}{number}.regpt"
        records = [encode_event(now, 0, text(3, "brain.Event:2"))]
        if old:  # a TensorBoard that is looking on forgets what it has and reads it again
            records.append(encode_event(now, 0, message(7, number_field(1, 1))))
        data = b"".join(map(as_record, [*records, *kept]))
        replace_files(directory, {self.path.name: data})
        for path in old:
            path.unlink()

    def write(self, entry: dict[str, Any]) -> None:
        """Add a line of metrics.jsonl."""
        data = encode_entry(entry, time.time())
        if data:
            with writing_to(self.path), self.path.open("ab") as file:
                file.write(as_record(data))


def stamp(path: Path) -> int:
    """The number in a file's name."""
    digits = path.name.removeprefix(PREFIX).split(".")[0]
    return int(digits) if digits.isdigit() else 0


def encode_entry(entry: dict[str, Any], now: float) -> bytes:
    """An event of a line's figures and texts; empty if it has none that TensorBoard shows."""
    values = [
        message(1, text(1, tag) + float_field(2, entry[name]))
        for name, tag in TAGS.items()
        if isinstance(entry.get(name), int | float)
    ]
    for prompt, texts in entry.get("samples", {}).items():
        values.append(message(1, encode_texts(f"samples/{prompt}", texts)))
    return encode_event(now, entry["step"], message(5, b"".join(values))) if values else b""


def encode_texts(tag: str, texts: list[str]) -> bytes:
    """A summary of texts, as they are: TensorBoard would take their marks for markdown."""
    quoted = ["    " + part.replace("\n", "\n    ") for part in texts]
    metadata = message(1, text(1, "text")) + number_field(4, TENSOR)
    shape = message(2, number_field(1, len(quoted)))
    tensor = number_field(1, STRING) + message(2, shape) + b"".join(text(8, q) for q in quoted)
    return text(1, tag) + message(8, tensor) + message(9, metadata)


def encode_event(now: float, step: int, content: bytes) -> bytes:
    """A protocol buffer `Event`."""
    return b"\x09" + struct.pack("<d", now) + number_field(2, step) + content


def varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first."""
    parts = bytearray()
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    parts.append(number)
    return bytes(parts)


def number_field(field: int, number: int) -> bytes:
    """A non-negative integer."""
    return varint(field << 3) + varint(number)


def float_field(field: int, number: float) -> bytes:
    """A float32; what is too large for one is infinite."""
    try:
        return varint(field << 3 | 5) + struct.pack("<f", number)
    except OverflowError:
        return float_field(field, float("inf") if number > 0 else float("-inf"))


def message(field: int, content: bytes) -> bytes:
    """A message inside a message, or bytes."""
    return varint(field << 3 | 2) + varint(len(content)) + content


def text(field: int, content: str) -> bytes:
    """A string."""
    return message(field, content.encode("utf-8", "replace"))


def step_of(event: bytes) -> int:
    """The step of an event this file wrote: it stands after the time."""
    step, place = 0, 0
    for byte in event[10:]:
        step |= (byte & 127) << place
        place += 7
        if byte < 128:
            break
    return step


def is_summary(event: bytes) -> bool:
    """Whether an event this file wrote holds figures or texts."""
    return event[10 + len(varint(step_of(event))) :][:1] == b"\x2a"


def crc32c_table() -> list[int]:
    """Castagnoli's polynomial, reflected."""
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


CRC_TABLE = crc32c_table()


def checksum(data: bytes) -> bytes:
    """The masked CRC-32C of a TFRecord."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ CRC_TABLE[(crc ^ byte) & 255]
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def as_record(data: bytes) -> bytes:
    """A TFRecord."""
    length = struct.pack("<Q", len(data))
    return length + checksum(length) + data + checksum(data)


def read_records(path: Path) -> Iterator[bytes]:
    """The records of a file, up to the first that is not whole: a kill may have cut the last."""
    data, place = path.read_bytes(), 0
    while place + 12 <= len(data):
        (length,) = struct.unpack_from("<Q", data, place)
        record = data[place + 12 : place + 12 + length]
        end = place + 12 + length
        if len(record) < length or data[end : end + 4] != checksum(record):
            return
        yield record
        place = end + 4
