"""Inline mode: every job runs before the enqueue that stored it returns. And one job alone, for its outcome."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Generator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Final

from treadle.app import Treadle
from treadle.errors import ConfigurationError, JobNotFound
from treadle.model.job import JobRecord, JobState, NewJob
from treadle.testing.ran import BAD, RanJob, raise_for
from treadle.testing.solo import Solo

DEPTH: Final = 20
"""Jobs inside jobs: each handler that enqueues waits for the job it has enqueued."""
MOST: Final = 1000
"""Attempts that one enqueue may lead to."""


@dataclass(slots=True)
class _Outermost:
    """One enqueue of the test and everything it has led to."""

    wrong: list[RanJob] = field(default_factory=list)
    attempts: int = 0
    problem: str | None = None


_outermost: ContextVar[_Outermost | None] = ContextVar("treadle_inline", default=None)
_inside: ContextVar[tuple[str, ...]] = ContextVar("treadle_inline_inside", default=())
"""Tasks of the jobs this code runs in, outermost first."""
Plan = Generator[JobRecord, RanJob | None, None]


class _Inline:
    """Runs what was just stored; see :func:`inline`."""

    def __init__(self, app: Treadle, solo: Solo) -> None:
        self._app = app
        self._solo = solo

    def run(self, ids: Sequence[int]) -> None:
        with _nest() as nest:
            plan = self._plan(nest, ids)
            job = next(plan, None)
            while job is not None:
                with _within(job.task):
                    ran = self._solo.run(job.id)
                job = _next(plan, ran)

    async def arun(self, ids: Sequence[int]) -> None:
        with _nest() as nest:
            plan = self._plan(nest, ids)
            job = next(plan, None)
            while job is not None:
                with _within(job.task):
                    ran = await self._solo.arun(job.id)
                job = _next(plan, ran)

    def _plan(self, nest: _Outermost, ids: Sequence[int]) -> Plan:
        """Which job to run next; it is told what came of each."""
        waiting = deque(ids)
        inside = _inside.get()
        while waiting and nest.problem is None:
            job = self._to_run(waiting.popleft())
            if job is None:
                continue
            if len(inside) >= DEPTH:
                chain = " > ".join((*inside[-5:], job.task))
                nest.problem = f"Jobs enqueue each other more than {DEPTH} deep: {chain}."
                return
            waiting += yield from self._to_its_end(nest, job)

    def _to_run(self, job_id: int) -> JobRecord | None:
        """The job, None if it has a delay, if other programs run it, or if it was deleted meanwhile."""
        try:
            job = self._app.get(job_id)
        except JobNotFound:
            return None
        return job if job.state is JobState.READY and self._app.registry.find(job.task) is not None else None

    def _to_its_end(self, nest: _Outermost, job: JobRecord) -> Generator[JobRecord, RanJob | None, Sequence[int]]:
        """One attempt after the other, without the pauses between them; gives the jobs that follow.

        Exactly those: enqueues beside this one run what they have stored themselves.
        """
        followers: list[int] = []
        while nest.problem is None:
            nest.attempts += 1
            if nest.attempts > MOST:
                nest.problem = f"There is no end after {MOST} attempts; the last one was of job {job.id} {job.task}."
                break
            ran = yield job
            if ran is None:
                nest.problem = f"Job {job.id} is run by somebody else; inline() needs the store for itself."
                break
            followers += ran.followers
            if ran.state not in (JobState.READY, JobState.SCHEDULED):
                if ran.outcome in BAD and ran.state is not JobState.CANCELLED:
                    nest.wrong.append(ran)
                break
        return followers


@contextmanager
def inline(app: Treadle) -> Iterator[Treadle]:
    """Run every job at once while the context is open: stored, claimed, run and settled before its enqueue returns.

    A plain handler runs on the calling thread; with ``aenqueue`` an ``async def`` handler runs on the running loop.
    Retries and snoozes follow without their pauses, until the job has ended. What a handler enqueues runs inside of it,
    what it asks for with ``on_success`` after it. A job with a delay is stored and waits, and so does one in a
    transaction of your own (``connection=``): run them with :func:`run_pending`.

    Raises, in the enqueue of the test that led to it:
        the handler's own error: a job has failed for good. The jobs are as the engine left them.
        JobFailed: a job is held, or failed without an error that can be had.
        AssertionError: jobs enqueue jobs without end.

    Example:
        >>> app, sent = Treadle("memory://"), []
        >>> @app.task(name="send")
        ... def send(to: str) -> None:
        ...     sent.append(to)
        >>> with inline(app):
        ...     job = send.enqueue("ada@example.org")
        ...     sent
        ['ada@example.org']
        >>> app.close()
    """
    before = app.inline
    with Solo(app) as solo:
        app.inline = _Inline(app, solo)
        try:
            yield app
        finally:
            app.inline = before


def perform(
    app: Treadle, job: NewJob, *, attempt: int = 1, failures: int | None = None, raise_errors: bool = False
) -> RanJob:
    """Store one job, run one attempt of exactly this one, and say what came of it.

    Arguments are encoded and decoded, middleware and resources are there, the outcome is settled. A plain handler runs
    on the calling thread. What it enqueues is stored and does not run.

    Args:
        app: where the job is stored; nobody else should work on its store.
        job: made by ``task.job(...)`` or ``task.using(...).job(...)``; a delay is ignored.
        attempt: number of the attempt that the handler sees.
        failures: how often the job has failed before; by default in every attempt before this one.
        raise_errors: raise what the handler raised.

    Example:
        >>> app = Treadle("memory://")
        >>> @app.task(name="add")
        ... def add(a: int, b: int) -> int:
        ...     return a + b
        >>> perform(app, add.job(2, b=3)).result
        5
        >>> app.close()
    """
    _check_attempt(attempt)
    (job_id,) = app.store.insert((job,))
    with Solo(app) as solo:
        return _performed(solo.run(job_id, attempt=attempt, failures=_before(attempt, failures)), job_id, raise_errors)


async def aperform(
    app: Treadle, job: NewJob, *, attempt: int = 1, failures: int | None = None, raise_errors: bool = False
) -> RanJob:
    """The same from async code; an ``async def`` handler runs on the running loop."""
    _check_attempt(attempt)
    (job_id,) = await (await app.aopen()).ainsert((job,))
    async with _solo(app) as solo:
        ran = await solo.arun(job_id, attempt=attempt, failures=_before(attempt, failures))
        return _performed(ran, job_id, raise_errors)


def _performed(ran: RanJob | None, job_id: int, raise_errors: bool) -> RanJob:  # noqa: FBT001 - passed on
    if ran is None:
        raise AssertionError(f"Job {job_id} was taken by another worker; perform() needs the store for itself.")
    if raise_errors and ran.outcome in BAD:
        raise_for(ran)
    return ran


def _check_attempt(attempt: int) -> None:
    if attempt < 1:
        raise ConfigurationError(f"attempt={attempt} must be 1 or more.")


def _before(attempt: int, failures: int | None) -> int:
    return attempt - 1 if failures is None else failures


@asynccontextmanager
async def _solo(app: Treadle) -> AsyncIterator[Solo]:
    solo = Solo(app)
    try:
        yield solo
    finally:
        await asyncio.to_thread(solo.close)


@contextmanager
def _nest() -> Iterator[_Outermost]:
    """What this enqueue belongs to; the outermost one raises what went wrong."""
    outermost = _outermost.get()
    if outermost is not None:
        yield outermost
        return
    nest = _Outermost()
    token = _outermost.set(nest)
    try:
        yield nest
    finally:
        _outermost.reset(token)
    if nest.problem is not None:
        raise AssertionError(nest.problem)
    if nest.wrong:
        raise_for(nest.wrong[0], nest.wrong[1:])


@contextmanager
def _within(task: str) -> Iterator[None]:
    token = _inside.set((*_inside.get(), task))
    try:
        yield
    finally:
        _inside.reset(token)


def _next(plan: Plan, ran: RanJob | None) -> JobRecord | None:
    try:
        return plan.send(ran)
    except StopIteration:
        return None
