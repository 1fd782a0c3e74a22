"""A headless Chromium, driven over its own debugging pipe: no driver, no package, no port."""

import base64
import contextlib
import fcntl
import itertools
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FOUND = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars",
         "--disable-extensions", "--disable-background-networking", "--disable-component-update",
         "--remote-debugging-pipe", "--disable-dev-shm-usage")  # fmt: skip


class Page:
    """One tab. What went wrong in it, and what it asked for, is kept."""

    def __init__(self, writer: int, reader: int) -> None:
        self.writer, self.reader = writer, reader
        self.numbers = itertools.count(1)
        self.left = b""
        self.session: str | None = None
        self.problems: list[str] = []
        self.requests: list[str] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """A command and its result."""
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.writer, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + 60
        while time.monotonic() < end:
            for found in self.messages(end - time.monotonic()):
                if found.get("id") == number:
                    assert "error" not in found, (method, found["error"])
                    return found["result"]
        raise AssertionError(f"Chromium did not answer {method}")

    def messages(self, seconds: float) -> Iterator[dict[str, Any]]:
        """What comes within some seconds; events are noted."""
        ready, _, _ = select.select([self.reader], [], [], max(seconds, 0))
        if not ready:
            return
        self.left += os.read(self.reader, 1 << 20)
        *whole, self.left = self.left.split(b"\0")
        for message in map(json.loads, whole):
            self.note(message.get("method"), message.get("params", {}))
            yield message

    def note(self, method: str | None, params: dict[str, Any]) -> None:
        """Keep problems and requests."""
        if method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(params["exceptionDetails"])[:500])
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.problems.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
            self.problems.append(str([one.get("value") for one in params["args"]]))

    def open(self, url: str) -> None:
        """Go there."""
        self.send("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def run(self, expression: str) -> Any:
        """The value of an expression (or of its promise)."""
        found = self.send(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, expression: str, seconds: float = 60) -> Any:
        """Wait until an expression is true."""
        end = time.monotonic() + seconds
        while not (value := self.run(expression)):
            if time.monotonic() > end:
                said = self.run("document.querySelector('[role=status]')?.textContent")
                raise AssertionError(f"never true: {expression}; {said!r}; {self.problems}")
            list(self.messages(0.05))
        return value

    def type(self, text: str) -> None:
        """Write into what has the focus."""
        self.send("Input.insertText", text=text)

    def press(self, key: str, *, code: int, modifiers: int = 0) -> None:
        """Press a key; modifiers: 1 Alt, 2 Control, 8 Shift."""
        common = {"key": key, "windowsVirtualKeyCode": code, "modifiers": modifiers}
        for kind in ("rawKeyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, **common)

    def move(self, x: float, y: float) -> None:
        """Move the mouse."""
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def size(self, width: int, height: int, *, dark: bool = False, scale: float = 1) -> None:
        """Choose the window and the scheme of colours."""
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=scale, mobile=width < 600,
        )  # fmt: skip
        wishes = {"color-scheme": "dark" if dark else "light", "reduced-motion": "reduce"}
        features = [{"name": f"prefers-{name}", "value": wishes[name]} for name in wishes]
        self.send("Emulation.setEmulatedMedia", features=features)

    def picture(self, path: Path, *, whole: bool = False) -> None:
        """Save what is seen, or all of the page, as a PNG."""
        found = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(found["data"]))


@contextlib.contextmanager
def chromium() -> Iterator[Page]:
    """A page of a new browser with a profile of its own."""
    assert FOUND is not None
    to_read, to_write = os.pipe()
    from_read, from_write = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:

        def wire() -> None:  # the browser reads commands from 3 and writes to 4
            high = [fcntl.fcntl(end, fcntl.F_DUPFD, 50) for end in (to_read, from_write)]
            for number, end in enumerate(high, start=3):
                os.dup2(end, number)

        process = subprocess.Popen(
            [FOUND, *FLAGS, f"--user-data-dir={profile}"],
            preexec_fn=wire, close_fds=False,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_read)
        os.close(from_write)
        try:
            yield Page(to_write, from_read)
        finally:
            os.close(to_write)
            os.close(from_read)
            process.terminate()
            process.wait(20)
