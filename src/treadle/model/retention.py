"""How long the history of ended jobs is kept."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from treadle import defaults
from treadle.errors import ConfigurationError
from treadle.model.job import JobState


@dataclass(frozen=True, slots=True)
class Keep:
    """Keep what is younger than *age* and among the newest *count*; None means no limit of that kind.

    Example:
        >>> Keep(age=timedelta(days=1), count=10_000).count
        10000
    """

    age: timedelta | None = None
    count: int | None = None

    def __post_init__(self) -> None:
        if self.age is not None and self.age < timedelta(0):
            raise ConfigurationError(f"Keep(age={self.age!r}) is negative.")
        if self.count is not None and self.count < 0:
            raise ConfigurationError(f"Keep(count={self.count!r}) is negative.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """What is kept of ended jobs, by state. ``Keep()`` keeps for ever.

    Example:
        >>> Retention(succeeded=Keep(count=1000)).failed == Keep(age=timedelta(days=90))
        True
    """

    succeeded: Keep = Keep(age=defaults.KEEP_SUCCEEDED)
    failed: Keep = Keep(age=defaults.KEEP_FAILED)
    cancelled: Keep = Keep(age=defaults.KEEP_CANCELLED)

    def rules(self) -> tuple[tuple[JobState, Keep], ...]:
        """Each ended state with its rule."""
        return (
            (JobState.SUCCEEDED, self.succeeded),
            (JobState.FAILED, self.failed),
            (JobState.CANCELLED, self.cancelled),
        )
