"""What happens to jobs and workers, told to subscribers in the same process. Nothing is made when nobody listens."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from treadle.clock import Clock, to_datetime
from treadle.model.job import AttemptOutcome, Claimed, JobState
from treadle.model.settle import Transition

KINDS: Final = (
    "enqueued", "started", "succeeded", "retried", "snoozed", "failed", "held", "cancelled", "released", "crashed",
    "lost", "worker_started", "worker_idle", "worker_stopped",
)  # fmt: skip
log = logging.getLogger("treadle.events")


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing that happened.

    Attributes:
        kind: one of :data:`KINDS`.
        at: when, aware UTC.
        job_id: of which job; None for events of workers.
        task: its task.
        queue: its queue.
        attempt: number of the attempt; 0 for ``enqueued``.
        worker: name of the worker; None for ``enqueued``.
        state: the job's state afterwards, for events of outcomes.
        reason: why, in words.
        error_type: class of the error an attempt ended with.
        message: its message.
        seconds: how long the attempt took.
    """

    kind: str
    at: datetime
    job_id: int | None = None
    task: str | None = None
    queue: str | None = None
    attempt: int = 0
    worker: str | None = None
    state: JobState | None = None
    reason: str | None = None
    error_type: str | None = None
    message: str | None = None
    seconds: float | None = None
    _stop: Callable[[str], None] | None = field(default=None, repr=False, compare=False)

    def stop_worker(self, reason: str = "a subscriber asked for it") -> None:
        """Let the worker that told this drain and end; does nothing for ``enqueued``."""
        if self._stop is not None:
            self._stop(reason)


class Events:
    """Tells one worker's events; used from its event loop.

    Args:
        subscribers: functions by kind.
        clock: for the moments.
        worker: the worker's name.
        stop: lets the worker drain and end.
    """

    def __init__(
        self,
        subscribers: Mapping[str, Sequence[Callable[[Event], Any]]],
        clock: Clock,
        worker: str,
        stop: Callable[[str], None],
    ) -> None:
        self._subscribers = subscribers
        self._clock = clock
        self._worker = worker
        self._stop = stop
        self._tasks: set[asyncio.Task[Any]] = set()
        self.wants_starts = bool(subscribers.get("started"))
        self.wants_outcomes = any(subscribers.get(kind) for kind in KINDS[2:11])

    def of_worker(self, kind: str) -> None:
        """Tell an event of the worker itself."""
        self._tell(kind)

    def started(self, job: Claimed) -> None:
        """Tell that an attempt begins."""
        self._tell("started", job_id=job.id, task=job.task, queue=job.queue, attempt=job.attempt)

    def settled(self, transitions: Sequence[Transition], lost: Sequence[int]) -> None:
        """Tell what attempts came to, now that it is stored; those in *lost* were refused."""
        for one in transitions:
            job = one.claimed
            if job is None or not one.history:
                continue
            self._tell(
                "lost" if one.lease in lost else kind_of(one), job_id=job.id, task=job.task, queue=job.queue,
                attempt=job.attempt, state=one.state, reason=one.reason, error_type=one.error_type,
                message=one.message, seconds=(one.finished_at - one.started_at) / 1_000_000,
            )  # fmt: skip

    async def drained(self) -> None:
        """Wait for subscribers that are coroutines."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _tell(self, kind: str, **facts: Any) -> None:
        functions = self._subscribers.get(kind)
        if not functions:
            return
        event = Event(
            kind=kind, at=to_datetime(self._clock.now()), worker=self._worker, _stop=self._stop, **facts
        )
        for function in functions:
            made = call(function, event)
            if made is not None:
                task = asyncio.get_running_loop().create_task(made)
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)


def kind_of(one: Transition) -> str:
    """What the event of an outcome is called."""
    if one.state is JobState.CANCELLED:
        return "cancelled"
    if one.state is JobState.HELD:
        return "held"
    match one.outcome:
        case AttemptOutcome.SNOOZED | AttemptOutcome.RELEASED | AttemptOutcome.CRASHED | AttemptOutcome.SUCCEEDED:
            return str(one.outcome)
    return "failed" if one.state is JobState.FAILED else "retried"


def call(function: Callable[[Event], Any], event: Event) -> Any:
    """Call a subscriber; what it raises is logged and harms nobody. A coroutine is returned to be run."""
    try:
        made = function(event)
    except Exception:
        log.exception("A subscriber of %s failed: %r", event.kind, function)
        return None
    return _guarded(made, function, event) if inspect.iscoroutine(made) else None


async def _guarded(made: Any, function: Callable[[Event], Any], event: Event) -> None:
    try:
        await made
    except Exception:
        log.exception("A subscriber of %s failed: %r", event.kind, function)
