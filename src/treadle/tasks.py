"""Tasks as users hold them: callable functions that can also be enqueued."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import update_wrapper
from inspect import isroutine
from typing import Any, Generic, ParamSpec, TypeVar, cast

from treadle.errors import ConfigurationError
from treadle.handles import Arguments, Host, Job
from treadle.model.codec import Codec, check_size
from treadle.model.definition import TaskDefinition, Upcaster
from treadle.model.extra import encode_extra
from treadle.model.job import NewJob, Options
from treadle.model.retry import Retry
from treadle.options import as_retry, check_name, check_priority, delay_of, expiry_of, moment_of, tags_of

P = ParamSpec("P")
R = TypeVar("R")


class Bound(Generic[P, R]):
    """A task with options chosen by :meth:`Task.using`."""

    def __init__(
        self, host: Host, definition: TaskDefinition, options: Options, connection: object | None = None
    ) -> None:
        self._host = host
        self._definition = definition
        self._options = options
        self._connection = connection

    def job(self, *args: P.args, **kwargs: P.kwargs) -> NewJob:
        """The job these arguments make, not stored yet; for ``enqueue_many`` and ``on_success``.

        Raises:
            SignatureMismatch: the arguments do not fit the function.
            InvalidPayload: a value cannot be stored; the message names its path.
            PayloadTooLarge: the encoded arguments exceed the cap.
        """
        definition = self._definition
        data = definition.signature.encode(definition.codec, args, kwargs)
        if len(data) > self._host.payload_cap:
            check_size(data, self._host.payload_cap, f"arguments of {definition.name}")
        return NewJob(self._options, data)

    def enqueue(self, *args: P.args, **kwargs: P.kwargs) -> Job[R]:
        """Store the job and return its handle after the commit.

        Raises:
            SignatureMismatch, InvalidPayload, PayloadTooLarge: the arguments cannot be stored.
            StoreBusy: the write lock was not free in time. Nothing was stored.
            StoreFull: no room. Nothing was stored.
            QueueFull: the queue is at its cap. Nothing was stored.
        """
        number = self._host.store_now(self.job(*args, **kwargs), self._connection)
        return Job(number, self._definition.name, self._host, self._definition)

    async def aenqueue(self, *args: P.args, **kwargs: P.kwargs) -> Job[R]:
        """The same from async code; many at once share one commit."""
        number = await self._host.store_soon(self.job(*args, **kwargs), self._connection)
        return Job(number, self._definition.name, self._host, self._definition)

    def enqueue_encoded(self, data: bytes) -> Job[R]:
        """Store a job whose arguments are encoded already, in the task's codec; they are stored as they are."""
        check_size(data, self._host.payload_cap, f"arguments of {self._definition.name}")
        number = self._host.store_now(NewJob(self._options, data), self._connection)
        return Job(number, self._definition.name, self._host, self._definition)


