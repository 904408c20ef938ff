"""When to claim and how much: enough to keep the slots busy, never so much that work is hoarded."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

import msgspec

from treadle import defaults
from treadle.clock import SECOND, Clock
from treadle.errors import StoreClosed, StoreLost, TreadleError
from treadle.store.ops.claim import Claim, ClaimRequest, claim
from treadle.store.ops.settle import release
from treadle.store.store import Store
from treadle.worker.crew import Crew
from treadle.worker.options import Queues
from treadle.worker.presence import Presence

AHEAD: Final = 0.06
"""Seconds of work, at the present rate, that may be claimed beyond the free slots."""
AHEAD_MOST: Final = 2000
UNSTORED_MOST: Final = 2000
"""Outcomes that may wait to be stored before nothing more is claimed. A store that writes slowly, but still gives jobs
away, must not fill the memory of a worker with work that would be lost with it; and the roll has places for 4096."""
LAG_MOST: Final = 0.5
"""Seconds a claim is taken to last at most: one that waited for an outage says nothing about the next."""
RETURN_AFTER: Final = 0.1
"""Seconds a claimed job may wait for a slot before it is given back to other workers."""
QUICK_POLL: Final = 0.005
QUICK_FOR: Final = 2.0
"""After a ring from inside a caller's transaction: its commit comes later and nobody rings for it."""
log = logging.getLogger("treadle.worker")

