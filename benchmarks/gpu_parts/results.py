"""The results of benchmarks/gpu.py as Markdown and JSON, written again after every figure."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from gpu_parts.runner import Found
from regpt.system.files import replace_files

SMALL = "small, on a CPU: figures mean nothing"


def cell(value: object) -> str:
    """A figure in three digits, words as they are."""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    if isinstance(value, int):
        return f"{value:,}"
    return "" if value is None else str(value).replace("|", "\\|")


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows as a Markdown table; their keys, in the order they first occur, are the columns."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [columns, [":--"] * len(columns)]
    lines += [[cell(row.get(name)) for name in columns] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def to_markdown(head: Mapping[str, object], parts: Sequence[Found]) -> str:
    """The results file."""
    commit = f"Commit {head['commit']}. " if head["commit"] else ""
    text = f"# gpu, {head['date']}\n\n"
    text += f"**{SMALL}**\n\n" if head["small"] else ""
    text += f"{commit}{head['describe']}\n\n```\n{head['command']}\n```\n"
    for part in parts:
        text += f"\n## {part.name}\n\n{part.status}, {part.seconds:.0f} s\n"
        text += f"\n{table(part.rows)}" if part.rows else ""
        text += "\n" * bool(part.notes) + "".join(f"- {note}\n" for note in part.notes)
    return text


def write(out: Path, head: Mapping[str, object], parts: Sequence[Found]) -> None:
    """gpu.md and gpu.json, each whole or as it was."""
    found = {"benchmark": "gpu", **head, "parts": [part.to_json() for part in parts]}
    files = {"gpu.json": json.dumps(found, indent=1) + "\n", "gpu.md": to_markdown(head, parts)}
    replace_files(out, {name: text.encode() for name, text in files.items()})
