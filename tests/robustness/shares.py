"""How many mutations a test makes: a share of the profile's."""

from hypothesis import HealthCheck, settings


def share(part: float) -> settings:
    """`part` of a quarter of the profile's examples: of 25 in `ci`, of 1,500 in `thorough`."""
    return settings(
        max_examples=max(1, round(settings.default.max_examples * part / 4)),
        suppress_health_check=list(HealthCheck),
    )
