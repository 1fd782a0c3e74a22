"""A run's figures for TensorBoard: the lines of metrics.jsonl, by torch's SummaryWriter."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from regpt.system.errors import UserError
from regpt.system.files import writing_to

TAGS = {
    "loss": "train/loss",
    "learning_rate": "train/learning_rate",
    "grad_norm": "train/grad_norm",
    "tokens_per_second": "train/tokens_per_second",
    "tokens": "train/tokens",
    "val_loss": "validation/loss",
    "quick_val_loss": "validation/quick_loss",
    "val_bits_per_byte": "validation/bits_per_byte",
    "val_nats_per_character": "validation/nats_per_character",
    "hellaswag_acc": "hellaswag/acc",
    "hellaswag_acc_norm": "hellaswag/acc_norm",
}


def check_installed() -> None:
    """Raise UserError where there is no tensorboard package to write with."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError:
        raise UserError(
            "--tensorboard needs a package: pip install 'regpt[tensorboard]', or leave it out"
        ) from None


class TensorBoard:
    """An event file in a run's directory: write lines of metrics.jsonl, close."""

    def __init__(self, directory: Path, earlier: Sequence[dict[str, Any]], *, step: int) -> None:
        """Begin, or go on after `step` steps; `earlier` are the lines of metrics.jsonl so far.

        What older files have of later steps is purged by whoever reads them. A run that is
        resumed with TensorBoard switched on gets what it did before.
        """
        from torch.utils.tensorboard import SummaryWriter  # a second, for those who ask for it

        self.directory = directory
        resumed = any(directory.glob("events.out.tfevents.*"))
        with writing_to(directory):  # also at first: readers purge from the second such mark on
            self.writer = SummaryWriter(directory, purge_step=step + 1 if step else 0)
        if step and not resumed:
            for entry in earlier:
                self.write(entry)

    def write(self, entry: dict[str, Any]) -> None:
        """Add the figures and texts of a line."""
        with writing_to(self.directory):
            for name, tag in TAGS.items():
                if isinstance(entry.get(name), int | float):
                    self.writer.add_scalar(tag, entry[name], entry["step"])
            for prompt, texts in entry.get("samples", {}).items():
                tag = f"samples/{prompt}".encode("utf-8", "replace").decode()
                self.writer.add_text(tag, "\n\n---\n\n".join(map(quoted, texts)), entry["step"])
            self.writer.flush()  # a kill loses nothing that metrics.jsonl has

    def close(self) -> None:
        """End the file."""
        with writing_to(self.directory):
            self.writer.close()


def quoted(text: str) -> str:
    """A text as it is: TensorBoard would take its marks for markdown."""
    return "    " + text.encode("utf-8", "replace").decode().replace("\n", "\n    ")
