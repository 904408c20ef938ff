"""A worker: starts its parts in order, stops them in the opposite order, and says why it ended."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import TypeVar

from treadle import defaults
from treadle.errors import BackupNotAdopted, ConfigurationError, StoreClosed, StoreLost, TreadleError
from treadle.host.process import stop_signals
from treadle.model.codec import CodecRegistry
from treadle.model.retention import Retention
from treadle.store.ops import meta
from treadle.store.session import Session
from treadle.store.store import Store
from treadle.worker.claimer import Claimer, Queues
from treadle.worker.crew import Crew
from treadle.worker.failing import broken
from treadle.worker.presence import Abilities, Presence
from treadle.worker.registry import Registry
from treadle.worker.runner import Runner
from treadle.worker.settler import Settler
from treadle.worker.upkeep import Upkeep

T = TypeVar("T")
log = logging.getLogger("treadle.worker")
KEEP = Retention()


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """How a worker works.

    Attributes:
        queues: names in strict order, a mapping of names to weights, or None for every queue.
        tasks: names of the tasks to run, None for every registered one.
        concurrency: attempts at once.
        grace: how long a stop waits for running attempts before they are cancelled.
        name: what people call it; by default host, pid and slot.
        retention: how long ended jobs are kept.
    """

    queues: Queues = None
    tasks: tuple[str, ...] | None = None
    concurrency: int = defaults.CONCURRENCY
    grace: timedelta | float = defaults.GRACE
    name: str | None = None
    retention: Retention = KEEP

    def __post_init__(self) -> None:
        if self.concurrency < 1:
            raise ConfigurationError(f"concurrency={self.concurrency} leaves no slot; use 1 or more.")
        if isinstance(self.queues, str):
            raise ConfigurationError(f"queues={self.queues!r} is one text; pass a list of names.")
        if self.queues is not None and not self.queues:
            raise ConfigurationError(f"queues={self.queues!r} names no queue; pass None for every queue.")
        if isinstance(self.queues, Mapping) and not all(weight > 0 for weight in self.queues.values()):
            raise ConfigurationError(f"queues={self.queues!r}: every weight must be greater than 0.")


class Worker:
    """Claims and runs jobs of one store until stopped.

    Use it as ``async with app.worker():`` inside a program with an event loop, as ``with app.worker():`` in one
    without, or call :meth:`run` to work until a signal comes.

    Args:
        store: opens the store when the worker starts.
        registry: the tasks it can run.
        codecs: the codecs stored arguments may name.
        options: how it works.
    """

    def __init__(
        self, store: Callable[[], Store], registry: Registry, codecs: CodecRegistry, options: WorkerOptions
    ) -> None:
        self._open = store
        self._registry = registry
        self._codecs = codecs
        self.options = options
        self.failure: TreadleError | None = None
        """Why the worker ended by itself, None while all is well."""
        self._started = False
        self._tasks: list[asyncio.Task[None]] = []
        self._halting = False
        self._thread: threading.Thread | None = None
        self._stopping: asyncio.Task[None] | None = None

    # Life ---------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Register and begin to claim.

        Raises:
            ConfigurationError: started before, or a task in ``tasks`` is unknown.
            BackupNotAdopted: the file is a backup copy.
        """
        if self._started:
            raise ConfigurationError("This worker was started before; make a new one.")
        self._started = True
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self._store = await asyncio.to_thread(self._open)
        names = self._registry.names(self.options.tasks)
        self._store_id = await asyncio.to_thread(self._store.read, self._check_file)
        queues = tuple(self.options.queues or ())
        abilities = Abilities(
            name=self.options.name, queues=queues, tasks=names, concurrency=self.options.concurrency
        )
        self._presence = await asyncio.to_thread(Presence.enter, self._store, abilities)
        self._assemble(names)
        self._upkeep.start()
        services = (self._settler.serve(), self._settler.serve_notes(), self._claimer.serve())
        self._tasks = [self._loop.create_task(service) for service in services]
        for task in self._tasks:
            task.add_done_callback(self._service_ended)
        if self._presence.bell is not None:
            self._loop.add_reader(self._presence.bell.fileno(), self._claimer.rung, self._presence.bell)
        log.info("Worker %s works on %s; tasks: %s", self.name, self._store.path, ", ".join(names) or "none")

    async def stop(self, grace: float | None = None) -> None:
        """Stop claiming, let running attempts end within *grace* seconds, return the rest unspent, deregister."""
        if not self._started or not self._tasks or self._ended.is_set():
            return
        if self._halting:
            await self._ended.wait()
            return
        self._halting = True
        try:
            await self._halt(grace)
        finally:
            self._ended.set()

    async def _halt(self, grace: float | None) -> None:
        settling, notes, claiming = self._tasks
        claiming.cancel()
        notes.cancel()
        await asyncio.gather(claiming, notes, return_exceptions=True)
        if self._presence.bell is not None:
            self._loop.remove_reader(self._presence.bell.fileno())
        if self.failure is not None:
            await self._crew.stop(0)  # nothing can be stored any more: end what runs before others rescue it
        else:
            await self._wind_down(seconds_of(self.options.grace) if grace is None else grace)
        settling.cancel()
        await asyncio.gather(settling, return_exceptions=True)
        self._claimer.close()
        await asyncio.to_thread(self._upkeep.stop)
        try:
            await asyncio.to_thread(self._presence.abandon if self.failure else self._presence.leave)
        except (StoreClosed, StoreLost) as error:  # the slot is free all the same, and others see it
            self.failure = error
        log.info("Worker %s stopped.", self.name)

    async def ended(self) -> None:
        """Wait until the worker has stopped, whoever stopped it."""
        await self._ended.wait()

    async def idle(self) -> None:
        """Wait until nothing is ready to claim, nothing runs and every outcome is stored."""
        while True:
            started = self._crew.started
            self._claimer.idle.clear()
            self._claimer.look()
            await self._claimer.idle.wait()
            await self._crew.judged()
            await self._settler.drained()
            # An outcome stored just now may have made its job ready again: only a look that started nothing counts.
            if self._claimer.idle.is_set() and not self._crew.running and self._crew.started == started:
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
            target=lambda: asyncio.run(self._live_in_thread(begun)), name="treadle-worker", daemon=True
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

    def run(self) -> None:
        """Work until SIGTERM or SIGINT, then drain: the second signal cancels at once, the third ends the process."""
        asyncio.run(self._live_until_signal())

    # What the parts need ------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """What people call this worker."""
        return self._presence.name

    @property
    def store_id(self) -> str:
        """Stable name of the database, for idempotency keys."""
        return self._store_id

    @property
    def running(self) -> int:
        """How many attempts run now."""
        return self._crew.running

    def write(self, operation: Callable[[Session], T]) -> Future[T]:
        """Queue a guarded write for a running job."""
        return self._store.submit(operation)

    def read(self, operation: Callable[[Session], T]) -> Future[T]:
        """Queue a read for a running job."""
        return self._store.submit_read(operation)

    def note_progress(self, lease: int, fraction: float, message: str) -> None:
        """Remember a running job's last progress."""
        self._settler.note(lease, fraction, message)

    def _assemble(self, names: tuple[str, ...]) -> None:
        store, clock = self._store, self._store.clock
        self._settler = Settler(store, self.name, self._stored, self._lost, self._fail)
        self._crew = Crew(
            self.options.concurrency, self._registry, Runner(self._codecs, clock), self._settler, self,
            self._presence.roll, clock, self._room,
        )  # fmt: skip
        self._claimer = Claimer(store, self._presence, self._crew, self.options.queues, names, clock, self._fail)
        self._upkeep = Upkeep(store, self._presence, names, self.options.retention, clock, self._fail)

    def _stored(self, leases: Iterable[int]) -> None:
        self._crew.stored(leases)

    def _lost(self, lease: int) -> None:
        self._crew.lost(lease)

    def _room(self) -> None:
        self._claimer.wake()

    def _check_file(self, session: Session) -> str:
        made_at = meta.backup_mark(session)
        if made_at is not None:
            raise BackupNotAdopted(
                f"{self._store.path} is a backup copy. Working on it while the original lives would run jobs twice. "
                "If the original is gone, run 'treadle adopt' on this file first."
            )
        return meta.store_id(session)

    def _fail(self, error: TreadleError) -> None:
        """The store can no longer be used, or a part broke: stop without touching the store."""

        def stop() -> None:
            if self.failure is None:
                self.failure = error
                log.critical("Worker %s stops: %s", self.name, error)
                self._begin_stop()

        self._loop.call_soon_threadsafe(stop)

    def _service_ended(self, service: asyncio.Task[None]) -> None:
        error = None if service.cancelled() else service.exception()
        if error is not None:
            self._fail(broken("A part of the worker", error))

    def _begin_stop(self) -> None:
        if self._stopping is None:
            self._stopping = self._loop.create_task(self.stop())

    async def _wind_down(self, grace: float) -> None:
        try:
            await self._claimer.give_back()
        except TreadleError as error:
            log.error("Claimed jobs could not be given back at stop: %s", error)
        await self._crew.stop(grace)
        try:
            async with asyncio.timeout(max(5.0, grace)):
                await self._settler.drained()
        except (TreadleError, TimeoutError) as error:
            log.error("%d outcomes were not stored at stop: %s", self._settler.waiting, error)

    async def _live_in_thread(self, begun: Future[None]) -> None:
        try:
            await self.start()
        except BaseException as error:
            begun.set_exception(error)
            return
        begun.set_result(None)
        await self.ended()

    async def _live_until_signal(self) -> None:
        loop = asyncio.get_running_loop()
        signals: asyncio.Queue[int] = asyncio.Queue()

        def heard(number: int) -> None:
            loop.call_soon_threadsafe(signals.put_nowait, number)

        with stop_signals(heard):
            await self.start()
            asked = loop.create_task(signals.get())
            ended = loop.create_task(self.ended())
            await asyncio.wait({asked, ended}, return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                await self._drain(signals, ended)
            asked.cancel()
        if self.failure is not None:
            raise self.failure

    async def _drain(self, signals: asyncio.Queue[int], ended: asyncio.Task[None]) -> None:
        log.info("Worker %s drains: it finishes what runs, within its grace.", self.name)
        stopping = asyncio.ensure_future(self.stop())
        again = asyncio.ensure_future(signals.get())
        await asyncio.wait({stopping, again}, return_when=asyncio.FIRST_COMPLETED)
        if again.done():
            log.warning("Second signal: running attempts are cancelled now.")
            self._crew.hurry()
        again.cancel()
        await stopping
        await ended


def seconds_of(grace: timedelta | float) -> float:
    """Seconds of a timedelta or number."""
    return grace.total_seconds() if isinstance(grace, timedelta) else float(grace)