class Claimer:
    """Claims jobs for a crew; one task on the worker's event loop.

    Args:
        store: where from.
        presence: whose leases.
        crew: who runs them.
        queues: names in strict order, names with weights, or None for every queue.
        tasks: task names this worker knows.
        caps: JSON object of the crash caps of tasks that have one of their own, empty for none.
        clock: for due times and rates.
        on_fatal: called when the store can no longer be used.
        on_idle: called when there is nothing to claim and nothing runs.
        ahead_most: jobs that may be claimed beyond the free slots; 0 keeps the order strict.
    """

    def __init__(
        self,
        store: Store,
        presence: Presence,
        crew: Crew,
        queues: Queues,
        tasks: tuple[str, ...],
        caps: str,
        clock: Clock,
        on_fatal: Callable[[TreadleError], None],
        on_idle: Callable[[], None],
        ahead_most: int = AHEAD_MOST,
    ) -> None:
        self._store = store
        self._presence = presence
        self._crew = crew
        self._queues = queues
        self._tasks = msgspec.json.encode(tasks).decode()
        self._caps = caps
        self._clock = clock
        self._on_fatal = on_fatal
        self._on_idle = on_idle
        self._ahead_most = ahead_most
        self._wake = asyncio.Event()
        self._watch = store.engine.watch()
        self._more = True
        self._next_due: int | None = None
        self._quick_until = 0.0
        self._low = 0
        self._rate = 0.0
        self._lag = 0.0
        self._rated_at = clock.monotonic()
        self._turn = 0
        self._owed: list[int] = []
        self._paused = False
        self.idle = asyncio.Event()
        """Set while there is nothing to claim and nothing runs."""

    def wake(self) -> None:
        """A slot became free: look again once what is at hand runs low."""
        if (self._more and self._crew.buffered <= self._low) or not (self._crew.running or self._crew.buffered):
            self._wake.set()  # with nothing left at all, idle() is waiting to hear of it

    def look(self) -> None:
        """Claim again now, whatever the last claim said."""
        self._more = True
        self._wake.set()

    def rung(self, tokens: bytes) -> None:
        """The bell rang: there may be work."""
        if b"t" in tokens:
            self._quick_until = self._clock.monotonic() + QUICK_FOR
        self.look()

    def pause(self, paused: bool) -> None:  # noqa: FBT001 - the state itself
        """Claim nothing more, or go on."""
        if paused != self._paused:
            log.info("The worker is paused." if paused else "The worker goes on.")
            self._paused = self._crew.paused = paused
            self.look()

    async def serve(self) -> None:
        """Claim until cancelled."""
        while True:
            try:
                await self._round()
            except (StoreLost, StoreClosed) as error:
                self._on_fatal(error)
                return
            except TreadleError as error:
                log.warning("Claiming failed and is tried again: %s", error)
                self._more = True
                await asyncio.sleep(random.uniform(0.2, 0.6))  # noqa: S311 - jitter

    async def give_back(self, *, everything: bool = False) -> None:
        """Return leases whose handlers have not begun, unspent; what cannot be returned now is tried again."""
        self._owed += self._crew.give_back(everything=everything)
        leases = tuple(self._owed)
        if leases:
            await self._store.apatient(partial(release, leases=leases, epoch=self._presence.epoch))
            del self._owed[: len(leases)]

    def close(self) -> None:
        """Stop watching."""
        self._watch.close()

    async def _round(self) -> None:
        if self._owed or self._paused:
            await self.give_back()
        if self._crew.busy_alone:
            await self.give_back()
            self._crew.run_alone()
            await self._sleep(0.5)
            return
        self._crew.pump()
        room = self._room() if self._more and not self._paused else 0
        if room > 0:
            self._more = False  # a ring that comes during the claim sets it again, and must not be lost
            found = await self._claim(room)
            self._crew.take(found.jobs)
            self._more = self._more or len(found.jobs) >= room
            self._next_due = found.next_due
            if self._more or found.jobs:
                return
        await self._rest()

    def _room(self) -> int:
        """How many jobs to claim now; 0 while enough are waiting already."""
        # Twice the time of a claim: what comes late slows the rate down, and must not make the next claim smaller.
        ahead = min(self._ahead_most, int(self._measure() * (AHEAD + 2 * self._lag)))
        self._low = ahead * 3 // 4
        if self._crew.buffered > self._low or self._crew.unstored > UNSTORED_MOST:
            return 0
        return max(0, self._crew.slots - self._crew.running) + ahead - self._crew.buffered

    def _measure(self) -> float:
        """Jobs ended per second lately."""
        now = self._clock.monotonic()
        elapsed = now - self._rated_at
        if elapsed >= 0.002:
            self._rate = 0.5 * self._rate + 0.5 * self._crew.ended / elapsed
            self._crew.ended = 0
            self._rated_at = now
        return self._rate

    async def _claim(self, most: int) -> Claim:
        self._turn += 1
        who = self._presence
        request = ClaimRequest(self._order(), self._tasks, most, who.epoch, self._turn, self._caps, who.slot)
        asked = self._clock.monotonic()
        found = await self._store.apatient(partial(claim, request=request))
        self._lag = min(LAG_MOST, 0.5 * self._lag + 0.5 * (self._clock.monotonic() - asked))
        return found

    def _order(self) -> tuple[str, ...] | None:
        if self._queues is None:
            return None
        if isinstance(self._queues, Mapping):
            # Weighted order without replacement: each queue comes first in proportion to its weight.
            keyed = {name: random.random() ** (1 / weight) for name, weight in self._queues.items()}  # noqa: S311
            return tuple(sorted(keyed, key=keyed.__getitem__, reverse=True))
        return tuple(self._queues)

    async def _rest(self) -> None:
        """Sleep until a ring, a free slot with work left, the next due time, or a change seen by the slow poll."""
        if self._crew.buffered:
            await self._wait_beside_buffer()
            return
        if not self._crew.running and (not self._more or self._paused):
            self.idle.set()
            self._on_idle()
        quick = self._clock.monotonic() < self._quick_until
        limit = QUICK_POLL if quick else defaults.POLL.total_seconds()
        if self._next_due is not None:
            limit = min(limit, max(0.0, (self._next_due - self._clock.now()) / SECOND))
        if not await self._sleep(limit) and self._something_new():
            self._more = True
        if self._more and not self._paused:
            self.idle.clear()

    def _something_new(self) -> bool:
        due = self._next_due is not None and self._next_due <= self._clock.now()
        return self._watch.changed() or due

    async def _wait_beside_buffer(self) -> None:
        """Sleep until the buffer runs low; if nothing of it starts meanwhile, give it to workers that are free."""
        before = self._crew.started
        if not await self._sleep(RETURN_AFTER) and self._crew.started == before:
            await self.give_back()
            self._rate = 0.0

    async def _sleep(self, seconds: float) -> bool:
        """Wait to be woken, at most *seconds*; True when woken."""
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return False
        finally:
            self._wake.clear()
        return True
