"""Checking what is given for a job: each value once, at the border, with a message that says what to pass."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from treadle import defaults
from treadle.clock import to_duration, to_micros
from treadle.errors import ConfigurationError
from treadle.model.retry import DELAY_MAX, Retry


def as_retry(given: Retry | int) -> Retry:
    """A retry policy from one, or from a number of retries: the default policy with that number.

    Raises:
        ConfigurationError: it is neither.

    Example:
        >>> as_retry(3) == Retry(3)
        True
    """
    return given if isinstance(given, Retry) else Retry(given)


def check_priority(value: int) -> int:
    """Return *value* if it is a priority.

    Raises:
        ConfigurationError: it is not.
    """
    low, high = defaults.PRIORITY_RANGE
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ConfigurationError(f"priority={value!r} must be a whole number from {low} to {high}.")
    return value


def check_name(what: str, value: str, most: int) -> str:
    """Return *value* if it is a usable name: printable text without control characters.

    Raises:
        ConfigurationError: it is not.
    """
    if not isinstance(value, str) or not 1 <= len(value) <= most or not value.isprintable():
        raise ConfigurationError(f"{what}={value!r} must be 1 to {most} printable characters.")
    return value


def on_event_loop() -> bool:
    """True on a thread whose event loop is running."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def delay_of(name: str, delay: timedelta | float) -> int:
    """Microseconds of a timedelta or seconds; less than nothing is nothing.

    Raises:
        ConfigurationError: it is neither, or too long.
    """
    try:
        micros = to_duration(delay)
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigurationError(f"{name}={delay!r} must be a timedelta or seconds.") from error
    if micros > to_duration(DELAY_MAX):
        raise ConfigurationError(f"{name}={delay!r} is longer than {DELAY_MAX.days} days.")
    return max(0, micros)


def moment_of(name: str, moment: datetime) -> int:
    """Microseconds of an aware datetime.

    Raises:
        ConfigurationError: it has no time zone.
    """
    try:
        return to_micros(moment)
    except ValueError as error:
        raise ConfigurationError(f"{name}={error}") from error


def expiry_of(expires: timedelta | float | datetime | None) -> dict[str, Any]:
    """The options that say after when no attempt may start; none for None."""
    if expires is None:
        return {}
    if isinstance(expires, datetime):
        return {"expires_at": moment_of("expires", expires)}
    return {"expires_in": delay_of("expires", expires)}


def tags_of(tags: Sequence[str]) -> tuple[str, ...]:
    """Words to find jobs by, each once.

    Raises:
        ConfigurationError: it is one text, or a word is unusable.
    """
    if isinstance(tags, str):
        raise ConfigurationError(f"tags={tags!r} is one text; pass a list of words.")
    return tuple(dict.fromkeys(check_name("tag", tag, 100) for tag in tags))
