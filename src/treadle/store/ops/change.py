"""What a person may do to jobs, by id: each change is one guarded statement, legal in the states it names.

A change is a value: which states it is for, what it sets, what it says when a job is in another state. The same value
serves one job and a slice of many.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import msgspec

from treadle.clock import to_datetime
from treadle.errors import JobNotFound, JobStateError
from treadle.model.job import STATES, JobState
from treadle.store.session import Session

S = JobState
NOT_BEGUN: Final = frozenset({S.WAITING, S.SCHEDULED, S.READY, S.BLOCKED, S.HELD})
STATE: Final = "SELECT state, started_at FROM treadle_jobs WHERE id = :id"

# States are written out by :func:`_sql`; ids travel as one JSON list.
RETRY: Final = """
UPDATE treadle_jobs SET state = 3, failures = 0, crashes = 0, reason = NULL, due_at = :now, finished_at = NULL,
    expires_at = NULL
WHERE id IN (SELECT value FROM json_each(:ids)) AND state IN ({states})
"""
FORGET_IMMEDIATES: Final = "DELETE FROM treadle_immediates WHERE job_id IN (SELECT value FROM json_each(:ids))"
ARGUMENTS: Final = """
UPDATE treadle_payloads SET codec = :codec, data = :data, version = :version
WHERE job_id IN (SELECT value FROM json_each(:ids))
"""
CANCEL: Final = """
UPDATE treadle_jobs SET state = 9, reason = :reason, finished_at = :now
WHERE id IN (SELECT value FROM json_each(:ids)) AND state IN ({states})
"""
# Asked once: a second wish does not hide who was first.
ASK_TO_STOP: Final = """
UPDATE treadle_jobs SET cancel_reason = coalesce(cancel_reason, :reason)
WHERE id IN (SELECT value FROM json_each(:ids)) AND state = 5
"""
RESCHEDULE: Final = """
UPDATE treadle_jobs SET state = CASE WHEN coalesce(:due_at, :now + :delay) > :now THEN 2 ELSE 3 END,
    due_at = coalesce(:due_at, :now + :delay)
WHERE id IN (SELECT value FROM json_each(:ids)) AND state IN ({states})
"""
SET_PRIORITY: Final = """
UPDATE treadle_jobs SET priority = :priority
WHERE id IN (SELECT value FROM json_each(:ids)) AND state IN ({states})
"""
MOVE: Final = """
UPDATE treadle_jobs SET queue = :queue
WHERE id IN (SELECT value FROM json_each(:ids)) AND state IN ({states})
"""
DELETE: Final = """
DELETE FROM treadle_jobs WHERE id IN (SELECT value FROM json_each(:ids)) AND state IN ({states})
"""
TAKE_OUT: Final = """
DELETE FROM treadle_jobs WHERE id = :id AND state IN ({states})
    AND EXISTS (SELECT 1 FROM treadle_payloads WHERE job_id = :id AND codec = :codec AND data = :data)
"""


class Arguments(NamedTuple):
    """Encoded arguments and what is needed to read them."""

    codec: str
    data: bytes
    version: int = 1


class Change(NamedTuple):
    """One kind of change.

    Attributes:
        statements: guarded statements; what each changed is counted.
        states: where the change is legal.
        values: what the statements bind, beside ids and now.
        refusal: what is said of a job in another state: "cannot be …".
        then: statements that follow when something was changed.
        token: how the bell rings afterwards.
    """

    statements: tuple[str, ...]
    states: frozenset[JobState]
    values: Mapping[str, object]
    refusal: str
    then: tuple[str, ...] = ()
    token: bytes = b"r"


def retry(arguments: Arguments | None = None) -> Change:
    """Ready again with the whole budget, its history kept; with other arguments when given."""
    states = frozenset({S.HELD, S.FAILED, S.CANCELLED})
    refusal = "retried; only failed, held and cancelled jobs can be"
    if arguments is None:
        return Change((_sql(RETRY, states),), states, {}, refusal, (FORGET_IMMEDIATES,))
    then = (FORGET_IMMEDIATES, ARGUMENTS)
    return Change((_sql(RETRY, states),), states, arguments._asdict(), refusal, then)


def cancel(reason: str) -> Change:
    """Called off; an attempt that runs is asked to stop."""
    states = NOT_BEGUN | {S.RUNNING}
    statements = (_sql(CANCEL, NOT_BEGUN), ASK_TO_STOP)
    return Change(statements, states, {"reason": reason}, "cancelled; it has ended", token=b"c")


def reschedule(due_at: int | None = None, delay: int = 0) -> Change:
    """Due at another moment, or after a delay from now (microseconds)."""
    states = frozenset({S.SCHEDULED, S.READY})
    refusal = "rescheduled; only scheduled and ready jobs can be"
    return Change((_sql(RESCHEDULE, states),), states, {"due_at": due_at, "delay": delay}, refusal)


def set_priority(priority: int) -> Change:
    """Of another priority; for a running job it counts from its next attempt on."""
    states = NOT_BEGUN | {S.RUNNING}
    return Change((_sql(SET_PRIORITY, states),), states, {"priority": priority}, "given a priority; it has ended")


def move(queue: str) -> Change:
    """In another queue."""
    refusal = "moved; only jobs that have not begun can be"
    return Change((_sql(MOVE, NOT_BEGUN),), NOT_BEGUN, {"queue": queue}, refusal)


def delete() -> Change:
    """Gone, with its history."""
    states = frozenset(S) - {S.RUNNING}
    return Change((_sql(DELETE, states),), states, {}, "deleted; cancel it first")


def apply(session: Session, change: Change, ids: Sequence[int]) -> int:
    """Make *change* to those of *ids* for which it is legal; how many were changed is returned."""
    values = {**change.values, "ids": msgspec.json.encode(list(ids)).decode(), "now": session.clock.now()}
    changed = sum(session.change(sql, values) for sql in change.statements)
    if changed:
        for sql in change.then:
            session.change(sql, values)
        session.ring(change.token)
        session.settle()
    return changed


def apply_one(session: Session, change: Change, job_id: int) -> int:
    """Make *change* to one job.

    Raises:
        JobNotFound: there is no such job.
        JobStateError: it is in a state in which the change is not legal.
    """
    if not apply(session, change, [job_id]):
        raise refused(session, job_id, change.refusal)
    return 1


def take_out(session: Session, job_id: int, expected: Arguments) -> bool:
    """Delete a job that has not begun and still has these arguments; False when it is not so any more."""
    values = {"id": job_id, "codec": expected.codec, "data": expected.data}
    session.settle()
    return bool(session.change(_sql(TAKE_OUT, NOT_BEGUN), values))


def refused(session: Session, job_id: int, what: str) -> JobNotFound | JobStateError:
    """Why a change was not made: the job is gone, or in another state."""
    row = session.row(STATE, {"id": job_id})
    if row is None:
        return JobNotFound(f"There is no job {job_id}; it was never stored, or it was pruned.")
    state = STATES[row[0]]
    since = f" since {to_datetime(row[1]):%Y-%m-%d %H:%M:%S} UTC" if state is JobState.RUNNING else ""
    return JobStateError(f"Job {job_id} is {state}{since} and cannot be {what}.")


def _sql(text: str, states: frozenset[JobState]) -> str:
    return text.format(states=", ".join(str(state.code) for state in sorted(states, key=lambda one: one.code)))