class Task(Bound[P, R]):
    """A registered function: still callable, and it can be enqueued.

    Made by ``@app.task``.
    """

    def __init__(self, host: Host, definition: TaskDefinition, options: Options) -> None:
        super().__init__(host, definition, options)
        # Attributes of a function come along; those of an object would replace the task's own.
        update_wrapper(self, definition.function, updated=("__dict__",) if isroutine(definition.function) else ())

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function itself, here and now."""
        return cast("R", self._definition.function(*args, **kwargs))

    def __repr__(self) -> str:
        return f"<Task {self.name}>"

    @property
    def name(self) -> str:
        """The name jobs of this task are stored under."""
        return self._definition.name

    @property
    def definition(self) -> TaskDefinition:
        """What a worker knows about this task."""
        return self._definition

    def upcast(self, version: int) -> Callable[[Upcaster], Upcaster]:
        """Say how arguments stored under *version* of the parameters become those of the next one.

        Declare the task with the new ``version=`` and keep an upcaster for each version that stored jobs may have.
        It gets the arguments as plain data, by name, and returns those of the next version.

        Raises:
            ConfigurationError: there is no next version, there is one for this version already, or the task's codec
                does not keep arguments by name.

        Example:
            >>> @send.upcast(1)  # doctest: +SKIP
            ... def _(arguments: dict[str, Any]) -> dict[str, Any]:
            ...     return {"to": arguments.pop("address"), **arguments}
        """
        definition = self._definition
        if not 1 <= version < definition.version or version in definition.upcasters:
            raise ConfigurationError(
                f"{definition.name} has version {definition.version}, upcasters from {sorted(definition.upcasters)}; "
                f"upcast({version!r}) does not fit. Declare the task with version={version + 1} or more, once."
            )
        if definition.codec.name == "bytes":
            raise ConfigurationError("The codec 'bytes' keeps no arguments by name, so there is nothing to bring up.")

        def keep(upcaster: Upcaster) -> Upcaster:
            definition.upcasters[version] = upcaster
            return upcaster

        return keep

    def unschedule(self, job: int | Job[Any]) -> Arguments:
        """Call off a job that has not begun and return its arguments; nothing of it is kept.

        Returns:
            What it was enqueued with, typed as the function's parameters: ``task(*found.args, **found.kwargs)``.

        Raises:
            JobNotFound: there is no such job.
            JobStateError: it has begun, or it is a job of another task. It is left alone.
            UndecodablePayload, SignatureMismatch: its arguments cannot be read by this function. It is left alone.
        """
        return self._host.unschedule(self._definition, job.id if isinstance(job, Job) else job)

    async def aunschedule(self, job: int | Job[Any]) -> Arguments:
        """The same from async code."""
        return await self._host.aunschedule(self._definition, job.id if isinstance(job, Job) else job)

    def using(
        self,
        *,
        delay: timedelta | float | None = None,
        run_at: datetime | None = None,
        priority: int | None = None,
        queue: str | None = None,
        expires: timedelta | float | datetime | None = None,
        retry: Retry | int | None = None,
        meta: Mapping[str, object] | None = None,
        tags: Sequence[str] = (),
        connection: object | None = None,
    ) -> Bound[P, R]:
        """This task with other options for the jobs enqueued through what is returned.

        Args:
            delay: seconds or timedelta before the job may run.
            run_at: aware datetime before which it may not run.
            priority: -100 to 100, higher first.
            queue: name of another queue.
            expires: seconds or timedelta from now, or aware datetime, after which no attempt may start: then the
                job becomes ``cancelled``.
            retry: another retry policy, or a number of retries; the task's exception rules stay.
            meta: small JSON object stored with the job.
            tags: words to find jobs by.
            connection: your own connection with a transaction begun: the job is stored in it. One of ``sqlite3``,
                ``psycopg``, ``aiosqlite``, SQLAlchemy (connections and sessions) or Django; async ones with
                :meth:`Bound.aenqueue`.

        Example:
            >>> send.using(delay=60, priority=10).enqueue("ada@example.org")  # doctest: +SKIP
        """
        if delay is not None and run_at is not None:
            raise ConfigurationError("Pass delay= or run_at=, not both.")
        options = replace(
            self._options,
            queue=self._options.queue if queue is None else check_name("queue", queue, 100),
            priority=self._options.priority if priority is None else check_priority(priority),
            delay=0 if delay is None else delay_of("delay", delay),
            due_at=None if run_at is None else moment_of("run_at", run_at),
            extra=encode_extra(None if retry is None else as_retry(retry), meta),
            tags=tags_of(tags),
            **expiry_of(expires),
        )
        return Bound(self._host, self._definition, options, connection)


class AsyncTask(Task[P, R]):
    """A registered coroutine function: calling it gives a coroutine, its jobs give what that returns."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:  # type: ignore[override]
        """Call the coroutine function itself; nothing runs before the coroutine is awaited."""
        return cast("Coroutine[Any, Any, R]", self._definition.function(*args, **kwargs))


class Remote:
    """A task known by its name only: it can be enqueued, its code lives elsewhere.

    Made by ``app.remote(name)``.
    """

    def __init__(self, host: Host, codec: Codec, options: Options) -> None:
        self._host = host
        self._codec = codec
        self._options = options

    def job(self, **arguments: object) -> NewJob:
        """The job these arguments make; they are checked by the worker that knows the task."""
        data = self._codec.encode(arguments)
        check_size(data, self._host.payload_cap, f"arguments of {self._options.task}")
        return NewJob(self._options, data)

    def enqueue(self, **arguments: object) -> Job[Any]:
        """Store the job and return its handle after the commit."""
        return Job(self._host.store_now(self.job(**arguments), None), self._options.task, self._host)

    async def aenqueue(self, **arguments: object) -> Job[Any]:
        """The same from async code."""
        return Job(await self._host.store_soon(self.job(**arguments)), self._options.task, self._host)
