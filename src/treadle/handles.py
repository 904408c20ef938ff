"""Handles of stored jobs, and what they need of their app."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, cast

from treadle.model.definition import TaskDefinition
from treadle.model.job import JobRecord, NewJob

R_co = TypeVar("R_co", covariant=True)


class Host(Protocol):
    """What tasks and handles need of their app."""

    @property
    def payload_cap(self) -> int:
        """Bytes the arguments of one job may have."""

    def store_now(self, job: NewJob, connection: object | None) -> int:
        """Store one job and return its id after the commit."""

    async def store_soon(self, job: NewJob, connection: object | None = None) -> int:
        """Store one job from async code and return its id after the commit."""

    def get(self, job_id: int) -> JobRecord:
        """One job's record."""

    def retry(self, which: Any, *, arguments: Mapping[str, object] | None) -> int:
        """Run a job again."""

    async def aretry(self, which: Any, *, arguments: Mapping[str, object] | None) -> int:
        """Run a job again."""

    def cancel(self, which: Any, reason: str) -> int:
        """Call off a job."""

    async def acancel(self, which: Any, reason: str) -> int:
        """Call off a job."""

    def unschedule(self, task: TaskDefinition, job_id: int) -> Arguments:
        """Call off a job and return its arguments."""

    async def aunschedule(self, task: TaskDefinition, job_id: int) -> Arguments:
        """Call off a job and return its arguments."""

    def result(self, job_id: int, task: TaskDefinition | None, timeout: float | None) -> Any:
        """A job's result, once it ended."""

    async def aresult(self, job_id: int, task: TaskDefinition | None, timeout: float | None) -> Any:
        """A job's result, once it ended."""


class Arguments(NamedTuple):
    """What a job was enqueued with."""

    args: tuple[object, ...]
    kwargs: dict[str, object]


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

    def retry(self, *, arguments: Mapping[str, object] | None = None) -> None:
        """Make the job ready again after it failed, was held or cancelled: its budget is whole, its history stays.

        Args:
            arguments: other arguments for the next attempt, by parameter name.

        Raises:
            JobStateError: it is in another state.
            JobNotFound: it was pruned.
        """
        self._host.retry(self.id, arguments=arguments)

    async def aretry(self, *, arguments: Mapping[str, object] | None = None) -> None:
        """The same from async code."""
        await self._host.aretry(self.id, arguments=arguments)

    def cancel(self, reason: str = "cancelled by hand") -> None:
        """Call off the job; while it runs, its attempt is asked to stop. It is kept with *reason*.

        Raises:
            JobStateError: it has ended.
            JobNotFound: it was pruned.
        """
        self._host.cancel(self.id, reason)

    async def acancel(self, reason: str = "cancelled by hand") -> None:
        """The same from async code."""
        await self._host.acancel(self.id, reason)


def _seconds(timeout: timedelta | float | None) -> float | None:
    return timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
