"""What is published about the released 124M weights, for whoever has them.

The two facts come from others' tests, made with others' code:

- transformers' own test of GPT-2 continues "The dog" greedily to 20 tokens;
- llm.c trains on the first 4 x 64 tokens of tiny Shakespeare, end-of-text before every speech, and
  its test expects a loss of 5.270007 nats per token before the first step.

Random weights have no published facts, nor has a fine-tuned model: then the line says "not
checked". Weights are the released ones by the name they were asked for, or by the digest of the
file. The loss is judged against transformers' on this machine; how near the published figure lies
stands beside it, for the reader.
"""

import hashlib
from pathlib import Path

import torch

from regpt.core.generate import complete
from regpt.core.sampling import SamplingParams
from regpt.core.tokenizer import END_OF_TEXT, get_tokenizer
from regpt.parity.model_pair import Pair
from regpt.parity.report import Check, judge
from regpt.parity.tensors import LOSS_BOUND

NAMES = ("gpt2", "openai-community/gpt2")
FILE_BYTES = 548_105_171
FILE_DIGEST = "248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707"
"""sha256 of the model.safetensors that the hub serves under these names."""

DOG = (464, 3290, 373, 1043, 287, 257, 2214, 1474, 262, 16246,
       286, 2688, 290, 2688, 27262, 13, 198, 198, 464, 3290)  # fmt: skip
"""transformers, tests/models/gpt2: greedy, 20 tokens, of which "The dog" are the first two."""

PUBLISHED_LOSS = 5.270007
"""llm.c, test_gpt2.c: `expected_losses[0]`, float32."""
SPEECHES = (
    "First Citizen:\nBefore we proceed any further, hear me speak.\n\n",
    "All:\nSpeak, speak.\n\n",
    "First Citizen:\nYou are all resolved rather to die than to famish?\n\n",
    "All:\nResolved. resolved.\n\n",
    "First Citizen:\nFirst, you know Caius Marcius is chief enemy to the people.\n\n",
    "All:\nWe know't, we know't.\n\n",
    "First Citizen:\nLet us kill him, and we'll have corn at our own price.\nIs't a verdict?\n\n",
    "All:\nNo more talking on't; let it be done: away, away!\n\n",
    "Second Citizen:\nOne word, good citizens.\n\n",
    "First Citizen:\nWe are accounted poor citizens, the patricians good.\n"
    "What authority surfeits on would relieve us: if they\n"
    "would yield us but the superfluity, while it were\n"
    "wholesome, we might guess they relieved us humanely;\n"
    "but they think we are too dear: the leanness that\n"
    "afflicts us, the object of our misery, is as an\n"
    "inventory to particularise their abundance; our\n"
    "sufferance is a gain to them Let us revenge this with\nour p",
)
"""The first 257 tokens of tiny Shakespeare (Coriolanus, first scene), as llm.c cuts it."""


def are_released(model: str, directory: Path) -> bool:
    """Whether these are the weights OpenAI released as 124M."""
    if model in NAMES and not Path(model).is_dir():
        return True
    file = directory / "model.safetensors"
    if not file.is_file() or file.stat().st_size != FILE_BYTES:
        return False
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest() == FILE_DIGEST


def not_checked(reason: str) -> tuple[Check, Check]:
    """Both lines, for weights about which nothing is published."""
    return (
        Check(name="published greedy text", status="not checked", detail=reason),
        Check(name="published validation loss", status="not checked", detail=reason),
    )


def check_dog(pair: Pair) -> Check:
    """The greedy continuation that transformers' test expects."""
    params = SamplingParams(temperature=0.0, num_samples=1, max_length=len(DOG))
    (row,) = complete(pair.ours, DOG[:2], params)
    equal = sum(ours == theirs for ours, theirs in zip(row, DOG, strict=False))
    return Check(
        name="published greedy text",
        status=judge(tuple(row) == DOG),
        figure=f"{equal} of {len(DOG)}",
        bound="every token",
        detail=f"{get_tokenizer().decode(row)!r}, as in transformers' own test",
        values={"equal": equal},
    )


def speeches() -> torch.Tensor:
    """The text as tokens, (257,) int64."""
    text = "".join(END_OF_TEXT + speech for speech in SPEECHES)
    return torch.tensor(get_tokenizer().encode(text, allow_special=True))


@torch.no_grad()
def check_loss(pair: Pair) -> Check:
    """The loss on the opening of tiny Shakespeare, both sides, beside the published figure."""
    tokens = speeches().to(pair.ours.device)
    x, y = tokens[:-1].view(4, 64), tokens[1:].view(4, 64)
    _, loss = pair.ours(x, y)
    logits = pair.theirs(x).logits
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten())
    ours, theirs = loss.item(), expected.item()
    error = abs(ours / theirs - 1)
    return Check(
        name="published validation loss",
        status=judge(error <= LOSS_BOUND),
        figure=f"{ours:.4f} nats per token",
        bound=f"{LOSS_BOUND:.0e} relative",
        detail=(
            f"transformers {theirs:.4f} here; llm.c publishes {PUBLISHED_LOSS:.4f} for these 256 "
            f"tokens, {abs(ours - PUBLISHED_LOSS):.4f} away"
        ),
        values={"ours": ours, "theirs": theirs, "published": PUBLISHED_LOSS},
    )


def check_published(model: str, pair: Pair) -> tuple[Check, Check]:
    """Both facts, if these are the weights they are about."""
    if not are_released(model, pair.directory):
        return not_checked("nothing is published about these weights; name the model gpt2")
    return check_dog(pair), check_loss(pair)
