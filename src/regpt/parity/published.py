"""What is published about the released 124M weights, for whoever has them.

transformers' own test of GPT-2 continues "The dog" greedily to 20 tokens. About random weights, or
a fine-tuned model, nothing is published: then the line says "not checked".
"""

import hashlib
from pathlib import Path

from regpt.core.generate import complete
from regpt.core.sampling import SamplingParams
from regpt.core.tokenizer import get_tokenizer
from regpt.parity.model_pair import Pair
from regpt.parity.report import Check, judge

NAMES = ("gpt2", "openai-community/gpt2")
FILE_BYTES = 548_105_171
FILE_DIGEST = "248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707"
"""sha256 of the model.safetensors that the hub serves under these names."""

DOG = (464, 3290, 373, 1043, 287, 257, 2214, 1474, 262, 16246,
       286, 2688, 290, 2688, 27262, 13, 198, 198, 464, 3290)  # fmt: skip
"""transformers, tests/models/gpt2: greedy, 20 tokens, of which "The dog" are the first two."""


def are_released(model: str, directory: Path) -> bool:
    """Whether these are the weights OpenAI released as 124M, by name or by the file's digest."""
    if model in NAMES and not Path(model).is_dir():
        return True
    file = directory / "model.safetensors"
    if not file.is_file() or file.stat().st_size != FILE_BYTES:
        return False
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest() == FILE_DIGEST


def check_published(model: str, pair: Pair) -> Check:
    """The greedy continuation that transformers' test expects, of the weights it is about."""
    name = "published greedy text"
    if not are_released(model, pair.directory):
        detail = "only for the released weights: give the model gpt2, or its directory"
        return Check(name=name, status="not checked", detail=detail)
    params = SamplingParams(temperature=0.0, num_samples=1, max_length=len(DOG))
    (row,) = complete(pair.ours, DOG[:2], params)
    equal = sum(ours == theirs for ours, theirs in zip(row, DOG, strict=False))
    return Check(
        name=name,
        status=judge(tuple(row) == DOG),
        figure=f"{equal} of {len(DOG)}",
        bound="every token",
        detail=f"{get_tokenizer().decode(row)!r}, as in transformers' own test",
        values={"equal": equal},
    )
