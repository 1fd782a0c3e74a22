"""What a run tells its observers. They read and never steer; the library itself prints nothing."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from regpt.evaluation.hellaswag import Accuracy
from regpt.evaluation.validation import Validation
from regpt.training.config import RunConfig


@dataclass(frozen=True, kw_only=True)
class Started:
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
    first_step: int
    """Steps done before: 0, or where a resumed run goes on."""
    processes: int
    compiling: tuple[bool, str] = (False, "")
    """Whether the blocks are compiled, and why."""
    hellaswag: tuple[int, int] = (0, 0)
    """Examples that are scored during training, of how many."""


@dataclass(frozen=True, kw_only=True)
class Stepped:
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


@dataclass(frozen=True, kw_only=True)
class Validated:
    """The validation text was scored after `step` steps."""

    step: int
    result: Validation


@dataclass(frozen=True, kw_only=True)
class ValidatedQuickly:
    """A few held-out tokens were scored after `step` steps."""

    step: int
    loss: float
    """Nats per token."""


@dataclass(frozen=True, kw_only=True)
class Answered:
    """HellaSwag was scored after `step` steps, by the lecture's rules."""

    step: int
    acc: Accuracy
    acc_norm: Accuracy
    examples: int


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What the model made of a prompt."""

    prompt: str
    texts: list[str]
    """Prompt included."""


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """The model wrote something after `step` steps."""

    step: int
    samples: list[Sample]


@dataclass(frozen=True, kw_only=True)
class Noted:
    """Something a person should know, in one line."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A checkpoint of `step` is on its way to the disk."""

    step: int
    seconds: float
    """How long training stood still for it."""


@dataclass(frozen=True, kw_only=True)
class Interrupted:
    """Asked to stop: the run is saved after `step` steps and can go on."""

    directory: Path
    step: int


@dataclass(frozen=True, kw_only=True)
class Finished:
    """The run is complete and saved."""

    directory: Path
    seconds: float


Event = (
    Started
    | Stepped
    | Validated
    | ValidatedQuickly
    | Answered
    | Sampled
    | Noted
    | Saved
    | Interrupted
    | Finished
)
Observer = Callable[[Event], None]
