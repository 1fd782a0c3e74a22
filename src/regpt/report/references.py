"""Published figures of GPT-2, each with the text it was measured on and where it stands.

A loss belongs to its text: FineWeb and FineWeb-Edu differ by as much as two model sizes. So a line
is drawn only into the curves of runs that are known to be on the same text, by what the text is or
by a preset that names it, and never by what a file or a folder happens to be called.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from regpt.report.history import History

Unit = Literal["val_loss", "val_nats_per_character", "hellaswag_acc_norm"]


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


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A published figure."""

    name: str
    unit: Unit
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
    Reference(
        name="GPT-2 124M as released",
        unit="val_loss",
        value=3.2924,
        text=EDU,
        source="build-nanogpt, play.ipynb",
    ),
    Reference(
        name="GPT-2 124M trained on 10B tokens, lecture code",
        unit="val_loss",
        value=3.397,
        text=EDU,
        source="debtirthasaha.github.io, GPT-2 124M rerun, 2026",
    ),
    Reference(
        name="nanoGPT, CPU (measured for this project)",
        unit="val_nats_per_character",
        value=1.886,
        text=SHAKESPEARE,
        source="nanoGPT's quick start for a CPU, run and measured for this project",
    ),
    Reference(
        name="nanoGPT, GPU (published)",
        unit="val_nats_per_character",
        value=1.4697,
        text=SHAKESPEARE,
        source="nanoGPT, README",
    ),
    Reference(
        name="GPT-2 124M, lecture's scoring",
        unit="hellaswag_acc_norm",
        value=0.294463,
        text=HELLASWAG,
        source="build-nanogpt, play.ipynb",
    ),
)


def find_references(runs: Sequence[History], unit: Unit) -> list[Reference]:
    """The figures of a unit that every one of the runs can be held against."""
    return [
        reference
        for reference in REFERENCES
        if reference.unit == unit
        and all(run.points(unit) and reference.text.fits(run) for run in runs)
    ]
