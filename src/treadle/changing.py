"""What an app can do to its jobs: each verb for plain code, and its twin for async code.

A verb takes one job, by id or handle, or every job a :class:`JobFilter` matches. For one job it says why it cannot be
done; of many it changes those for which it is legal, in short slices, and returns how many.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final, NamedTuple

from treadle.errors import ConfigurationError, JobStateError, UndecodablePayload
from treadle.handles import Arguments, Job
from treadle.model.codec import check_size
from treadle.model.definition import TaskDefinition
from treadle.model.job import JobFilter, JobRecord
from treadle.model.sanitise import clean_text
from treadle.options import check_name, check_priority, delay_of, moment_of
from treadle.reading import Reading
from treadle.store.ops import change, find
from treadle.worker.registry import Registry

REASON_CAP: Final = 500
SLICE: Final = 500
Which = int | Job[Any] | JobFilter


class _Readable(NamedTuple):
    stored: change.Arguments
    arguments: Arguments


class Changing(Reading):
    """The changing half of :class:`treadle.Treadle`."""

    registry: Registry
    payload_cap: int

    def retry(self, which: Which, *, arguments: Mapping[str, object] | None = None) -> int:
        """Make failed, held or cancelled jobs ready again: their budget is whole, their history stays.

        Args:
            which: an id, a handle or a filter.
            arguments: other arguments for the next attempt, by parameter name; only for one job.

        Raises:
            JobNotFound: there is no such job.
            JobStateError: it is in another state.
            SignatureMismatch: *arguments* do not fit the task.
        """
        if arguments is None:
            return self._change(which, change.retry())
        return self._change(which, self._retry_with(self.get(_one(which)), arguments))

    async def aretry(self, which: Which, *, arguments: Mapping[str, object] | None = None) -> int:
        """The same from async code."""
        if arguments is None:
            return await self._achange(which, change.retry())
        return await self._achange(which, self._retry_with(await self.aget(_one(which)), arguments))

    def cancel(self, which: Which, reason: str = "cancelled by hand") -> int:
        """Call off jobs; they are kept as ``cancelled`` with *reason* (at most 500 bytes).

        A running attempt is asked to stop: an ``async def`` handler gets ``CancelledError``, a plain one sees
        ``job.cancelled``, a process of its own is killed after its grace. If it succeeds all the same, that counts;
        whatever else it comes to, it is not tried again.

        Raises:
            JobNotFound: there is no such job.
            JobStateError: it has ended.
        """
        return self._change(which, change.cancel(clean_text(reason, REASON_CAP)))

    async def acancel(self, which: Which, reason: str = "cancelled by hand") -> int:
        """The same from async code."""
        return await self._achange(which, change.cancel(clean_text(reason, REASON_CAP)))

    def reschedule(
        self, which: Which, *, delay: timedelta | float | None = None, run_at: datetime | None = None
    ) -> int:
        """Let scheduled or ready jobs run at another time: after *delay* from now, or at the moment *run_at*.

        Raises:
            JobNotFound: there is no such job.
            JobStateError: it is neither scheduled nor ready.
        """
        return self._change(which, _reschedule(delay, run_at))

    async def areschedule(
        self, which: Which, *, delay: timedelta | float | None = None, run_at: datetime | None = None
    ) -> int:
        """The same from async code."""
        return await self._achange(which, _reschedule(delay, run_at))

    def set_priority(self, which: Which, priority: int) -> int:
        """Give jobs another priority, -100 to 100; for a running one it counts from its next attempt on.

        Raises:
            JobNotFound: there is no such job.
            JobStateError: it has ended.
        """
        return self._change(which, change.set_priority(check_priority(priority)))

    async def aset_priority(self, which: Which, priority: int) -> int:
        """The same from async code."""
        return await self._achange(which, change.set_priority(check_priority(priority)))

    def move(self, which: Which, queue: str) -> int:
        """Put jobs that have not begun into another queue; its cap does not refuse them.

        Raises:
            JobNotFound: there is no such job.
            JobStateError: it runs or has ended.
        """
        return self._change(which, change.move(check_name("queue", queue, 100)))

    async def amove(self, which: Which, queue: str) -> int:
        """The same from async code."""
        return await self._achange(which, change.move(check_name("queue", queue, 100)))

    def delete(self, which: Which) -> int:
        """Remove jobs with all their history; whoever waits for one gets JobNotFound.

        Raises:
            JobNotFound: there is no such job.
            JobStateError: it runs; cancel it first.
        """
        return self._change(which, change.delete())

    async def adelete(self, which: Which) -> int:
        """The same from async code."""
        return await self._achange(which, change.delete())

    def unschedule(self, task: TaskDefinition, job_id: int) -> Arguments:
        """Call off a job of *task* that has not begun and return its arguments; see :meth:`treadle.Task.unschedule`."""
        while True:
            found = self._readable(task, self.get(job_id))
            if self.store.run(partial(change.take_out, job_id=job_id, expected=found.stored)):
                return found.arguments

    async def aunschedule(self, task: TaskDefinition, job_id: int) -> Arguments:
        """The same from async code."""
        store = await self.aopen()
        while True:
            found = self._readable(task, await self.aget(job_id))
            if await store.arun(partial(change.take_out, job_id=job_id, expected=found.stored)):
                return found.arguments

    def _change(self, which: Which, what: change.Change) -> int:
        if not isinstance(which, JobFilter):
            return self.store.run(partial(change.apply_one, change=what, job_id=_id(which)))
        store, after, changed = self.store, 0, 0
        newest = store.read(find.newest_id)  # jobs that come meanwhile are not meant
        ids = partial(find.ids, which=which, states=what.states, newest=newest, most=SLICE)
        while found := store.read(partial(ids, after=after)):
            changed += store.run(partial(change.apply, change=what, ids=found))
            after = found[-1]
        return changed

    async def _achange(self, which: Which, what: change.Change) -> int:
        store = await self.aopen()
        if not isinstance(which, JobFilter):
            return await store.arun(partial(change.apply_one, change=what, job_id=_id(which)))
        after, changed = 0, 0
        newest = await self._aread(find.newest_id)
        ids = partial(find.ids, which=which, states=what.states, newest=newest, most=SLICE)
        while found := await self._aread(partial(ids, after=after)):
            changed += await store.arun(partial(change.apply, change=what, ids=found))
            after = found[-1]
        return changed

    def _readable(self, task: TaskDefinition, job: JobRecord) -> _Readable:
        """A job's arguments, read before anything is deleted."""
        if job.task not in task.names:
            raise JobStateError(f"Job {job.id} is a job of {job.task!r}, not of {task.name!r}; it was left alone.")
        if job.state not in change.NOT_BEGUN:
            raise JobStateError(f"Job {job.id} is {job.state}; only jobs that have not begun can be unscheduled.")
        if job.codec is None or job.arguments is None:
            raise UndecodablePayload(f"The arguments of job {job.id} are missing from the database.")
        stored = change.Arguments(job.codec, job.arguments, job.version)
        args, kwargs = task.decode(self.codecs.get(job.codec), job.arguments, job.version)
        return _Readable(stored, Arguments(tuple(args), kwargs))

    def _retry_with(self, job: JobRecord, arguments: Mapping[str, object]) -> change.Change:
        """A retry with other arguments, checked by the job's task when this app knows it."""
        known = self.registry.find(job.task)
        if known is None:
            codec, version = self.codecs.get("json"), job.version
            data = codec.encode(dict(arguments))
        else:
            codec, version = known.codec, known.version
            data = known.signature.encode(codec, (), arguments)
        check_size(data, self.payload_cap, f"arguments of {job.task}")
        return change.retry(change.Arguments(codec.name, data, version))


def _reschedule(delay: timedelta | float | None, run_at: datetime | None) -> change.Change:
    if (delay is None) == (run_at is None):
        raise ConfigurationError("Pass delay= or run_at=, one of them.")
    if run_at is not None:
        return change.reschedule(due_at=moment_of("run_at", run_at))
    return change.reschedule(delay=delay_of("delay", delay or 0))


def _id(which: int | Job[Any]) -> int:
    return which.id if isinstance(which, Job) else which


def _one(which: Which) -> int:
    if isinstance(which, JobFilter):
        raise ConfigurationError("arguments= is for one job; pass its id.")
    return _id(which)
