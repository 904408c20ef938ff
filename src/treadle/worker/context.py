"""The running job, as its handler sees it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import Future
from contextvars import ContextVar
from datetime import datetime, timedelta
from typing import Any, Final, Protocol

from treadle import defaults
from treadle.clock import SECOND, Clock, to_datetime, to_duration
from treadle.errors import ConfigurationError, JobStateError, LeaseLost
from treadle.host.programs import AsyncProgram, Program, Programs, Word
from treadle.model.codec import Codec
from treadle.model.job import Claimed, LogLine, NewJob
from treadle.model.lines import Lines
from treadle.model.outcome import Succeeded
from treadle.model.sanitise import clean_text
from treadle.model.settle import Transition, succeeded
from treadle.worker.transacting import Completion, Transacting

TAIL_MOST: Final = 16_000
"""Characters without a line end that are kept together."""


class Desk(Protocol):
    """Where a running job's notes go: the worker, or in a child process the pipe to it."""

    def note_progress(self, lease: int, fraction: float, message: str) -> None:
        """Remember the last progress; written soon, at the latest with the outcome."""

    def note_line(self, lease: int, line: LogLine) -> None:
        """Keep a line; written soon, at the latest with the outcome."""

    def write_checkpoint(self, lease: int, codec: str, data: bytes) -> Future[None]:
        """Store a checkpoint; done after the commit."""

    def read_checkpoint(self, job_id: int) -> Future[tuple[str, bytes] | None]:
        """Read a job's last checkpoint."""

    def stop_soon(self, reason: str) -> None:
        """Let the worker drain and end."""

    def completion(self, context: JobContext) -> Completion:
        """What settles the attempt from inside its handler."""

    @property
    def store_id(self) -> str:
        """Stable name of the database, for idempotency keys."""

    @property
    def mark(self) -> str:
        """What the environments of programs carry that jobs of this worker start."""

    @property
    def clock(self) -> Clock:
        """Where times come from."""


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

    __slots__ = (
        "_cancelled", "_claimed", "_codec", "_desk", "_follow", "_tails", "cancel_reason", "lines", "overdue",
        "programs", "settled",
    )  # fmt: skip

    def __init__(self, claimed: Claimed, codec: Codec, desk: Desk) -> None:
        self._claimed = claimed
        self._codec = codec
        self._desk = desk
        self._follow: tuple[NewJob, ...] = ()
        self._cancelled = False
        self.lines: Lines | None = None
        """What this attempt has logged; None while it has said nothing."""
        self._tails: dict[str, str] | None = None
        self.cancel_reason: str | None = None
        """Why a person or the program wants this job called off; None when nobody does."""
        self.overdue: str | None = None
        """The stack at the moment the attempt's timeout was over; None before that."""
        self.programs: Programs | None = None
        """What the handler has started by :meth:`popen` and :meth:`apopen`; None while that is nothing."""
        self.settled: Transition | None = None
        """The success that the handler itself has committed; None before that."""

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
        """True once this attempt should stop; a plain function should look now and then and return.

        So it is after :meth:`treadle.Job.cancel`, after the timeout, when the worker's grace is over, and when the
        job was lost to another worker, which is noticed when a progress or a checkpoint is refused.
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

    def log(self, text: str, level: int = logging.INFO) -> None:
        """Keep a line with the job: ``treadle logs`` and :meth:`treadle.Treadle.logs` show it.

        Of one attempt at most 64 kB are kept: the beginning and the end.

        Args:
            text: one line or several.
            level: as in ``logging``.
        """
        self.keep_line(level, "job", text)

    def keep_line(self, level: int, source: str, text: str) -> None:
        """The same for a line that came from *source*, such as a logger's name."""
        self.keep(LogLine(self._desk.clock.now(), level, source, text))

    def keep(self, said: LogLine) -> None:
        """The same for a line that was said at another moment, as in a child process."""
        if self.lines is None:
            self.lines = Lines()
        line = self.lines.keep(*said)
        if line is not None:
            self._desk.note_line(self._claimed.lease, line)

    def keep_text(self, level: int, source: str, text: str) -> None:
        """The same for text in pieces: lines are kept when they are whole."""
        self.lines = self.lines or Lines()
        tails = self._tails = self._tails or {}
        *lines, tail = (tails.pop(source, "") + text).split("\n")
        if len(tail) > TAIL_MOST:
            lines, tail = [*lines, tail], ""
        if tail:
            tails[source] = tail
        for line in lines:
            self.keep_line(level, source, line)

    def last_lines(self) -> Sequence[LogLine]:
        """What was kept back until the end, by the cap or for want of a line's end; the worker calls this."""
        if self._tails:
            for source, tail in self._tails.items():
                self.keep_line(logging.INFO, source, tail)
            self._tails = None
        return () if self.lines is None else self.lines.rest()

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
        return self._decoded(self._desk.read_checkpoint(self._claimed.id).result())

    async def alast_checkpoint(self) -> object:
        """The same for ``async def`` handlers."""
        return self._decoded(await asyncio.wrap_future(self._desk.read_checkpoint(self._claimed.id)))

    def transaction(self, *, deadline: timedelta | float = defaults.TRANSACTION_DEADLINE) -> Transacting:
        """Commit your own rows together with this job's success: both are there, or neither.

        When the block ends, the success is stored in the same transaction, if this attempt still owns the job. Then
        the attempt is over: what the handler does or raises afterwards changes nothing. If the block raises, all of it
        is rolled back, and the attempt goes on. ``async with`` collects statements and runs them when it ends.

        On SQLite it holds the only write lock: keep it short, and do slow work before it.

        Args:
            deadline: seconds or timedelta after which it is rolled back.

        Raises:
            JobStateError: this attempt was settled before.
            NotSupportedHere: the attempt runs in a process of its own, whose app is on another database.
            LeaseLost: at the end of the block: the job belongs to another attempt, and nothing was stored.
            TransactionTooLong: it was open beyond the deadline, and nothing was stored.
            StoreBusy: it could not begin within ``lock_timeout``.

        Example:
            >>> with job.transaction() as tx:  # doctest: +SKIP
            ...     tx.execute("UPDATE accounts SET balance = balance - ? WHERE id = ?", (amount, account))
            ...     tx.succeed(amount)
        """
        if self.settled is not None:
            raise JobStateError(f"This attempt of job {self.id} has committed its success before; it is over.")
        seconds = to_duration(deadline) / SECOND
        if seconds <= 0:
            raise ConfigurationError(f"deadline={deadline!r} must be longer than nothing.")
        return Transacting(self._desk.completion(self), seconds, on_loop=_on_event_loop())

    def settled_elsewhere(self, finished_at: int) -> None:
        """The handler has committed its success in another process; the worker calls this."""
        self.settled = succeeded(self._claimed, Succeeded(), self._claimed.claimed_at, finished_at)

    @property
    def follow(self) -> tuple[NewJob, ...]:
        """Jobs to enqueue if this attempt succeeds."""
        return self._follow

    def cancel(self, reason: str | None = None) -> None:
        """Ask the handler to stop; the worker calls this. *reason* is given when the whole job is called off."""
        if reason is not None:
            self.cancel_reason = reason
        self._cancelled = True
        if self.programs is not None:
            self.programs.ask()

    def stop_worker(self, reason: str = "a handler asked for it") -> None:
        """Let the worker that runs this job drain and end, as SIGTERM would; this attempt goes on within its grace."""
        self._desk.stop_soon(f"job {self.id}: {reason}")

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

    def popen(self, args: Sequence[Word], **options: Any) -> Program:
        """Start a program that ends with this attempt, as ``subprocess.Popen(args, **options)`` does.

        It and what it has started get SIGTERM when the attempt is asked to stop, so a plain function that waits for
        it goes on; whatever is left when the attempt ends is killed, and so it is before the job of a dead worker
        begins again.

        Args:
            args: the program and its words, a list; it leads a session of its own.
            options: those of ``subprocess.Popen``.

        Raises:
            OSError: it cannot be started.
            RuntimeError: the attempt has ended.

        Example:
            >>> current_job().popen(["ffmpeg", "-i", "a.mkv", "a.mp4"]).wait()  # doctest: +SKIP
            0
        """
        return self._programs().start(args, **options)

    async def apopen(self, args: Sequence[Word], **options: Any) -> AsyncProgram:
        """The same for ``async def`` handlers, as ``asyncio.create_subprocess_exec(*args, **options)`` does."""
        return await self._programs().astart(args, **options)

    def end_programs(self) -> None:
        """Kill what :meth:`popen` has started; the worker calls this."""
        if self.programs is not None:
            self.programs.end()

    def _programs(self) -> Programs:
        if self.programs is None:
            self.programs = Programs(f"{self._desk.mark}.{self._claimed.lease}")
        return self.programs

    def _submit_checkpoint(self, value: object) -> Future[None]:
        return self._desk.write_checkpoint(self._claimed.lease, self._codec.name, self._codec.encode(value))

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
