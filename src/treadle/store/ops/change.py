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
from treadle.store.dialect import Sql
from treadle.store.session import Session

S = JobState
NOT_BEGUN: Final = frozenset({S.WAITING, S.SCHEDULED, S.READY, S.BLOCKED, S.HELD})
STATE: Final = "SELECT state, started_at FROM treadle_jobs WHERE id = :id"

RETRIABLE: Final = frozenset({S.HELD, S.FAILED, S.CANCELLED})
DUE_LATER: Final = frozenset({S.SCHEDULED, S.READY})
NOT_ENDED: Final = NOT_BEGUN | {S.RUNNING}
NOT_RUNNING: Final = frozenset(S) - {S.RUNNING}


def _codes(states: frozenset[JobState]) -> str:
    return ", ".join(str(code) for code in sorted(state.code for state in states))


def _update(what: str, states: frozenset[JobState]) -> Sql:
    """A guarded UPDATE of jobs by id; the ids travel as one list."""
    return Sql(lambda d: f"""
UPDATE treadle_jobs SET {what} WHERE id {d.one_of_ints("ids")} AND state IN ({_codes(states)})
""")


RETRY: Final = _update(
    "state = 3, failures = 0, crashes = 0, reason = NULL, due_at = :now, finished_at = NULL, expires_at = NULL",
    RETRIABLE,
)
FORGET_IMMEDIATES: Final = Sql(lambda d: f"DELETE FROM treadle_immediates WHERE job_id {d.one_of_ints('ids')}")
# An upsert: a job whose arguments are lost is what other arguments are for.
ARGUMENTS: Final = Sql(lambda d: f"""
INSERT INTO treadle_payloads (job_id, codec, data, version)
SELECT e.value, :codec, :data, CAST(:version AS INTEGER) FROM {d.numbered("ids")} e WHERE true
ON CONFLICT (job_id) DO UPDATE SET codec = excluded.codec, data = excluded.data, version = excluded.version
""")
CANCEL: Final = _update("state = 9, reason = :reason, finished_at = :now", NOT_BEGUN)
# Asked once: a second wish does not hide who was first.
ASK_TO_STOP: Final = _update("cancel_reason = coalesce(cancel_reason, :reason)", frozenset({S.RUNNING}))
DUE_AT: Final = "coalesce(CAST(:due_at AS BIGINT), :now + :delay)"
RESCHEDULE: Final = _update(f"state = CASE WHEN {DUE_AT} > :now THEN 2 ELSE 3 END, due_at = {DUE_AT}", DUE_LATER)
SET_PRIORITY: Final = _update("priority = :priority", NOT_ENDED)
MOVE: Final = _update("queue = :queue", NOT_BEGUN)
DELETE: Final = Sql(lambda d: f"""
DELETE FROM treadle_jobs WHERE id {d.one_of_ints("ids")} AND state IN ({_codes(NOT_RUNNING)})
""")
TAKE_OUT: Final = f"""
DELETE FROM treadle_jobs WHERE id = :id AND state IN ({_codes(NOT_BEGUN)})
    AND EXISTS (SELECT 1 FROM treadle_payloads WHERE job_id = :id AND codec = :codec AND data = :data)
"""
# Where several may write at once: a job must not slip from one statement's states into another's between them.
KEEP: Final = Sql(lambda d: f"SELECT id FROM treadle_jobs WHERE id {d.one_of_ints('ids')} ORDER BY id {d.for_update}")


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

    statements: tuple[Sql, ...]
    states: frozenset[JobState]
    values: Mapping[str, object]
    refusal: str
    then: tuple[Sql, ...] = ()
    token: bytes = b"r"


def retry(arguments: Arguments | None = None) -> Change:
    """Ready again with the whole budget, its history kept; with other arguments when given."""
    refusal = "retried; only failed, held and cancelled jobs can be"
    if arguments is None:
        return Change((RETRY,), RETRIABLE, {}, refusal, (FORGET_IMMEDIATES,))
    return Change((RETRY,), RETRIABLE, arguments._asdict(), refusal, (FORGET_IMMEDIATES, ARGUMENTS))


def cancel(reason: str) -> Change:
    """Called off; an attempt that runs is asked to stop."""
    return Change((CANCEL, ASK_TO_STOP), NOT_ENDED, {"reason": reason}, "cancelled; it has ended", token=b"c")


def reschedule(due_at: int | None = None, delay: int = 0) -> Change:
    """Due at another moment, or after a delay from now (microseconds)."""
    refusal = "rescheduled; only scheduled and ready jobs can be"
    return Change((RESCHEDULE,), DUE_LATER, {"due_at": due_at, "delay": delay}, refusal)


def set_priority(priority: int) -> Change:
    """Of another priority; for a running job it counts from its next attempt on."""
    return Change((SET_PRIORITY,), NOT_ENDED, {"priority": priority}, "given a priority; it has ended")


def move(queue: str) -> Change:
    """In another queue."""
    refusal = "moved; only jobs that have not begun can be"
    return Change((MOVE,), NOT_BEGUN, {"queue": queue}, refusal)


def delete() -> Change:
    """Gone, with its history."""
    return Change((DELETE,), NOT_RUNNING, {}, "deleted; cancel it first")


def apply(session: Session, change: Change, ids: Sequence[int]) -> int:
    """Make *change* to those of *ids* for which it is legal; how many were changed is returned."""
    values = {**change.values, "ids": msgspec.json.encode(list(ids)).decode(), "now": session.clock.now()}
    if session.dialect.shares_rows:
        session.rows(KEEP, values)
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
    return bool(session.change(TAKE_OUT, values))


def refused(session: Session, job_id: int, what: str) -> JobNotFound | JobStateError:
    """Why a change was not made: the job is gone, or in another state."""
    row = session.row(STATE, {"id": job_id})
    if row is None:
        return JobNotFound(f"There is no job {job_id}; it was never stored, or it was pruned.")
    state = STATES[row[0]]
    since = f" since {to_datetime(row[1]):%Y-%m-%d %H:%M:%S} UTC" if state is JobState.RUNNING else ""
    return JobStateError(f"Job {job_id} is {state}{since} and cannot be {what}.")
