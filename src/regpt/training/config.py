"""A run is a value: one frozen dataclass, printed and saved as JSON beside its results.

Flags are derived from these fields and never written by hand; what people set most are the fields
of `RunConfig` itself, everything else is reached by its dotted name (`--optimizer.weight-decay`).
"""

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from regpt.core.data import Order
from regpt.core.model import GPTConfig
from regpt.core.optimizer import OptimizerConfig
from regpt.core.schedule import ScheduleConfig
from regpt.system.errors import UserError
from regpt.system.json_text import check_types

REMOVED_OPTIONS = {
    ("optimizer", "muon_iterations"): 5,
    ("optimizer", "muon_polynomials"): "same",
    ("optimizer", "muon_stacked"): True,
    ("run", "keep_copies"): True,
}
"""In run.json of earlier versions: the value that is now the only one."""

COUNTS = ("steps", "batch_size", "block_size", "sample_tokens", "keep", "replicas",
          "hellaswag_examples", "eval_every", "quick_eval_every", "sample_every",
          "hellaswag_every", "save_every", "validation_tokens")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A training run."""

    data: tuple[str, ...] = ("pydocs",)
    """What to read: shakespeare, pydocs, UTF-8 text files, or one folder of regpt prepare."""
    out: str | None = None
    """The run's directory; default runs/PRESET, numbered if taken."""
    steps: int = 50
    """Optimisation steps."""
    seed: int = 1337
    """Seed of the initialisation and of the data order."""
    batch_size: int = 4
    """Sequences per micro-batch, on each process."""
    batch_tokens: int | None = None
    """Tokens per step over all processes; default: one micro-batch each."""
    block_size: int = 32
    """Tokens per training sequence (T)."""
    lr: float = 3e-4
    """Peak learning rate of AdamW."""
    eval_every: int | None = None
    """Steps from one validation to the next; default: only at the end."""
    quick_eval_every: int | None = None
    """The same, but on 1,024 held-out tokens from all over: a curve for little time."""
    sample_every: int | None = None
    """The same for samples; default: only before and after training."""
    hellaswag: str | None = None
    """Score HellaSwag while training: a copy of hellaswag_val.jsonl, or the word download."""
    hellaswag_every: int | None = None
    """Steps from one HellaSwag score to the next; default: only at the end."""
    hellaswag_examples: int = 1000
    """How many of its examples, evenly spread over the file."""
    tensorboard: bool = False
    """Write the figures as TensorBoard event files as well, beside metrics.jsonl."""
    save_every: int | None = None
    """Steps between checkpoints, and one at the end; default: only when interrupted."""
    keep: int = 2
    """Newest checkpoints to keep, and the best: with eval_every each is validated when saved."""
    device: str = "auto"
    """auto (cuda, else mps, else cpu), cpu, cuda, cuda:N or mps."""
    dtype: Literal["auto", "fp32", "tf32", "bf16"] = "auto"
    """bf16 autocast, fp32, or tf32 (cuda); auto: bf16 where the hardware has it, else fp32."""
    threads: int | None = None
    """CPU threads; default: torch's choice."""
    order: Order = "shuffled"
    """Data order: shuffled (each window once per epoch), shifted (cut at another place in each
    epoch), or the lecture's sequential walk."""
    validation_fraction: float = 0.0
    """Share of the text, at its end, that is held out; 0: none. Prepared data has its own."""
    validation_tokens: int | None = None
    """Validate on the first so many held-out tokens; default: on all."""
    shard: bool = False
    """Cut the model over the processes (FSDP2) instead of a copy on each."""
    replicas: int = 1
    """With shard: copies of the cut model; processes / replicas hold one together."""
    checkpoint_activations: bool = False
    """Compute the blocks' activations again in backward: less memory, slower."""
    attention: Literal["auto", "plain", "blocks"] = "auto"
    """plain: the model's own; blocks: out of batched products; auto: blocks on a CPU in bf16."""
    compile: bool | None = None
    """torch.compile each block, in place; None: on a GPU, in runs long enough for it to pay."""
    compact_vocabulary: bool = False
    """One embedding row for all tokens that do not occur in the text: exact, and faster."""
    zero_projections: bool = False
    """Begin with zeros in the residual projections: every block starts as the identity."""
    pad_vocabulary: bool | None = None
    """Pad the vocabulary to a multiple of 64, inside only; default: on CUDA."""
    skip_bad_steps: int = 0
    """Steps with a loss or gradient that is not finite (or a spike) to skip before stopping."""
    spike_score: float | None = None
    """A loss so many standard deviations above the mean of the last 128 is a spike; None: never."""
    overfit: bool = False
    """Train on the first batch again and again."""
    prompts: tuple[str, ...] = ("Hello, I'm a language model,",)
    """What the samples before, during and after training continue."""
    sample_tokens: int = 30
    """Length of those samples in tokens, the prompt included."""
    model: GPTConfig = field(default_factory=GPTConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    preset: str = "custom"
    """The preset this run started from."""

    def __post_init__(self) -> None:
        for name in COUNTS:
            value, least = getattr(self, name), 2 if name == "validation_tokens" else 1
            if value is not None and value < least:
                raise UserError(f"{name} must be at least {least}, got {value}")
        if self.block_size > self.model.block_size:
            raise UserError(
                f"block_size {self.block_size} is above the model's {self.model.block_size} "
                f"positions: use less, or --model.block-size {self.block_size} as well"
            )
        if not self.lr > 0:
            raise UserError(f"lr must be positive, got {self.lr}")
        if not 0 <= self.validation_fraction < 1:
            raise UserError(
                f"validation_fraction must be in [0, 1), got {self.validation_fraction}"
            )
        if self.hellaswag_every is not None and self.hellaswag is None:
            raise UserError("hellaswag_every without hellaswag: name a copy of its file as well")
        if self.compact_vocabulary and (self.shard or self.optimizer.clip is not None):
            raise UserError(
                "compact_vocabulary goes with neither shard nor optimizer.clip, whose norm would "
                "count the shared row once: use --no-compact-vocabulary"
            )
        if self.shard and self.optimizer.name == "muon":
            raise UserError(
                "shard with optimizer.name muon: Muon needs whole matrices; use adamw, or no shard"
            )
        if self.batch_tokens is not None and (
            self.batch_tokens < 1 or self.batch_tokens % self.block_size
        ):
            raise UserError(
                f"batch_tokens {self.batch_tokens} is not a multiple of block_size "
                f"{self.block_size}"
            )

    def sequences(self, world_size: int) -> int:
        """Sequences of the global batch: what one optimisation step is trained on."""
        if self.batch_tokens is None:
            return self.batch_size * world_size
        return self.batch_tokens // self.block_size

    def with_batch_tokens(self, world_size: int) -> "RunConfig":
        """The same with its global batch named, so that other numbers of processes keep it."""
        return replace(self, batch_tokens=self.sequences(world_size) * self.block_size)

    def to_json(self) -> dict[str, Any]:
        """The configuration as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "RunConfig":
        """A configuration back from `to_json`'s values; unknown fields are refused by name."""
        try:
            values = dict(values)
            optimizer = values["optimizer"] = dict(values["optimizer"])
            for (holder, name), default in REMOVED_OPTIONS.items():
                if (values if holder == "run" else optimizer).pop(name, default) != default:
                    raise TypeError(f"{name} is no longer an option")
            values["data"] = tuple(values["data"])
            values["prompts"] = tuple(values["prompts"])
            values["model"] = GPTConfig(**check_types(GPTConfig, values["model"]))
            optimizer["betas"] = tuple(optimizer["betas"])
            values["optimizer"] = OptimizerConfig(**check_types(OptimizerConfig, optimizer))
            schedule = check_types(ScheduleConfig, values["schedule"])
            values["schedule"] = ScheduleConfig(**schedule)
            return cls(**check_types(cls, values))
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"the saved configuration does not fit this version ({error}): resume with the "
                "version named in run.json"
            ) from None
