"""Storing jobs for callers: chunks, async sources, and waiting for room in a capped queue."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Final, Protocol

from treadle.errors import ConfigurationError, QueueFull
from treadle.model.job import NewJob
from treadle.store.engine import Bell
from treadle.store.store import Store

ROOM_POLL: Final = 0.1
LARGEST_CHUNK: Final = 1_000_000_000
Tell = Callable[[Sequence[NewJob], Sequence[int]], None]
"""Told the jobs and their ids once they are stored."""


class Inline(Protocol):
    """What runs jobs before the enqueue that stored them returns."""

    def run(self, ids: Sequence[int]) -> None:
        """Run these jobs, one after the other."""

    async def arun(self, ids: Sequence[int]) -> None:
        """The same from async code."""


def insert(store: Store, jobs: Sequence[NewJob], tell: Tell) -> Sequence[int]:
    """Store *jobs* in one transaction; waits for room in a queue declared ``when_full="wait"``.

    Raises:
        QueueFull: there was no room, or none within ``lock_timeout``. Nothing was stored.
    """
    ids = _insert(store, jobs)
    tell(jobs, ids)
    return ids


async def ainsert(store: Store, jobs: Sequence[NewJob], tell: Tell) -> Sequence[int]:
    """The same from async code."""
    began = store.clock.monotonic()
    while True:
        try:
            ids = await store.ainsert(jobs)
            tell(jobs, ids)
            return ids
        except QueueFull as error:
            if not error.wait:
                raise
            left = _left(store, began, error)
        await asyncio.sleep(left)


def insert_many(store: Store, jobs: Iterable[NewJob], chunk: int | None, tell: Tell) -> Sequence[int]:
    """Store *jobs*, one transaction a chunk, and return their ids in order."""
    ids: list[int] = []
    for piece in _chunks(iter(jobs), chunk):
        ids += insert(store, piece, tell)
    return ids


async def ainsert_many(
    store: Store, jobs: Iterable[NewJob] | AsyncIterable[NewJob], chunk: int | None, tell: Tell
) -> Sequence[int]:
    """The same from async code, from a plain or an async iterable."""
    ids: list[int] = []
    if isinstance(jobs, AsyncIterable):
        async for piece in _achunks(jobs, chunk):
            ids += await ainsert(store, piece, tell)
    else:
        for piece in _chunks(iter(jobs), chunk):
            ids += await ainsert(store, piece, tell)
    return ids


def _insert(store: Store, jobs: Sequence[NewJob]) -> Sequence[int]:
    try:
        return store.insert(jobs)
    except QueueFull as error:
        if not error.wait:
            raise
    bell = store.engine.waiter_bell()
    try:
        return _insert_when_room(store, jobs, bell)
    finally:
        bell.close()


def _insert_when_room(store: Store, jobs: Sequence[NewJob], bell: Bell) -> Sequence[int]:
    began = store.clock.monotonic()
    while True:
        try:
            return store.insert(jobs)
        except QueueFull as error:
            bell.wait(_left(store, began, error))


def _left(store: Store, began: float, error: QueueFull) -> float:
    """How long to wait before the next look; raises QueueFull when the patience is at its end."""
    limit = store.options.lock_timeout
    left = began + limit - store.clock.monotonic()
    if left <= 0:
        raise QueueFull(f"{error} Waited {limit:g} s (lock_timeout) for room.", wait=True) from None
    return min(ROOM_POLL, left)


def _check_chunk(chunk: int | None) -> None:
    if chunk is not None and chunk < 1:
        raise ConfigurationError(f"chunk={chunk!r} must be 1 or more, or None for one transaction.")


def _chunks(jobs: Iterator[NewJob], chunk: int | None) -> Iterator[list[NewJob]]:
    _check_chunk(chunk)
    while piece := list(islice(jobs, chunk or LARGEST_CHUNK)):
        yield piece


async def _achunks(jobs: AsyncIterable[NewJob], chunk: int | None) -> AsyncIterator[list[NewJob]]:
    _check_chunk(chunk)
    piece: list[NewJob] = []
    async for job in jobs:
        piece.append(job)
        if chunk is not None and len(piece) >= chunk:
            yield piece
            piece = []
    if piece:
        yield piece
