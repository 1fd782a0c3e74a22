"""What a run tells its observers: metrics.jsonl, TensorBoard and the display read the same events.

Observers read and never steer; the library itself prints nothing.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from regpt.evaluation.hellaswag import Accuracy
from regpt.evaluation.validation import Validation
from regpt.training.config import RunConfig


class Event:
    """Something that happened in a run."""

    def metrics(self) -> dict[str, Any] | None:
        """Its line of metrics.jsonl, which TensorBoard shows too; None: it has none."""
        return None


Observer = Callable[[Event], None]


@dataclass(frozen=True, kw_only=True)
class Started(Event):
    """Everything is built; the first step is next."""

    config: RunConfig
    directory: Path
    place: str
    """Device, threads, dtype."""
    num_parameters: int
    train_tokens: int
    validation_tokens: int
    steps_per_epoch: int
    sequences: int
    """Of the global batch."""
    processes: int
    compiling: tuple[bool, str] = (False, "")
    """Whether the blocks are compiled, and why."""
    hellaswag: tuple[int, int] = (0, 0)
    """Examples that are scored during training, of how many."""


@dataclass(frozen=True, kw_only=True)
class Stepped(Event):
    """A step is done. The fields are a line of metrics.jsonl."""

    step: int
    loss: float
    learning_rate: float
    grad_norm: float
    tokens: int
    """Trained on so far, this step included."""
    tokens_per_second: float
    peak_memory: int | None = None
    """Bytes this process has held at most so far; None where the system does not say."""

    def metrics(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Validated(Event):
    """The validation text was scored after `step` steps."""

    step: int
    result: Validation

    def metrics(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "val_loss": self.result.loss,
            "val_bits_per_byte": self.result.bits_per_byte,
            "val_nats_per_character": self.result.nats_per_character,
            "val_tokens": self.result.tokens,
        }


@dataclass(frozen=True, kw_only=True)
class ValidatedQuickly(Event):
    """A few held-out tokens were scored after `step` steps.

    The key is not the whole text's, so that neither "best" nor a comparison of runs takes one
    figure for the other.
    """

    step: int
    loss: float
    """Nats per token."""
    tokens: int

    def metrics(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "quick_val_loss": self.loss,
            "quick_val_tokens": self.tokens,
        }


@dataclass(frozen=True, kw_only=True)
class HellaSwagScored(Event):
    """HellaSwag was scored after `step` steps, by the lecture's rules."""

    step: int
    acc: Accuracy
    acc_norm: Accuracy
    examples: int

    def metrics(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "hellaswag_acc": self.acc.value,
            "hellaswag_acc_norm": self.acc_norm.value,
            "hellaswag_acc_norm_stderr": self.acc_norm.stderr,
            "hellaswag_examples": self.examples,
            "hellaswag_scoring": "lecture",
        }


@dataclass(frozen=True, kw_only=True)
class Sampled(Event):
    """The model continued the prompts after `step` steps."""

    step: int
    samples: dict[str, list[str]]
    """Texts by prompt; they begin with it."""

    def metrics(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Noted(Event):
    """Something a person should know, in one line."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Saved(Event):
    """A checkpoint of `step` is on its way to the disk."""

    step: int
    seconds: float
    """How long training stood still for it."""


@dataclass(frozen=True, kw_only=True)
class Interrupted(Event):
    """Asked to stop: the run is saved after `step` steps and can go on."""

    directory: Path
    step: int


@dataclass(frozen=True, kw_only=True)
class Finished(Event):
    """The run is complete and saved."""

    directory: Path
    seconds: float
