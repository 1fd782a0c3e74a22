"""Checkpoints in the forms found in the wild, made from random tensors of a tiny shape."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from hypothesis import strategies as st
from safetensors.torch import save_file

from regpt.weights import tensor_shapes
from regpt.weights.names import is_transposed

Config = dict[str, int | float]
TINY: Config = {
    "block_size": 16,
    "vocab_size": 40,
    "n_layer": 2,
    "n_head": 2,
    "n_embd": 8,
    "dropout": 0.0,
    "layer_norm_epsilon": 1e-5,
}
WIDE = TINY | {"vocab_size": 50257}
"""The tokenizer's whole vocabulary."""


@st.composite
def configs(draw: st.DrawFn) -> Config:
    """TINY in other sizes."""
    layers, heads, head_size, vocabulary, positions = (
        draw(st.integers(1, most)) for most in (3, 3, 4, 40, 9)
    )
    return TINY | {
        "n_layer": layers,
        "n_head": heads,
        "n_embd": heads * head_size,
        "vocab_size": vocabulary,
        "block_size": positions,
    }


def random_tensors(
    config: Mapping[str, int | float] = TINY, *, dtype: torch.dtype = torch.float32
) -> dict[str, torch.Tensor]:
    """Our state dict, every element drawn."""
    return {name: torch.randn(shape).to(dtype) for name, shape in tensor_shapes(config).items()}


def as_stored(tensors: Mapping[str, torch.Tensor], *, prefix: str = "") -> dict[str, torch.Tensor]:
    """The same as a checkpoint has it: Conv1D orientation, perhaps a prefix."""
    return {
        prefix + name: (tensor.t() if is_transposed(name) else tensor).contiguous()
        for name, tensor in tensors.items()
    }


def masks(layers: int = 2) -> dict[str, torch.Tensor]:
    """The buffers older checkpoints carry along."""
    found = {}
    for layer in range(layers):
        found[f"h.{layer}.attn.bias"] = torch.ones(1, 1, 16, 16).tril()
        found[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    return found


def save(directory: Path, stored: Mapping[str, torch.Tensor], *, form: str = "safetensors") -> Path:
    """Write tensors in one of the forms: safetensors, zip or legacy pickles, each also sharded."""
    directory.mkdir(exist_ok=True)
    kind, _, sharded = form.partition(" ")
    whole = "model.safetensors" if kind == "safetensors" else "pytorch_model.bin"
    if not sharded:
        _save_one(directory / whole, stored, kind)
        return directory
    stem, suffix = whole.rsplit(".", 1)
    keys = list(stored)
    weight_map = {}
    for i, part in enumerate((keys[::2], keys[1::2]), start=1):
        name = f"{stem}-{i:05d}-of-00002.{suffix}"
        _save_one(directory / name, {key: stored[key] for key in part}, kind)
        weight_map |= dict.fromkeys(part, name)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (directory / f"{whole}.index.json").write_text(json.dumps(index))
    return directory


FORMS = ("safetensors", "safetensors sharded", "zip", "legacy", "zip sharded", "legacy sharded")


def _save_one(path: Path, stored: Mapping[str, torch.Tensor], kind: str) -> None:
    if kind == "safetensors":
        # copies, because safetensors refuses tensors that share memory
        save_file({key: tensor.clone() for key, tensor in stored.items()}, path)
    else:
        torch.save(dict(stored), path, _use_new_zipfile_serialization=kind == "zip")


def assert_same_bits(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> None:
    """Same names in the same order, same dtypes and shapes, same bits."""
    assert list(one) == list(other)
    for name, tensor in one.items():
        assert (tensor.dtype, tensor.shape) == (other[name].dtype, other[name].shape), name
        bits = torch.int32 if tensor.element_size() == 4 else torch.int16
        assert torch.equal(tensor.view(bits), other[name].view(bits)), name
