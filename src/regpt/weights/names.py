"""The agreement between the model and its files: names, shapes and orientation.

Our state dict has the names of the released checkpoint (`wte.weight`, `h.0.attn.c_attn.weight`),
so little is left to translate:

- orientation: OpenAI's code wrote a linear layer as a one-wide convolution and its matrix as
  (in, out). Hugging Face kept that in the four `Conv1D` matrices of a block; ours are nn.Linear,
  (out, in). These four, and nothing else, are transposed between file and model;
- prefixes: transformers writes `transformer.` before every name (the released gpt2 does not),
  DistributedDataParallel `module.`, torch.compile `_orig_mod.`;
- buffers: older files carry each layer's causal mask as `attn.bias` and `attn.masked_bias`;
- the head: `lm_head.weight` is `wte.weight` once more, or is not written at all.
"""

import re
from collections.abc import Mapping, Sequence

PREFIXES = ("transformer.", "module.", "_orig_mod.")
EMBEDDING = "wte.weight"
HEAD = "lm_head.weight"
NAMED = 8
"""Tensors that an error names."""

_CONV1D = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
_MASK = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")


def tensor_shapes(config: Mapping[str, int | float]) -> dict[str, tuple[int, ...]]:
    """Every tensor of a GPT-2 of this shape: our names, our orientation, in the model's order.

    `config` holds the fields of GPTConfig; only the sizes are read.
    """
    C = int(config["n_embd"])
    block = {
        "ln_1": (C,),
        "attn.c_attn": (3 * C, C),
        "attn.c_proj": (C, C),
        "ln_2": (C,),
        "mlp.c_fc": (4 * C, C),
        "mlp.c_proj": (C, 4 * C),
    }
    shapes: dict[str, tuple[int, ...]] = {
        EMBEDDING: (int(config["vocab_size"]), C),
        "wpe.weight": (int(config["block_size"]), C),
    }
    for layer in range(int(config["n_layer"])):
        for name, shape in block.items():
            shapes |= {f"h.{layer}.{name}.weight": shape, f"h.{layer}.{name}.bias": shape[:1]}
    return shapes | {"ln_f.weight": (C,), "ln_f.bias": (C,)}


def is_transposed(name: str) -> bool:
    """Whether this tensor is (in, out) in a file and (out, in) in our model."""
    return name.endswith(_CONV1D)


def is_mask(name: str) -> bool:
    """Whether this is a causal mask that an older file carries along."""
    return _MASK.fullmatch(name) is not None


def strip_prefixes(key: str) -> str:
    while key.startswith(PREFIXES):
        key = key.split(".", 1)[1]
    return key


def summarize(names: Sequence[str]) -> str:
    first, more = names[:NAMED], len(names) - NAMED
    return ", ".join(first) + (f" and {more} more" if more > 0 else "")
