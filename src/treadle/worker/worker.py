"""A worker: starts its parts in order, stops them in the opposite order, and says why it ended."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Container, Coroutine, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any

from treadle.errors import BackupNotAdopted, ConfigurationError, StoreClosed, StoreLost, TreadleError
from treadle.host.children import is_child
from treadle.model.codec import CodecRegistry
from treadle.model.settle import Transition
from treadle.store.engine import Bell
from treadle.store.ops import meta
from treadle.store.session import Session
from treadle.store.store import Store
from treadle.worker.assembly import AppParts, Hooks, assemble, check
from treadle.worker.comingback import ComingBack
from treadle.worker.extensions import Extensions
from treadle.worker.failing import broken
from treadle.worker.location import Location
from treadle.worker.options import WorkerOptions, seconds_of
from treadle.worker.presence import Abilities, Presence
from treadle.worker.process import live, run_loop
from treadle.worker.registry import Registry

log = logging.getLogger("treadle.worker")


class Worker:
    """Claims and runs jobs of one store until stopped.

    Use it as ``async with app.worker():`` inside a program with an event loop, as ``with app.worker():`` in one
    without, or call :meth:`run` to work until a signal comes.

    Args:
        store: opens the store when the worker starts.
        registry: the tasks it can run.
        codecs: the codecs stored arguments may name.
        extensions: what the app has put around its handlers.
        options: how it works.
        find_app: says where the app can be imported, for attempts in processes of their own; it is
            told which modules declare tasks.
    """

    def __init__(
        self,
        store: Callable[[], Store],
        registry: Registry,
        codecs: CodecRegistry,
        extensions: Extensions,
        options: WorkerOptions,
        find_app: Callable[[Container[str]], Location | None],
    ) -> None:
        self._open = store
        self._app = AppParts(registry, codecs, extensions, options)
        self._find_app = find_app
        self.options = options
        self.failure: TreadleError | None = None
        """Why the worker ended by itself, None while all is well."""
        self.draining: str | None = None
        """Why it drains although nobody stopped it: told to, or to be replaced; None otherwise."""
        self.on_draining: Callable[[str], None] | None = None
        """Called when it begins to, on its loop; a supervisor starts another worker then."""
        self.on_raised: Callable[[int, BaseException], None] | None = None
        """For tests: told the lease and what its handler raised, on that thread. A worker that has this claims nothing
        beyond its free slots, so that the order is strict."""
        self._started = False
        self._standing = False
        self._services: list[asyncio.Task[None]] = []
        self._halting = False
        self._idle_after = -1
        self._thread: threading.Thread | None = None
        self._stopping: asyncio.Task[None] | None = None

    # Life ---------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Register and begin to claim.

        Raises:
            ConfigurationError: started before, a task in ``tasks`` is unknown, a task wants a resource that nobody
                makes, or a process of its own in which the app cannot be imported.
            BackupNotAdopted: the file is a backup copy.
            StoreBroken: the disk failed before, and the file is corrupt.
        """
        if self._started:
            raise ConfigurationError("This worker was started before; make a new one.")
        if is_child():
            raise ConfigurationError(
                "A worker was started inside a child process of a worker. Put what starts workers under "
                "`if __name__ == '__main__':`."
            )
        self._started = True
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        names = self._app.registry.names(self.options.tasks)
        location = self._find_app(self._app.registry.modules(names))
        check(self._app, names, location)
        self._store = await asyncio.to_thread(self._open)
        self._store_id = await asyncio.to_thread(self._store.read, self._check_file)
        await asyncio.to_thread(self._store.engine.check_after_damage)
        await self._set_up(names, location)
        self._coming_back = ComingBack(self, self._store, partial(self._set_up, names, location))

    async def _set_up(self, names: tuple[str, ...], location: Location | None) -> None:
        """Register, and start every part."""
        abilities = Abilities(
            name=self.options.name, queues=tuple(self.options.queues or ()), tasks=names,
            concurrency=self.options.concurrency,
        )  # fmt: skip
        self._presence = await asyncio.to_thread(Presence.enter, self._store, abilities)
        self._assemble(location)
        self._upkeep.start()
        serving = (
            self._settler.serve(), self._settler.serve_notes(), self._claimer.serve(), self._orders.serve(),
            self._fitness.serve(),
        )  # fmt: skip
        self._services = [self._loop.create_task(service) for service in serving]
        for task in self._services:
            task.add_done_callback(self._service_ended)
        if self._presence.bell is not None:
            self._loop.add_reader(self._presence.bell.fileno(), self._rung, self._presence.bell)
        log.info("Worker %s works on %s; tasks: %s", self.name, self._store.place, ", ".join(names) or "none")
        self._standing = True
        self._events.of_worker("worker_started")

    async def stop(self, grace: float | None = None) -> None:
        """Stop claiming, let running attempts end within *grace* seconds, return the rest unspent, deregister."""
        if not self._started or not self._services or self._ended.is_set():
            return
        if self._halting:
            await self._ended.wait()
            return
        self._halting = True
        await self._coming_back.given_up()
        try:
            if self._standing:
                await self._halt(grace, silently=self.failure is not None)
        finally:
            self._ended.set()

    async def take_down(self) -> None:
        """End every part without a word to the store: what ran here is others' now, or is to be taken back."""
        await self._halt(None, silently=True)
        self._claimer.idle.set()  # whoever waits for it looks again, at the next claimer

    async def _halt(self, grace: float | None, *, silently: bool) -> None:
        self._standing = False
        settling, *others = self._services
        for service in others:
            service.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        if self._presence.bell is not None:
            self._loop.remove_reader(self._presence.bell.fileno())
        in_order = not silently and await self._wound_down(seconds_of(self.options.grace) if grace is None else grace)
        if not in_order:
            await self._crew.stop(0)  # nothing can be stored any more: end what runs before others rescue it
        settling.cancel()
        await asyncio.gather(settling, return_exceptions=True)
        self._claimer.close()
        await asyncio.to_thread(self._upkeep.stop)
        await self._deregister(self._presence.leave if in_order else self._presence.abandon)
        await self._resources.close()
        self._events.of_worker("worker_stopped")
        await self._events.drained()
        log.info("Worker %s stopped.", self.name)

    async def ended(self) -> None:
        """Wait until the worker has stopped, whoever stopped it."""
        await self._ended.wait()

    async def looked_after(self) -> None:
        """Wait for the first round of upkeep: rescue, unknown tasks, pauses that are over, expiry, pruning."""
        await asyncio.to_thread(self._upkeep.first_round.wait)

    async def idle(self) -> None:
        """Wait until nothing is ready to claim, nothing runs and every outcome is stored."""
        while True:
            before = (self._crew.started, self._settler.stored)
            self._claimer.idle.clear()
            self._claimer.look()
            await self._claimer.idle.wait()
            await self._crew.judged()
            await self._settler.drained()
            # An outcome stored just now may have made its job ready again, and its bell may not have been heard
            # yet: only a look after which nothing was started and nothing was stored counts.
            after = (self._crew.started, self._settler.stored)
            if self._claimer.idle.is_set() and not self._crew.running and after == before:
                return

    async def __aenter__(self) -> Worker:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def __enter__(self) -> Worker:
        begun: Future[None] = Future()
        self._thread = threading.Thread(
            target=lambda: run_loop(self._live_in_thread(begun)), name="treadle-worker", daemon=True
        )
        self._thread.start()
        begun.result()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is None:
            return
        with suppress(RuntimeError):  # its loop is closed: the worker ended by itself meanwhile
            self._loop.call_soon_threadsafe(self._begin_stop)
        self._thread.join()
        stopping = self._stopping
        if stopping is not None and stopping.done() and not stopping.cancelled():
            stopping.result()

    def run(self, *, burst: bool = False) -> None:
        """Work until SIGTERM or SIGINT, then drain: the second signal cancels at once, the third ends the process.

        Args:
            burst: end also when there is nothing left to do now; what is scheduled for later is left.
        """
        run_loop(live(self, self.idle if burst else None))

    async def run_until(self, done: Awaitable[object]) -> None:
        """Work until *done* is, or until a signal, then drain.

        Args:
            done: anything to await: an ``asyncio.Event().wait()``, a task, :meth:`idle`.

        Example:
            >>> await app.worker().run_until(stop.wait())  # doctest: +SKIP
        """
        await live(self, lambda: done)

    # What handlers, events and operators want ---------------------------------------------------

    def stop_soon(self, reason: str) -> None:
        """Drain and end; any thread may call this."""
        self._loop.call_soon_threadsafe(self._drain, reason)

    def hurry(self) -> None:
        """Cut the grace of a stop short: what still runs is cancelled now."""
        self._crew.hurry()

    # What the parts need ------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """What people call this worker."""
        return self._presence.name

    @property
    def running(self) -> int:
        """How many attempts run now."""
        return self._crew.running

    def _assemble(self, location: Location | None) -> None:
        hooks = Hooks(
            self._stored, self._lost, self._room, self._rest, self._drain, self._gone, self.fail, self.stop_soon,
            self._on_loop, self.on_raised,
        )  # fmt: skip
        parts = assemble(self._app, self._store, self._presence, self._store_id, location, hooks)
        self._settler, self._events, self._resources = parts.settler, parts.events, parts.resources
        self._crew, self._claimer, self._orders = parts.crew, parts.claimer, parts.orders
        self._fitness, self._upkeep = parts.fitness, parts.upkeep

    def _rung(self, bell: Bell) -> None:
        tokens = bell.drain()
        self._claimer.rung(tokens)
        self._orders.rung(tokens)

    def _stored(self, transitions: Sequence[Transition], lost: Sequence[int]) -> None:
        self._crew.stored(one.lease for one in transitions)
        self._claimer.wake()  # it may have waited for that
        if self._events.wants_outcomes:
            self._events.settled(transitions, lost)

    def _lost(self, lease: int) -> None:
        self._crew.lost(lease)

    def _room(self) -> None:
        self._claimer.wake()
        self._fitness.ran(self._crew.started)

    def _rest(self) -> None:
        if self._crew.started != self._idle_after:
            self._idle_after = self._crew.started
            self._events.of_worker("worker_idle")

    def _on_loop(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def _check_file(self, session: Session) -> str:
        made_at = meta.backup_mark(session)
        if made_at is not None:
            raise BackupNotAdopted(
                f"{self._store.place} is a backup copy. Working on it while the original lives would run jobs twice. "
                "If the original is gone, run 'treadle adopt' on this file first."
            )
        return meta.store_id(session)

    def _gone(self) -> None:
        self._loop.call_soon_threadsafe(self._coming_back.begin, self._presence)

    def fail(self, error: TreadleError) -> None:
        """The store can no longer be used, or a part broke: stop without touching the store."""

        def stop() -> None:
            if self.failure is None:
                self.failure = error
                log.critical("Worker %s stops: %s", self.name, error)
                self._begin_stop()

        self._loop.call_soon_threadsafe(stop)

    def _drain(self, reason: str) -> None:
        """Stop in good order, for a reason of its own."""
        if self.draining is None and not self._halting:
            self.draining = reason
            log.info("Worker %s drains: %s", self.name, reason)
            if self.on_draining is not None:
                self.on_draining(reason)
            self._begin_stop()

    def _service_ended(self, service: asyncio.Task[None]) -> None:
        error = None if service.cancelled() else service.exception()
        if error is not None:
            self.fail(broken("A part of the worker", error))

    def _begin_stop(self) -> None:
        if self._stopping is None:
            self._stopping = self._loop.create_task(self.stop())

    async def _deregister(self, way: Callable[[], None]) -> None:
        """Whatever comes of it, the slot is free, and others see that."""
        try:
            await asyncio.to_thread(way)
        except (StoreClosed, StoreLost) as error:
            self.failure = error
        except TreadleError as error:
            log.warning("Worker %s could not deregister; others find its slot free: %s", self.name, error)
        except Exception as error:
            self.failure = broken("Deregistering", error)

    async def _wound_down(self, grace: float) -> bool:
        """Wind down; False when that broke, so that the rest of the worker ends all the same."""
        try:
            await self._wind_down(grace)
        except Exception as error:
            self.failure = broken("Stopping", error)
            return False
        return True

    async def _wind_down(self, grace: float) -> None:
        try:
            await self._claimer.give_back(everything=True)
        except TreadleError as error:
            log.error("Claimed jobs could not be given back at stop: %s", error)
        await self._crew.stop(grace)
        drained = self._loop.create_task(self._settler.drained())
        # Whoever stores outcomes may have ended itself, when the store is lost: then nothing more will be stored.
        await asyncio.wait({drained, self._services[0]}, timeout=max(5.0, grace), return_when=asyncio.FIRST_COMPLETED)
        drained.cancel()
        if self._settler.waiting:
            log.error("%d outcomes were not stored at stop; these jobs run again.", self._settler.waiting)

    async def _live_in_thread(self, begun: Future[None]) -> None:
        try:
            await self.start()
        except BaseException as error:
            begun.set_exception(error)
            return
        begun.set_result(None)
        await self.ended()

