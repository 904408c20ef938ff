"""Running exactly one stored job, here and now: claimed, decoded, called, judged and settled by the engine's own parts.

A plain handler runs on the calling thread and a coroutine on the running loop, so both see what the test has there: an
open transaction, a fake, a client bound to the loop.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Final, NamedTuple

from treadle.app import Treadle
from treadle.errors import StoreClosed
from treadle.model.job import Claimed
from treadle.model.outcome import Failed, Outcome
from treadle.model.settle import Transition
from treadle.options import on_event_loop
from treadle.store.ops.single import claim_one
from treadle.store.store import Store
from treadle.testing.loops import on_own_loop, on_own_thread
from treadle.testing.ran import RanJob, of_lease
from treadle.worker.around import Around
from treadle.worker.events import Events
from treadle.worker.judging import judge
from treadle.worker.manual import Claims
from treadle.worker.pools import ThreadPool
from treadle.worker.resources import Resources
from treadle.worker.runner import Attempt, Runner, needs_loop

NAME: Final = "testing"
ORDINARY: Final = (Exception, SystemExit, asyncio.CancelledError, GeneratorExit)
"""What fails an attempt and no more. Ctrl-C and the like end the test too."""


class _Begun(NamedTuple):
    """An attempt that was claimed; *attempt* is None when its arguments cannot be read, so that it is held.

    Errors of handlers by lease, and the ids of the jobs that follow, are filled in as the attempt runs.
    """

    store: Store
    claims: Claims
    claimed: Claimed
    started_at: int
    attempt: Attempt | None
    errors: dict[int, BaseException]
    followed: list[int]


class Solo:
    """Runs jobs of one app, one at a time, under a registration of its own.

    Resources of every scope are made for each job. Timeouts are not watched.
    """

    def __init__(self, app: Treadle) -> None:
        self._app = app
        self._store: Store | None = None
        self._claims: Claims | None = None
        self._opening = threading.Lock()

    def __enter__(self) -> Solo:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, job_id: int, *, attempt: int | None = None, failures: int | None = None) -> RanJob | None:
        """Run one attempt of a scheduled or ready job; None when there is no such job now, or nothing left of it.

        Args:
            job_id: which.
            attempt: number of this attempt; by default the next one.
            failures: how often it is to have failed before; by default as often as it has.
        """
        if on_event_loop():
            return on_own_thread(partial(self.run, job_id, attempt=attempt, failures=failures))
        begun = self._begin(job_id, attempt, failures)
        if begun is not None and begun.attempt is not None:
            if self._has_listeners:
                on_own_loop(self._tell(begun.claimed))
            transition = self._settle(begun, begun.attempt, self._call(begun, begun.attempt))
            if self._has_listeners:
                on_own_loop(self._tell(begun.claimed, transition))
        return self._told(begun)

    async def arun(self, job_id: int, *, attempt: int | None = None, failures: int | None = None) -> RanJob | None:
        """The same on the running loop; a plain handler runs on a thread."""
        begun = await asyncio.to_thread(self._begin, job_id, attempt, failures)
        if begun is not None and begun.attempt is not None:
            await self._tell(begun.claimed)
            outcome = await self._acall(begun, begun.attempt)
            transition = await asyncio.to_thread(self._settle, begun, begun.attempt, outcome)
            await self._tell(begun.claimed, transition)
        return await asyncio.to_thread(self._told, begun)

    def run_and_lose(self, job_id: int) -> Outcome | None:
        """Run one attempt and store nothing of it, as if its process had died; :meth:`close` gives the job back."""
        if on_event_loop():
            return on_own_thread(partial(self.run_and_lose, job_id))
        begun = self._begin(job_id, None, None)
        return None if begun is None or begun.attempt is None else self._call(begun, begun.attempt)

    def close(self) -> None:
        """Deregister; what was not settled is taken back at once, and charged with a crash."""
        claims, self._claims = self._claims, None
        if claims is not None:
            with suppress(StoreClosed):  # its store was closed before it
                claims.close()

    def _begin(self, job_id: int, attempt: int | None, failures: int | None) -> _Begun | None:
        store, claims = self._registered()
        task = self._app.registry.get(self._app.get(job_id).task)
        claimed = store.run(
            partial(
                claim_one, job_id=job_id, epoch=claims.epoch, crash_cap=task.crash_cap, attempt=attempt,
                failures=failures,
            )
        )  # fmt: skip
        if claimed is None:
            return None
        started_at = store.clock.now()
        found = claims.leased([claimed])
        return _Begun(store, claims, claimed, started_at, found[0][0] if found else None, {}, [])

    def _call(self, begun: _Begun, attempt: Attempt) -> Outcome:
        """Call the handler, on this thread if it is a plain function."""
        wrapping = Around(self._app.extensions, _no_resources()).of(attempt.definition)
        if needs_loop(attempt.definition, wrapping):
            return on_own_loop(self._acall(begun, attempt))
        attempt = attempt._replace(wrapping=wrapping)
        here = contextvars.copy_context()  # what the handler sets there must not reach the test
        if wrapping is None or not wrapping.resources:
            return here.run(self._runner(begun, _no_resources()).run_plain, attempt)
        with asyncio.Runner(loop_factory=asyncio.new_event_loop) as loop:
            resources = Resources(self._app.extensions.resources, loop.run)
            try:
                return here.run(self._runner(begun, resources).run_plain, attempt)
            finally:
                loop.run(resources.close())

    async def _acall(self, begun: _Begun, attempt: Attempt) -> Outcome:
        loop, threads = asyncio.get_running_loop(), ThreadPool(1, "treadle-testing")
        resources = Resources(
            self._app.extensions.resources, lambda made: asyncio.run_coroutine_threadsafe(made, loop).result()
        )
        runner = self._runner(begun, resources, threads)
        attempt = attempt._replace(wrapping=runner.wrapping_of(attempt.definition))
        try:
            if needs_loop(attempt.definition, attempt.wrapping):
                return await asyncio.create_task(runner.run_async(attempt))  # in a context of its own
            outcome = await threads.call(partial(runner.run_plain, attempt))
            assert isinstance(outcome, tuple)
            return outcome  # type: ignore[return-value]
        finally:
            await resources.close()
            threads.close()

    def _runner(self, begun: _Begun, resources: Resources, threads: ThreadPool | None = None) -> Runner:
        around = Around(self._app.extensions, resources)
        in_thread = threads.call if threads is not None else _no_threads
        return Runner(self._app.codecs, around, in_thread, begun.errors.__setitem__)

    def _settle(self, begun: _Begun, attempt: Attempt, outcome: Outcome) -> Transition:
        store, granted = begun.store, None
        if attempt.context.settled is not None:
            begun.claims.settled(begun.claimed.lease)
            begun.followed.extend(attempt.context.settled.followed)
            return attempt.context.settled
        if isinstance(outcome, Failed) and attempt.definition.retry.counts_immediates:
            granted = store.read(begun.claims.immediates(begun.claimed.id))
        transition = judge(attempt, outcome, begun.started_at, store.clock.now(), granted)
        begun.followed.extend(store.run(begun.claims.settling(transition)))
        return transition

    def _told(self, begun: _Begun | None) -> RanJob | None:
        if begun is None:
            return None
        error = begun.errors.get(begun.claimed.lease)
        if error is not None and not isinstance(error, ORDINARY):
            raise error
        return of_lease(self._app, begun.claimed, error, tuple(begun.followed))

    def _registered(self) -> tuple[Store, Claims]:
        """The registration on the app's present store."""
        store = self._app.store
        with self._opening:
            if self._claims is None or self._store is not store:
                self.close()
                self._store, self._claims = store, Claims(store, self._app.registry, self._app.codecs)
            return store, self._claims

    @property
    def _has_listeners(self) -> bool:
        return bool(self._app.extensions.subscribers.keys() - {"enqueued"})

    async def _tell(self, claimed: Claimed, transition: Transition | None = None) -> None:
        """Tell subscribers what a worker would tell them."""
        events = Events(self._app.extensions.subscribers, self._app.clock, NAME, _nothing_to_stop)
        if transition is None:
            events.started(claimed)
        else:
            events.settled([transition._replace(claimed=claimed)], ())
        await events.drained()


async def _no_threads(function: Callable[[], object]) -> object:
    raise AssertionError(f"{function!r} needs a loop")


def _no_resources() -> Resources:
    return Resources({}, on_own_loop)


def _nothing_to_stop(_: str) -> None:
    """There is no worker."""
