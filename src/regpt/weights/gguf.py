"""A model as one GGUF file, the form llama.cpp reads: F32, BF16, F16 or Q8_0 matrices.

What llama.cpp's own converter makes of an exported directory, without llama.cpp's sources: names
and orientation of its GPT-2 architecture (src/llama-arch.cpp there), the tokenizer inside. The
container itself is written by the `gguf` package. Norms, biases and the position table stay in
float32; the head is the token embedding, as llama.cpp takes it when no output matrix is there.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from regpt.core.tokenizer import END_OF_TEXT, END_OF_TEXT_ID
from regpt.system.errors import UserError
from regpt.system.files import new_file
from regpt.weights.names import tensor_shapes
from regpt.weights.tokenizer_files import spelled_merges, spelled_vocabulary

if TYPE_CHECKING:
    import gguf

GGUFKind = Literal["f32", "f16", "bf16", "q8_0"]

BLOCK_NAMES = {
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}
OTHER_NAMES = {"wte": "token_embd", "wpe": "position_embd", "ln_f": "output_norm"}


def gguf_name(name: str) -> str:
    """llama.cpp's name of a tensor: `h.0.attn.c_attn.weight` is `blk.0.attn_qkv.weight`."""
    place, _, end = name.rpartition(".")
    if not place.startswith("h."):
        return f"{OTHER_NAMES[place]}.{end}"
    _, layer, inside = place.split(".", 2)
    return f"blk.{layer}.{BLOCK_NAMES[inside]}.{end}"


def write_gguf(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    config: Mapping[str, int | float],
    kind: GGUFKind,
    *,
    name: str = "gpt2",
) -> None:
    """Write a model, our state dict and the fields of its GPTConfig, as a GGUF file.

    Written beside its place and renamed. Needs the `gguf` package.

    Raises:
        UserError: the package is missing, a file cannot be written, or a matrix's rows are not a
            multiple of Q8_0's 32 long.
    """
    try:
        import gguf
    except ImportError:
        raise UserError("writing GGUF needs the gguf package: pip install gguf") from None
    width = int(config["n_embd"])
    if kind == "q8_0" and width % 32:
        raise UserError(f"q8_0 cuts rows into 32s and n_embd is {width}: choose f32, f16 or bf16")
    quantization = gguf.GGMLQuantizationType[kind.upper()]
    file_type = gguf.LlamaFileType["ALL_F32" if kind == "f32" else f"MOSTLY_{kind.upper()}"]
    with new_file(path) as hidden:
        writer = gguf.GGUFWriter(hidden, "gpt2")
        writer.add_name(name)
        writer.add_context_length(int(config["block_size"]))
        writer.add_embedding_length(width)
        writer.add_feed_forward_length(4 * width)
        writer.add_block_count(int(config["n_layer"]))
        writer.add_head_count(int(config["n_head"]))
        writer.add_layer_norm_eps(float(config["layer_norm_epsilon"]))
        writer.add_file_type(file_type)
        add_tokenizer(writer, int(config["vocab_size"]))
        for tensor, shape in tensor_shapes(config).items():
            values = tensors[tensor].detach().float().cpu()[: shape[0]].contiguous().numpy()
            if len(shape) == 2 and tensor != "wpe.weight" and kind != "f32":
                values = gguf.quants.quantize(values, quantization)
                writer.add_tensor(gguf_name(tensor), values, raw_dtype=quantization)
            else:
                writer.add_tensor(gguf_name(tensor), values)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def add_tokenizer(writer: "gguf.GGUFWriter", vocab_size: int) -> None:
    """GPT-2's tokenizer; ids beyond it get names of their own, as llama.cpp wants one each."""
    import gguf

    names = list(spelled_vocabulary())[:vocab_size]
    kinds = [gguf.TokenType.NORMAL] * len(names)
    if END_OF_TEXT in names:
        kinds[END_OF_TEXT_ID] = gguf.TokenType.CONTROL
    for number in range(len(names), vocab_size):
        names.append(f"[unused{number}]")
        kinds.append(gguf.TokenType.UNUSED)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(names)
    writer.add_token_types(kinds)
    writer.add_token_merges(spelled_merges())
    writer.add_add_bos_token(False)
    if END_OF_TEXT in names:
        writer.add_bos_token_id(END_OF_TEXT_ID)
        writer.add_eos_token_id(END_OF_TEXT_ID)
