"""Treadle: the object a program declares its tasks on and talks to. Small on purpose: parse, call, wrap."""

from __future__ import annotations

import asyncio
import threading
import warnings
from collections.abc import AsyncIterable, Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, ParamSpec, TypeVar, Unpack, overload

from treadle import defaults, producing
from treadle.clock import Clock, SystemClock, to_datetime
from treadle.declare import Declare, Policy
from treadle.errors import ConfigurationError, StoreClosed
from treadle.extending import Extending
from treadle.model.codec import Codec, CodecRegistry
from treadle.model.job import NewJob, Options
from treadle.options import check_name, on_event_loop
from treadle.settings import Settings, load, store_options
from treadle.store import backup
from treadle.store.ops import meta
from treadle.store.store import Store
from treadle.tasks import AsyncTask, Remote, Task
from treadle.worker.events import Event, call
from treadle.worker.extensions import Extensions
from treadle.worker.location import find_location
from treadle.worker.options import WorkerOptions
from treadle.worker.registry import Registry
from treadle.worker.worker import Worker

P = ParamSpec("P")
R = TypeVar("R")


class Treadle(Extending):
    """One application's tasks and the store they are kept in. Making one opens nothing.

    Args:
        store: ``sqlite:///jobs.db``, ``postgresql://…`` or ``memory://``; by default from ``TREADLE_STORE`` or
            ``[tool.treadle]``.
        durability: "full" (the default) or "normal"; see ``docs/durability.md``.
        codec: name of the codec that new arguments and results are encoded with.
        codecs: codecs of your own.
        lock_timeout: seconds enqueue waits for the write lock.
        max_size: bytes of database beyond which enqueue is refused.
        min_free: bytes that enqueue leaves free on the disk, so that running work can still be settled.
        schema: PostgreSQL: the schema that holds the tables, ``treadle`` by default.
        connections: PostgreSQL: at most so many connections of this process, beside the one that listens.
        listen_url: PostgreSQL: where to listen when *store* leads to a pooler like pgbouncer.
        prepared: PostgreSQL: False when a pooler in between does not keep prepared statements apart.
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
        min_free: int | None = None,
        schema: str | None = None,
        connections: int | None = None,
        listen_url: str | None = None,
        prepared: bool | None = None,
        payload_cap: int = defaults.PAYLOAD_CAP,
        auto_migrate: bool = True,
        clock: Clock | None = None,
    ) -> None:
        self._given = Settings(
            store=store, durability=durability, lock_timeout=lock_timeout, max_size=max_size, min_free=min_free,
            schema=schema, connections=connections, listen_url=listen_url, prepared=prepared,
        )  # fmt: skip
        self._auto_migrate = auto_migrate
        self._clock = clock or SystemClock()
        self.payload_cap = payload_cap
        self.codecs = CodecRegistry(*codecs)
        self._codec = self.codecs.get(codec)
        self.registry = Registry()
        self.extensions = Extensions()
        self._claims = None
        self._claiming = threading.Lock()
        self._caps: dict[str, tuple[int | None, str]] = {}
        self._lock = threading.RLock()
        self._store: Store | None = None
        self._closed = False
        self._warned = False
        self.inline: producing.Inline | None = None
        """Runs every job as soon as it is stored; only in tests, see :func:`treadle.testing.inline`."""

    # Declaring

    @overload
    def task(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncTask[P, R]: ...
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
        declare = Declare(self, self.registry, self.extensions, self.codecs, self._codec.name, policy)
        return declare if function is None else declare(function)

    def queue(self, name: str, *, max_length: int | None, when_full: str = "refuse") -> None:
        """Cap a queue: beyond *max_length* ready jobs enqueue is refused, or waits with ``when_full="wait"``.

        It waits for ``lock_timeout`` seconds at most and then raises QueueFull.
        """
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
        ids = producing.insert_many(self.store, jobs, chunk, self._tell)
        if self.inline is not None:
            self.inline.run(ids)
        return ids

    async def aenqueue_many(
        self, jobs: Iterable[NewJob] | AsyncIterable[NewJob], *, chunk: int | None = None
    ) -> Sequence[int]:
        """The same from async code; *jobs* may be an async iterable."""
        ids = await producing.ainsert_many(await self.aopen(), jobs, chunk, self._tell)
        if self.inline is not None:
            await self.inline.arun(ids)
        return ids

    # Working

    def worker(self, options: WorkerOptions | None = None, /, **given: Any) -> Worker:
        """A worker for this app's tasks; see :class:`WorkerOptions` for what can be given."""
        chosen = options or WorkerOptions(**given)
        where = partial(find_location, self)
        return Worker(lambda: self.store, self.registry, self.codecs, self.extensions, chosen, where)

    def backup(self, target: Path | str) -> Path:
        """Copy the database to *target* while it is in use; workers refuse the copy until it is adopted."""
        return backup.backup(self.store, Path(target))

    # Life

    @property
    def clock(self) -> Clock:
        """Where times come from."""
        return self._clock

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
        return self._opened() if self._store is not None else await asyncio.to_thread(self._opened)

    def close(self) -> None:
        """Finish what is queued and close the store; safe to call twice. Stop workers first."""
        self._forget_claims()
        with self._lock:
            self._closed = True
            if self._store is not None:
                self._store.close()

    @contextmanager
    def elsewhere(self, store: str, clock: Clock | None = None) -> Iterator[None]:
        """Keep jobs in another store while the context is open, then go back; for tests."""
        with self._lock:
            before = self._given, self._clock, self._store, self._closed, self._claims
            self._given, self._clock = replace(self._given, store=store), clock or self._clock
            self._store, self._closed, self._claims = None, False, None
        try:
            yield
        finally:
            self.close()
            with self._lock:
                self._given, self._clock, self._store, self._closed, self._claims = before

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
        ids = producing.insert(self.store, (job,), self._tell)
        if self.inline is not None:
            self.inline.run(ids)
        return ids[0]

    async def store_soon(self, job: NewJob, connection: object | None = None) -> int:
        """Store one job from async code and return its id; in the caller's transaction when *connection* is given."""
        store = self._opened() if self._store is not None else await self.aopen()
        if connection is not None:
            return (await store.ainsert_in(connection, (job,)))[0]
        ids = await producing.ainsert(store, (job,), self._tell)
        if self.inline is not None:
            await self.inline.arun(ids)
        return ids[0]

    def _tell(self, jobs: Sequence[NewJob], ids: Sequence[int]) -> None:
        """Tell subscribers that jobs were stored."""
        for function in self.extensions.subscribers.get("enqueued", ()):
            for job, number in zip(jobs, ids, strict=True):
                told = Event(
                    kind="enqueued", at=to_datetime(self._clock.now()), job_id=number, task=job.options.task,
                    queue=job.options.queue,
                )  # fmt: skip
                call(function, told)

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

    def _open(self) -> Store:
        settings = self.settings
        assert settings.store is not None
        store = Store(settings.store, store_options(settings, auto_migrate=self._auto_migrate), self._clock)
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
