"""What an attempt can come to, as values. The runner makes one, :func:`treadle.model.settle.settle` judges it."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Final, NamedTuple

from treadle.model.job import NewJob

NOT_STORED: Final = re.compile(r"result not stored(?: \((\d+) bytes\))?: (.*)", re.DOTALL)


def not_stored(why: str, size: int | None) -> str:
    """The reason kept with a job whose result of *size* encoded bytes was not stored; None when it has no size.

    Example:
        >>> not_stored("more than the cap", 1234)
        'result not stored (1234 bytes): more than the cap'
    """
    return "result not stored" + ("" if size is None else f" ({size} bytes)") + f": {why}"


def why_not_stored(reason: str | None) -> tuple[str, int | None] | None:
    """What :func:`not_stored` was given, read back from a job's reason; None for any other reason.

    Example:
        >>> why_not_stored("result not stored (1234 bytes): more than the cap")
        ('more than the cap', 1234)
    """
    found = NOT_STORED.fullmatch(reason or "")
    return None if found is None else (found[2], None if found[1] is None else int(found[1]))


class Succeeded(NamedTuple):
    """The handler returned. *data* is its encoded result, None when it returned None."""

    codec: str = "json"
    data: bytes | None = None
    reason: str | None = None
    """Why the result was not stored, when it was not."""
    follow: tuple[NewJob, ...] = ()
    """Jobs to enqueue in the transaction that accepts this outcome."""


class Failed(NamedTuple):
    """The handler raised; *error_type*, *message* and *traceback* are storable text.

    *kinds* names the error's class and its bases, nearest first: rules go by names, because an error of a child
    process is never rebuilt.
    """

    kinds: tuple[str, ...]
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


class Cancelled(NamedTuple):
    """The attempt ended because somebody asked it to."""

    reason: str


class Crashed(NamedTuple):
    """The attempt's own process ended under it; *message* says how, *traceback* is its last stack when known."""

    message: str
    traceback: str | None = None


Outcome = Succeeded | Failed | Snoozed | RetryLater | Released | Held | Aborted | Cancelled | Crashed


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
