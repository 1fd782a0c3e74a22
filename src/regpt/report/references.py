"""Published figures of GPT-2, each with the text it was measured on and where it stands.

A loss belongs to its text: FineWeb and FineWeb-Edu differ by as much as two model sizes. So a line
is drawn only into the curves of runs on the same text, and the page names the text beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from regpt.report.history import History

Unit = Literal["val_loss", "val_nats_per_character", "hellaswag_acc_norm"]


@dataclass(frozen=True, kw_only=True)
class Text:
    """What a figure was measured on, and how a run on the same text is recognised."""

    name: str
    words: tuple[str, ...]
    """Runs whose data has all of these in its name are on that text."""
    absent: tuple[str, ...] = ()
    """And none of these."""
    fraction: float | None = None
    """The share of the text that was held out, if that decides what is scored."""

    def fits(self, run: History) -> bool:
        """Whether the run was validated on this text."""
        data = run.record.get("data", {})
        settings = run.settings
        names = " ".join(map(str, [data.get("sources", ""), *settings.get("data", [])])).lower()
        fraction = settings.get("validation_fraction")
        return (
            all(word in names for word in self.words)
            and not any(word in names for word in self.absent)
            and (self.fraction is None or fraction == self.fraction)
        )


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A published figure."""

    name: str
    unit: Unit
    value: float
    text: Text
    source: str


EDU = Text(name="FineWeb-Edu 10B sample, validation shard", words=("edu",))
FINEWEB = Text(name="FineWeb 10B sample, validation tokens", words=("fineweb",), absent=("edu",))
SHAKESPEARE = Text(
    name="tiny Shakespeare, last 10%, a model of characters", words=("shakespeare",), fraction=0.1
)
HELLASWAG = Text(
    name="HellaSwag validation, all 10,042 examples, acc_norm by the lecture's rules", words=()
)

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
        name="speedrun bar, 124M",
        unit="val_loss",
        value=3.28,
        text=FINEWEB,
        source="modded-nanogpt, README",
    ),
    Reference(
        name="llm.c 124M, 10B tokens",
        unit="val_loss",
        value=3.2722,
        text=FINEWEB,
        source="modded-nanogpt, records/track_1_short/2024-10-13_llmc",
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
