"""Running what is due with the real worker, until nothing is left to do; and moving the held clock on."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final

from treadle.app import Treadle
from treadle.clock import HeldClock
from treadle.errors import ConfigurationError
from treadle.model.job import JobFilter, JobState
from treadle.model.retention import Keep, Retention
from treadle.options import on_event_loop
from treadle.tasks import Task
from treadle.testing.loops import on_own_loop
from treadle.testing.ran import RanJob, history, last_place, raise_first
from treadle.worker.options import WorkerOptions
from treadle.worker.presence import Abilities, Presence
from treadle.worker.registry import Registry
from treadle.worker.worker import Worker

FOR_EVER: Final = Retention(succeeded=Keep(), cancelled=Keep(), failed=Keep())
LIMIT: Final = 1000
MOVES: Final = 200
TIMEOUT: Final = 60.0
SHOWN: Final = 3


def run_pending(
    app: Treadle,
    *,
    queue: str | None = None,
    task: Task[..., Any] | str | None = None,
    concurrency: int = 1,
    limit: int = LIMIT,
    timeout: float = TIMEOUT,
    raise_errors: bool = False,
    retention: Retention = FOR_EVER,
) -> list[RanJob]:
    """Run what is due now with a real worker until nothing is left to do, follow-ups included.

    Jobs of a queue run in order of priority, due time and id, one at a time. ``async def`` handlers run on an event
    loop, others on a thread. Tasks with ``isolation="process"`` run in this process.

    Args:
        app: whose jobs.
        queue: only jobs of this queue.
        task: only jobs of this task.
        concurrency: attempts at once; with more than one the order is not fixed.
        limit: attempts after which the run counts as endless.
        timeout: seconds of real time after which what still runs counts as stuck.
        raise_errors: raise the first error that a handler raised, once everything has run.
        retention: how long ended jobs are kept by the clock; by default for ever.

    Returns:
        Each attempt, in the order in which they ended.

    Raises:
        AssertionError: there was no end, or a handler did not return.
        ConfigurationError: called on an event loop; await :func:`arun_pending` there.

    Example:
        >>> app = Treadle("memory://")
        >>> @app.task(name="add")
        ... def add(a: int, b: int) -> int:
        ...     return a + b
        >>> job = add.enqueue(2, 3)
        >>> [ran.result for ran in run_pending(app)]
        [5]
        >>> app.close()
    """
    _refuse_loop("run_pending", "arun_pending")
    return on_own_loop(
        arun_pending(
            app, queue=queue, task=task, concurrency=concurrency, limit=limit, timeout=timeout,
            raise_errors=raise_errors, retention=retention,
        )
    )  # fmt: skip


async def arun_pending(
    app: Treadle,
    *,
    queue: str | None = None,
    task: Task[..., Any] | str | None = None,
    concurrency: int = 1,
    limit: int = LIMIT,
    timeout: float = TIMEOUT,
    raise_errors: bool = False,
    retention: Retention = FOR_EVER,
) -> list[RanJob]:
    """The same from async code; ``async def`` handlers run on this event loop."""
    store = await app.aopen()
    after = await asyncio.to_thread(last_place, store)
    errors: dict[int, BaseException] = {}
    options = WorkerOptions(
        queues=None if queue is None else (queue,), tasks=None if task is None else (name_of(task),),
        concurrency=concurrency, max_jobs=limit + 1, retention=retention,
    )  # fmt: skip
    async with _known_tasks(app, everything=task is None):
        await work(app, options, errors, timeout)
    ran = await asyncio.to_thread(history, app, after, errors)
    if len(ran) > limit:
        raise AssertionError(f"There is no end after {limit} attempts (limit). {_busiest(ran)}")
    if raise_errors:
        raise_first(ran)
    return ran


def drain(
    app: Treadle,
    *,
    until: datetime | timedelta | float | None = None,
    moves: int = MOVES,
    concurrency: int = 1,
    limit: int = LIMIT,
    timeout: float = TIMEOUT,
    raise_errors: bool = False,
) -> list[RanJob]:
    """Run what is due, move the held clock to the next moment at which something is, and so on until nothing is left.

    So retries, delays and pauses pass without waiting.

    Args:
        app: whose jobs; its clock must be a :class:`HeldClock`.
        until: aware datetime, or timedelta or seconds from now, at which to stop; the clock stands there afterwards.
        moves: how often the clock is moved before it counts as endless.
        concurrency: as in :func:`run_pending`.
        limit: as in :func:`run_pending`, for each moment.
        timeout: as in :func:`run_pending`, for each moment.
        raise_errors: raise the first error that a handler raised, once everything has run.

    Returns:
        Each attempt, in the order in which they ended.

    Raises:
        AssertionError: there was no end; the message says which jobs go on and on.
        ConfigurationError: the app's clock cannot be moved.
    """
    _refuse_loop("drain", "adrain")
    return on_own_loop(
        adrain(
            app, until=until, moves=moves, concurrency=concurrency, limit=limit, timeout=timeout,
            raise_errors=raise_errors,
        )
    )  # fmt: skip


async def adrain(
    app: Treadle,
    *,
    until: datetime | timedelta | float | None = None,
    moves: int = MOVES,
    concurrency: int = 1,
    limit: int = LIMIT,
    timeout: float = TIMEOUT,
    raise_errors: bool = False,
) -> list[RanJob]:
    """The same from async code."""
    clock = _held(app)
    began, end = clock.moment, _end(clock, until)
    ran: list[RanJob] = []
    for left in range(moves, -1, -1):
        ran += await arun_pending(app, concurrency=concurrency, limit=limit, timeout=timeout)
        moment = await _next_moment(app)
        if moment is None or (end is not None and moment > end):
            break
        if not left:
            raise AssertionError(
                f"There is no end after {moves} moves of the clock, from {began} to {clock.moment}. {_busiest(ran)} "
                "Pass until= to stop at a moment."
            )
        clock.move_to(moment)
    if end is not None and end > clock.moment:
        clock.move_to(end)
    if raise_errors:
        raise_first(ran)
    return ran


def name_of(task: Task[..., Any] | str) -> str:
    """The name of a task that is given as itself or by name."""
    return task if isinstance(task, str) else task.name


def here(registry: Registry) -> Registry:
    """The same tasks, none of them in a process of its own: a child would not see the store and the fakes of a test."""
    found = Registry()
    for definition in dict.fromkeys(registry.get(name).name for name in registry.names()):
        found.add(replace(registry.get(definition), isolated=False, memory=None))
    return found


async def work(app: Treadle, options: WorkerOptions, errors: dict[int, BaseException], patience: float) -> None:
    """Let a worker work until it is idle."""
    worker = Worker(lambda: app.store, here(app.registry), app.codecs, app.extensions, options, lambda _: None)
    worker.on_raised = errors.__setitem__
    async with worker:
        await worker.looked_after()
        ends = {asyncio.ensure_future(worker.idle()), asyncio.ensure_future(worker.ended())}
        done, going_on = await asyncio.wait(ends, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
        for one in going_on:
            one.cancel()
        if not done:
            stuck = _stuck(app, patience)
            await worker.stop(0)
            raise AssertionError(stuck)
    if worker.failure is not None:
        raise worker.failure


@asynccontextmanager
async def _known_tasks(app: Treadle, *, everything: bool) -> AsyncIterator[None]:
    """While only some tasks are run, somebody registered knows the others: jobs of tasks nobody knows are held."""
    if everything:
        yield
        return
    abilities = Abilities(name="testing", queues=(), tasks=app.registry.names(), concurrency=1)
    presence = await asyncio.to_thread(Presence.enter, app.store, abilities)
    try:
        yield
    finally:
        await asyncio.to_thread(presence.leave)


async def _next_moment(app: Treadle) -> datetime | None:
    """When something can run next that cannot now."""
    moments = [await app.anext_due()]
    for pause in await app.apauses():
        if pause.until is None:
            continue
        waiting = JobFilter(
            queue=pause.name if pause.kind == "queue" else None, task=pause.name if pause.kind == "task" else None,
            states=(JobState.READY, JobState.BLOCKED),
        )  # fmt: skip
        if await app.acount(waiting):
            moments.append(pause.until)
    now = _held(app).moment
    return min((moment for moment in moments if moment is not None and moment > now), default=None)


def _held(app: Treadle) -> HeldClock:
    if not isinstance(app.clock, HeldClock):
        raise ConfigurationError(
            "drain() moves the clock, and this app's cannot be moved. Use private_store(app, clock=HeldClock()), the "
            "fixture treadle_app, or Treadle(..., clock=HeldClock())."
        )
    return app.clock


def _end(clock: HeldClock, until: datetime | timedelta | float | None) -> datetime | None:
    if until is None or isinstance(until, datetime):
        return until
    return clock.moment + (until if isinstance(until, timedelta) else timedelta(seconds=until))


def _stuck(app: Treadle, patience: float) -> str:
    running = app.find(JobFilter(states=(JobState.RUNNING,))).jobs
    told = ", ".join(f"job {one.id} {one.task}" for one in running) or "no job, but the worker is not idle"
    return f"Still running after {patience:g} s (timeout): {told}."


def _busiest(ran: Sequence[RanJob]) -> str:
    """Which jobs, or which tasks where there are many jobs, ran most often."""
    by_job = _most(ran, lambda one: f"job {one.id} {one.task}")
    by_task = _most(ran, lambda one: f"task {one.task}")
    return by_task if len({one.id for one in ran}) > len(ran) / 2 else by_job


def _most(ran: Sequence[RanJob], key: Callable[[RanJob], str]) -> str:
    last = {key(one): one for one in ran}
    counted = Counter(map(key, ran)).most_common(SHOWN)
    told = [f"{name} ran {times} times, the last time it {last[name].outcome}" for name, times in counted]
    return "Most often: " + "; ".join(told) + "."


def _refuse_loop(verb: str, better: str) -> None:
    if on_event_loop():
        raise ConfigurationError(f"{verb}() was called on an event loop, which it would block; await {better}().")
