"""What all tests share: tiny models, tiny texts, and no network."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings

from regpt.system.malloc import keep_pages

os.environ["HF_HUB_OFFLINE"] = "1"  # no test may reach the hub
# The models are tiny: one thread is as fast, and on a loaded machine two wait for each other.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)
keep_pages()  # as every command does

# `ci` is the default: the same examples every time. `--hypothesis-profile thorough` is for an hour
# of tests/robustness: other examples each time, 60 times as many (with `-n 0`, which counts them).
settings.register_profile("ci", deadline=None, derandomize=True, database=None)
settings.register_profile(
    "thorough",
    deadline=None,
    database=None,
    max_examples=6000,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)
settings.load_profile("ci")

REPOSITORY = Path(__file__).parent.parent
SHAKESPEARE = REPOSITORY.parent / "shared" / "data" / "tinyshakespeare.txt"


def pytest_configure(config: pytest.Config) -> None:
    """One warm Python for all workers, beginning when it is first used."""
    if "WARM_PYTHON" in os.environ:  # a worker, or a test's own pytest
        return
    folder = tempfile.TemporaryDirectory(prefix="warm-")
    script = Path(__file__).with_name("warm_python.py")
    command, pipe = [sys.executable, str(script), folder.name], subprocess.PIPE
    server = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
    assert server.stdout is not None
    os.environ["WARM_PYTHON"] = server.stdout.readline().strip()

    def end() -> None:
        del os.environ["WARM_PYTHON"]
        server.communicate()
        folder.cleanup()

    config.add_cleanup(end)


LONGEST = (
    "bench/test_gpu_script.py",
    "parity/test_parity.py",
    "training/test_distributed.py",
    "training/test_durability.py",
    "training/test_resume.py",
    "fast/test_kernels.py",
    "fast/test_speculative.py",
)
"""The files that take most time, in the order in which they begin: one of them at the end would
leave the other worker with nothing to do."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first."""
    ranks = {REPOSITORY / "tests" / name: rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path, len(ranks)))


@pytest.fixture
def shakespeare() -> Path:
    """Tiny Shakespeare, where this machine has it."""
    if not SHAKESPEARE.is_file():
        pytest.skip(f"tiny Shakespeare is not at {SHAKESPEARE}")
    return SHAKESPEARE


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    """A small English text, about 4,000 tokens, the same everywhere."""
    sentence = "the cat saw a dog and the dog saw a bird while it rained on old green hills"
    words = sentence.split(" ")
    lines = [
        " ".join(words[(i * step + step) % len(words)] for step in range(1, 12)) + "."
        for i in range(330)
    ]
    path = tmp_path / "text.txt"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test starts from one random state."""
    torch.manual_seed(0)
