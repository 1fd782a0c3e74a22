"""The house holds: floors, budgets, light imports, public names, the README's map."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import regpt

SOURCE = Path(regpt.__file__).parent
REPOSITORY = Path(__file__).parent.parent

# From the bottom up. A module may import from lower entries, and from its own if it is a room.
FLOORS = [
    "errors",
    "json_text",
    "allocator",
    "atomic",
    "cache_folder",
    "philox",
    "native",
    "noise",
    "runtime",
    "memory",
    "tokenizer",
    "tokenizer_files",
    "weights",
    "model",
    "attention",
    "kept",
    "fused",
    "loss",
    "vocabulary",
    "filters",
    "sampling",
    "rows",
    "cache",
    "lowbit",
    "native_model",
    "speeds",
    "graphs",
    "fast",
    "guessers",
    "speculate",
    "generate",
    "writing",
    "parallel",
    "data",
    "evaluate",
    "parity",
    "train",
    "doctor",
    "report",
    "bench",
    "presets",
    "commands",
    "cli",
]
ROOMS = {
    "weights",
    "native",
    "data",
    "evaluate",
    "parity",
    "train",
    "doctor",
    "commands",
    "report",
    "bench",
}
DATA_MAY_USE = {"errors", "json_text", "atomic", "cache_folder", "tokenizer", "runtime", "data"}
PARITY_MAY_NOT_USE = {"data", "evaluate"}
ROOF = {"presets", "commands", "cli"}

FILES = sorted(SOURCE.rglob("*.py"))


def room(path: Path) -> str:
    """The floor entry a file belongs to."""
    return path.relative_to(SOURCE).with_suffix("").parts[0]


def imports(path: Path) -> set[str]:
    """The regpt modules a file imports, as floor entries."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "regpt":
                found |= {alias.name for alias in node.names} & set(FLOORS)
            elif node.module.startswith("regpt."):
                found.add(node.module.split(".")[1])
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_go_downward(path: Path) -> None:
    name = room(path)
    if name in ("__init__", "__main__"):
        return
    assert name in FLOORS, f"{name} has no place in the house: add it to FLOORS"
    for used in imports(path):
        lower = FLOORS.index(used) < FLOORS.index(name)
        assert lower or (used == name and name in ROOMS), f"{name} imports {used}"
        if name == "data":
            assert used in DATA_MAY_USE, f"data imports {used}"
        if name == "parity":
            assert used not in PARITY_MAY_NOT_USE, f"parity imports {used}"
        if name == "cli":
            continue
        assert used not in ROOF or name in ROOF, f"{name} imports the roof ({used})"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_budgets(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 300, "a file this long has a room of its own in it"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            docstring = ast.get_docstring(node, clean=False) or ""
            lines = (node.end_lineno or 0) - node.lineno + 1 - docstring.count("\n")
            assert lines <= 60, f"{node.name} has {lines} lines"


def test_tyro_is_used_in_cli_only() -> None:
    users = {path.name for path in FILES if "import tyro" in path.read_text(encoding="utf-8")}
    assert users == {"cli.py"}


def test_the_library_prints_nothing() -> None:
    for path in FILES:
        if room(path) in ROOF:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
            assert not (called and node.func.id == "print"), path


def test_importing_regpt_starts_nothing() -> None:
    code = "import sys, regpt; print(*(set(sys.modules) & {'torch', 'numpy', 'tiktoken', 'rich'}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_training_does_not_import_what_it_does_not_need() -> None:
    heavy = "{'transformers', 'matplotlib', 'huggingface_hub', 'pyarrow', 'tyro'}"
    code = f"import sys, regpt.train.loop; print(*(set(sys.modules) & {heavy}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_public_names() -> None:
    assert sorted(regpt.__all__) == regpt.__all__
    for name in regpt.__all__:
        assert getattr(regpt, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = regpt.nothing


def test_the_readme_map_is_the_tree() -> None:
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    for path in SOURCE.iterdir():
        if path.name.startswith("__") or path.name == "assets":
            continue
        name = f"{path.name}/" if path.is_dir() else path.name
        assert name in readme, f"README's map does not name {name}"
