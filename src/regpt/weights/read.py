"""Tensors in: from any form a GPT-2 checkpoint has in the wild to our names and orientation.

First a catalogue: what lies in the files, by our names, without reading a byte of data; every
difference to what the model needs goes into one error. Then the tensors are read one by one, each
cast and turned into memory of its own, so that the peak is one copy of the model plus its largest
tensor. Safetensors files are mapped anew for each tensor: with one mapping for all, whose pages
count as ours, reading a model would look like twice its size.

Pickles (pytorch_model.bin) are read by torch's weights-only reader, which builds tensors and calls
nothing; a file that asks for more is refused. torch maps such a file as a whole.
"""

import math
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from regpt.system.errors import UserError
from regpt.system.json_text import read_json
from regpt.weights.names import (
    EMBEDDING,
    HEAD,
    is_mask,
    is_transposed,
    strip_prefixes,
    summarize,
)

FORMS = ("model.safetensors", "pytorch_model.bin")
"""Looked for in this order, each first as one file and then as `<form>.index.json` and shards."""

DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""The dtypes a GPT-2 is stored in: safetensors' names and torch's."""


class StoredTensor(NamedTuple):
    key: str
    """Its name there."""
    shape: tuple[int, ...]
    dtype: str
    """float32, float16, bfloat16, or another name as it stands in the file."""
    load: Callable[[], torch.Tensor]


def read_tensors(
    directory: Path,
    shapes: Mapping[str, Sequence[int]],
    *,
    dtype: torch.dtype = torch.float32,
) -> dict[str, torch.Tensor]:
    """The tensors of a model directory, by our names and in our orientation (nn.Linear's).

    `shapes` says what the model needs (`tensor_shapes`, or a state dict's own). The tensors are
    contiguous, on the CPU, own their memory and have `dtype`. Peak memory is theirs plus the
    largest one's. Raises `UserError` for files that are missing, damaged or unsafe, and one that
    lists every missing, unexpected and misshapen tensor.
    """
    source, catalogue = _catalogue(directory)
    head = catalogue.pop(HEAD, None)
    if head is not None and EMBEDDING not in catalogue:
        # safetensors' own save_model keeps one of two tied names, the alphabetically first
        catalogue[EMBEDDING], head = head, None
    _account(source, catalogue, shapes)
    if head is not None and not _equal_bits(head, catalogue[EMBEDDING]):
        raise UserError(
            f"{source}: {head.key} differs from {catalogue[EMBEDDING].key}, but GPT-2's head is "
            "tied: it is the embedding itself; regpt has no untied head"
        )
    del head
    scratch = _scratch(catalogue)
    # taken out one by one, so that what a pickle holds in memory is freed on the way
    return {
        name: _convert(_load(source, catalogue.pop(name)), name, scratch=scratch, dtype=dtype)
        for name in shapes
    }


def _scratch(catalogue: Mapping[str, StoredTensor]) -> torch.Tensor:
    """Room for the largest tensor that has to be turned round."""
    turned = [math.prod(stored.shape) for name, stored in catalogue.items() if is_transposed(name)]
    return torch.empty(4 * max(turned, default=0), dtype=torch.uint8, device="cpu")


def _convert(
    tensor: torch.Tensor, name: str, *, scratch: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """One tensor into memory of its own, in our orientation.

    A matrix to be turned is first copied as it lies: turned straight out of the mapping, new pages
    of the file and of the result are touched all over, and reading takes half as long again.
    """
    if is_transposed(name):
        room = scratch[: tensor.numel() * tensor.element_size()].view(tensor.dtype)
        tensor = room.view(tensor.shape).copy_(tensor).t()
    return torch.empty(tensor.shape, dtype=dtype, device="cpu").copy_(tensor)


def _load(source: Path, stored: StoredTensor) -> torch.Tensor:
    try:
        return stored.load()
    except (OSError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{source}: {stored.key} cannot be read ({_first_words(error)})") from error


def _equal_bits(one: StoredTensor, other: StoredTensor) -> bool:
    """Whether two stored tensors are the same numbers, bit for bit."""
    bits = torch.int32 if one.dtype == "float32" else torch.int16
    same_form = (one.shape, one.dtype) == (other.shape, other.dtype)
    return same_form and torch.equal(*(stored.load().view(bits) for stored in (one, other)))


def _account(
    source: Path, catalogue: Mapping[str, StoredTensor], shapes: Mapping[str, Sequence[int]]
) -> None:
    """Refuse, in one error, every tensor that is missing, unexpected or not what we need."""
    problems = []
    if missing := [name for name in shapes if name not in catalogue]:
        problems.append(f"missing {summarize(missing)}")
    if unexpected := [stored.key for name, stored in catalogue.items() if name not in shapes]:
        problems.append(f"unexpected {summarize(unexpected)}")
    misfits = []
    for name, stored in catalogue.items():
        if name not in shapes:
            continue
        expected = tuple(shapes[name])[:: -1 if is_transposed(name) else 1]
        if stored.shape != expected:
            misfits.append(f"{stored.key} is {stored.shape} instead of {expected}")
        if stored.dtype not in DTYPES.values():
            misfits.append(f"{stored.key} is stored as {stored.dtype} instead of a float")
    if misfits:
        problems.append(f"misshapen {summarize(misfits)}")
    if problems:
        raise UserError(f"{source}: does not fit its config.json: {'; '.join(problems)}")


def _catalogue(directory: Path) -> tuple[Path, dict[str, StoredTensor]]:
    """The file that leads to the tensors, and every tensor by our name; masks are left out."""
    source, files = _find_files(directory)
    catalogue: dict[str, StoredTensor] = {}
    for file in files:
        _refuse_placeholder(file)
        read = _read_safetensors if file.suffix == ".safetensors" else _read_pickle
        for stored in read(file):
            if not stored.key.isprintable():
                raise UserError(f"{file}: damaged: no tensor is called {stored.key!r}")
            name = strip_prefixes(stored.key)
            if is_mask(name):
                continue
            if name in catalogue:
                raise UserError(f"{file}: {stored.key} and {catalogue[name].key} are both {name}")
            catalogue[name] = stored
    return source, catalogue


def _find_files(directory: Path) -> tuple[Path, list[Path]]:
    """The one file or the index that leads to the tensors, and the files that hold them."""
    for form in FORMS:
        if (directory / form).is_file():
            return directory / form, [directory / form]
        if (directory / f"{form}.index.json").is_file():
            index = directory / f"{form}.index.json"
            return index, _read_index(index)
    raise UserError(f"{directory}: holds neither {' nor '.join(FORMS)}, whole or in shards")


def _read_index(index: Path) -> list[Path]:
    """The shards an index names, all of them there."""
    try:
        names = set(read_json(index)["weight_map"].values())
        shards = sorted(index.parent / name for name in names)
        # a shard lies beside its index: a name with a path in it would lead out of the directory
        if not shards or any(Path(name).name != name for name in names):
            raise ValueError("no list of shards beside it")
    except OSError as error:
        raise UserError(f"{index}: cannot be read ({error.strerror})") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{index}: not an index of shards; fetch it again") from error
    if missing := [shard.name for shard in shards if not shard.is_file()]:
        raise UserError(f"{index}: names {', '.join(missing)}, not in {index.parent}; fetch again")
    return shards


def _refuse_placeholder(file: Path) -> None:
    """Refuse what `git clone` leaves in the place of a large file it did not fetch."""
    try:
        with file.open("rb") as opened:
            start = opened.read(20)
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from error
    if start == b"version https://git-":
        raise UserError(f"{file}: a Git LFS placeholder, not the weights; run `git lfs pull` there")


def _read_safetensors(file: Path) -> Iterable[StoredTensor]:
    """What a safetensors file's header lists; the format's own library checks the header."""

    def load(key: str) -> torch.Tensor:
        with safe_open(file, framework="pt") as opened:
            return opened.get_tensor(key)

    try:
        with safe_open(file, framework="pt") as opened:
            slices = {key: opened.get_slice(key) for key in opened.keys()}  # noqa: SIM118
            found = {key: (tuple(s.get_shape()), str(s.get_dtype())) for key, s in slices.items()}
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{file}: not a whole safetensors file ({_first_words(error)}); fetch it again"
        ) from error
    return [
        StoredTensor(key, shape, DTYPES.get(dtype, dtype), partial(load, key))
        for key, (shape, dtype) in found.items()
    ]


def _read_pickle(file: Path) -> Iterable[StoredTensor]:
    """The tensors of a torch.save file; mapped where the file's form allows, else in memory."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of pickle protocols torch does not write
            entries = torch.load(
                file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file)
            )
    except pickle.UnpicklingError as error:
        raise UserError(f"{file}: {_explain_pickle(file, error)}") from error
    except Exception as error:
        # a damaged pickle can surface as nearly any exception
        raise UserError(
            f"{file}: not a whole torch.save file ({_first_words(error)}); fetch it again"
        ) from error
    if not isinstance(entries, dict) or not all(isinstance(key, str) for key in entries):
        raise UserError(f"{file}: holds no state dict, but {type(entries).__name__}")
    foreign = [key for key, value in entries.items() if not isinstance(value, torch.Tensor)]
    if foreign:
        listed = ", ".join(map(repr, foreign))
        raise UserError(
            f"{file}: not a state dict ({listed} are no tensors); save the model's state dict "
            "alone, as safetensors"
        )
    return [
        StoredTensor(
            key, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), tensor.detach
        )
        for key, tensor in entries.items()
    ]


def _explain_pickle(file: Path, error: pickle.UnpicklingError) -> str:
    """Why torch would not unpickle a file: code in it, or damage."""
    forbidden = re.search(r"GLOBAL (\S+)", str(error))
    if forbidden and not _ends_with(file, forbidden[1]):
        return (
            f"asks for {forbidden[1]}, which could run code; regpt reads tensors only: convert the "
            "file to safetensors with a program you trust"
        )
    return "damaged, or more than tensors in it; fetch it again or use safetensors"


def _ends_with(file: Path, name: str) -> bool:
    """Whether a pickle breaks off within `module.name`, so that the name is not its own."""
    module, _, last = name.rpartition(".")
    with file.open("rb") as stream:
        stream.seek(max(file.stat().st_size - len(name) - 8, 0))
        tail = stream.read()[:-1]  # torch takes the last byte of a name for the end of its line
    return tail.rstrip(b"\n").endswith(f"{module}\n{last}".strip().encode())


def _first_words(error: BaseException) -> str:
    """The first sentence of an error's first line."""
    line = str(error).strip().partition("\n")[0]
    return line.partition(". ")[0] or type(error).__name__
