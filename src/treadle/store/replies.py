"""Answers for callers on an event loop: lighter than a concurrent future, and told to a loop in one go.

Waking a loop from another thread costs a system call; a group commit of 64 enqueues wakes it once.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterable
from typing import Any, Generic, Protocol, TypeVar

T = TypeVar("T")
log = logging.getLogger("treadle.store")


class Reply(Protocol):
    """What the lane needs of whoever waits; ``concurrent.futures.Future`` fits."""

    def running(self) -> bool:
        """True once the operation can no longer be given up."""

    def cancelled(self) -> bool:
        """True when the caller gave up in time."""

    def done(self) -> bool:
        """True once there is an answer, or the caller gave up."""

    def set_running_or_notify_cancel(self) -> bool:
        """Begin; False when the caller gave up."""

    def set_result(self, result: Any) -> None:
        """Answer with a result."""

    def set_exception(self, exception: BaseException) -> None:
        """Answer with an error."""


class LoopReply(Generic[T]):
    """The answer to one operation, awaited on the event loop it was made on."""

    __slots__ = ("_error", "_lock", "_result", "_state", "loop", "waiter")

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.waiter: asyncio.Future[T] = self.loop.create_future()
        self._lock = threading.Lock()
        self._state = "pending"
        self._result: T | None = None
        self._error: BaseException | None = None

    def running(self) -> bool:
        """True once the operation can no longer be given up."""
        return self._state == "running"

    def cancelled(self) -> bool:
        """True when the caller gave up in time."""
        return self._state == "cancelled"

    def done(self) -> bool:
        """True once there is an answer, or the caller gave up."""
        return self._state in ("done", "cancelled")

    def cancel(self) -> bool:
        """Give up; False when the operation has begun."""
        with self._lock:
            if self._state == "pending":
                self._state = "cancelled"
            return self._state == "cancelled"

    def set_running_or_notify_cancel(self) -> bool:
        """Begin; False when the caller gave up."""
        with self._lock:
            if self._state == "pending":
                self._state = "running"
            return self._state == "running"

    def set_result(self, result: T) -> None:
        """Keep the result until :func:`deliver` brings it to the loop."""
        self._result = result
        self._state = "done"

    def set_exception(self, exception: BaseException) -> None:
        """Keep the error until :func:`deliver` brings it to the loop."""
        self._error = exception
        self._state = "done"

    def arrive(self) -> None:
        """Wake the waiter; on its loop."""
        if self.waiter.done():
            return  # the awaiting task was cancelled; what was stored stays stored
        if self._error is not None:
            self.waiter.set_exception(self._error)
        else:
            self.waiter.set_result(self._result)  # type: ignore[arg-type]


def deliver(replies: Iterable[object]) -> None:
    """Bring answers to their loops, one wake-up a loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[LoopReply[Any]]] = {}
    for reply in replies:
        if isinstance(reply, LoopReply):
            by_loop.setdefault(reply.loop, []).append(reply)
    for loop, group in by_loop.items():
        try:
            loop.call_soon_threadsafe(_arrive, group)
        except RuntimeError as error:
            # The loop is closed, and with it everybody who waited there. The lane serves other loops too.
            log.debug("%d answers find their event loop gone: %s", len(group), error)


def _arrive(group: list[LoopReply[Any]]) -> None:
    for reply in group:
        reply.arrive()
