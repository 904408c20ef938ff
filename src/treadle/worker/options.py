"""How a worker works: what its owner may choose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

from treadle import defaults
from treadle.errors import ConfigurationError
from treadle.model.retention import Retention

Queues = Sequence[str] | Mapping[str, int] | None
KEEP = Retention()


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """How a worker works.

    Attributes:
        queues: names in strict order, a mapping of names to weights, or None for every queue.
        tasks: names of the tasks to run, None for every registered one.
        concurrency: attempts at once.
        grace: how long a stop waits for running attempts before they are cancelled.
        name: what people call it; by default host, pid and slot.
        retention: how long ended jobs are kept.
        max_jobs: attempts after which it drains and ends, to be replaced by a fresh process.
        max_age: how long it lives before it does the same.
        max_memory: bytes of its process in RAM beyond which it does the same.
        evict_stalled_after: how long another worker may live without a sign before its jobs are taken away; None
            leaves that to a person.
    """

    queues: Queues = None
    tasks: tuple[str, ...] | None = None
    concurrency: int = defaults.CONCURRENCY
    grace: timedelta | float = defaults.GRACE
    name: str | None = None
    retention: Retention = KEEP
    max_jobs: int | None = None
    max_age: timedelta | float | None = None
    max_memory: int | None = None
    evict_stalled_after: timedelta | float | None = None

    def __post_init__(self) -> None:
        if self.concurrency < 1:
            raise ConfigurationError(f"concurrency={self.concurrency} leaves no slot; use 1 or more.")
        if isinstance(self.queues, str):
            raise ConfigurationError(f"queues={self.queues!r} is one text; pass a list of names.")
        if self.queues is not None and not self.queues:
            raise ConfigurationError(f"queues={self.queues!r} names no queue; pass None for every queue.")
        if isinstance(self.queues, Mapping) and not all(weight > 0 for weight in self.queues.values()):
            raise ConfigurationError(f"queues={self.queues!r}: every weight must be greater than 0.")
        for name in ("max_jobs", "max_age", "max_memory"):
            value = getattr(self, name)
            if value is not None and seconds_of(value) <= 0:
                raise ConfigurationError(f"{name}={value!r} must be greater than 0.")
        if self.evict_stalled_after is not None and seconds_of(self.evict_stalled_after) < LEAST_STALL:
            raise ConfigurationError(
                f"evict_stalled_after={self.evict_stalled_after!r} is shorter than {LEAST_STALL:g} s: workers show a "
                f"sign of life every {defaults.BEAT.total_seconds():g} s, and a busy disk may delay it."
            )


LEAST_STALL = 4 * defaults.BEAT.total_seconds()


def seconds_of(duration: timedelta | float) -> float:
    """Seconds of a timedelta or number."""
    return duration.total_seconds() if isinstance(duration, timedelta) else float(duration)
