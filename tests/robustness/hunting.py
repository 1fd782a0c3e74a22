"""Runs a command on something mutated and says what is wrong with how it ended.

Right is: exit code 0, or one line on stderr and exit code 2. Wrong is a traceback, a signal, a
hang, memory out of proportion, an input that was changed, or an output that is half there.
"""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from forks import warm_python
from regpt import GPTConfig

WIDE = GPTConfig(block_size=16, vocab_size=50257, n_layer=1, n_head=2, n_embd=8)
NARROW = GPTConfig(block_size=16, vocab_size=256, n_layer=1, n_head=2, n_embd=8)
"""Of the tokens of single bytes only: `!` is 0."""
SENTENCE = "the cat saw a dog and the dog saw a bird while it rained on old green hills. "
RUN_FLAGS = (
    "--model.n-layer", "1", "--model.n-head", "2", "--model.n-embd", "8", "--model.block-size",
    "16", "--block-size", "16", "--batch-size", "2", "--device", "cpu", "--sample-tokens", "10",
)  # fmt: skip

SECONDS = {"computing": 20.0, "waiting": 120.0}
"""After which a command on a tiny model hangs: of its own time, and on a busy machine."""
MEMORY = 4 << 30
"""Of addresses, above what the imported libraries hold; threads reserve many and use few."""
FEW = 400 << 20
"""Resident bytes that no command on a tiny model needs."""
SERVER = Path(__file__).with_name("fork_server.py")
VERDICTS = {"doctor": 1, "parity": 1}
"""Commands that say no with an exit code of their own."""
NOTE = re.compile(r"(regpt: )?note: |batches .*━|\[W\d.* Warning: ")
"""What stands on stderr beside the error: notes, the bar of --batch, warnings of torch in C++."""
HIDDEN = re.compile(r"^\..*\.[0-9a-f]{8}\.tmp$")


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    memory: int
    stdout: str
    stderr: str


class Server:
    """The other process (fork_server.py)."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="hunt-"))
        environment = os.environ | {
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "200",
            "PYTHONWARNINGS": "ignore",
            "no_proxy": "*",
            "https_proxy": "http://127.0.0.1:9",  # whoever asks a server is refused at once
        }
        self.process = subprocess.Popen(
            [warm_python(), str(SERVER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert self._answer() == "ready\n"

    def _answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def run(
        self,
        arguments: Sequence[object],
        *,
        cwd: Path,
        machine: dict[str, Any] | None = None,
    ) -> Outcome:
        """Run `regpt ARGUMENTS` in a fork; `machine`: see `set_up` there."""
        out, err = self.folder / "stdout", self.folder / "stderr"
        request = {
            "arguments": [os.fsencode(str(argument)).hex() for argument in arguments],
            "cwd": str(cwd),
            "stdout": str(out),
            "stderr": str(err),
            "machine": machine or {},
            "seconds": SECONDS,
            "memory": MEMORY,
        }
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        found = json.loads(self._answer())
        texts = (path.read_text(encoding="utf-8", errors="replace") for path in (out, err))
        return Outcome(found["code"], found["memory"], *texts)

    def close(self) -> None:
        """End it."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.kill()  # a fork of it ends with its pipe
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def complaint(command: str, outcome: Outcome) -> str | None:
    """What is wrong with how a command ended; None: nothing."""
    lines = [line for line in outcome.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("regpt: error: ")]
    if outcome.code in (-signal.SIGALRM, -signal.SIGPROF):
        return "hangs"
    if outcome.code < 0:
        return f"ends by signal {-outcome.code}"
    if "Traceback (most recent call last)" in outcome.stderr:
        places = [line for line in lines if line.startswith("  File ") and "regpt" in line]
        where = re.sub(r'.*/regpt/(.*)", (line \d+), in (.*)', r"\1 \2 \3", (places or [""])[-1])
        return f"traceback: {lines[-1][:160]} at {where}"
    if outcome.memory > FEW:
        return f"took {outcome.memory >> 20} MiB"
    if outcome.code == 0 or outcome.code == VERDICTS.get(command):
        return f"error line and exit code {outcome.code}" if errors else None
    if outcome.code != 2:
        return f"exit code {outcome.code}: {(lines or ['nothing'])[-1][:160]}"
    others = [line for line in lines if line not in errors and not NOTE.match(line)]
    if len(errors) != 1 or others:
        return f"exit code 2 with {len(errors)} error lines and others: {others[:2]}"
    return None


def fingerprint(folder: Path) -> dict[str, str]:
    """What lies in a folder, by name: links, directories, digests of files."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = os.fsencode(path.relative_to(folder)).hex()
        if path.is_symlink():
            found[name] = f"link to {os.readlink(path)!r}"
        elif path.is_file():
            found[name] = hashlib.blake2b(path.read_bytes()).hexdigest()
        else:
            found[name] = "directory" if path.is_dir() else "special"
    return found


@dataclass
class Hunt:
    """The counts and the faults of a session."""

    server: Server
    root: Path
    counts: Counter[str] = field(default_factory=Counter)
    endings: Counter[str] = field(default_factory=Counter)
    faults: dict[str, list[str]] = field(default_factory=dict)

    def check(
        self,
        kind: str,
        arguments: Sequence[object],
        *,
        cwd: Path,
        inputs: Path | None,
        about: object,
        outputs: Sequence[Path] = (),
        sound: Callable[[Outcome], str | None] | None = None,
        machine: dict[str, Any] | None = None,
    ) -> None:
        """Run a command; note what is wrong.

        `inputs` must be as they were afterwards. `outputs` must not be there after exit code 2,
        and no hidden temporary file must be left anywhere below `cwd`. `sound` may look further.
        """
        before = fingerprint(inputs) if inputs else {}
        outcome = self.server.run(arguments, cwd=cwd, machine=machine)
        fault = complaint(str(arguments[0]) if arguments else "", outcome)
        if fault is None and inputs and fingerprint(inputs) != before:
            fault = "an input was changed"
        if fault is None and outcome.code == 2 and any(map(os.path.lexists, outputs)):
            fault = "an output is there although the command failed"
        if fault is None:
            left = [path.name for path in cwd.rglob(".*.tmp") if HIDDEN.match(path.name)]
            fault = f"left behind: {left}" if left else None
        if fault is None and sound is not None:
            fault = sound(outcome)
        self.note(kind, fault, f"regpt {list(map(str, arguments))} with {about}", outcome.code)

    def note(self, kind: str, fault: str | None, about: str, code: int) -> None:
        """Count a mutation and keep what was wrong with it."""
        self.counts[kind] += 1
        self.endings[f"exit code {code}"] += 1
        if fault is not None:
            self.faults.setdefault(f"{kind}: {fault}", []).append(about)

    def settle(self) -> None:
        """Fail with everything that was wrong since the last time."""
        faults, self.faults = self.faults, {}
        text = "\n".join(
            f"{fault} ({len(cases)} times)\n    {min(cases, key=len)[:700]}"
            for fault, cases in faults.items()
        )
        assert not faults, f"{len(faults)} kinds of fault:\n{text}"

    def place(self) -> Path:
        """An empty folder for one mutation; the one before is gone."""
        folder = self.root / "case"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return folder
