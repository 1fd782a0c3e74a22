"""Provenance of the output of `regpt sample --batch`: model, parameters and prompts, as JSON.

The output stays lines and nothing else. `NAME.making.json` is written beside it before the first
line, so an output always knows what it was made from, also after a kill. Lines made with another
model or other parameters are never mixed in: what differs is named instead. The prompts may grow
and undone lines may change, since a line's text depends on its own prompt alone; a line that is
done must still be the line it was made from.
"""

import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from regpt.core.model import GPT
from regpt.core.sampling import SamplingParams
from regpt.system.errors import UserError
from regpt.system.files import replace_files

SHOWN = 40
"""Characters of a prompt in a message."""


def provenance_path(output: Path) -> Path:
    """The file that holds an output's provenance."""
    return output.with_name(f"{output.name}.making.json")


def fingerprint(model: GPT) -> str:
    """sha256 of a model's shape and weights, whatever its name and device."""
    digest = hashlib.sha256(json.dumps(asdict(model.config), sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def describe_provenance(
    model: GPT, prompts: bytes, params: SamplingParams, *, stop: tuple[str, ...], dtype: str
) -> dict[str, Any]:
    """Everything that decides the texts; `prompts` is the whole file."""
    sampling = asdict(params)
    del sampling["num_samples"]  # every line is continued once
    return {
        "model": fingerprint(model),
        "dtype": dtype,
        "stop": list(stop),
        **sampling,
        "prompts": hashlib.sha256(prompts).hexdigest(),
        "lines": len(prompts.splitlines()),
    }


def read_provenance(output: Path) -> dict[str, Any]:
    """The provenance of an output. Raises UserError if its file is missing or damaged."""
    place = provenance_path(output)
    try:
        found = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict):
        raise UserError(
            f"{output} is not empty, and no {place.name} says what it was made from (an older "
            "regpt wrote none): name another --output, or move it away"
        )
    return found


def check_provenance(
    output: Path,
    provenance: Mapping[str, Any],
    done: Mapping[int, Mapping[str, Any]],
    path: Path,
    prompts: Mapping[int, str],
) -> None:
    """Refuse lines made otherwise, or of other prompts than the file at `path` now holds."""
    before = read_provenance(output)
    if not done:
        return
    differs = []
    for name, value in provenance.items():
        if name in ("prompts", "lines") or before.get(name) == value:
            continue
        was = before.get(name)
        differs.append("another model" if name == "model" else f"{name} {was!r}, not {value!r}")
    ways = f"go on as it was made, or name another --output, or move {output.name} away"
    if differs:
        raise UserError(f"{output} was made with {'; '.join(differs)}: {ways}")
    changed = [line for line in sorted(done) if done[line].get("prompt") != prompts.get(line)]
    if changed:
        first = changed[0]
        was, now = (
            "no prompt" if text is None else repr(text if len(text) <= SHOWN else text[:SHOWN])
            for text in (done[first].get("prompt"), prompts.get(first))
        )
        raise UserError(
            f"{path} is not what {output} was made from: {len(changed)} of the {len(done)} lines "
            f"done differ, line {first} was {was}, is {now}: {ways}"
        )
    if before.get("prompts") != provenance["prompts"]:
        sys.stderr.write(
            f"regpt: note: {path} has changed, {provenance['lines']} lines after "
            f"{before.get('lines')}; the {len(done)} done are as they were\n"
        )


def write_provenance(output: Path, provenance: Mapping[str, Any]) -> None:
    """Write the provenance of an output, before its first line."""
    text = json.dumps(provenance, indent=2) + "\n"
    replace_files(output.parent, {provenance_path(output).name: text.encode()})
