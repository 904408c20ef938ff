"""Tasks as users hold them: callable functions that can also be enqueued, and handles of what was."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import update_wrapper
from inspect import isroutine
from typing import Any, Generic, ParamSpec, Protocol, TypeVar, cast

from treadle import defaults
from treadle.clock import to_duration, to_micros
from treadle.errors import ConfigurationError
from treadle.model.codec import Codec, check_size
from treadle.model.definition import TaskDefinition
from treadle.model.extra import encode_extra
from treadle.model.job import JobRecord, NewJob, Options
from treadle.model.retry import DELAY_MAX, Retry

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class Host(Protocol):
    """What tasks and handles need of their app."""

    @property
    def payload_cap(self) -> int:
        """Bytes the arguments of one job may have."""

    def store_now(self, job: NewJob, connection: object | None) -> int:
        """Store one job and return its id after the commit."""

    async def store_soon(self, job: NewJob) -> int:
        """Store one job from async code and return its id after the commit."""

    def get(self, job_id: int) -> JobRecord:
        """One job's record."""

    def retry(self, job_id: int) -> None:
        """Run a job again."""

    async def aretry(self, job_id: int) -> None:
        """Run a job again."""

    def cancel(self, job_id: int, reason: str) -> None:
        """Call off a job."""

    async def acancel(self, job_id: int, reason: str) -> None:
        """Call off a job."""

    def result(self, job_id: int, task: TaskDefinition | None, timeout: float | None) -> Any:
        """A job's result, once it ended."""

    async def aresult(self, job_id: int, task: TaskDefinition | None, timeout: float | None) -> Any:
        """A job's result, once it ended."""


class Job(Generic[R_co]):
    """A handle of one stored job.

    Attributes:
        id: the job's id, for ever its own.
        task: the name it was stored under.
    """

    __slots__ = ("_definition", "_host", "id", "task")

    def __init__(self, job_id: int, task: str, host: Host, definition: TaskDefinition | None = None) -> None:
        self.id = job_id
        self.task = task
        self._host = host
        self._definition = definition

    def __repr__(self) -> str:
        return f"<Job {self.id} {self.task}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Job) and (self.id, self._host) == (other.id, other._host)

    def __hash__(self) -> int:
        return hash(self.id)

    def record(self) -> JobRecord:
        """What the database knows about the job now.

        Raises:
            JobNotFound: it was pruned.
        """
        return self._host.get(self.id)

    def result(self, timeout: timedelta | float | None = None) -> R_co:
        """Wait until the job ended and return what its handler returned.

        Args:
            timeout: seconds to wait, None without limit.

        Raises:
            ResultTimeout: it did not end in time; it goes on.
            JobFailed: it ended without success.
            ResultNotStored: it succeeded, but its result was not kept.
            JobNotFound: it was pruned.
        """
        return cast("R_co", self._host.result(self.id, self._definition, _seconds(timeout)))

    async def aresult(self, timeout: timedelta | float | None = None) -> R_co:
        """The same from async code."""
        return cast("R_co", await self._host.aresult(self.id, self._definition, _seconds(timeout)))


    def retry(self) -> None:
        """Make the job ready again after it failed, was held or cancelled: its budget is whole, its history stays.

        Raises:
            JobStateError: it is in another state.
            JobNotFound: it was pruned.
        """
        self._host.retry(self.id)

    async def aretry(self) -> None:
        """The same from async code."""
        await self._host.aretry(self.id)

    def cancel(self, reason: str = "cancelled by hand") -> None:
        """Call the job off before it begins; it is kept as ``cancelled`` with *reason*.

        Raises:
            JobStateError: it runs or has ended.
            JobNotFound: it was pruned.
        """
        self._host.cancel(self.id, reason)

    async def acancel(self, reason: str = "cancelled by hand") -> None:
        """The same from async code."""
        await self._host.acancel(self.id, reason)


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
        if self._connection is not None:
            return self.enqueue(*args, **kwargs)
        number = await self._host.store_soon(self.job(*args, **kwargs))
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

    def using(
        self,
        *,
        delay: timedelta | float | None = None,
        run_at: datetime | None = None,
        priority: int | None = None,
        queue: str | None = None,
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
            retry: another retry policy, or a number of retries; the task's exception rules stay.
            meta: small JSON object stored with the job.
            tags: words to find jobs by.
            connection: an open ``sqlite3.Connection`` with a transaction begun: the job is stored in it.

        Example:
            >>> send.using(delay=60, priority=10).enqueue("ada@example.org")  # doctest: +SKIP
        """
        if delay is not None and run_at is not None:
            raise ConfigurationError("Pass delay= or run_at=, not both.")
        options = replace(
            self._options,
            queue=self._options.queue if queue is None else check_name("queue", queue, 100),
            priority=self._options.priority if priority is None else check_priority(priority),
            delay=0 if delay is None else _delay(delay),
            due_at=None if run_at is None else _moment(run_at),
            extra=encode_extra(None if retry is None else as_retry(retry), meta),
            tags=_tags(tags),
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


def as_retry(given: Retry | int) -> Retry:
    """A retry policy from one, or from a number of retries: the default policy with that number.

    Raises:
        ConfigurationError: it is neither.

    Example:
        >>> as_retry(3) == Retry(3)
        True
    """
    return given if isinstance(given, Retry) else Retry(given)


def check_priority(value: int) -> int:
    """Return *value* if it is a priority.

    Raises:
        ConfigurationError: it is not.
    """
    low, high = defaults.PRIORITY_RANGE
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ConfigurationError(f"priority={value!r} must be a whole number from {low} to {high}.")
    return value


def check_name(what: str, value: str, most: int) -> str:
    """Return *value* if it is a usable name: printable text without control characters.

    Raises:
        ConfigurationError: it is not.
    """
    if not isinstance(value, str) or not 1 <= len(value) <= most or not value.isprintable():
        raise ConfigurationError(f"{what}={value!r} must be 1 to {most} printable characters.")
    return value


def on_event_loop() -> bool:
    """True on a thread whose event loop is running."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _delay(delay: timedelta | float) -> int:
    try:
        micros = to_duration(delay)
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigurationError(f"delay={delay!r} must be a timedelta or seconds.") from error
    if micros > to_duration(DELAY_MAX):
        raise ConfigurationError(f"delay={delay!r} is longer than {DELAY_MAX.days} days.")
    return max(0, micros)


def _moment(run_at: datetime) -> int:
    try:
        return to_micros(run_at)
    except ValueError as error:
        raise ConfigurationError(f"run_at={error}") from error


def _tags(tags: Sequence[str]) -> tuple[str, ...]:
    if isinstance(tags, str):
        raise ConfigurationError(f"tags={tags!r} is one text; pass a list of words.")
    return tuple(dict.fromkeys(check_name("tag", tag, 100) for tag in tags))


def _seconds(timeout: timedelta | float | None) -> float | None:
    return timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
