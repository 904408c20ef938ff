"""A real store seen by places: the state machine's jobs and leases have other numbers in each of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import msgspec

from store.making import get, registration
from store.pure import Ended, Full, Job, Worker
from treadle.errors import JobNotFound, JobStateError, LeaseLost, QueueFull
from treadle.model.job import OUTCOMES, STATES, JobState, NewJob, Options
from treadle.model.settle import Transition
from treadle.store.ops import change, claim, find, meta, notes, pauses, prune, rescue, settle, unknown, workers
from treadle.store.ops.sequences import burn
from treadle.store.store import Store
from treadle.store.verify import verify

JOBS = """
SELECT id, queue, task, state, priority, due_at, enqueued_at, expires_at, attempt, failures, crashes, lease, epoch,
    started_at, finished_at, reason, cancel_reason, crash_cap FROM treadle_jobs ORDER BY id
"""
HISTORY = """
SELECT job_id, lease, attempt, worker, outcome, started_at, finished_at, error_type, message
FROM treadle_attempts ORDER BY seq
"""
OF_ALL = ("jobs", "workers", "pauses", "queues")


class Twin:
    """One store, spoken to in places.

    Args:
        store: an open one; what it holds is deleted.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.ids: list[int] = []
        self.leases: list[int] = []
        for table in OF_ALL:
            self._run(lambda session, table=table: session.change(f"DELETE FROM treadle_{table}"))
        self._run(lambda session: session.change("DELETE FROM treadle_meta WHERE name LIKE 'evicted%'"))
        self._run(partial(burn, name="epoch", count=100))  # the machine counts registrations from 1

    def enqueue(self, wanted: Sequence[Options]) -> list[int]:
        """Store jobs."""
        try:
            self.ids += self.store.insert([NewJob(one, b"{}") for one in wanted])
        except QueueFull as error:
            raise Full from error
        return list(range(len(self.ids) - len(wanted), len(self.ids)))

    def claim(self, request: claim.ClaimRequest) -> claim.Claim:
        """Take jobs; they come with places for numbers."""
        jobs, next_due = self._run(partial(claim.claim, request=request))
        assert all(earlier.lease < later.lease for earlier, later in pairwise(jobs))
        assert all(not self.leases or job.lease > self.leases[-1] for job in jobs)
        first = len(self.leases)
        self.leases += [job.lease for job in jobs]
        found = [job._replace(id=self.ids.index(job.id), lease=first + place) for place, job in enumerate(jobs)]
        return claim.Claim(found, next_due)

    def settle(self, transitions: Sequence[Transition], worker: str) -> set[int]:
        """Store outcomes."""
        mine = [one._replace(lease=self.leases[one.lease], job_id=self.ids[one.job_id]) for one in transitions]
        applied = self._run(partial(settle.apply, transitions=mine, worker=worker))
        return {self.leases.index(lost) for lost in applied.lost}

    def progress(self, lease: int, message: str) -> bool:
        """Note progress; False when the lease was lost."""
        try:
            self._run(partial(notes.progress, lease=self.leases[lease], fraction=0.5, message=message))
        except LeaseLost:
            return False
        return True

    def release(self, leases: Iterable[int], epoch: int) -> int:
        """Give back leases of a registration."""
        return self._run(partial(settle.release, leases=self._begun(leases), epoch=epoch))

    def change(self, made: change.Change, places: Iterable[int]) -> int:
        """What people do to jobs."""
        return self._run(partial(change.apply, change=made, ids=[self.ids[place] for place in places]))

    def change_one(self, made: change.Change, place: int) -> type[Exception] | None:
        """The same to one job; the kind of refusal is returned."""
        try:
            self._run(partial(change.apply_one, change=made, job_id=self.ids[place]))
        except (JobNotFound, JobStateError) as error:
            return type(error)
        return None

    def pause(self, kind: str, name: str, by: str, reason: str, until: int | None) -> None:
        """Pause a queue or a task."""
        self._run(partial(pauses.pause, kind=kind, name=name, by=by, reason=reason, until=until))

    def resume(self, kind: str, name: str) -> bool:
        """End a pause."""
        return self._run(partial(pauses.resume, kind=kind, name=name))

    def declare(self, queue: str, cap: int | None) -> None:
        """Give a queue a cap."""
        self._run(partial(meta.declare_queue, name=queue, max_length=cap, when_full="refuse"))

    def look_after(self) -> int:
        """Upkeep of pauses."""
        return self._run(pauses.look_after)

    def hold_unknown(self) -> int:
        """Upkeep of jobs that nobody knows."""
        return self._run(unknown.hold_unknown)

    def expire(self) -> int:
        """Upkeep of expiry."""
        return self._run(claim.expire)

    def register(self, slot: int, epoch: int, tasks: tuple[str, ...], begun: Sequence[int]) -> int:
        """Register a worker."""
        who, roll = registration(slot, tasks), self._begun(begun)
        return self._run(partial(workers.register, who=who, epoch=epoch, roll=lambda _: roll))

    def seen(self, slot: int, epoch: int) -> bool:
        """Show a sign of life; False when the registration is over."""
        return self._run(partial(workers.seen, slot=slot, epoch=epoch)) is not None

    def leave(self, slot: int, epoch: int, begun: Sequence[int]) -> None:
        """Stop in good order."""
        self._run(partial(workers.leave, slot=slot, epoch=epoch, begun=self._begun(begun)))

    def rescue_dead(self, slot: int, epoch: int, seen_at: int, begun: Sequence[int] | None) -> int | None:
        """Rescue from a dead worker."""
        began = None if begun is None else self._begun(begun)
        return self._run(
            partial(rescue.rescue_dead, slot=slot, epoch=epoch, worker=f"w{slot}", seen_at=seen_at, begun=began)
        )

    def evict(self, slot: int, epoch: int) -> int | None:
        """Evict a worker."""
        return self._run(partial(rescue.evict, slot=slot, epoch=epoch, worker=f"w{slot}", why="stalls"))

    def was_evicted(self, epoch: int) -> bool:
        """What an evicted worker asks."""
        return self.store.read(partial(rescue.was_evicted, epoch=epoch))

    def rescue_orphans(self) -> int:
        """Upkeep of jobs whose worker is gone."""
        return self._run(rescue.rescue_orphans)

    def prune(self, state: JobState, before: int, below: int, most: int) -> int:
        """Delete old jobs."""
        # Of places that no job has yet every number counts as lower.
        number = self.ids[below] if below < len(self.ids) else max(self.ids, default=0) + 1
        return self._run(partial(prune.prune, state=state, before=before, below=number, most=most))

    def cutoff(self, state: JobState, keep: int) -> tuple[int, int] | None:
        """Where history by count begins."""
        found = self.store.read(partial(prune.cutoff_by_count, state=state, keep=keep))
        return None if found is None else (found[0], self.ids.index(found[1] - (keep == 0)) + (keep == 0))

    def everything(self) -> tuple[dict[int, Job], dict[int, Worker]]:
        """Every job with its history, and every registration."""
        rows, history, registered = self.store.read(
            lambda session: (session.rows(JOBS), session.rows(HISTORY), workers.every(session))
        )
        found = {}
        for number, queue, task, state, *others in rows:
            place = self.ids.index(number)
            found[place] = Job(place, queue, task, STATES[state], *others)
            found[place].lease = None if found[place].lease is None else self.leases.index(found[place].lease)
        for number, lease, attempt, worker, outcome, *rest in history:
            ended = Ended(self.leases.index(lease), attempt, worker, str(OUTCOMES[outcome]), *rest)
            found[self.ids.index(number)].history.append(ended)
        return found, {row.slot: Worker(row.epoch, _texts(row.tasks), row.seen_at) for row in registered}

    def counts(self) -> dict[str, dict[JobState, int]]:
        """How many jobs are in each queue and state."""
        found = self.store.read(find.counts)
        return {queue: {state: count for state, count in by.items() if count} for queue, by in found.items()}

    def offences(self) -> list[str]:
        """What ``treadle verify`` finds, and jobs that cannot be read."""
        for job in self.everything()[0]:
            get(self.store, self.ids[job])
        return [f"{one.check}: {one.text}" for one in verify(self.store) if not one.sound]

    def _begun(self, leases: Iterable[int]) -> list[int]:
        return [self.leases[lease] for lease in leases]

    def _run(self, operation: Any) -> Any:
        return self.store.run(operation)


def _texts(listed: str) -> tuple[str, ...]:
    return tuple(msgspec.json.decode(listed))
