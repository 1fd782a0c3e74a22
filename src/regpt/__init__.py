"""regpt: GPT-2, reproduced.

`import regpt` starts nothing and costs nothing: the names below are loaded when first used.

    from regpt import GPT, GPTConfig, SamplingParams, complete, get_tokenizer
    model = GPT.from_pretrained("gpt2")
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from regpt.core.generate import complete
    from regpt.core.model import GPT, GPTConfig
    from regpt.core.sampling import SamplingParams, sample
    from regpt.core.tokenizer import Tokenizer, get_tokenizer
    from regpt.system.errors import UserError
    from regpt.system.runtime import Runtime, find_runtime

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
    "GPT": "core.model",
    "GPTConfig": "core.model",
    "Runtime": "system.runtime",
    "SamplingParams": "core.sampling",
    "Tokenizer": "core.tokenizer",
    "UserError": "system.errors",
    "complete": "core.generate",
    "find_runtime": "system.runtime",
    "get_tokenizer": "core.tokenizer",
    "sample": "core.sampling",
}


def __getattr__(name: str) -> object:
    """Load a public name from its module on first use (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 'regpt' has no attribute {name!r}")
    return getattr(import_module(f"regpt.{_HOME[name]}"), name)
