"""`regpt export`: hand a model to the rest of the world."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Literal


def export(
    model: str, out: str, /, *, gguf: Literal["f32", "bf16", "f16", "q8_0"] | None = None
) -> None:
    """Write a model as a Hugging Face directory, or as one GGUF file for llama.cpp.

    The directory holds config, weights and tokenizer; transformers, CTranslate2 and llama.cpp's
    converter read it. Written whole or not at all.

    Args:
        model: A run directory, a Hugging Face directory, a hub name, or `random` (untrained 124M).
        out: The directory to write, new or empty; with --gguf the file.
        gguf: Write a GGUF file with matrices of this kind instead.
    """
    from regpt.commands.models import load_model
    from regpt.weights.gguf import write_gguf

    path = Path(out)
    gpt = load_model(model, seed=42)
    if gguf is not None:
        write_gguf(path, gpt.state_dict(), asdict(gpt.config), gguf, name=Path(model).name)
        size = path.stat().st_size
        uses = f"  llama.cpp      llama-completion -m {path} -p TEXT\n"
    else:
        gpt.save_pretrained(path)
        size = sum(file.stat().st_size for file in path.iterdir())
        uses = (
            f"  transformers   AutoModelForCausalLM.from_pretrained({str(path)!r})\n"
            f"  regpt          regpt sample --model {path}\n"
        )
    sys.stdout.write(
        f"{gpt.num_parameters():,} parameters, {size / 1e6:,.1f} MB, in {path}\n{uses}"
    )
