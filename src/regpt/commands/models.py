"""The model that a command was given, by name."""

import torch

from regpt.core.model import GPT, GPTConfig
from regpt.weights import locate
from regpt.weights.tokenizer_files import check_tokenizer


def load_model(name: str, *, seed: int) -> GPT:
    """`random` (an untrained 124M, of this seed), a directory, or a hub name."""
    if name == "random":
        torch.manual_seed(seed)
        return GPT(GPTConfig()).eval()
    directory = locate(name)
    check_tokenizer(directory)
    return GPT.from_pretrained(directory)
