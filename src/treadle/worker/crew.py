"""The slots of a worker: what runs, what waits beside them for a moment, and what must run alone."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import Future
from functools import partial
from typing import Any, Final

from treadle.clock import Clock, give_way
from treadle.errors import ConfigurationError, TreadleError
from treadle.host.roll import Roll
from treadle.model.extra import policy_of
from treadle.model.job import Claimed
from treadle.model.outcome import Failed, Held, Outcome, Released, Succeeded
from treadle.model.retry import RETRIES_MAX
from treadle.model.sanitise import class_name
from treadle.model.settle import Transition, settle, succeeded
from treadle.store.ops.claim import arguments
from treadle.store.ops.settle import immediates
from treadle.worker.context import Desk, JobContext
from treadle.worker.pools import ThreadPool
from treadle.worker.registry import Registry
from treadle.worker.runner import Attempt, Runner
from treadle.worker.settler import Settler

log = logging.getLogger("treadle.worker")
GIVE_WAY_EVERY: Final = 32
"""Starts after which the loop lets the lane's thread have the interpreter lock. Left to Python's switch interval the
lane waits 5 ms for each of a dozen steps and the loop runs dry meanwhile: 35k against 42k no-op jobs/s."""
SUSPECT_AFTER: Final = 2
"""Crashes after which a job runs alone, so that only its own crash can bring it to the cap."""


class Crew:
    """Runs claimed jobs on a fixed number of slots; used from the worker's event loop.

    Args:
        slots: how many attempts run at once.
        registry: what each task is.
        runner: turns attempts into outcomes.
        settler: gets every transition.
        desk: where running jobs write.
        roll: where it is written down that an attempt has begun.
        clock: for start and end times.
        on_room: called when a slot became free.
    """

    def __init__(
        self,
        slots: int,
        registry: Registry,
        runner: Runner,
        settler: Settler,
        desk: Desk,
        roll: Roll,
        clock: Clock,
        on_room: Callable[[], None],
    ) -> None:
        self.slots = slots
        self._registry = registry
        self._runner = runner
        self._settler = settler
        self._desk = desk
        self._roll = roll
        self._clock = clock
        self._on_room = on_room
        self._loop = asyncio.get_running_loop()
        # The C constructor costs half of loop.create_task; a program's own factory is respected.
        self._new_task = asyncio.Task if self._loop.get_task_factory() is None else _task_by_factory
        self._threads = ThreadPool(slots, "treadle-job")
        self._running: dict[int, tuple[Attempt, asyncio.Task[None] | None, int]] = {}
        self._buffer: deque[Claimed] = deque()
        self._suspects: deque[Claimed] = deque()
        self._alone = False
        self._stopping = False
        self._empty = asyncio.Event()
        self._empty.set()
        self._hurry = asyncio.Event()
        self._counting: set[asyncio.Task[None]] = set()
        self.ended = 0
        self.started = 0

    @property
    def running(self) -> int:
        """How many attempts run now."""
        return len(self._running)

    @property
    def buffered(self) -> int:
        """How many claimed jobs wait for a slot."""
        return len(self._buffer) + len(self._suspects)

    @property
    def busy_alone(self) -> bool:
        """True while a suspect runs, or waits for the others to end so that it can run alone."""
        return self._alone or bool(self._suspects)

    def take(self, jobs: list[Claimed]) -> None:
        """Accept claimed jobs and start as many as there are free slots."""
        for claimed in jobs:
            (self._suspects if claimed.crashes >= SUSPECT_AFTER else self._buffer).append(claimed)
        self.pump()

    def pump(self) -> None:
        """Start waiting jobs on free slots; a suspect waits until nothing else runs."""
        if self.busy_alone or self._stopping:
            return
        while self._buffer and len(self._running) < self.slots:
            self._start(self._buffer.popleft())

    def give_back(self) -> list[int]:
        """Forget every job that has not begun and return the leases, for the claimer to release.

        One suspect is kept once nothing else is claimed: it may run alone then.
        """
        keep = self._suspects.popleft() if self._suspects and not self._stopping else None
        leases = [claimed.lease for claimed in (*self._buffer, *self._suspects)]
        self._buffer.clear()
        self._suspects.clear()
        if keep is not None:
            self._suspects.append(keep)
        return leases

    def run_alone(self) -> bool:
        """Start the suspect if nothing else is claimed; True when it runs."""
        if self._alone or self._running or self._buffer or len(self._suspects) != 1:
            return False
        self._alone = True
        self._start(self._suspects.popleft())
        return True

    async def stop(self, grace: float) -> None:
        """Start nothing more; wait *grace* seconds for what runs, then cancel and return the rest unspent."""
        self._stopping = True
        if self._running:
            await self._wait_empty(grace)
        for attempt, task, _ in list(self._running.values()):
            attempt.context.cancel()
            if task is not None:
                task.cancel()
        self._hurry.clear()
        if self._running:
            await self._wait_empty(1.0)
        for lease, (attempt, _, started_at) in list(self._running.items()):
            # A thread that will not return: its lease goes back, whatever it does later is refused.
            del self._running[lease]
            self._settle(attempt, Released("the worker stopped before it was done"), started_at)
        if self._counting:
            await asyncio.wait(self._counting)
        self._threads.close()

    async def judged(self) -> None:
        """Wait until every attempt that ended has been given to the settler."""
        if self._counting:
            await asyncio.wait(self._counting)

    def hurry(self) -> None:
        """Cut the grace of a stop short: cancel what runs now."""
        self._hurry.set()

    def stored(self, leases: Iterable[int]) -> None:
        """The outcomes of *leases* are stored: they are off the roll."""
        for lease in leases:
            self._roll.leave(lease)

    def lost(self, lease: int) -> None:
        """Tell the handler of *lease*, if it still runs, that its attempt is no longer wanted."""
        found = self._running.get(lease)
        if found is not None:
            found[0].context.cancel()

    def _start(self, claimed: Claimed) -> None:
        definition = self._registry.get(claimed.task)
        attempt = Attempt(claimed, definition, JobContext(claimed, definition.codec, self._desk))
        started_at = self._clock.now()
        self.started += 1
        if self.started % GIVE_WAY_EVERY == 0:
            give_way()
        self._roll.enter(claimed.lease)
        self._empty.clear()
        if definition.is_async:
            task = self._new_task(self._run_async(attempt, started_at), loop=self._loop)
            self._running[claimed.lease] = (attempt, task, started_at)
        else:
            self._running[claimed.lease] = (attempt, None, started_at)
            self._threads.start(lambda: self._run_plain(attempt, started_at))

    async def _run_async(self, attempt: Attempt, started_at: int) -> None:
        try:
            if attempt.claimed.data is None:
                attempt = _with_arguments(attempt, await asyncio.wrap_future(self._ask_arguments(attempt)))
            outcome = await self._runner.run_async(attempt)
        except TreadleError as error:
            outcome = Released(f"its arguments could not be read: {error}", started=False)
        self._ended(attempt, outcome, started_at)

    def _run_plain(self, attempt: Attempt, started_at: int) -> None:
        try:
            if attempt.claimed.data is None:
                attempt = _with_arguments(attempt, self._ask_arguments(attempt).result())
            outcome = self._runner.run_plain(attempt)
        except TreadleError as error:
            outcome = Released(f"its arguments could not be read: {error}", started=False)
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._ended, attempt, outcome, started_at)

    def _ask_arguments(self, attempt: Attempt) -> Future[bytes | None]:
        """Read arguments that are too large to come with the claim."""
        return self._desk.read(partial(arguments, job_id=attempt.claimed.id))

    def _ended(self, attempt: Attempt, outcome: Outcome, started_at: int) -> None:
        if self._running.pop(attempt.claimed.lease, None) is None:
            return  # given back at the end of the grace; this came too late
        self._settle(attempt, outcome, started_at)
        self.ended += 1
        self._alone = False
        if not self._running:
            self._empty.set()
        if self._buffer:
            self.pump()
        self._on_room()

    def _settle(self, attempt: Attempt, outcome: Outcome, started_at: int) -> None:
        now = self._clock.now()
        if type(outcome) is Failed and attempt.definition.retry.counts_immediates:
            # How many immediate retries were granted is persisted, so it has to be read first.
            task = self._loop.create_task(self._settle_counted(attempt, outcome, started_at, now))
            self._counting.add(task)
            task.add_done_callback(self._counting.discard)
            return
        self._settler.add(judge(attempt, outcome, started_at, now))

    async def _settle_counted(self, attempt: Attempt, outcome: Outcome, started_at: int, now: int) -> None:
        try:
            read = self._desk.read(partial(immediates, job_id=attempt.claimed.id))
            granted = await asyncio.wrap_future(read)
        except TreadleError as error:
            log.warning("Immediate retries of job %s could not be read: %s", attempt.claimed.id, error)
            granted = {class_name(kind): RETRIES_MAX for kind in attempt.definition.retry.immediately}
        self._settler.add(judge(attempt, outcome, started_at, now, granted))

    async def _wait_empty(self, seconds: float) -> None:
        empty = self._loop.create_task(self._empty.wait())
        hurry = self._loop.create_task(self._hurry.wait())
        await asyncio.wait({empty, hurry}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for task in (empty, hurry):
            task.cancel()


def _task_by_factory(
    coroutine: Coroutine[Any, Any, None], *, loop: asyncio.AbstractEventLoop
) -> asyncio.Task[None]:
    return loop.create_task(coroutine)


def _with_arguments(attempt: Attempt, data: bytes | None) -> Attempt:
    return attempt._replace(claimed=attempt.claimed._replace(data=data))


def judge(
    attempt: Attempt, outcome: Outcome, started_at: int, now: int, immediates: dict[str, int] | None = None
) -> Transition:
    """Settle *outcome* under the policy in force for this very job."""
    claimed, retry = attempt.claimed, attempt.definition.retry
    if type(outcome) is Succeeded:
        return succeeded(claimed, outcome, started_at, now)
    if claimed.extra is not None:
        try:
            retry = policy_of(claimed.extra, retry)
        except ConfigurationError as error:
            outcome = Held(f"undecodable: its options cannot be read: {error}"[:500])
    return settle(claimed, outcome, retry, started_at, now, random.random(), immediates)  # noqa: S311 - jitter
