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

    def lines(self, name: str) -> list[str]:
        """Its samples: cumulative buckets, sum and count."""
        lines, below = [], 0
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            below += count
            lines.append(f'{name}_bucket{{le="{bound}"}} {below}')
        return [*lines, f"{name}_sum {self.total:.6f}", f"{name}_count {below}"]


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

    def render(self, **gauges: int) -> str:
        """The whole page."""
        lines = []
        for name, value in gauges.items():
            lines += [f"# TYPE regpt_{name} gauge", f"regpt_{name} {value}"]
        lines.append("# TYPE regpt_requests_total counter")
        lines += [f'regpt_requests_total{{end="{end}"}} {n}' for end, n in self.requests.items()]
        for name in ("prompt_tokens", "cached_tokens", "generated_tokens"):
            lines.append(f"# TYPE regpt_{name}_total counter")
            lines.append(f"regpt_{name}_total {getattr(self, name)}")
        for name in ("first_token", "between_tokens"):
            lines.append(f"# TYPE regpt_{name}_seconds histogram")
            lines += getattr(self, name).lines(f"regpt_{name}_seconds")
        return "\n".join(lines) + "\n"
