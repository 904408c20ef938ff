"""A worker that is the main thing of its process: it lives until a signal, or until something is done."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from treadle.errors import TreadleError
from treadle.host.process import exit_now, stop_signals

log = logging.getLogger("treadle.worker")


class Living(Protocol):
    """What a worker is to its process."""

    failure: TreadleError | None

    @property
    def name(self) -> str:
        """What people call it."""

    async def start(self) -> None:
        """Begin to work."""

    async def stop(self) -> None:
        """Drain and end."""

    async def ended(self) -> None:
        """Wait for the end."""

    def hurry(self) -> None:
        """Cancel what still runs."""


async def live(worker: Living, until: Callable[[], Awaitable[object]] | None = None) -> None:
    """Start *worker* and let it work until SIGTERM or SIGINT, or until what *until* returns is done.

    The first signal drains, the second cancels what runs, the third ends the process at once.

    Raises:
        TreadleError: the worker could not start, or ended by itself for this reason.
    """
    loop = asyncio.get_running_loop()
    signals: asyncio.Queue[int] = asyncio.Queue()
    heard_before: list[int] = []

    def heard(number: int) -> None:
        heard_before.append(number)
        if len(heard_before) > 2:
            exit_now(128 + number)  # also when the event loop stands still
        loop.call_soon_threadsafe(signals.put_nowait, number)

    with stop_signals(heard):
        await worker.start()
        ended = loop.create_task(worker.ended())
        waits: set[asyncio.Future[Any]] = {loop.create_task(signals.get()), ended}
        if until is not None:
            waits.add(asyncio.ensure_future(until()))
        done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        if ended not in done:
            await _drain(worker, signals)
        for wait in waits - done:
            wait.cancel()
    if worker.failure is not None:
        raise worker.failure


async def _drain(worker: Living, signals: asyncio.Queue[int]) -> None:
    """Stop in good order; one more signal cuts the grace short."""
    log.info("Worker %s drains: it finishes what runs, within its grace.", worker.name)
    stopping = asyncio.ensure_future(worker.stop())
    again = asyncio.ensure_future(signals.get())
    await asyncio.wait({stopping, again}, return_when=asyncio.FIRST_COMPLETED)
    if again.done():
        log.warning("Second signal: running attempts are cancelled now.")
        worker.hurry()
    again.cancel()
    await stopping
    await worker.ended()
