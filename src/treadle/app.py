"""Treadle: the object a program declares its tasks on and talks to. Small on purpose: parse, call, wrap."""

from __future__ import annotations

import asyncio
import threading
import warnings
from collections.abc import AsyncIterable, Callable, Coroutine, Iterable, Sequence
from concurrent.futures import Future
from datetime import datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, ParamSpec, TypeVar, Unpack, overload

from treadle import defaults, producing, results
from treadle.clock import Clock, SystemClock
from treadle.declare import Policy, define
from treadle.errors import ConfigurationError, JobNotFound, StoreClosed
from treadle.model.codec import Codec, CodecRegistry
from treadle.model.definition import TaskDefinition
from treadle.model.job import JobFilter, JobRecord, JobState, NewJob, Options, Page, WorkerRecord
from treadle.settings import Settings, load
from treadle.store import backup
from treadle.store.ops import find, meta
from treadle.store.roster import roster
from treadle.store.session import Session
from treadle.store.store import Store, StoreOptions
from treadle.tasks import Job, Remote, Task, check_name, on_event_loop
from treadle.worker.registry import Registry
from treadle.worker.worker import Worker, WorkerOptions

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
Ids = Sequence[int | Job[Any]]
ANY = JobFilter()


class Treadle:
    """One application's tasks and the store they are kept in. Making one opens nothing.

    Args:
        store: ``sqlite:///jobs.db`` or ``memory://``; by default from ``TREADLE_STORE`` or ``[tool.treadle]``.
        durability: "full" (the default) or "normal"; see ``docs/durability.md``.
        codec: name of the codec that new arguments and results are encoded with.
        codecs: codecs of your own.
        lock_timeout: seconds enqueue waits for the write lock.
        max_size: bytes of database beyond which enqueue is refused.
        payload_cap: bytes the arguments of one job may have.
        auto_migrate: create and upgrade tables at the first use.
        clock: for tests.

    Example:
        >>> app = Treadle("memory://")
        >>> @app.task
        ... def add(a: int, b: int) -> int:
        ...     return a + b
        >>> with app.worker():
        ...     add.enqueue(2, 3).result(timeout=5)
        5
        >>> app.close()
    """

    def __init__(
        self,
        store: str | None = None,
        *,
        durability: str | None = None,
        codec: str = "json",
        codecs: Sequence[Codec] = (),
        lock_timeout: float | None = None,
        max_size: int | None = None,
        payload_cap: int = defaults.PAYLOAD_CAP,
        auto_migrate: bool = True,
        clock: Clock | None = None,
    ) -> None:
        self._given = Settings(store=store, durability=durability, lock_timeout=lock_timeout, max_size=max_size)
        self._auto_migrate = auto_migrate
        self._clock = clock or SystemClock()
        self.payload_cap = payload_cap
        self.codecs = CodecRegistry(*codecs)
        self._codec = self.codecs.get(codec)
        self.registry = Registry()
        self._caps: dict[str, tuple[int | None, str]] = {}
        self._lock = threading.RLock()
        self._store: Store | None = None
        self._closed = False
        self._warned = False

    # Declaring

    @overload
    def task(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> Task[P, R]: ...
    @overload
    def task(self, function: Callable[P, R], /) -> Task[P, R]: ...
    @overload
    def task(self, /, **policy: Unpack[Policy]) -> Declare: ...

    def task(self, function: Callable[..., Any] | None = None, /, **policy: Unpack[Policy]) -> Any:
        """Register a function as a task, with or without options; it stays callable.

        Args:
            function: what to run, ``def`` or ``async def``.
            **policy: see :class:`treadle.declare.Policy`.

        Raises:
            ConfigurationError: an option or an annotation cannot be used.
            DuplicateTask: the name is taken.
        """
        return Declare(self, policy) if function is None else Declare(self, policy)(function)

    def queue(self, name: str, *, max_length: int | None, when_full: str = "refuse") -> None:
        """Cap a queue: beyond *max_length* ready jobs enqueue is refused, or waits with ``when_full="wait"``."""
        if when_full not in ("refuse", "wait"):
            raise ConfigurationError(f"when_full={when_full!r} must be 'refuse' or 'wait'.")
        self._caps[check_name("queue", name, 100)] = (max_length, when_full)
        if self._store is not None:
            self._declare_caps(self._store)

    def remote(self, name: str, *, queue: str = defaults.QUEUE) -> Remote:
        """A task known by its name only, for clients without its code; arguments are passed by keyword."""
        options = Options(task=check_name("task", name, 200), queue=queue, codec=self._codec.name)
        return Remote(self, self._codec, options)

    # Enqueueing

    def enqueue_many(self, jobs: Iterable[NewJob], *, chunk: int | None = None) -> Sequence[int]:
        """Store many jobs, of any mix of tasks, and return their ids in order.

        Args:
            jobs: made by ``task.job(...)``.
            chunk: one transaction for each so many; None stores all or nothing.
        """
        self._warn_on_loop("enqueue_many", "aenqueue_many", stacklevel=3)
        return producing.insert_many(self.store, jobs, chunk)

    async def aenqueue_many(
        self, jobs: Iterable[NewJob] | AsyncIterable[NewJob], *, chunk: int | None = None
    ) -> Sequence[int]:
        """The same from async code; *jobs* may be an async iterable."""
        return await producing.ainsert_many(await self.aopen(), jobs, chunk)

    # Reading

    def get(self, job_id: int) -> JobRecord:
        """One job with its progress and attempts.

        Raises:
            JobNotFound: there is none.
        """
        return self.store.read(partial(_get, job_id))

    async def aget(self, job_id: int) -> JobRecord:
        """The same from async code."""
        return await self._aread(partial(_get, job_id))

    def find(self, which: JobFilter = ANY, *, before: int | None = None, size: int = 50) -> Page:
        """One page of jobs, newest first; pass ``page.next`` as *before* for the following one."""
        return self.store.read(partial(find.find, which=which, before=before, most=size))

    async def afind(self, which: JobFilter = ANY, *, before: int | None = None, size: int = 50) -> Page:
        """The same from async code."""
        return await self._aread(partial(find.find, which=which, before=before, most=size))

    def counts(self) -> dict[str, dict[JobState, int]]:
        """How many jobs each queue has in each state."""
        return self.store.read(find.counts)

    async def acounts(self) -> dict[str, dict[JobState, int]]:
        """The same from async code."""
        return await self._aread(find.counts)

    def queues(self) -> dict[str, tuple[int | None, str]]:
        """Declared queues: name to (cap, what happens when full)."""
        return self.store.read(find.queues)

    def workers(self) -> tuple[WorkerRecord, ...]:
        """Registered workers; *alive* is read from their locks."""
        return self.store.read(partial(roster, self.store))

    async def aworkers(self) -> tuple[WorkerRecord, ...]:
        """The same from async code."""
        return await self._aread(partial(roster, self.store))

    def next_due(self) -> datetime | None:
        """When the next scheduled job is due, None when nothing is scheduled."""
        return self.store.read(find.next_due)

    def wait(self, jobs: Ids, timeout: float | None = None) -> dict[int, JobState]:
        """Wait until every one of *jobs* has ended; pruned ones are left out of the answer.

        Raises:
            ResultTimeout: they did not all end in time.
        """
        return results.wait_for(self.store, partial(results.all_ended, _ids(jobs)), timeout)

    async def await_(self, jobs: Ids, timeout: float | None = None) -> dict[int, JobState]:
        """The same from async code."""
        return await results.await_for(await self.aopen(), partial(results.all_ended, _ids(jobs)), timeout)

    # Working

    def worker(self, options: WorkerOptions | None = None, /, **given: Any) -> Worker:
        """A worker for this app's tasks; see :class:`WorkerOptions` for what can be given."""
        return Worker(lambda: self.store, self.registry, self.codecs, options or WorkerOptions(**given))

    def backup(self, target: Path | str) -> Path:
        """Copy the database to *target* while it is in use; workers refuse the copy until it is adopted."""
        return backup.backup(self.store, Path(target))

    # Life

    @property
    def settings(self) -> Settings:
        """The settings in force, from every source."""
        return load(self._given)

    @property
    def store(self) -> Store:
        """The store, opened now if it was not.

        Raises:
            StoreClosed: the app was closed.
            StoreUnusable: the file cannot be used; the message has the remedy.
        """
        return self._opened()

    async def aopen(self) -> Store:
        """The store, opened on another thread so that the event loop goes on."""
        store = self._store
        return store if store is not None else await asyncio.to_thread(self._opened)

    def close(self) -> None:
        """Finish what is queued and close the store; safe to call twice. Stop workers first."""
        with self._lock:
            self._closed = True
            if self._store is not None:
                self._store.close()

    def __enter__(self) -> Treadle:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # What tasks and handles call

    def store_now(self, job: NewJob, connection: object | None) -> int:
        """Store one job and return its id; in the caller's transaction when *connection* is given."""
        if connection is not None:
            return self.store.insert_in(connection, (job,))[0]
        self._warn_on_loop("enqueue", "aenqueue")
        return producing.insert(self.store, (job,))[0]

    async def store_soon(self, job: NewJob) -> int:
        """Store one job from async code and return its id."""
        return (await producing.ainsert(self._store or await self.aopen(), (job,)))[0]

    def result(self, job_id: int, task: TaskDefinition | None = None, timeout: float | None = None) -> Any:
        """Wait for a job's end and return its result; see :meth:`treadle.tasks.Job.result`."""
        ending = results.ending(self.store, job_id, timeout)
        return results.value_of(job_id, ending, task, self.codecs)

    async def aresult(  # the sync name with an a
        self, job_id: int, task: TaskDefinition | None = None, timeout: float | None = None
    ) -> Any:
        """The same from async code."""
        ending = await results.aending(await self.aopen(), job_id, timeout)
        return results.value_of(job_id, ending, task, self.codecs)

    def _opened(self) -> Store:
        store = self._store
        if store is not None and not self._closed:
            return store
        with self._lock:
            if self._closed:
                raise StoreClosed("This Treadle was closed; make a new one.")
            opened = self._store or self._open()
            self._store = opened
            return opened

    async def _aread(self, operation: Callable[[Session], T]) -> T:
        future: Future[T] = (await self.aopen()).submit_read(operation)
        return await asyncio.wrap_future(future)

    def _open(self) -> Store:
        settings = self.settings
        assert settings.store is not None
        assert settings.durability is not None
        assert settings.lock_timeout is not None
        store = Store(
            settings.store,
            StoreOptions(
                durability=settings.durability, lock_timeout=settings.lock_timeout, max_size=settings.max_size,
                auto_migrate=self._auto_migrate,
            ),
            self._clock,
        )
        self._declare_caps(store)
        return store

    def _declare_caps(self, store: Store) -> None:
        for name, (max_length, when_full) in self._caps.items():
            store.run(partial(meta.declare_queue, name=name, max_length=max_length, when_full=when_full))

    def _warn_on_loop(self, verb: str, better: str, stacklevel: int = 4) -> None:
        if not self._warned and on_event_loop():
            self._warned = True
            warnings.warn(
                f"{verb}() blocks the event loop until the disk has synced; use 'await {better}(...)'.",
                RuntimeWarning,
                stacklevel=stacklevel,
            )


class Declare:
    """What ``@app.task(...)`` returns: a decorator that keeps the function's types."""

    def __init__(self, app: Treadle, policy: Policy) -> None:
        self._app = app
        self._policy = policy

    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> Task[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> Task[P, R]: ...

    def __call__(self, function: Callable[..., Any], /) -> Task[..., Any]:
        """Register *function*."""
        codec = self._app.codecs.get(self._policy.get("codec", self._app._codec.name))
        definition, options = define(function, self._policy, codec)
        self._app.registry.add(definition)
        return Task(self._app, definition, options)


def _get(job_id: int, session: Session) -> JobRecord:
    found = find.get(session, job_id)
    if found is None:
        raise JobNotFound(f"There is no job {job_id}; it was never stored, or it was pruned.")
    return found


def _ids(jobs: Ids) -> list[int]:
    return [job.id if isinstance(job, Job) else job for job in jobs]
