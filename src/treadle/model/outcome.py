"""What an attempt can come to, as values. The runner makes one, :func:`treadle.model.settle.settle` judges it."""

from __future__ import annotations

from datetime import timedelta
from typing import NamedTuple

from treadle.model.job import NewJob


class Succeeded(NamedTuple):
    """The handler returned. *data* is its encoded result, None when it returned None."""

    codec: str = "json"
    data: bytes | None = None
    reason: str | None = None
    """Why the result was not stored, when it was not."""
    follow: tuple[NewJob, ...] = ()
    """Jobs to enqueue in the transaction that accepts this outcome."""


class Failed(NamedTuple):
    """The handler raised *error*; *error_type*, *message* and *traceback* are storable text."""

    error: BaseException
    error_type: str
    message: str
    traceback: str


class Snoozed(NamedTuple):
    """The handler asked to run again after *delay* microseconds, without spending a retry."""

    delay: int


class RetryLater(NamedTuple):
    """The handler failed and said itself when to retry: after *delay* microseconds."""

    delay: int
    message: str


class Released(NamedTuple):
    """The lease goes back unspent; *started* tells whether the handler had begun."""

    reason: str
    started: bool = True


class Held(NamedTuple):
    """The job cannot run here until a person acts; nothing of its budget is spent."""

    reason: str


class Aborted(NamedTuple):
    """The handler gave up for good: no retry."""

    reason: str


Outcome = Succeeded | Failed | Snoozed | RetryLater | Released | Held | Aborted


class Snooze(Exception):
    """Raise in a handler to run the same job again later, without spending a retry.

    Example:
        >>> raise Snooze(30)
        Traceback (most recent call last):
        treadle.model.outcome.Snooze: 30
    """

    def __init__(self, delay: timedelta | float) -> None:
        super().__init__(delay)
        self.delay = delay


class RetryAfter(Exception):
    """Raise in a handler to count a failure and retry after *delay* (seconds or timedelta)."""

    def __init__(self, delay: timedelta | float, message: str = "") -> None:
        super().__init__(delay, message)
        self.delay = delay
        self.message = message


class Abort(Exception):
    """Raise in a handler to fail the job at once: no retry, *reason* is kept."""
