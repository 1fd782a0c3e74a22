"""Published figures of GPT-2, each with the text it was measured on and where it stands.

A loss belongs to its text: FineWeb and FineWeb-Edu differ by as much as two model sizes. So a line
is drawn only into the curves of runs that are known to be on the same text, by what the text is or
by a preset that names it, and never by what a file or a folder happens to be called.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from regpt.report.history import History


@dataclass(frozen=True, kw_only=True)
class Text:
    """What a figure was measured on, and how a run on the same text is recognised.

    One with neither fingerprint nor presets does not depend on what a run was trained on.
    """

    name: str
    fingerprint: str | None = None
    """Of the whole corpus, as run.json has it;"""
    validation_tokens: int | None = None
    """and how many of its tokens the figure was measured on."""
    presets: tuple[str, ...] = ()
    """Presets whose data this is, as long as they read what they name:"""
    data: tuple[str, ...] = ()
    """this."""

    def fits(self, run: History) -> bool:
        """Whether the run was validated on this text."""
        facts, settings = run.record.get("data", {}), run.settings
        if self.fingerprint is not None:
            found = (facts.get("fingerprint"), facts.get("validation_tokens"))
            return found == (self.fingerprint, self.validation_tokens)
        if self.presets:
            reads = tuple(settings.get("data", ()))
            return settings.get("preset") in self.presets and reads == self.data
        return True


@dataclass(frozen=True)
class Reference:
    """A published figure."""

    name: str
    unit: str
    """The key of metrics.jsonl."""
    value: float
    text: Text
    source: str


EDU = Text(
    name="FineWeb-Edu 10B sample, validation shard",
    presets=("gpt2-124m", "gpt2-124m-fast", "gpt2-medium", "gpt2-large", "gpt2-xl"),
    data=("data/fineweb-edu",),
)
SHAKESPEARE = Text(
    name="tiny Shakespeare, last 10%, a model of characters",
    fingerprint="b20eb1dc66ddb45eb245b57c9e4aeda4707095cdc78ddcbe7519b25b912c16a3",
    validation_tokens=36_059,
)
HELLASWAG = Text(name="HellaSwag validation, all 10,042 examples, acc_norm by the lecture's rules")

REFERENCES = (
    Reference("GPT-2 124M as released", "val_loss", 3.2924, EDU, "build-nanogpt, play.ipynb"),
    Reference("GPT-2 124M trained on 10B tokens, lecture code", "val_loss", 3.397, EDU,
              "debtirthasaha.github.io, GPT-2 124M rerun, 2026"),
    Reference("nanoGPT, CPU (measured for this project)", "val_nats_per_character", 1.886,
              SHAKESPEARE, "nanoGPT's quick start for a CPU, run and measured for this project"),
    Reference("nanoGPT, GPU (published)", "val_nats_per_character", 1.4697, SHAKESPEARE,
              "nanoGPT, README"),
    Reference("GPT-2 124M, lecture's scoring", "hellaswag_acc_norm", 0.294463, HELLASWAG,
              "build-nanogpt, play.ipynb"),
)  # fmt: skip


def find_references(runs: Sequence[History], unit: str) -> list[Reference]:
    """The figures of a unit that every one of the runs can be held against."""
    return [
        known
        for known in REFERENCES
        if known.unit == unit and all(run.points(unit) and known.text.fits(run) for run in runs)
    ]
