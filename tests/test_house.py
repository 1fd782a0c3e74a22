"""The house holds: floors, budgets, light imports, public names, the README's map."""

import ast
import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import regpt

SOURCE = Path(regpt.__file__).parent
REPOSITORY = Path(__file__).parent.parent

MAY_IMPORT = {
    "system": set(),
    "core": {"system"},
    "fast": {"core", "system"},
}
"""What the lower rooms may use of the others; for the rest there is only: no circles."""
ROOF = {"commands", "cli", "__main__"}

FILES = sorted(SOURCE.rglob("*.py"))


def room(path: Path) -> str:
    """The folder (or file) of the package's root that a file belongs to."""
    return path.relative_to(SOURCE).with_suffix("").parts[0]


def imports(path: Path) -> set[str]:
    """The other rooms a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            if node.col_offset > 0 and room(path) == "core":
                continue  # inside a method: `from_pretrained` reads files when it is called
            if node.module == "regpt":
                found |= {alias.name for alias in node.names if (SOURCE / alias.name).exists()}
            elif node.module.startswith("regpt."):
                found.add(node.module.split(".")[1])
    return found - {room(path)}


@cache
def arrows() -> dict[str, set[str]]:
    """Which rooms each room imports."""
    graph: dict[str, set[str]] = {}
    for path in FILES:
        if room(path) == "__init__":  # hands names on, for type checkers
            continue
        graph.setdefault(room(path), set()).update(imports(path))
    return graph


def test_core_and_fast_import_nothing_else() -> None:
    for name, allowed in MAY_IMPORT.items():
        assert arrows()[name] <= allowed, name


def test_nobody_imports_commands() -> None:
    for name, used in arrows().items():
        assert name in ROOF or not used & ROOF, f"{name} imports {used & ROOF}"


def test_no_circles() -> None:
    left = dict(arrows())
    while left:
        free = [name for name, used in left.items() if not used & left.keys()]
        assert free, f"circle among {sorted(left)}"
        for name in free:
            del left[name]


LOADED = """
import importlib, json, os, sys, torch
for names in json.loads(sys.argv[1]):
    if os.fork() == 0:
        for name in names:
            importlib.import_module(name)
        print(json.dumps(list(sys.modules)), flush=True)
        os._exit(0)
    assert os.wait()[1] == 0
"""
WALKS = ("## A prompt to text", "## A text to a loss")


def walk(heading: str) -> list[str]:
    """The files that a walk in docs/architecture.md names, in its order."""
    text = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    return re.findall(r"`([a-z_/]+)\.py`", text[text.index(heading) :].split("\n\n")[1])


def walked(heading: str) -> list[str]:
    """What a walk's first file imports, some of it when it runs, and itself."""
    first = walk(heading)[0]
    tree = ast.parse((SOURCE / f"{first}.py").read_text(encoding="utf-8"))
    used = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    used = [module for module in used if module and module.startswith("regpt.")]
    return [f"regpt.{first.replace('/', '.')}", *used, "regpt.weights"]


@pytest.fixture(scope="module")
def loaded() -> dict[str, set[str]]:
    """All modules after some imports, by the first of them, each in a process that had torch."""
    imported = [["regpt.core.train"], ["regpt.training.loop"], *map(walked, WALKS)]
    command = [sys.executable, "-c", LOADED, json.dumps(imported)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = map(json.loads, done.stdout.splitlines())
    return {names[0]: set(modules) for names, modules in zip(imported, found, strict=True)}


def test_the_loop_loads_only_core_and_system(loaded: dict[str, set[str]]) -> None:
    names = loaded["regpt.core.train"]
    assert {name.split(".")[1] for name in names if name.startswith("regpt.")} == {"core", "system"}


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


def test_training_does_not_import_what_it_does_not_need(loaded: dict[str, set[str]]) -> None:
    heavy = {"transformers", "matplotlib", "huggingface_hub", "pyarrow", "tyro"}
    assert not loaded["regpt.training.loop"] & heavy


def test_public_names() -> None:
    assert sorted(regpt.__all__) == regpt.__all__
    for name in regpt.__all__:
        assert getattr(regpt, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = regpt.nothing


def test_the_readme_map_is_the_tree() -> None:
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    for path in SOURCE.iterdir():
        if path.name.startswith("__"):
            continue
        name = f"{path.name}/" if path.is_dir() else path.name
        assert name in readme, f"README's map does not name {name}"


def test_the_walks_name_files_that_are_there() -> None:
    text = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    walks = text[text.index("## A prompt to text") : text.index("## Decisions")]
    named = re.findall(r"`([a-z_/]+\.py)`", walks)
    assert len(named) >= 18
    for name in named:
        assert (SOURCE / name).is_file(), f"docs/architecture.md walks through {name}"


@pytest.mark.parametrize("heading", WALKS)
def test_each_step_of_a_walk_leads_to_the_next(heading: str, loaded: dict[str, set[str]]) -> None:
    """What a walk's first file loads, some of it when it runs, is all the files the walk names."""
    for name in walk(heading):
        assert f"regpt.{name.replace('/', '.')}" in loaded[walked(heading)[0]], name


def test_documents_name_files_that_are_there() -> None:
    texts = [*(REPOSITORY / "docs").glob("*.md"), REPOSITORY / "README.md", *FILES]
    for path in texts:
        if path.name == "log.md":  # what was then
            continue
        for name in re.findall(
            r"\b(?:tests|src/regpt)/[\w/]+\.(?:py|c|h)", path.read_text("utf-8")
        ):
            assert (REPOSITORY / name).is_file(), f"{path.name} names {name}"
