"""Runs as they grow: a page, and its data as server-sent events. Files are read, nothing else.

metrics.jsonl is read from a byte offset on. The `id` of an event says how far that was, and in
which file: a resumed run writes a new one. A client that comes again with it (`Last-Event-ID`, as
EventSource does by itself) goes on where it stopped.
"""

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from regpt.report.history import History
from regpt.report.references import REFERENCES
from regpt.serve import pages
from regpt.serve.request import ApiError
from regpt.system.errors import UserError
from regpt.system.json_text import finite, parse_json
from regpt.training.loss_plot import uniform_loss
from regpt.training.run_dir import RunDirectory, is_sound

POLL_SECONDS = 0.5
ALIVE_SECONDS = 10.0
"""After so long without news a comment is sent, by which both ends see that the other is there."""
MOST_BYTES = 1 << 19
"""Of metrics.jsonl in one event."""
MOST_STREAMS = 32


@dataclass
class Tail:
    """The whole lines of a growing file, each read once."""

    path: Path
    offset: int = 0
    inode: int = 0
    age: float = 0.0
    """Seconds since the file was written to."""

    @property
    def id(self) -> str:
        """How far it was read."""
        return f"{self.offset}-{self.inode}"

    def resume(self, id: str) -> None:
        """Go on behind what was read up to an `id`; from the beginning if it is none."""
        offset, _, inode = id.partition("-")
        if all(part.isascii() and part.isdigit() and len(part) < 20 for part in (offset, inode)):
            self.offset, self.inode = int(offset), int(inode)

    def read(self) -> tuple[bool, list[bytes]]:
        """New lines, and whether what was read before is not in the file any more."""
        try:
            with self.path.open("rb") as file:
                status = os.fstat(file.fileno())
                self.age = max(time.time() - status.st_mtime, 0.0)
                known = self.inode == status.st_ino and self.offset <= status.st_size
                if not known:
                    self.inode, self.offset, begun = status.st_ino, 0, self.offset > 0
                else:
                    begun = False
                file.seek(self.offset)
                data = file.read(MOST_BYTES)
        except OSError:  # not there yet, or moved away: it may come
            return False, []
        whole = data.rfind(b"\n") + 1
        if not whole and len(data) == MOST_BYTES:  # no line of a run is as long
            whole = len(data)
        self.offset += whole
        return begun, data[:whole].splitlines()


def sound(lines: list[bytes]) -> list[dict[str, Any]]:
    """The lines that a run writes, without what a kill or a disk damaged."""
    found = []
    for line in lines:
        try:
            entry = parse_json(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and is_sound(entry):
            found.append(finite(entry))
    return found


def describe(path: Path) -> dict[str, Any]:
    """A run as its record has it, with the figures it can be held against."""
    try:
        record = RunDirectory(path).read_record()
    except UserError as error:
        return {"name": path.resolve().name, "error": str(error)}
    run = History(path=path, record=record, entries=[], notes=[])
    settings, vocab_size = run.settings, run.settings.get("model.vocab_size")
    levels = [
        {"name": one.name, "unit": one.unit, "value": one.value, "source": one.source}
        for one in REFERENCES
        if one.text.fits(run)
    ]
    if isinstance(vocab_size, int) and vocab_size > 0:
        guess = uniform_loss(vocab_size)
        levels.append({"name": guess.name, "unit": "loss", "value": guess.value, "source": ""})
    return finite(
        {
            "name": run.name,
            "preset": settings.get("preset"),
            "parameters": run.num_parameters(),
            "steps": settings.get("steps"),
            "finished": bool(record.get("finished")),
            "sources": record["data"].get("sources"),
            "runtime": record.get("runtime"),
            "levels": levels,
            "settings": settings,
        }
    )


def changed(folder: Path) -> int:
    """When the run's record was written; 0 if it is not there."""
    try:
        return RunDirectory(folder).run_json.stat().st_mtime_ns
    except OSError:
        return 0


def event(name: str, value: Any, id: str | None = None) -> bytes:
    """A server-sent event."""
    head = "" if id is None else f"id: {id}\n"
    return f"{head}event: {name}\ndata: {json.dumps(value, separators=(',', ':'))}\n\n".encode()


class Runs:
    """Runs by their names: pages, and streams until `close`."""

    def __init__(self, *folders: Path, poll_seconds: float = POLL_SECONDS) -> None:
        self.folders = {folder.resolve().name: folder for folder in folders}
        self.poll_seconds = poll_seconds
        self.streams = 0
        self.closed = False

    def paths(self) -> list[str]:
        """Where the pages are."""
        return [f"/runs/{name}" for name in self.folders]

    def routes(self) -> list[Route]:
        """The pages and their data."""
        return [
            Route("/runs/{name}", self.page),
            Route("/runs/{name}/events", self.events),
        ]

    def close(self) -> None:
        """End the streams."""
        self.closed = True

    def folder(self, request: Request) -> Path:
        """The run that is asked for."""
        name = request.path_params["name"]
        if name not in self.folders:
            known = ", ".join(self.folders) or "none"
            raise ApiError(f"no run {name[:200]!r} is shown here (runs: {known})", status=404)
        return self.folders[name]

    async def page(self, request: Request) -> Response:
        """GET /runs/NAME."""
        self.folder(request)
        return pages.answer("run.html")

    async def events(self, request: Request) -> Response:
        """GET /runs/NAME/events."""
        folder = self.folder(request)
        if self.streams >= MOST_STREAMS:
            message = f"{self.streams} pages are following runs: close one"
            raise ApiError(message, status=429, headers={"retry-after": "10"})
        tail = Tail(RunDirectory(folder).metrics)
        tail.resume(request.headers.get("last-event-id", ""))
        headers = {"x-accel-buffering": "no"}
        return StreamingResponse(self.follow(folder, tail), 200, headers, "text/event-stream")

    async def follow(self, folder: Path, tail: Tail) -> AsyncIterator[bytes]:
        """The record whenever it changes, and the lines that are new."""
        self.streams += 1
        told, spoke = None, time.monotonic()
        try:
            yield b"retry: 1000\n\n"
            while not self.closed:
                if (written := changed(folder)) != told:
                    yield event("record", await asyncio.to_thread(describe, folder))
                    told = written
                again, lines = await asyncio.to_thread(tail.read)
                if again:
                    yield event("again", None, tail.id)
                if lines:
                    found = await asyncio.to_thread(sound, lines)
                    yield event("lines", {"lines": found, "age": tail.age}, tail.id)
                    spoke = time.monotonic()
                    if len(lines) > 1:  # there may be more at once
                        continue
                if time.monotonic() - spoke > ALIVE_SECONDS:
                    yield b": alive\n\n"
                    spoke = time.monotonic()
                await asyncio.sleep(self.poll_seconds)
        finally:
            self.streams -= 1
