"""The two sides of every comparison: one model directory, read by regpt and by transformers.

With random weights the directory is written by our `save_pretrained`, so that writing, our reading
and transformers' reading are all in the way of every later figure. A freshly drawn GPT-2 would show
little: its logits are nearly uniform, and a sampler could be wrong in many ways before a token
changed. `draw_peaked` draws weights whose logits have the scale of a trained model's (a few likely
tokens, a long tail), in which blocks, biases and LayerNorms all matter, and in which a row ends
every now and then.
"""

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from regpt.core.model import GPT, GPTConfig
from regpt.core.tokenizer import END_OF_TEXT_ID, VOCAB_SIZE
from regpt.system.errors import UserError
from regpt.weights.tokenizer_files import write_tokenizer_files

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel
    from transformers import PreTrainedTokenizerFast as Tokenizer
else:
    Tokenizer = object  # transformers' tokenizer; importing it takes seconds

SMALL_SHAPES = (
    GPTConfig(block_size=30, n_layer=1, n_head=1, n_embd=32),  # the text fills every position
    GPTConfig(block_size=128, n_layer=3, n_head=4, n_embd=96),
    GPTConfig(block_size=64, n_layer=6, n_head=2, n_embd=64),
)
FULL_SHAPE = GPTConfig()
LOGIT_STD = 4.0
"""Standard deviation of a peaked model's logits over the vocabulary."""
END_OF_TEXT_LOGIT = 1.6 * LOGIT_STD
"""Mean, and standard deviation, of end-of-text's logit over contexts. The largest of all logits is
near 4.3 standard deviations, so a row ends in about one step of twenty."""


@dataclass(frozen=True)
class Pair:
    """One model on both sides."""

    name: str
    directory: Path
    """Where both were read from."""
    ours: GPT
    theirs: "GPT2LMHeadModel"

    @property
    def has_gpt2_vocabulary(self) -> bool:
        """Whether its tokens are GPT-2's, so that they have a text."""
        return self.ours.config.vocab_size == VOCAB_SIZE


def need_transformers() -> str:
    """transformers' version; one clear line where it is not installed."""
    try:
        import transformers
    except ImportError:
        raise UserError(
            "parity compares with transformers, which is not installed: "
            "pip install -c constraints.txt '.[parity]'"
        ) from None
    return transformers.__version__


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from talking on stderr, and put its settings back."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


@torch.no_grad()
def draw_peaked(config: GPTConfig, seed: int) -> GPT:
    """A model with random weights and the logits of a trained one; the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GPT(config).eval()
        for name, parameter in model.named_parameters():
            if not name.startswith(("h.", "ln_f.")):
                continue  # embeddings stay at 0.02, so that a token does not predict itself
            if parameter.ndim == 2:
                parameter.normal_(0.0, parameter.shape[1] ** -0.5)  # keeps the scale of its input
            else:
                parameter.normal_(1.0 if name.endswith("weight") else 0.0, 0.1)
        model.ln_f.weight *= LOGIT_STD / (0.02 * config.n_embd**0.5)
        if config.vocab_size > END_OF_TEXT_ID:
            make_endings_likely(model)
    return model


def make_endings_likely(model: GPT) -> None:
    """Turn the embedding of end-of-text so that its logit has the mean and spread named above."""
    T = min(model.config.block_size, 32)
    hidden = model.hidden(torch.randint(0, END_OF_TEXT_ID, (8, T))).flatten(0, 1)  # (8T, C)
    mean = hidden.mean(dim=0)
    row = model.wte.weight[END_OF_TEXT_ID]
    row -= mean * (row @ mean) / (mean @ mean)  # what is left of it varies around zero
    row *= END_OF_TEXT_LOGIT / (hidden @ row).std()
    row += mean * END_OF_TEXT_LOGIT / (mean @ mean)


def random_pair(config: GPTConfig, directory: Path, *, seed: int, device: torch.device) -> Pair:
    """Draw weights, write them with `save_pretrained`, and read the directory from both sides."""
    draw_peaked(config, seed).save_pretrained(directory)
    name = f"{config.n_layer} layer{'s' * (config.n_layer > 1)} of {config.n_embd}"
    return load_pair(name, directory, device=device)


def load_pair(name: str, directory: Path, *, device: torch.device) -> Pair:
    """The model in `directory`, float32, in eval mode, on both sides."""
    ours = GPT.from_pretrained(directory).to(device)
    return Pair(name, directory, ours, load_theirs(directory, device=device))


def load_theirs(directory: Path, *, device: torch.device) -> "GPT2LMHeadModel":
    """transformers' model of a directory, float32 whatever it is stored in, in eval mode."""
    from transformers import GPT2LMHeadModel

    with quiet():
        try:
            model = GPT2LMHeadModel.from_pretrained(directory, dtype=torch.float32)
        except (OSError, ValueError, RuntimeError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise UserError(f"{directory}: transformers cannot read it ({reason})") from error
    return model.to(device).eval()  # pyright: ignore


def load_tokenizer(directory: Path, spare: Path) -> Tokenizer:
    """transformers' tokenizer of a directory; of the files we write, where it holds none.

    `spare` is an existing directory to write them in.
    """
    from transformers import AutoTokenizer

    found = any((directory / name).is_file() for name in ("tokenizer.json", "vocab.json"))
    if not found:
        write_tokenizer_files(spare)
    with quiet():
        return AutoTokenizer.from_pretrained(directory if found else spare)
