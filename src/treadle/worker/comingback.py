"""What a worker does when it finds that it is not registered any more: it ends, or comes back under a new registration.

On SQLite only people take a registration away. On PostgreSQL a worker that was cut off, or stopped by its machine, is
taken for dead after its lease. Others run its jobs then, whatever it still writes is refused, and nothing is wrong
with its program: it registers anew.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, Protocol

from treadle.errors import StoreBusy, StoreLost, TreadleError
from treadle.store.ops import rescue
from treadle.store.store import Store
from treadle.worker.failing import broken
from treadle.worker.presence import Presence

AGAIN_AFTER: Final = 1.0
"""Seconds before a worker that could not register tries again; the store itself has waited before."""
log = logging.getLogger("treadle.worker")


class Returning(Protocol):
    """The worker, as far as this is concerned."""

    async def take_down(self) -> None:
        """End every part without a word to the store."""

    def fail(self, error: TreadleError) -> None:
        """End, because of *error*."""


class ComingBack:
    """Decides, and brings the worker back.

    Args:
        worker: which one.
        store: its store.
        set_up: registers it and starts its parts.
    """

    def __init__(self, worker: Returning, store: Store, set_up: Callable[[], Awaitable[None]]) -> None:
        self._worker = worker
        self._store = store
        self._set_up = set_up
        self._task: asyncio.Task[None] | None = None
        self._giving_up: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def begin(self, presence: Presence) -> None:
        """Start, on the worker's loop; more than one part notices, and only the first one counts."""
        if (self._task is None or self._task.done()) and not self._giving_up.done():
            self._task = asyncio.get_running_loop().create_task(self._decide(presence))

    async def given_up(self) -> None:
        """Try no more, because the worker stops; returns once it is either there or not."""
        if not self._giving_up.done():
            self._giving_up.set_result(None)
        if self._task is not None:
            await self._task

    async def _decide(self, presence: Presence) -> None:
        try:
            if await self._was_evicted(presence):
                words = "was evicted: others run its jobs, and nothing it writes counts any more."
                self._worker.fail(StoreLost(f"Worker {presence.name} {words}"))
                return
            log.warning(
                "Worker %s was silent for too long, so others run its jobs; it registers anew.", presence.name
            )
            await self._worker.take_down()
            await self._return()
        except StoreBusy as error:  # before anything was taken down: the next sign of life brings us here again
            log.warning("Why worker %s is not registered any more cannot be read yet: %s", presence.name, error)
        except TreadleError as error:
            self._worker.fail(error)
        except Exception as error:
            self._worker.fail(broken("Registering anew", error))

    async def _was_evicted(self, presence: Presence) -> bool:
        if not self._store.engine.leases_expire:
            return True
        look = partial(rescue.was_evicted, epoch=presence.epoch)
        return await asyncio.to_thread(self._store.read, look)

    async def _return(self) -> None:
        while not self._giving_up.done():
            try:
                await self._set_up()
            except StoreBusy as error:
                log.warning("It cannot register yet, and tries again: %s", error)
                await asyncio.wait([self._giving_up], timeout=AGAIN_AFTER)
            else:
                return
