"""The slots of a worker: what runs, what waits beside them for a moment, and what must run alone."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final

from treadle.clock import SECOND, Clock, give_way
from treadle.errors import TreadleError
from treadle.host.roll import Roll
from treadle.model.definition import TaskDefinition
from treadle.model.job import Claimed
from treadle.model.outcome import Failed, Outcome, Released
from treadle.model.retry import RETRIES_MAX
from treadle.model.sanitise import class_name
from treadle.model.settle import Transition, settle
from treadle.store.ops.claim import arguments
from treadle.store.ops.notes import lost
from treadle.store.ops.settle import immediates
from treadle.store.store import Store
from treadle.worker.around import Wrapping
from treadle.worker.children import Children
from treadle.worker.completion import tell_of_rest
from treadle.worker.context import Desk, JobContext
from treadle.worker.events import Events
from treadle.worker.judging import judge
from treadle.worker.pools import ThreadPool
from treadle.worker.registry import Registry
from treadle.worker.runner import Attempt, Runner, needs_loop
from treadle.worker.running import InChild, Means, OnLoop, OnThread, Running, task_maker
from treadle.worker.settler import Settler

log = logging.getLogger("treadle.worker")
GIVE_WAY_EVERY: Final = 32
"""Starts after which the loop lets the lane's thread have the interpreter lock. Left to Python's switch interval the
lane waits 5 ms for each of a dozen steps and the loop runs dry meanwhile: 35k against 42k no-op jobs/s."""
SUSPECT_AFTER: Final = 2
"""Crashes after which a job runs alone, so that only its own crash can bring it to the cap; a lower cap means fewer."""
LAST_PATIENCE: Final = 1.0
"""Seconds that cancelled attempts have to end before their leases are given back."""


Plan = tuple[TaskDefinition, Wrapping | None, type[Running]]


class Crew:
    """Runs claimed jobs on a fixed number of slots; used from the worker's event loop.

    Args:
        slots: how many attempts run at once.
        registry: what each task is.
        runner: turns attempts into outcomes.
        settler: gets every transition.
        desk: where running jobs write.
        events: told what begins.
        threads: for plain functions, as many as slots.
        children: for attempts in processes of their own; None where the app cannot be imported again.
        store: where large arguments and counts are read.
        roll: where it is written down that an attempt has begun.
        clock: for start and end times.
        on_room: called when a slot became free.
        on_stuck: called when half of the slots are lost to threads that do not return.
    """

    def __init__(
        self,
        slots: int,
        registry: Registry,
        runner: Runner,
        settler: Settler,
        desk: Desk,
        events: Events,
        threads: ThreadPool,
        children: Children | None,
        store: Store,
        roll: Roll,
        clock: Clock,
        on_room: Callable[[], None],
        on_stuck: Callable[[str], None],
    ) -> None:
        self.slots = slots
        self._registry = registry
        self._settler = settler
        self._desk = desk
        self._events = events
        self._children = children
        self._store = store
        self._roll = roll
        self._clock = clock
        self._on_room = on_room
        self._on_stuck = on_stuck
        self._loop = asyncio.get_running_loop()
        self._threads = threads
        self._means = Means(
            self._loop, task_maker(self._loop), runner, threads, children,
            lambda job_id: store.submit_read(partial(arguments, job_id=job_id)), self._ended, self._late,
        )  # fmt: skip
        self._plans: dict[str, Plan] = {}
        self._running: dict[int, Running] = {}
        self._buffer: deque[Claimed] = deque()
        self._suspects: deque[Claimed] = deque()
        self._solo: int | None = None
        self._stopping = False
        self._empty = asyncio.Event()
        self._empty.set()
        self._hurry = asyncio.Event()
        self._counting: set[asyncio.Task[None]] = set()
        self.ended = 0
        self.started = 0
        self.paused = False
        """Starts nothing while it is set; what waits here is to be given back."""

    @property
    def running(self) -> int:
        """How many attempts run now."""
        return len(self._running)

    @property
    def buffered(self) -> int:
        """How many claimed jobs wait for a slot; suspects only where they keep all the others waiting."""
        return len(self._buffer) + (len(self._suspects) if self._children is None else 0)

    @property
    def unstored(self) -> int:
        """How many attempts have ended whose outcomes wait to be stored."""
        return self._settler.waiting

    @property
    def busy_alone(self) -> bool:
        """True while a suspect keeps the others from running, because there are no processes to run it in."""
        return self._children is None and (self._solo is not None or bool(self._suspects))

    def take(self, jobs: list[Claimed]) -> None:
        """Accept claimed jobs and start as many as there are free slots."""
        for claimed in jobs:
            (self._suspects if claimed.crashes and self._is_suspect(claimed) else self._buffer).append(claimed)
        self.pump()

    def pump(self) -> None:
        """Start waiting jobs on free slots, and one suspect at a time in a process of its own.

        Without processes a suspect waits until nothing else runs.
        """
        if self.busy_alone or self._stopping or self.paused:
            return
        if self._suspects and self._solo is None and len(self._running) < self.slots:
            self._start_alone()
        while self._buffer and len(self._running) < self.slots:
            self._start(self._buffer.popleft())

    def give_back(self, *, everything: bool) -> list[int]:
        """Forget jobs that have not begun and return the leases, for the claimer to release.

        Unless *everything* is meant, suspects are kept, each to run alone in its turn: given back they would only come
        again, because they stand at the head of their queue. Where there are no processes one is kept.
        """
        keep = 0 if everything or self.paused else 1 if self._children is None else len(self._suspects)
        kept = list(self._suspects)[:keep]
        leases = [claimed.lease for claimed in (*self._buffer, *list(self._suspects)[keep:])]
        self._buffer.clear()
        self._suspects = deque(kept)
        return leases

    def run_alone(self) -> None:
        """Start the suspect if nothing else is claimed; only where there are no processes."""
        if self._solo is None and not self._running and not self._buffer and len(self._suspects) == 1:
            self._start_alone()

    def ask_to_stop(self, lease: int, reason: str) -> None:
        """The job of *lease* is called off: ask its attempt to stop; one that waits for a slot does not begin."""
        running = self._running.get(lease)
        if running is None:
            self._call_off(lease, reason)
        elif running.attempt.context.cancel_reason is None:
            running.ask_to_stop(reason)

    async def stop(self, grace: float) -> None:
        """Start nothing more; wait *grace* seconds for what runs, then cancel and return the rest unspent.

        Attempts of tasks with a shorter grace of their own are asked to stop earlier.
        """
        self._stopping = True
        hurried = [
            self._loop.call_later(own / SECOND, one.ask_to_stop)
            for one in self._running.values()
            if (own := one.attempt.definition.grace) is not None and own / SECOND < grace
        ]
        if self._running:
            await self._wait_empty(grace)
        for timer in hurried:
            timer.cancel()
        for one in list(self._running.values()):
            one.ask_to_stop()
        self._hurry.clear()
        if self._running:
            await self._wait_empty(LAST_PATIENCE)
        await self._give_up()
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

    def find(self, lease: int) -> tuple[Attempt, int]:
        """A running attempt, and when it began; any thread may call this.

        Raises:
            LeaseLost: it does not run here any more.
        """
        found = self._running.get(lease)
        if found is None:
            raise lost(lease)
        return found.attempt, found.started_at

    def stored(self, leases: Iterable[int]) -> None:
        """The outcomes of *leases* are stored: they are off the roll."""
        for lease in leases:
            self._roll.leave(lease)

    def lost(self, lease: int) -> None:
        """Tell the handler of *lease*, if it still runs, that its attempt is no longer wanted."""
        found = self._running.get(lease)
        if found is not None:
            found.lost()

    def _call_off(self, lease: int, reason: str) -> None:
        for waiting in (self._buffer, self._suspects):
            claimed = next((one for one in waiting if one.lease == lease), None)
            if claimed is not None:
                waiting.remove(claimed)
                now, retry = self._clock.now(), self._registry.get(claimed.task).retry
                self._settler.add(settle(claimed, Released(reason, started=False), retry, now, now))
                self._on_room()

    def _is_suspect(self, claimed: Claimed) -> bool:
        """True when one more crash may bring the job to its cap: only a crash of its own may do that."""
        return claimed.crashes >= min(SUSPECT_AFTER, max(1, self._registry.get(claimed.task).crash_cap - 1))

    def _start_alone(self) -> None:
        suspect = self._suspects.popleft()
        self._solo = suspect.lease
        self._start(suspect)

    def _start(self, claimed: Claimed) -> None:
        definition, wrapping, kind = self._plans.get(claimed.task) or self._plan(claimed.task)
        attempt = Attempt(claimed, definition, JobContext(claimed, definition.codec, self._desk), wrapping)
        self.started += 1
        if self.started % GIVE_WAY_EVERY == 0:
            give_way()
        self._roll.enter(claimed.lease)
        self._empty.clear()
        if claimed.lease == self._solo and self._children is not None:
            kind = InChild
        running = self._running[claimed.lease] = kind(attempt, self._means, self._clock.now())
        if self._events.wants_starts:
            self._events.started(claimed)
        if definition.timeout is None:
            running.start()
        else:
            running.begin()

    def _plan(self, task: str) -> Plan:
        """How to run a task; looked up once."""
        definition = self._registry.get(task)
        wrapping = self._means.runner.wrapping_of(definition)
        kind = InChild if definition.isolated else OnLoop if needs_loop(definition, wrapping) else OnThread
        plan = self._plans[task] = definition, wrapping, kind
        return plan

    def _ended(self, running: Running, outcome: Outcome) -> None:
        lease = running.attempt.claimed.lease
        if self._running.pop(lease, None) is None:
            return  # given back at the end of the grace; this came too late
        running.over()
        self._settle(running, outcome)
        self.ended += 1
        if lease == self._solo:
            self._solo = None
        if not self._running:
            self._empty.set()
        if self._buffer or self._suspects:
            self.pump()
        self._on_room()

    def _late(self) -> None:
        stuck = sum(isinstance(one, OnThread) and one.is_stuck for one in self._running.values())
        if stuck * 2 >= self.slots and not self._stopping:
            self._on_stuck(f"{stuck} of its {self.slots} slots are held by threads that ran beyond their timeouts")

    async def _give_up(self) -> None:
        """End without those that do not: a thread that will not return may go on, but its outcome is refused."""
        left = dict(self._running)
        if self._children is not None:
            for one in left.values():
                one.kill()
            await self._children.close()
        for lease, one in left.items():
            if self._running.pop(lease, None) is not None:
                one.over()
                self._settle(one, one.given_up())

    def _settle(self, running: Running, outcome: Outcome) -> None:
        settled = running.attempt.context.settled
        if settled is not None:
            tell_of_rest(running.attempt.claimed, outcome)
            if self._events.wants_outcomes:
                settled = settled._replace(claimed=running.attempt.claimed)
            # A child's lines are still here; those of others were stored with their success.
            rest = running.attempt.context.last_lines() if isinstance(running, InChild) else ()
            self._settler.settled_by_handler(settled, rest, running.usage)
            return
        now, attempt = self._clock.now(), running.attempt
        if type(outcome) is Failed and attempt.definition.retry.counts_immediates:
            # How many immediate retries were granted is persisted, so it has to be read first.
            task = self._loop.create_task(self._settle_counted(running, outcome, now))
            self._counting.add(task)
            task.add_done_callback(self._counting.discard)
            return
        self._settle_now(running, judge(attempt, outcome, running.started_at, now))

    async def _settle_counted(self, running: Running, outcome: Outcome, now: int) -> None:
        attempt = running.attempt
        try:
            read = self._store.submit_read(partial(immediates, job_id=attempt.claimed.id))
            granted = await asyncio.wrap_future(read)
        except TreadleError as error:
            log.warning("Immediate retries of job %s could not be read: %s", attempt.claimed.id, error)
            granted = {class_name(kind): RETRIES_MAX for kind in attempt.definition.retry.immediately}
        self._settle_now(running, judge(attempt, outcome, running.started_at, now, granted))

    def _settle_now(self, running: Running, transition: Transition) -> None:
        if running.usage is not None:
            transition = transition._replace(usage=running.usage)
        if self._events.wants_outcomes:
            transition = transition._replace(claimed=running.attempt.claimed)
        self._settler.add(transition)

    async def _wait_empty(self, seconds: float) -> None:
        empty = self._loop.create_task(self._empty.wait())
        hurry = self._loop.create_task(self._hurry.wait())
        await asyncio.wait({empty, hurry}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for task in (empty, hurry):
            task.cancel()
