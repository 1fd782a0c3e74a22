"""A model out: the whole directory that transformers, CTranslate2 and llama.cpp read.

`write_safetensors` writes tensor by tensor, instead of the format's library: the four transposed
matrices of each block need a copy, and handing over all tensors at once would hold a second model
in memory, and the interpreter's lock while they are copied, for which training steps would wait.

Nothing is half-written (files.py): a new directory appears complete under its name; in a
directory that is there already, every file is written beside its place and then renamed,
config.json last, so that a directory without config.json is no model.
"""

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from regpt.core.tokenizer import VOCAB_SIZE
from regpt.system.errors import UserError
from regpt.system.files import Content, is_leftover, new_directory, replace_files
from regpt.weights.config import FILE_NAME, end_of_text_id, hugging_face_config
from regpt.weights.names import EMBEDDING, is_transposed, tensor_shapes
from regpt.weights.tokenizer_files import tokenizer_files

PREFIX = "transformer."
"""What transformers' own save_pretrained writes before every name of a language model."""

DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
INTEGERS = {4: torch.int32, 2: torch.int16}
"""numpy has no bfloat16; bytes are all that matters here."""


def write_model(
    directory: Path,
    tensors: Mapping[str, torch.Tensor],
    config: Mapping[str, int | float],
) -> None:
    """Write a model directory: config, weights, generation settings and GPT-2's tokenizer.

    `tensors` is our state dict, in float32, float16 or bfloat16, on any device; rows of the
    embedding beyond the vocabulary are padding and stay out. `config` holds the fields of
    GPTConfig. A directory that holds anything is refused. Raises `UserError`, with nothing
    half-written.
    """
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{directory} is a file: choose another directory for the model")
    if directory.is_dir():
        if not all(is_leftover(path) for path in directory.iterdir()):
            raise UserError(f"{directory} is not empty: choose another directory for the model")
        write_model_files(directory, tensors, config)
        return
    contents = _contents(tensors, config)
    with new_directory(directory) as hidden:
        replace_files(hidden, contents)


def write_model_files(
    directory: Path, tensors: Mapping[str, torch.Tensor], config: Mapping[str, int | float]
) -> None:
    """Write or replace the model's files in an existing directory, such as a run's."""
    replace_files(directory, _contents(tensors, config))


def _contents(
    tensors: Mapping[str, torch.Tensor], config: Mapping[str, int | float]
) -> dict[str, Content]:
    """Every file of the layout, config.json last: the seal."""
    shapes = tensor_shapes(config)
    assert tensors.keys() == shapes.keys(), f"not a GPT-2's: {tensors.keys() ^ shapes.keys()}"
    settings = hugging_face_config(
        config, dtype=str(tensors[EMBEDDING].dtype).removeprefix("torch.")
    )
    end_of_text = end_of_text_id(config)
    generation = {"bos_token_id": end_of_text, "eos_token_id": end_of_text}
    contents: dict[str, Content] = {
        "model.safetensors": partial(
            write_safetensors, tensors=dict(_stored(tensors, config)), metadata={"format": "pt"}
        )
    }
    if config["vocab_size"] == VOCAB_SIZE:
        contents |= tokenizer_files(block_size=int(config["block_size"]))
    contents["generation_config.json"] = _json(generation)
    contents[FILE_NAME] = _json(settings)
    return contents


def _json(settings: Mapping[str, object]) -> bytes:
    return json.dumps(settings, indent=2, sort_keys=True).encode() + b"\n"


def _stored(
    tensors: Mapping[str, torch.Tensor], config: Mapping[str, int | float]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and tensor as the file has them, in name order; views, nothing is copied yet."""
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        if name == EMBEDDING:
            tensor = tensor[: int(config["vocab_size"])]
        yield PREFIX + name, tensor.t() if is_transposed(name) else tensor


def write_safetensors(
    file: BinaryIO,
    tensors: Mapping[str, torch.Tensor],
    *,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write tensors as a safetensors file, one by one; at most one of them is copied at a time.

    `tensors` are float32, float16 or bfloat16, on any device, in any layout. The format is eight
    bytes with the header's length, a JSON header, and the bytes.
    """
    header: dict[str, object] = {} if metadata is None else {"__metadata__": metadata}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    # spaces up to a multiple of eight, so that the data is aligned in a mapped file
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for tensor in tensors.values():
        # numpy transposes in this one thread, without those that a training computes with
        numbers = tensor.cpu().view(INTEGERS[tensor.element_size()]).numpy()
        file.write(np.ascontiguousarray(numbers).data)
