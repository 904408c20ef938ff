"""The one place that asks for the time.

Stored times are integer microseconds since 1970 UTC. Everything that needs "now" gets a
:class:`Clock`, so a test can hold time still and a wall-clock jump cannot reach what must be monotonic.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Protocol

SECOND = 1_000_000


class Clock(Protocol):
    """What the engine needs to know about time."""

    def now(self) -> int:
        """Wall-clock time in microseconds since 1970 UTC."""

    def monotonic(self) -> float:
        """Seconds on a clock that never goes back; only differences mean anything."""


class SystemClock:
    """The machine's own clocks."""

    def now(self) -> int:
        """Wall-clock time in microseconds since 1970 UTC."""
        return time.time_ns() // 1000

    def monotonic(self) -> float:
        """Seconds on the machine's monotonic clock."""
        return time.monotonic()


class HeldClock:
    """A clock that moves only when told to; for tests.

    Everything that is stored follows it: delays, retries, expiry, pauses, retention. What waits in this process does
    not: timeouts of attempts, ``result(timeout=)``, ``lock_timeout``.

    Args:
        start: microseconds since 1970 UTC, or an aware datetime.

    Example:
        >>> clock = HeldClock(datetime(2030, 1, 1, tzinfo=UTC))
        >>> clock.advance(minutes=5)
        >>> clock.moment
        datetime.datetime(2030, 1, 1, 0, 5, tzinfo=datetime.timezone.utc)
    """

    def __init__(self, start: int | datetime = 1_700_000_000_000_000) -> None:
        self._now = to_micros(start) if isinstance(start, datetime) else start

    def __repr__(self) -> str:
        return f"<HeldClock {self.moment.isoformat(sep=' ')}>"

    @property
    def moment(self) -> datetime:
        """The held time as an aware UTC datetime."""
        return to_datetime(self._now)

    def now(self) -> int:
        """The held wall-clock time in microseconds."""
        return self._now

    def monotonic(self) -> float:
        """Real monotonic seconds: waiting loops must not freeze with the wall clock."""
        return time.monotonic()

    def advance(
        self,
        by: timedelta | None = None,
        /,
        *,
        days: float = 0,
        hours: float = 0,
        minutes: float = 0,
        seconds: float = 0,
    ) -> None:
        """Move the held time by the sum of what is given; less than nothing moves it back.

        Example:
            >>> HeldClock().advance(timedelta(days=1))
            >>> HeldClock().advance(hours=1, minutes=30)
        """
        whole = timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds) + (by or timedelta())
        self._now += whole // timedelta(microseconds=1)

    def move_to(self, moment: datetime) -> None:
        """Move the held time to an aware datetime, onwards or back."""
        self._now = to_micros(moment)


def give_way() -> None:
    """Let a thread that waits for the interpreter lock have it now; costs a microsecond when none does."""
    time.sleep(0)


def processor_time(pid: int) -> int | None:
    """Nanoseconds of processor time that a process has used; None when it is gone or the system does not tell."""
    clock_of_process = (~pid << 3) | 2  # how Linux numbers the clocks of other processes
    try:
        return time.clock_gettime_ns(clock_of_process)
    except (AttributeError, OSError):
        return None


def to_micros(moment: datetime) -> int:
    """Turn an aware datetime into integer microseconds since 1970 UTC.

    Raises:
        ValueError: *moment* has no time zone.

    Example:
        >>> to_micros(datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC))
        1000000
    """
    if moment.tzinfo is None:
        raise ValueError(f"{moment!r} has no time zone; pass an aware datetime, e.g. tzinfo=UTC")
    return (moment - _EPOCH) // timedelta(microseconds=1)


def to_datetime(micros: int) -> datetime:
    """Turn integer microseconds since 1970 into an aware UTC datetime.

    Example:
        >>> to_datetime(1_000_000)
        datetime.datetime(1970, 1, 1, 0, 0, 1, tzinfo=datetime.timezone.utc)
    """
    return _EPOCH + timedelta(microseconds=micros)


def to_duration(value: timedelta | float) -> int:
    """Turn a timedelta or seconds into integer microseconds.

    Example:
        >>> to_duration(1.5)
        1500000
    """
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    return round(seconds * SECOND)


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
