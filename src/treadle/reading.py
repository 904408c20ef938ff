"""What an app can be asked about its jobs: each verb for plain code, and its twin for async code."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from datetime import datetime
from functools import partial
from typing import Any, TypeVar

from treadle import results
from treadle.errors import JobNotFound
from treadle.handles import Job
from treadle.model.codec import CodecRegistry
from treadle.model.definition import TaskDefinition
from treadle.model.job import JobFilter, JobRecord, JobState, LogRecord, Page, Pause, WorkerRecord
from treadle.store.ops import find, logs, pauses
from treadle.store.roster import roster
from treadle.store.session import Session
from treadle.store.store import Store

T = TypeVar("T")
Ids = Sequence[int | Job[Any]]
ANY = JobFilter()


class Reading(ABC):
    """The reading half of :class:`treadle.Treadle`."""

    codecs: CodecRegistry

    @property
    @abstractmethod
    def store(self) -> Store:
        """The store, opened now if it was not."""

    @abstractmethod
    async def aopen(self) -> Store:
        """The same without blocking the event loop."""

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

    def count(self, which: JobFilter = ANY) -> int:
        """How many jobs match."""
        return self.store.read(partial(find.count, which=which, states=tuple(JobState)))

    async def acount(self, which: JobFilter = ANY) -> int:
        """The same from async code."""
        return await self._aread(partial(find.count, which=which, states=tuple(JobState)))

    def counts(self) -> dict[str, dict[JobState, int]]:
        """How many jobs each queue has in each state."""
        return self.store.read(find.counts)

    async def acounts(self) -> dict[str, dict[JobState, int]]:
        """The same from async code."""
        return await self._aread(find.counts)

    def queues(self) -> dict[str, tuple[int | None, str]]:
        """Declared queues: name to (cap, what happens when full)."""
        return self.store.read(find.queues)

    async def aqueues(self) -> dict[str, tuple[int | None, str]]:
        """The same from async code."""
        return await self._aread(find.queues)

    def pauses(self) -> tuple[Pause, ...]:
        """Queues and tasks that are paused, with who said so and why."""
        return self.store.read(pauses.every)

    async def apauses(self) -> tuple[Pause, ...]:
        """The same from async code."""
        return await self._aread(pauses.every)

    def logs(self, job: int | Job[Any] | None = None, *, after: int = 0, size: int = 500) -> tuple[LogRecord, ...]:
        """What attempts logged, oldest first, of one job or of all; at most 1000 lines a call.

        Args:
            job: an id or a handle, None for every job.
            after: only lines after this place: the ``seq`` of the last one seen.
            size: how many.
        """
        return self.store.read(partial(logs.read, job_id=_id(job), after=after, most=size))

    async def alogs(
        self, job: int | Job[Any] | None = None, *, after: int = 0, size: int = 500
    ) -> tuple[LogRecord, ...]:
        """The same from async code."""
        return await self._aread(partial(logs.read, job_id=_id(job), after=after, most=size))

    def workers(self) -> tuple[WorkerRecord, ...]:
        """Registered workers; *alive* is read from their locks."""
        return self.store.read(partial(roster, self.store))

    async def aworkers(self) -> tuple[WorkerRecord, ...]:
        """The same from async code."""
        store = await self.aopen()
        return await self._aread(partial(roster, store))

    def next_due(self) -> datetime | None:
        """When the next scheduled job is due, None when nothing is scheduled."""
        return self.store.read(find.next_due)

    async def anext_due(self) -> datetime | None:
        """The same from async code."""
        return await self._aread(find.next_due)

    def wait(self, jobs: Ids, timeout: float | None = None) -> dict[int, JobState]:
        """Wait until every one of *jobs* has ended; pruned ones are left out of the answer.

        Args:
            jobs: handles or ids.
            timeout: seconds to wait, None without limit.

        Raises:
            ResultTimeout: they did not all end in time.
        """
        return results.wait_for(self.store, partial(results.all_ended, _ids(jobs)), timeout)

    async def await_jobs(self, jobs: Ids, timeout: float | None = None) -> dict[int, JobState]:
        """The twin of :meth:`wait` for async code."""
        return await results.await_for(await self.aopen(), partial(results.all_ended, _ids(jobs)), timeout)

    def result(self, job_id: int, task: TaskDefinition | None = None, timeout: float | None = None) -> Any:
        """Wait for a job's end and return its result; see :meth:`treadle.tasks.Job.result`."""
        ending = results.ending(self.store, job_id, timeout)
        return results.value_of(job_id, ending, task, self.codecs)

    async def aresult(
        self, job_id: int, task: TaskDefinition | None = None, timeout: float | None = None
    ) -> Any:
        """The same from async code."""
        ending = await results.aending(await self.aopen(), job_id, timeout)
        return results.value_of(job_id, ending, task, self.codecs)

    async def _aread(self, operation: Callable[[Session], T]) -> T:
        future: Future[T] = (await self.aopen()).submit_read(operation)
        return await asyncio.wrap_future(future)


def _get(job_id: int, session: Session) -> JobRecord:
    found = find.get(session, job_id)
    if found is None:
        raise JobNotFound(f"There is no job {job_id}; it was never stored, or it was pruned.")
    return found


def _id(job: int | Job[Any] | None) -> int | None:
    return job.id if isinstance(job, Job) else job


def _ids(jobs: Ids) -> list[int]:
    return [job.id if isinstance(job, Job) else job for job in jobs]
