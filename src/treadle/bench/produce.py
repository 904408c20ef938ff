"""A producer that keeps its rate whatever the answers: it does not wait for one job to be stored before the next."""

from __future__ import annotations

import asyncio
from typing import Final, NamedTuple

from treadle.clock import Clock
from treadle.tasks import AsyncTask

WAITING_MOST: Final = 1000
"""Enqueues under way at once; beyond it the producer falls behind its rate, and the figures say so."""


class Produced(NamedTuple):
    """Seconds each enqueue took, and seconds from the first to the last."""

    enqueues: list[float]
    seconds: float


async def produce(task: AsyncTask[[int], None], jobs: int, every: float, clock: Clock) -> Produced:
    """Store *jobs* jobs, one every *every* seconds; 0 is as fast as it goes.

    The loop wakes about every millisecond, so shorter distances come in twos and threes.
    """
    taken: list[float] = []
    room = asyncio.Semaphore(WAITING_MOST)

    async def send(number: int) -> None:
        begun = clock.monotonic()
        try:
            await task.aenqueue(number)
            taken.append(clock.monotonic() - begun)
        finally:
            room.release()

    begun = clock.monotonic()
    async with asyncio.TaskGroup() as sending:
        for number in range(jobs):
            early = begun + number * every - clock.monotonic()
            if early > 0:
                await asyncio.sleep(early)
            await room.acquire()
            sending.create_task(send(number))
    return Produced(taken, clock.monotonic() - begun)
