"""`regpt export`: hand a model to the rest of the world."""

import sys
from pathlib import Path

from regpt.commands.sample import load


def export(model: str, out: str, /) -> None:
    """Write a model as a Hugging Face directory: config, weights, tokenizer.

    transformers, CTranslate2 and llama.cpp's converter read it. Written whole or not at all.

    Args:
        model: A run directory, a Hugging Face directory, a hub name, or `random` (untrained 124M).
        out: The directory to write; it must be new or empty.
    """
    directory = Path(out)
    gpt = load(model, seed=42)
    gpt.save_pretrained(directory)
    size = sum(path.stat().st_size for path in directory.iterdir())
    sys.stdout.write(
        f"{gpt.num_parameters():,} parameters, {size / 1e6:,.1f} MB, in {directory}\n"
        f"  transformers   AutoModelForCausalLM.from_pretrained({str(directory)!r})\n"
        f"  regpt          regpt sample --model {directory}\n"
    )
