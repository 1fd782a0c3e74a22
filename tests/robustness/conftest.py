"""What is mutated: a tiny model, a run with checkpoints, prepared shards; and the hunt's counts."""

import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from hunting import NARROW, RUN_FLAGS, SENTENCE, WIDE, Hunt, Server

from regpt import GPT, GPTConfig
from regpt.weights import write_model

TOTAL: dict[str, int] = {}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How much was tried, by kind."""
    if TOTAL:
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in sorted(TOTAL.items()))
        terminalreporter.write_line(f"mutations: {sum(TOTAL.values()):,}: {kinds}")


@pytest.fixture(scope="session")
def root() -> Iterator[Path]:
    """A folder in memory, where the system has one: thousands of small files come and go."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder).resolve()


@pytest.fixture(scope="session")
def session(root: Path) -> Iterator[Hunt]:
    """The server and the counts of all tests."""
    server = Server()
    hunt = Hunt(server, root)
    yield hunt
    server.close()
    TOTAL.update(hunt.counts)


@pytest.fixture
def hunt(session: Hunt) -> Iterator[Hunt]:
    """The hunt; a test that found faults fails with all of them at its end."""
    session.faults.clear()
    yield session
    session.settle()


def make_model(folder: Path, config: GPTConfig) -> Path:
    """A model's directory, of weights drawn here; without tokenizer files, whose check takes most
    of a second."""
    torch.manual_seed(0)
    write_model(folder, GPT(config).state_dict(), asdict(config))
    for name in ("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink(missing_ok=True)
    return folder


@pytest.fixture(scope="session")
def narrow(root: Path) -> Path:
    """A model of 256 tokens."""
    return make_model(root / "narrow", NARROW)


@pytest.fixture(scope="session")
def wide(root: Path) -> Path:
    """A model of GPT-2's whole vocabulary."""
    return make_model(root / "wide", WIDE)


@pytest.fixture(scope="session")
def text(root: Path) -> Path:
    """A text of 2,000 tokens."""
    path = root / "text.txt"
    path.write_text("\n".join(SENTENCE * 2 for _ in range(15)))
    return path


@pytest.fixture(scope="session")
def shards(session: Hunt, text: Path, root: Path) -> Path:
    """What regpt prepare makes of twenty texts."""
    lines = root / "lines.jsonl"
    lines.write_text("".join(json.dumps({"text": SENTENCE * 3 + str(i)}) + "\n" for i in range(40)))
    out = root / "shards"
    arguments = ["prepare", lines, "--out", out, "--val-every", "4", "--shard-tokens", "800"]
    outcome = session.server.run([*arguments, "--processes", "1"], cwd=root)
    assert outcome.code == 0, outcome.stderr
    return out


@pytest.fixture(scope="session")
def run(session: Hunt, text: Path, root: Path) -> Path:
    """A run of four steps with checkpoints, validations and samples."""
    out = root / "run"
    flags = ("--steps", "4", "--save-every", "2", "--eval-every", "2", "--no-compact-vocabulary")
    more = ("--optimizer.clip", "1.0", "--out", out, "--data", text)
    outcome = session.server.run(["train", "quickstart", *flags, *more, *RUN_FLAGS], cwd=root)
    assert outcome.code == 0, outcome.stderr
    assert (out / "checkpoints" / "latest").exists()
    assert os.listdir(out / "checkpoints")
    return out
