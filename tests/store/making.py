"""What the store's tests make: jobs, claims, transitions and registrations, with plain defaults."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import msgspec

from treadle.model.job import AttemptOutcome, Claimed, JobRecord, JobState, NewJob, Options
from treadle.model.settle import Transition
from treadle.store.ops import find, settle, workers
from treadle.store.ops.claim import Claim, ClaimRequest, claim
from treadle.store.session import Session
from treadle.store.store import Store
from treadle.store.verify import verify

T = TypeVar("T")
START = 1_700_000_000_000_000
SECOND = 1_000_000
SHORT = 0.4
"""A lock_timeout for tests in which the lock never becomes free."""
PATIENCE = 30.0
"""Seconds after which a test gives up on something that must happen; no test measures time."""


def job(data: bytes = b"{}", **options: Any) -> NewJob:
    """A new job of task "mail"."""
    return NewJob(Options(**{"task": "mail", **options}), data)


def put(store: Store, count: int = 1, **options: Any) -> list[int]:
    """Store *count* equal jobs and return their ids."""
    shared = job(**options)
    return list(store.insert([shared] * count))


def request(
    most: int = 100,
    queues: tuple[str, ...] | None = None,
    tasks: Sequence[str] = ("mail",),
    epoch: int = 1,
    turn: int = 0,
) -> ClaimRequest:
    """A claim of task "mail" from every queue."""
    return ClaimRequest(queues, msgspec.json.encode(tasks).decode(), most, epoch, turn)


def claims(store: Store, most: int = 100, **more: Any) -> Claim:
    """Claim jobs of task "mail" for a worker of epoch 1, unless told otherwise."""
    return store.run(partial(claim, request=request(most, **more)))


def take(store: Store, most: int = 100, **more: Any) -> list[Claimed]:
    """The jobs of a claim."""
    return claims(store, most, **more).jobs


def one(store: Store, **options: Any) -> Claimed:
    """Store one job and claim it."""
    put(store, **options)
    (claimed,) = take(store)
    return claimed


def success(claimed: Claimed, **changes: Any) -> Transition:
    """The transition of an attempt that returned."""
    return moved(claimed, JobState.SUCCEEDED, AttemptOutcome.SUCCEEDED, **changes)


def failure(claimed: Claimed, **changes: Any) -> Transition:
    """The transition of an attempt that raised and is tried again a minute later."""
    again = moved(claimed, JobState.SCHEDULED, AttemptOutcome.FAILED, failed=1, due_at=START + 60 * SECOND)
    return again._replace(**{"error_type": "ValueError", "message": "no", "traceback": "tb", **changes})


def moved(claimed: Claimed, state: JobState, outcome: AttemptOutcome, **changes: Any) -> Transition:
    """A transition of *claimed* into *state*."""
    base = Transition(claimed.lease, claimed.id, state, outcome, claimed.claimed_at, claimed.claimed_at + SECOND)
    return base._replace(**changes)


def apply(store: Store, *transitions: Transition, worker: str = "w1") -> list[int]:
    """Store transitions in one batch and return the lost leases."""
    return store.run(partial(settle.apply, transitions=transitions, worker=worker)).lost


def get(store: Store, number: int) -> JobRecord:
    """The record of a job that exists."""
    found = store.read(partial(find.get, job_id=number))
    assert found is not None
    return found


def state(store: Store, number: int) -> JobState:
    """The state of a job."""
    return store.read(partial(find.states, ids=[number]))[number]


def count(store: Store, table: str) -> int:
    """How many rows a table has."""
    return int(store.read(lambda session: session.value(f"SELECT count(*) FROM {table}")))


def change(store: Store, sql: str, *parameters: object) -> int:
    """Run one statement as an operator would."""
    return store.run(lambda session: session.change(sql, parameters))


def registration(slot: int = 1, tasks: tuple[str, ...] = ("mail",), **changes: Any) -> workers.Registration:
    """A worker that could register."""
    base = workers.Registration(
        slot=slot, name=f"w{slot}", host="here", pid=100 + slot, pid_started=5, pid_namespace=6, boot_id="boot",
        dev=7, ino=8, queues=("default",), tasks=tasks, concurrency=10,
    )  # fmt: skip
    return base._replace(**changes)


def register(store: Store, slot: int = 1, *, epoch: int, tasks: tuple[str, ...] = ("mail",)) -> int:
    """Register a worker; how many jobs were rescued is returned."""
    return store.run(partial(workers.register, who=registration(slot, tasks), epoch=epoch))


def refuse(session: Session) -> None:
    """An operation that writes and then fails."""
    session.change("INSERT INTO treadle_meta (name, value) VALUES ('refused', 'x')")
    raise ValueError("refused")


PLACES = itertools.count()


def note(name: str) -> Callable[[Session], str]:
    """An operation that writes *name* where :func:`notes` finds it, in order."""

    def write(session: Session) -> str:
        session.change("INSERT INTO treadle_meta (name, value) VALUES (?, ?)", (f"note{next(PLACES):09}", name))
        return name

    return write


def notes(store: Store) -> list[str]:
    """What :func:`note` has written, in the order of the writes."""
    sql = "SELECT value FROM treadle_meta WHERE name LIKE 'note%' ORDER BY name"
    return [row[0] for row in store.read(lambda session: session.rows(sql))]


def broken(store: Store) -> dict[str, str]:
    """What does not hold: check to text; each has a remedy."""
    found = [verdict for verdict in verify(store) if not verdict.sound]
    assert all(verdict.remedy for verdict in found)
    return {verdict.check: verdict.text for verdict in found}
