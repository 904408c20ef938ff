"""A store as a dict of jobs: what every operation should come to, said without SQL.

Jobs and leases are known by their place: the how-manieth that was given, from 0. Deciding what an outcome means is left
to ``treadle.model.settle``, which has tests of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from treadle import defaults
from treadle.model.job import Claimed, JobState, Options
from treadle.model.settle import Transition, called_off
from treadle.store.ops import change
from treadle.store.ops.claim import Claim

S = JobState
UNKNOWN = "unknown task"
PARKED = "task paused"


class Ended(NamedTuple):
    """One row of the history."""

    lease: int
    attempt: int
    worker: str
    outcome: str
    started_at: int
    finished_at: int
    error_type: str | None
    message: str | None


@dataclass
class Job:
    """One job."""

    place: int
    queue: str
    task: str
    state: JobState
    priority: int
    due_at: int
    enqueued_at: int
    expires_at: int | None
    attempt: int = 0
    failures: int = 0
    crashes: int = 0
    lease: int | None = None
    epoch: int | None = None
    started_at: int | None = None
    finished_at: int | None = None
    reason: str | None = None
    cancel_reason: str | None = None
    crash_cap: int = defaults.CRASH_CAP
    history: list[Ended] = field(default_factory=list)

    @property
    def turn(self) -> tuple[int, int, int]:
        """Its place in the order of its queue."""
        return (-self.priority, self.due_at, self.place)

    def claimed(self) -> Claimed:
        """Its running attempt."""
        assert self.lease is not None
        assert self.started_at is not None
        return Claimed(
            self.place, self.task, self.attempt, self.failures, self.crashes, self.priority, self.due_at,
            self.enqueued_at, "json", 2, None, 1, self.queue, self.lease, b"{}", self.started_at,
        )  # fmt: skip


@dataclass
class Worker:
    """One registration."""

    epoch: int
    tasks: tuple[str, ...]
    seen_at: int


class Full(Exception):
    """A queue is full."""


class Pure:
    """The whole store; times are microseconds, and every operation gets the moment *now* where it matters."""

    def __init__(self) -> None:
        self.jobs: dict[int, Job] = {}
        self.workers: dict[int, Worker] = {}
        self.pauses: dict[tuple[str, str], tuple[str, str, int | None]] = {}
        self.caps: dict[str, int | None] = {}
        self.evicted: set[int] = set()
        self._places = itertools.count()
        self._leases = itertools.count()

    def enqueue(self, wanted: Sequence[Options], now: int) -> list[int]:
        """Store jobs; their places are returned."""
        for queue, cap in self.caps.items():
            coming = sum(one.queue == queue for one in wanted)
            if coming and cap is not None and len(self._in(S.READY, queue=queue)) + coming > cap:
                raise Full
        return [self._store(one, now) for one in wanted]

    def claim(
        self, now: int, queues: Sequence[str] | None, tasks: Sequence[str], most: int, epoch: int, turn: int,
        caps: dict[str, int], slot: int | None,
    ) -> Claim:  # fmt: skip
        """Take jobs."""
        if slot is not None and (slot not in self.workers or self.workers[slot].epoch != epoch):
            return Claim([], None)
        for job in self._in(S.SCHEDULED):
            job.state = S.READY if job.due_at <= now else S.SCHEDULED
        next_due = min((job.due_at for job in self._in(S.SCHEDULED)), default=None)
        self.expire(now)
        ready = sorted({job.queue for job in self._in(S.READY)})
        turn = turn % len(ready) if ready else 0
        order = ready[turn:] + ready[:turn] if queues is None else list(dict.fromkeys(queues))
        stopped = {key for key, (_, _, until) in self.pauses.items() if until is None or until > now}
        picked = [
            job
            for queue in order
            if ("queue", queue) not in stopped
            for job in sorted(self._in(S.READY, queue=queue), key=lambda job: job.turn)
            if job.task in tasks and ("task", job.task) not in stopped
        ][:most]
        for job in picked:
            job.state, job.attempt, job.lease, job.epoch = S.RUNNING, job.attempt + 1, next(self._leases), epoch
            job.started_at, job.finished_at, job.reason, job.cancel_reason = now, None, None, None
            job.crash_cap = caps.get(job.task, defaults.CRASH_CAP)
        return Claim([job.claimed() for job in picked], next_due)

    def expire(self, now: int) -> int:
        """Call off what came too late."""
        late = [
            job for job in self._in(S.WAITING, S.SCHEDULED, S.READY, S.BLOCKED)
            if job.expires_at is not None and job.expires_at <= now
        ]  # fmt: skip
        for job in late:
            why = "expired: not started before its time ran out" + (f" ({job.reason})" if job.reason else "")
            job.state, job.finished_at, job.reason = S.CANCELLED, now, why
        return len(late)

    def settle(self, transitions: Sequence[Transition], worker: str) -> set[int]:
        """Store outcomes; the leases that were lost, or that came twice, are returned."""
        firsts: dict[int, Transition] = {}
        lost = {one.lease for one in transitions if firsts.setdefault(one.lease, one) is not one}
        owned = {job.lease: job for job in self._in(S.RUNNING)}
        done = [one.finished_at for one in firsts.values() if one.state is S.SUCCEEDED and one.lease in owned]
        for one in firsts.values():
            job = owned.get(one.lease)
            if job is None:
                lost.add(one.lease)
            elif one.state is S.SUCCEEDED:
                self._remember(job, one, worker)
                job.state, job.finished_at, job.lease = S.SUCCEEDED, max(done), None
                job.reason = one.reason or job.reason
            else:
                self._move(job, one, worker)
        return lost

    def epoch_of(self, leases: Iterable[int]) -> int:
        """A registration that holds one of *leases*, 0 when none does."""
        return next((job.epoch or 0 for job in self._in(S.RUNNING) if job.lease in leases), 0)

    def release(self, leases: Iterable[int], epoch: int, now: int) -> int:
        """Give back leases of a registration whose handlers never began."""
        held = [job for job in self._in(S.RUNNING) if job.lease in leases and job.epoch == epoch]
        for job in held:
            self._return(job, now)
        return len(held)

    def rescue(self, epoch: int, worker: str, why: str, now: int, begun: Sequence[int] | None = None) -> int:
        """Take back what a registration holds."""
        held = [job for job in self._in(S.RUNNING) if job.epoch == epoch]
        for job in held:
            assert job.lease is not None
            assert job.started_at is not None
            if begun is not None and job.lease not in begun:
                self._return(job, now)
                continue
            job.history.append(Ended(job.lease, job.attempt, worker, "crashed", job.started_at, now, None, why))
            job.state, job.reason = self._after_crash(job)
            job.finished_at = now if job.cancel_reason is not None else None
            job.crashes, job.lease, job.cancel_reason = job.crashes + 1, None, None
        return len(held)

    def rescue_orphans(self, now: int) -> int:
        """Take back jobs of registrations that are gone."""
        gone = {job.epoch for job in self._in(S.RUNNING)} - {one.epoch for one in self.workers.values()}
        return sum(self.rescue(epoch or 0, f"epoch {epoch}", "crash: its worker is gone", now) for epoch in gone)

    def register(self, slot: int, epoch: int, tasks: tuple[str, ...], now: int, begun: Sequence[int]) -> int:
        """Register a worker in a slot, whose last one is over."""
        last = self.workers.get(slot)
        rescued = self.rescue(last.epoch, f"w{slot}", "crash: its worker died", now, begun) if last else 0
        self.workers[slot] = Worker(epoch, tasks, now)
        self._free(self._in(S.HELD), tasks, UNKNOWN)
        return rescued

    def owns(self, slot: int, epoch: int) -> bool:
        """True when a registration is still its slot's."""
        return slot in self.workers and self.workers[slot].epoch == epoch

    def hold_unknown(self) -> int:
        """Hold jobs that nobody can run."""
        known = {task for worker in self.workers.values() for task in worker.tasks}
        found = [job for job in self._in(S.READY) if job.task not in known]
        for job in found:
            job.state = S.HELD
            job.reason = f"{UNKNOWN}: no live worker knows {job.task!r}; it runs once one registers"
        return len(found)

    def look_after(self, now: int) -> int:
        """Park and free jobs of tasks; forget pauses that are over."""
        self.pauses = {key: one for key, one in self.pauses.items() if one[2] is None or one[2] > now}
        parked = [job for job in self._in(S.READY) if ("task", job.task) in self.pauses]
        freed = [job for job in self._in(S.BLOCKED) if ("task", job.task) not in self.pauses]
        for job in parked:
            by, reason, _ = self.pauses["task", job.task]
            job.state, job.reason = S.BLOCKED, f"{PARKED} by {by}" + (f": {reason}" if reason else "")
        return len(parked) + self._free(freed, [job.task for job in freed], PARKED)

    def resume(self, kind: str, name: str) -> bool:
        """End a pause."""
        found = self.pauses.pop((kind, name), None) is not None
        if kind == "task":
            self._free(self._in(S.BLOCKED), [name], PARKED)
        return found

    def change(self, name: str, value: int | str, places: Iterable[int], now: int) -> int:
        """What people do to jobs: how many were changed is returned."""
        legal = {
            "cancel": change.NOT_ENDED, "retry": change.RETRIABLE, "reschedule": change.DUE_LATER,
            "set_priority": change.NOT_ENDED, "move": change.NOT_BEGUN, "delete": change.NOT_RUNNING,
        }[name]  # fmt: skip
        found = [job for place, job in list(self.jobs.items()) if place in places and job.state in legal]
        for job in found:
            getattr(self, f"_make_{name}")(job, value, now)
        return len(found)

    def prune(self, state: JobState, before: int, below: int, most: int) -> int:
        """Delete jobs that ended before a moment, oldest first."""
        ended = sorted((job.finished_at or 0, job.place) for job in self._in(state))
        old = [place for at, place in ended if (at, place) < (before, below)][:most]
        for place in old:
            del self.jobs[place]
        return len(old)

    def counts(self) -> dict[str, dict[JobState, int]]:
        """How many jobs are in each queue and state."""
        found: dict[str, dict[JobState, int]] = {}
        for job in self.jobs.values():
            states = found.setdefault(job.queue, {})
            states[job.state] = states.get(job.state, 0) + 1
        return found

    def _in(self, *states: JobState, queue: str | None = None) -> list[Job]:
        return [job for job in self.jobs.values() if job.state in states and queue in (None, job.queue)]

    def _store(self, one: Options, now: int) -> int:
        place = next(self._places)
        due_at = now + one.delay
        expires_at = None if one.expires_in is None else now + one.expires_in
        state = S.SCHEDULED if due_at > now else S.READY
        self.jobs[place] = Job(place, one.queue, one.task, state, one.priority, due_at, now, expires_at)
        return place

    def _move(self, job: Job, one: Transition, worker: str) -> None:
        if job.cancel_reason is not None:
            one = called_off(one, job.cancel_reason)
        if one.history:
            self._remember(job, one, worker)
        job.state, job.lease, job.cancel_reason, job.reason = one.state, None, None, one.reason
        job.due_at = job.due_at if one.due_at is None else one.due_at
        job.failures, job.crashes = job.failures + one.failed, job.crashes + one.crashed
        job.finished_at = one.finished_at if one.state.ended else None

    def _remember(self, job: Job, one: Transition, worker: str) -> None:
        assert job.lease is not None
        message = one.reason if one.message is None and one.state is not S.SUCCEEDED else one.message
        times = (one.started_at, one.finished_at)
        job.history.append(
            Ended(job.lease, job.attempt, worker, str(one.outcome), *times, one.error_type, message)
        )

    def _return(self, job: Job, now: int) -> None:
        job.state = S.READY if job.cancel_reason is None else S.CANCELLED
        job.finished_at = None if job.cancel_reason is None else now
        job.reason, job.lease, job.cancel_reason = job.cancel_reason, None, None

    def _after_crash(self, job: Job) -> tuple[JobState, str | None]:
        if job.cancel_reason is not None:
            return S.CANCELLED, job.cancel_reason
        if job.crashes + 1 < job.crash_cap:
            return S.READY, None
        if job.crash_cap == 0:
            return S.HELD, 'outcome unknown: its process ended while it ran, and on_crash is "hold"'
        times = job.crashes + 1
        many = f"its attempts ended with their process {times} times"
        return S.HELD, f"crash cap: {many if times > 1 else 'an attempt ended with its process'}"

    def _free(self, found: Iterable[Job], tasks: Sequence[str], why: str) -> int:
        freed = [job for job in found if job.task in tasks and (job.reason or "").startswith(why)]
        for job in freed:
            job.state, job.reason = S.READY, None
        return len(freed)

    def _make_cancel(self, job: Job, reason: str, now: int) -> None:
        if job.state is S.RUNNING:
            job.cancel_reason = job.cancel_reason or reason
        else:
            job.state, job.reason, job.finished_at = S.CANCELLED, reason, now

    def _make_retry(self, job: Job, _: object, now: int) -> None:
        job.state, job.failures, job.crashes, job.reason = S.READY, 0, 0, None
        job.due_at, job.finished_at, job.expires_at = now, None, None

    def _make_reschedule(self, job: Job, delay: int, now: int) -> None:
        job.state, job.due_at = (S.SCHEDULED if delay > 0 else S.READY), now + delay

    def _make_set_priority(self, job: Job, priority: int, _: int) -> None:
        job.priority = priority

    def _make_move(self, job: Job, queue: str, _: int) -> None:
        job.queue = queue

    def _make_delete(self, job: Job, _: object, __: int) -> None:
        del self.jobs[job.place]
