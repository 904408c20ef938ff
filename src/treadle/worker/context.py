"""The running job, as its handler sees it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import ContextVar
from datetime import datetime
from typing import Any, Protocol, TypeVar

from treadle.clock import to_datetime
from treadle.errors import ConfigurationError, LeaseLost
from treadle.model.codec import Codec
from treadle.model.job import Claimed, NewJob
from treadle.model.sanitise import clean_text
from treadle.store.ops.notes import checkpoint, last_checkpoint
from treadle.store.session import Session

T = TypeVar("T")


class Desk(Protocol):
    """Where a running job's notes go; the worker is one."""

    def write(self, operation: Callable[[Session], T]) -> Future[T]:
        """Queue a guarded write."""

    def read(self, operation: Callable[[Session], T]) -> Future[T]:
        """Queue a read."""

    def note_progress(self, lease: int, fraction: float, message: str) -> None:
        """Remember the last progress; written soon, at the latest with the outcome."""

    @property
    def store_id(self) -> str:
        """Stable name of the database, for idempotency keys."""


class JobContext:
    """What a handler can ask and say about the job it runs.

    Take it as a parameter annotated ``JobContext``, or call :func:`current_job`.

    Attributes:
        id: the job's id.
        task: the task's name.
        queue: the queue it came from.
        attempt: number of this attempt, from 1.
        failures: failures so far.
        crashes: attempts that died with their process so far.
    """

    __slots__ = ("_cancelled", "_claimed", "_codec", "_desk", "_follow")

    def __init__(self, claimed: Claimed, codec: Codec, desk: Desk) -> None:
        self._claimed = claimed
        self._codec = codec
        self._desk = desk
        self._follow: tuple[NewJob, ...] = ()
        self._cancelled = False

    @property
    def id(self) -> int:
        """The job's id."""
        return self._claimed.id

    @property
    def task(self) -> str:
        """The task's name."""
        return self._claimed.task

    @property
    def queue(self) -> str:
        """The queue the job came from."""
        return self._claimed.queue

    @property
    def attempt(self) -> int:
        """Number of this attempt, from 1."""
        return self._claimed.attempt

    @property
    def failures(self) -> int:
        """How often the job failed before."""
        return self._claimed.failures

    @property
    def crashes(self) -> int:
        """How many attempts died with their process before."""
        return self._claimed.crashes

    @property
    def lease(self) -> int:
        """The number that guards every write of this attempt; never given twice."""
        return self._claimed.lease

    @property
    def enqueued_at(self) -> datetime:
        """When the job was stored, aware UTC."""
        return to_datetime(self._claimed.enqueued_at)

    @property
    def idempotency_key(self) -> str:
        """The same text for every attempt of this job and for no other job; pass it to services that take one."""
        return f"treadle-{self._desk.store_id}-{self._claimed.id}"

    @property
    def cancelled(self) -> bool:
        """True once this attempt was asked to stop, or lost its job; a thread should look now and then and return.

        A lost job is noticed when a progress or a checkpoint of this attempt is refused.
        """
        return self._cancelled

    def progress(self, fraction: float, message: str = "") -> None:
        """Say how far the job is; only the last word within half a second is stored.

        When this attempt no longer owns the job, :attr:`cancelled` becomes true soon.

        Args:
            fraction: 0 to 1; other values are cut.
            message: a few words, cut to 500 characters.
        """
        text = clean_text(message[:500], 2000)
        self._desk.note_progress(self._claimed.lease, min(1.0, max(0.0, float(fraction))), text)

    def checkpoint(self, value: object) -> None:
        """Store *value* for later attempts; it is durable when this returns. For plain functions.

        Raises:
            LeaseLost: this attempt no longer owns the job; :attr:`cancelled` is true from now on.
            InvalidPayload: *value* cannot be stored.
        """
        if _on_event_loop():
            raise ConfigurationError("checkpoint() would block the event loop; use 'await job.acheckpoint(...)'.")
        try:
            self._submit_checkpoint(value).result()
        except LeaseLost:
            self.cancel()
            raise

    async def acheckpoint(self, value: object) -> None:
        """The same for ``async def`` handlers."""
        try:
            await asyncio.wrap_future(self._submit_checkpoint(value))
        except LeaseLost:
            self.cancel()
            raise

    def last_checkpoint(self) -> object:
        """What the latest :meth:`checkpoint` of any attempt stored, None when there is none. For plain functions."""
        if _on_event_loop():
            raise ConfigurationError("last_checkpoint() would block the event loop; use 'await alast_checkpoint()'.")
        return self._decoded(self._desk.read(self._read_checkpoint).result())

    async def alast_checkpoint(self) -> object:
        """The same for ``async def`` handlers."""
        return self._decoded(await asyncio.wrap_future(self._desk.read(self._read_checkpoint)))

    @property
    def follow(self) -> tuple[NewJob, ...]:
        """Jobs to enqueue if this attempt succeeds."""
        return self._follow

    def cancel(self) -> None:
        """Ask the handler to stop; the worker calls this."""
        self._cancelled = True

    def on_success(self, *jobs: NewJob) -> None:
        """Enqueue *jobs* in the transaction that accepts this attempt's success, and only then.

        Raises:
            ConfigurationError: one of them was not made by ``task.job(...)``.

        Example:
            >>> current_job().on_success(notify.job("done"))  # doctest: +SKIP
        """
        for job in jobs:
            if not isinstance(job, NewJob):
                raise ConfigurationError(f"on_success() takes jobs made by task.job(...), not {job!r}.")
        self._follow += jobs

    def _submit_checkpoint(self, value: object) -> Future[None]:
        lease, codec, data = self._claimed.lease, self._codec.name, self._codec.encode(value)
        return self._desk.write(lambda session: checkpoint(session, lease, codec, data))

    def _read_checkpoint(self, session: Session) -> tuple[str, bytes] | None:
        return last_checkpoint(session, self._claimed.id)

    def _decoded(self, found: tuple[str, bytes] | None) -> object:
        return None if found is None else self._codec.decode(found[1], Any)


RUNNING: ContextVar[JobContext] = ContextVar("treadle_job")


def current_job() -> JobContext:
    """The job this code runs in.

    Raises:
        ConfigurationError: called outside a job.
    """
    found = RUNNING.get(None)
    if found is None:
        raise ConfigurationError("current_job() was called outside a running job.")
    return found


def _on_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
