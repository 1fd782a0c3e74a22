"""regpt: GPT-2, reproduced.

`import regpt` starts nothing and costs nothing: the names below are loaded when first used.

    from regpt import GPT, GPTConfig, SamplingParams, complete, get_tokenizer
    model = GPT.from_pretrained("gpt2")
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from regpt.errors import UserError
    from regpt.generate import complete
    from regpt.model import GPT, GPTConfig
    from regpt.runtime import Runtime, find_runtime
    from regpt.sampling import SamplingParams, sample
    from regpt.tokenizer import Tokenizer, get_tokenizer

__version__ = "0.1.0"
__all__ = [
    "GPT",
    "GPTConfig",
    "Runtime",
    "SamplingParams",
    "Tokenizer",
    "UserError",
    "complete",
    "find_runtime",
    "get_tokenizer",
    "sample",
]

_HOME = {
    "GPT": "model",
    "GPTConfig": "model",
    "Runtime": "runtime",
    "SamplingParams": "sampling",
    "Tokenizer": "tokenizer",
    "UserError": "errors",
    "complete": "generate",
    "find_runtime": "runtime",
    "get_tokenizer": "tokenizer",
    "sample": "sampling",
}


def __getattr__(name: str) -> object:
    """Load a public name from its module on first use (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 'regpt' has no attribute {name!r}")
    return getattr(import_module(f"regpt.{_HOME[name]}"), name)
