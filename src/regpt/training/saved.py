"""What a run saves as JSON and reads again."""

from typing import Any, TypedDict


class Progress(TypedDict):
    """What state.json says."""

    step: int
    tokens: int
    val_loss: float | None
    val_step: int | None
    recent_losses: list[float]
    bad_steps: int
    world_size: int
    seed: int
    data: dict[str, Any]
    """Fingerprints."""


class Incident(TypedDict):
    """What is read again of an incident's report.json."""

    loss: float | None
    grad_norm: float | None
    fault: str
