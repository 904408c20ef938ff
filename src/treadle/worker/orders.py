"""What people want of a running worker and of its jobs: heard by the bell, looked up in the database."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from treadle import defaults
from treadle.errors import StoreClosed, StoreLost, TreadleError
from treadle.store.ops import workers
from treadle.store.session import Session
from treadle.store.store import Store
from treadle.worker.claimer import Claimer
from treadle.worker.crew import Crew
from treadle.worker.presence import Presence

LOOK_EVERY: Final = 2.0
"""Seconds between looks while jobs run, as a net below the bell."""
log = logging.getLogger("treadle.worker")


class Orders:
    """Carries out orders; one task on the worker's event loop.

    Args:
        store: where they are.
        presence: whose.
        crew: stops jobs that are called off.
        claimer: stops and goes on claiming.
        on_drain: called when the worker should drain and end.
        on_gone: called when the registration was taken away.
        on_fatal: called when the store can no longer be used.
    """

    def __init__(
        self,
        store: Store,
        presence: Presence,
        crew: Crew,
        claimer: Claimer,
        on_drain: Callable[[str], None],
        on_gone: Callable[[], None],
        on_fatal: Callable[[TreadleError], None],
    ) -> None:
        self._store = store
        self._presence = presence
        self._crew = crew
        self._claimer = claimer
        self._on_drain = on_drain
        self._on_gone = on_gone
        self._on_fatal = on_fatal
        self._wake = asyncio.Event()

    def rung(self, tokens: bytes) -> None:
        """The bell rang; jobs to cancel and orders have tokens of their own."""
        if b"c" in tokens or b"o" in tokens:
            self._wake.set()

    async def serve(self) -> None:
        """Look after orders until cancelled."""
        while True:
            await self._sleep(LOOK_EVERY if self._crew.running else defaults.BEAT.total_seconds())
            try:
                found = await asyncio.wrap_future(self._store.submit_read(self._look))
            except (StoreLost, StoreClosed) as error:
                self._on_fatal(error)
                return
            except TreadleError as error:
                log.warning("Orders could not be read and are looked up again: %s", error)
                continue
            self._carry_out(*found)

    def _look(self, session: Session) -> tuple[str | None, dict[int, str]]:
        orders = workers.orders_of(session, self._presence.slot, self._presence.epoch)
        return orders, workers.cancelled(session, self._presence.epoch)

    def _carry_out(self, orders: str | None, cancelled: dict[int, str]) -> None:
        if orders is None:
            self._on_gone()
            return
        for lease, reason in cancelled.items():
            self._crew.ask_to_stop(lease, reason)
        self._claimer.pause(orders == "pause")
        if orders == "drain":
            self._on_drain("it was told to drain")

    async def _sleep(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return
        finally:
            self._wake.clear()

