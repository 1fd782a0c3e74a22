"""Counts and times in Prometheus' text format."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Histogram:
    """Observations counted by upper bounds."""

    def __init__(self, bounds: Sequence[float] = SECONDS) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def lines(self, name: str, label: str) -> list[str]:
        """Its samples: cumulative buckets, sum and count."""
        lines, below = [], 0
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            below += count
            lines.append(f'{name}_bucket{{{label},le="{bound}"}} {below}')
        sums = [f"{name}_sum{{{label}}} {self.total:.6f}", f"{name}_count{{{label}}} {below}"]
        return [*lines, *sums]


@dataclass
class Metrics:
    """What the engine counts; only its thread writes."""

    requests: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("finished", "cancelled", "refused", "failed"), 0)
    )
    """By how they ended."""
    prompt_tokens: int = 0
    """Of begun texts."""
    cached_tokens: int = 0
    """Of these, those whose keys were there already."""
    generated_tokens: int = 0
    first_token: Histogram = field(default_factory=Histogram)
    """Seconds from a request's arrival to its first drawn token."""
    between_tokens: Histogram = field(default_factory=Histogram)
    """Seconds from one drawn token of a text to the next."""

    def families(self, label: str, gauges: dict[str, int]) -> dict[str, list[str]]:
        """Samples by the line that says what they are; `label` is of all of them."""
        found = {
            f"# TYPE regpt_{name} gauge": [f"regpt_{name}{{{label}}} {value}"]
            for name, value in gauges.items()
        }
        found["# TYPE regpt_requests_total counter"] = [
            f'regpt_requests_total{{{label},end="{end}"}} {n}' for end, n in self.requests.items()
        ]
        for name in ("prompt_tokens", "cached_tokens", "generated_tokens"):
            sample = f"regpt_{name}_total{{{label}}} {getattr(self, name)}"
            found[f"# TYPE regpt_{name}_total counter"] = [sample]
        for name in ("first_token", "between_tokens"):
            lines = getattr(self, name).lines(f"regpt_{name}_seconds", label)
            found[f"# TYPE regpt_{name}_seconds histogram"] = lines
        return found


def render(models: dict[str, tuple[Metrics, dict[str, int]]]) -> str:
    """The whole page: what was counted of each model, and what is under way."""
    families: dict[str, list[str]] = {}
    for name, (metrics, gauges) in models.items():
        quoted = name.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
        for head, samples in metrics.families(f'model="{quoted}"', gauges).items():
            families.setdefault(head, []).extend(samples)
    return "".join("\n".join([head, *samples]) + "\n" for head, samples in families.items())
