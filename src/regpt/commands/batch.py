"""`regpt sample --batch`: every line of a JSONL file, once each, whatever happens in between.

Lines go through the model in batches of similar length; each finished batch is appended to the
output at once. Every line's randomness is its own (the portable stream, by line number), so its
text depends neither on the batch it fell into nor on where an earlier run was killed. Started
again, the command reads what is already written, drops a half line, and does the rest.

Lines made with another model or other parameters are never mixed: `NAME.making.json`, written
beside the output before the first line, says what it is made with. The prompts may grow and undone
lines may change; a line that is done must still be the line it was made from.
"""

import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from regpt.core.detokenize import cut_at_stop
from regpt.core.generate import complete_each, generate_steps
from regpt.core.model import GPT
from regpt.core.sampling import SamplingParams
from regpt.core.tokenizer import get_tokenizer
from regpt.fast.decoding.decoders import Engine, choose_decoder
from regpt.fast.decoding.topk_sampling import sample
from regpt.system.console import Console
from regpt.system.errors import UserError
from regpt.system.files import refuse_device, refuse_special, replace_files
from regpt.system.json_text import json_bytes, read_lines

BATCH_ROWS = 8


def making_path(output: Path) -> Path:
    """The file that says what an output is made with."""
    return output.with_name(f"{output.name}.making.json")


def read_file(path: Path) -> bytes:
    """The bytes of a file of prompts."""
    try:
        refuse_device(path)
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}): name a JSONL file") from None


def output_path(path: Path, output: str | None) -> Path:
    """Where the lines go; not over the prompts, by whatever name or link."""
    place = Path(output) if output else path.with_suffix(".out.jsonl")
    if place.is_dir():
        raise UserError(f"{place} is a directory: name a file for --output")
    refuse_special(place)  # /dev/full can be read without end
    for written in (place, making_path(place)):
        if written.exists() and written.samefile(path):
            raise UserError(f"{place}: --output would overwrite the prompts: name another file")
    return place


def read_prompts(text: bytes, limit: int) -> tuple[dict[int, str], list[str]]:
    """Prompts by line number (from 1), and what is wrong with the lines that have none.

    limit: tokens that a prompt may have.
    """
    prompts: dict[int, str] = {}
    faults = []
    for number, entry in read_lines(text):
        prompt = entry.get("prompt") if entry else None
        if not isinstance(prompt, str):
            faults.append(f'line {number} is not an object with a string "prompt"')
        elif (length := len(get_tokenizer().encode(prompt))) > limit:
            faults.append(f"line {number} has a prompt of {length} tokens, above {limit}")
        else:
            prompts[number] = prompt
    return prompts, faults


def read_done(path: Path) -> dict[int, dict[str, Any]]:
    """What an earlier run wrote, by line number; a half-written last line is dropped."""
    if not path.exists():
        return {}
    entries = [entry for _, entry in read_lines(path.read_bytes()) if entry is not None]
    return {entry["line"]: entry for entry in entries if type(entry.get("line")) is int}


def making_of(
    model: GPT, params: SamplingParams, *, stop: tuple[str, ...], dtype: str
) -> dict[str, Any]:
    """Everything but the prompts that decides the texts."""
    weights = hashlib.sha256(json.dumps(asdict(model.config), sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        weights.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        weights.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    sampling = asdict(params)
    del sampling["num_samples"]  # every line is continued once
    return {"model": weights.hexdigest(), "dtype": dtype, "stop": list(stop), **sampling}


def check_done(
    output: Path,
    making: Mapping[str, Any],
    done: Mapping[int, Mapping[str, Any]],
    path: Path,
    prompts: Mapping[int, str],
) -> None:
    """Refuse an output made otherwise, or of other prompts than the file at `path` now holds."""
    place = making_path(output)
    try:
        before = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        before = None
    if not isinstance(before, dict):
        raise UserError(
            f"{output} is not empty, and no {place.name} says what it was made from: name another "
            "--output, or move it away"
        )
    differs = [
        "another model" if name == "model" else f"{name} {before.get(name)!r}, not {value!r}"
        for name, value in making.items()
        if before.get(name) != value
    ]
    ways = f"go on as it was made, or name another --output, or move {output.name} away"
    if done and differs:
        raise UserError(f"{output} was made with {'; '.join(differs)}: {ways}")
    changed = [line for line in sorted(done) if done[line].get("prompt") != prompts.get(line)]
    if changed:
        was, now = done[changed[0]].get("prompt"), prompts.get(changed[0])
        raise UserError(
            f"{path} is not what {output} was made from: {len(changed)} of the {len(done)} lines "
            f"done differ, line {changed[0]} was {was!r:.40}, is {now!r:.40}: {ways}"
        )


def write_batch(
    model: GPT,
    path: Path,
    output: str | None,
    params: SamplingParams,
    *,
    stop: tuple[str, ...],
    engine: Engine,
    dtype: str,
) -> None:
    """Continue every prompt of the file; raises at the end if lines could not be done."""
    if params.rng != "portable" and params.temperature > 0:
        raise UserError(
            f"--batch with rng {params.rng}: a line's text would depend on its neighbours; use "
            "portable"
        )
    text = read_file(path)
    place = output_path(path, output)
    prompts, faults = read_prompts(text, min(params.max_length, model.config.block_size))
    making = making_of(model, params, stop=stop, dtype=dtype)
    done = read_done(place)
    if done or (place.exists() and place.stat().st_size and not making_path(place).exists()):
        check_done(place, making, done, path, prompts)
    decoder, note = choose_decoder(model, engine=engine, dtype=dtype)
    if note:
        sys.stderr.write(f"regpt: note: {note}\n")
    replace_files(place.parent, {making_path(place).name: json_bytes(making)})
    kept = "".join(json.dumps(done[number]) + "\n" for number in done)
    replace_files(place.parent, {place.name: kept.encode()})
    tokenizer = get_tokenizer()
    ids = {number: tokenizer.encode(prompt) for number, prompt in prompts.items()}
    left = sorted((number for number in ids if number not in done), key=lambda n: len(ids[n]))
    batches = [left[first : first + BATCH_ROWS] for first in range(0, len(left), BATCH_ROWS)]
    with place.open("a", encoding="utf-8") as file:
        for numbers in track(batches, "batches", console=Console(stderr=True)):
            generate = partial(generate_steps, decoder=decoder, numbers=numbers, sampler=sample)
            rows = complete_each(model, [ids[n] for n in numbers], params, generate=generate)
            for number, row in zip(numbers, rows, strict=True):
                row, text = cut_at_stop(row, max(len(ids[number]), 1), tokenizer, stop=stop)
                entry = {"line": number, "prompt": prompts[number], "tokens": row, "text": text}
                file.write(json.dumps(entry) + "\n")
            file.flush()
    sys.stdout.write(f"{len(prompts)} lines, {len(done)} of them done before: {place}\n")
    if faults:
        raise UserError(f"{path}: {'; '.join(faults)}. The other lines are done, in {place}")
