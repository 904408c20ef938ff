"""Waiting for jobs to end: woken by a bell that every settle rings, with a slow look as net."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, TypeVar

from treadle.clock import SystemClock
from treadle.errors import JobFailed, JobNotFound, ResultNotStored, ResultTimeout
from treadle.model.codec import CodecRegistry
from treadle.model.definition import TaskDefinition
from treadle.model.job import JobState
from treadle.model.outcome import why_not_stored
from treadle.store.engine import Bell
from treadle.store.ops import closing, find
from treadle.store.session import Session
from treadle.store.store import Store

T = TypeVar("T")
LOOK_EVERY: Final = 0.5


def wait_for(store: Store, look: Callable[[Session], T | None], timeout: float | None) -> T:
    """Call *look* until it finds something; woken by every settle on this file.

    Raises:
        ResultTimeout: nothing was found in time.
        StoreMoved: nothing will be found here any more: the jobs have moved to another store.
    """
    clock = SystemClock()
    until = None if timeout is None else clock.monotonic() + timeout
    looking = partial(_or_moved, look)
    with _bell(store) as bell:
        while True:
            found = store.read(looking)
            if found is not None:
                return found
            bell.wait(_left(until, clock.monotonic(), timeout))


async def await_for(store: Store, look: Callable[[Session], T | None], timeout: float | None) -> T:
    """The same on an event loop."""
    clock = SystemClock()
    until = None if timeout is None else clock.monotonic() + timeout
    loop = asyncio.get_running_loop()
    rung = asyncio.Event()
    looking = partial(_or_moved, look)
    with _bell(store) as bell:
        loop.add_reader(bell.fileno(), rung.set)
        try:
            while (found := await asyncio.wrap_future(store.submit_read(looking))) is None:
                await _sleep(rung, _left(until, clock.monotonic(), timeout))
                bell.drain()
                rung.clear()
        finally:
            loop.remove_reader(bell.fileno())
        return found


def ending_of(job_id: int, session: Session) -> find.Ending | None:
    """The ending of a job, None while it has not ended.

    Raises:
        JobNotFound: there is no such job.
    """
    found = find.ending(session, job_id)
    if found is None:
        raise JobNotFound(f"There is no job {job_id}; it was never stored, or it was pruned.")
    return found if found.state.ended else None


def ending(store: Store, job_id: int, timeout: float | None) -> find.Ending:
    """Wait for the end of one job.

    Raises:
        ResultTimeout: it did not end in time; the message says what it is doing instead.
        JobNotFound: there is no such job.
    """
    try:
        return wait_for(store, partial(ending_of, job_id), timeout)
    except ResultTimeout as error:
        raise _still(error, job_id, store.read(partial(find.ending, job_id=job_id))) from None


async def aending(store: Store, job_id: int, timeout: float | None) -> find.Ending:
    """The same on an event loop."""
    try:
        return await await_for(store, partial(ending_of, job_id), timeout)
    except ResultTimeout as error:
        state = await asyncio.wrap_future(store.submit_read(partial(find.ending, job_id=job_id)))
        raise _still(error, job_id, state) from None


def _still(error: ResultTimeout, job_id: int, found: find.Ending | None) -> ResultTimeout:
    if found is None:
        return error
    why = f" ({found.reason or found.message})" if found.reason or found.message else ""
    return ResultTimeout(f"{error} Job {job_id} is {found.state}{why}.")


def all_ended(ids: Sequence[int], session: Session) -> dict[int, JobState] | None:
    """The states of *ids* once every one of them has ended or is gone."""
    found = find.states(session, ids)
    return found if all(state.ended for state in found.values()) else None


def value_of(job_id: int, ending: find.Ending, task: TaskDefinition | None, codecs: CodecRegistry) -> Any:
    """What a job's handler returned, from its ending.

    Raises:
        JobFailed: it ended without success.
        ResultNotStored: its result was not kept.
    """
    if ending.state is not JobState.SUCCEEDED:
        told = dict.fromkeys(text for text in (ending.reason, ending.message) if text)
        raise JobFailed(f"Job {job_id} {ending.state}: {'; '.join(told) or 'no reason was given'}")
    missing = why_not_stored(ending.reason)
    if missing is not None:
        raise ResultNotStored(*missing)
    if ending.data is None or ending.codec is None:
        return None
    codec = codecs.get(ending.codec)
    if task is None:
        return codec.decode(ending.data, Any)
    return task.signature.decode_result(codec, ending.data)


def _or_moved(look: Callable[[Session], T | None], session: Session) -> T | None:
    found = look(session)
    if found is None:
        closing.check(session)
    return found


@contextmanager
def _bell(store: Store) -> Iterator[Bell]:
    try:
        bell = store.engine.waiter_bell()
    except FileNotFoundError:
        store.read(find.next_due)  # the folder of a memory:// store goes with it: say that it is closed
        raise
    try:
        yield bell
    finally:
        bell.close()


def _left(until: float | None, now: float, timeout: float | None) -> float:
    if until is None:
        return LOOK_EVERY
    if now >= until:
        raise ResultTimeout(f"Not ended within {timeout:g} s; it goes on.")
    return min(LOOK_EVERY, until - now)


async def _sleep(rung: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await rung.wait()
    except TimeoutError:
        return
