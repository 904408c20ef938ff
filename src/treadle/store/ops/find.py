"""Reading jobs: one by id, pages by filter, counts. Every read is bounded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Final, NamedTuple

import msgspec

from treadle.clock import to_datetime, to_micros
from treadle.model.extra import meta_of
from treadle.model.job import OUTCOMES, STATES, Attempt, JobFilter, JobRecord, JobState, Page, Progress, Usage
from treadle.store.dialect import Dialect, Sql
from treadle.store.ops.claim import NEXT_DUE
from treadle.store.session import Row, Session

MOST_ID: Final = (1 << 63) - 1
PAGE_MOST: Final = 500
ATTEMPTS_MOST: Final = 200
MOMENTS: Final = {
    "enqueued_after": "enqueued_at >=", "enqueued_before": "enqueued_at <", "started_before": "started_at <",
    "ended_after": "finished_at >=", "ended_before": "finished_at <",
}  # fmt: skip

COLUMNS: Final = """
j.id, j.task, j.queue, j.state, j.priority, j.due_at, j.enqueued_at, j.attempt, j.failures, j.crashes,
j.lease, j.started_at, j.finished_at, j.reason, p.codec, p.data, p.extra, j.expires_at, j.cancel_reason,
coalesce(p.version, 1), CASE j.state WHEN 5 THEN (SELECT w.name FROM treadle_workers w WHERE w.epoch = j.epoch) END
"""
ONE: Final = f"SELECT {COLUMNS} FROM treadle_jobs j LEFT JOIN treadle_payloads p ON p.job_id = j.id WHERE j.id = ?"
MANY: Final = f"""
SELECT {COLUMNS} FROM treadle_jobs j LEFT JOIN treadle_payloads p ON p.job_id = j.id
WHERE {{conditions}} ORDER BY j.id DESC LIMIT :most
"""
IDS: Final = """
SELECT j.id FROM treadle_jobs j WHERE {conditions} AND j.id > :after AND j.id <= :newest ORDER BY j.id LIMIT :most
"""
NEWEST: Final = "SELECT coalesce(max(id), 0) FROM treadle_jobs"
COUNT: Final = "SELECT count(*) FROM treadle_jobs j WHERE {conditions}"
CENSUS: Final = """
SELECT j.task, j.state, count(*) FROM treadle_jobs j WHERE {conditions} GROUP BY j.task, j.state
"""
ATTEMPTS: Final = """
SELECT job_id, lease, attempt, worker, outcome, started_at, finished_at, error_type, message, traceback, seq,
    peak_rss, cpu, exit_code, NULL
FROM treadle_attempts WHERE job_id = ? ORDER BY seq DESC LIMIT ?
"""
SETTLED: Final = Sql(lambda d: f"""
SELECT a.job_id, a.lease, a.attempt, a.worker, a.outcome, a.started_at, a.finished_at, a.error_type, a.message,
    a.traceback, a.seq, a.peak_rss, a.cpu, a.exit_code, j.task
FROM treadle_attempts a LEFT JOIN treadle_jobs j ON j.id = a.job_id WHERE a.seq > :after AND {d.final("a.seq")}
ORDER BY a.seq LIMIT :most
""")
LAST_SETTLED: Final = Sql(
    lambda d: f"SELECT coalesce(max(seq), 0) FROM treadle_attempts WHERE {d.final('seq')}"
)
TAGS: Final = "SELECT tag FROM treadle_tags WHERE job_id = ? ORDER BY tag"
PROGRESS: Final = "SELECT fraction, message, updated_at FROM treadle_progress WHERE job_id = ?"
COUNTS: Final = "SELECT queue, state, count(*) FROM treadle_jobs GROUP BY queue, state"
QUEUES: Final = "SELECT name, max_length, when_full FROM treadle_queues"
STATES_OF: Final = Sql(lambda d: f"SELECT id, state FROM treadle_jobs WHERE id {d.one_of_ints('ids')}")
ENDING: Final = """
SELECT j.state, j.reason, r.codec, r.data,
    (SELECT a.message FROM treadle_attempts a WHERE a.job_id = j.id ORDER BY a.seq DESC LIMIT 1)
FROM treadle_jobs j LEFT JOIN treadle_results r ON r.job_id = j.id WHERE j.id = ?
"""


class Ending(NamedTuple):
    """What ``result()`` needs to know about a job: its state and, when it succeeded, its stored result."""

    state: JobState
    reason: str | None
    codec: str | None
    data: bytes | None
    message: str | None


class Census(NamedTuple):
    """How many jobs of a task are in a state."""

    task: str
    state: JobState
    jobs: int


def is_possible(job_id: int) -> bool:
    """False for numbers no database can hold, so no job can have them."""
    return -MOST_ID <= job_id <= MOST_ID


def get(session: Session, job_id: int) -> JobRecord | None:
    """One job with its tags, progress and latest attempts, None when there is none."""
    row = session.row(ONE, (job_id,)) if is_possible(job_id) else None
    if row is None:
        return None
    return _record(
        row,
        tags=tuple(tag for (tag,) in session.rows(TAGS, (job_id,))),
        progress=_progress(session.row(PROGRESS, (job_id,))),
        attempts=attempts(session, job_id),
    )


def attempts(session: Session, job_id: int) -> tuple[Attempt, ...]:
    """The latest attempts of a job, oldest first; at most 200."""
    rows = session.rows(ATTEMPTS, (job_id, ATTEMPTS_MOST)) if is_possible(job_id) else []
    return tuple(_attempt(row) for row in reversed(rows))


def settled(session: Session, after: int, most: int) -> tuple[Attempt, ...]:
    """Attempts of all jobs that ended after the place *after* in commit order; at most 500."""
    rows = session.rows(SETTLED, {"after": after, "most": max(1, min(most, PAGE_MOST))})
    return tuple(_attempt(row) for row in rows)


def last_settled(session: Session) -> int:
    """The place of the attempt that ended last, 0 when none has."""
    return int(session.value(LAST_SETTLED))


def newest_id(session: Session) -> int:
    """The largest id there is, 0 when there are no jobs."""
    return int(session.value(NEWEST))


def ids(
    session: Session, which: JobFilter, states: Iterable[JobState], after: int, newest: int, most: int
) -> list[int]:
    """Ids of matching jobs in *states*, oldest first: the next *most* after one id, up to another."""
    conditions, values = _conditions(_within(which, states), session.dialect)
    sql = IDS.format(conditions=" AND ".join(conditions))
    return [number for (number,) in session.rows(sql, values | {"after": after, "newest": newest, "most": most})]


def count(session: Session, which: JobFilter, states: Iterable[JobState]) -> int:
    """How many jobs match and are in one of *states*."""
    conditions, values = _conditions(_within(which, states), session.dialect)
    return int(session.value(COUNT.format(conditions=" AND ".join(conditions)), values))


def census(session: Session, which: JobFilter) -> list[Census]:
    """How many jobs match, by task and state; reads every job that may match."""
    conditions, values = _conditions(which, session.dialect)
    rows = session.rows(CENSUS.format(conditions=" AND ".join(conditions) or "true"), values)
    return [Census(task, STATES[state], number) for task, state, number in rows]


def find(session: Session, which: JobFilter, before: int | None, most: int) -> Page:
    """One page of matching jobs, newest first.

    Args:
        session: an open read.
        which: what must match.
        before: only ids below this one: ``Page.next`` of the page before.
        most: page size, 1 to 500.
    """
    conditions, values = _conditions(which, session.dialect)
    if before is not None:
        conditions.append("j.id < :before")
        values["before"] = max(-MOST_ID, min(before, MOST_ID))
    most = max(1, min(most, PAGE_MOST))
    sql = MANY.format(conditions=" AND ".join(conditions) or "1 = 1")
    rows = session.rows(sql, values | {"most": most})
    return Page(jobs=tuple(_record(row) for row in rows), next=rows[-1][0] if len(rows) == most else None)


def counts(session: Session) -> dict[str, dict[JobState, int]]:
    """How many jobs each queue has in each state; states without jobs are left out."""
    found: dict[str, dict[JobState, int]] = {}
    for queue, state, number in session.rows(COUNTS):
        found.setdefault(queue, {})[STATES[state]] = number
    return found


def queues(session: Session) -> dict[str, tuple[int | None, str]]:
    """Declared queues with their cap and what happens when they are full."""
    return {name: (most, when_full) for name, most, when_full in session.rows(QUEUES)}


def next_due(session: Session) -> datetime | None:
    """When the next scheduled job is due, None when nothing is scheduled."""
    return _moment(session.value(NEXT_DUE))


def states(session: Session, ids: Sequence[int]) -> dict[int, JobState]:
    """The state of each of *ids* that exists."""
    rows = session.rows(STATES_OF, {"ids": _listed(ids)})
    return {number: STATES[state] for number, state in rows}


def ending(session: Session, job_id: int) -> Ending | None:
    """What is known of a job's end, None when there is no such job."""
    row = session.row(ENDING, (job_id,)) if is_possible(job_id) else None
    return Ending(STATES[row[0]], *row[1:]) if row else None


def _within(which: JobFilter, states: Iterable[JobState]) -> JobFilter:
    """The filter, narrowed to *states*."""
    wanted = tuple(state for state in states if not which.states or state in which.states)
    # No state at all would mean every state: an impossible id means none.
    return replace(which, states=wanted) if wanted else JobFilter(ids=(0,), states=(JobState.WAITING,))


def _listed(ids: Sequence[int]) -> str:
    return msgspec.json.encode([number for number in ids if is_possible(number)]).decode()


def _conditions(which: JobFilter, dialect: Dialect) -> tuple[list[str], dict[str, Any]]:
    conditions: list[str] = []
    values: dict[str, Any] = {}
    if which.ids:
        conditions.append(f"j.id IN ({dialect.ints('ids')})")
        values["ids"] = _listed(which.ids)
    if which.states:
        # Codes are written out: a bound value could not use the partial indexes.
        conditions.append(f"j.state IN ({', '.join(str(state.code) for state in which.states)})")
    for name in ("queue", "task"):
        wanted = getattr(which, name)
        if wanted is not None:
            conditions.append(f"j.{name} = :{name}")
            values[name] = wanted
    if which.tag is not None:
        conditions.append("j.id IN (SELECT job_id FROM treadle_tags WHERE tag = :tag)")
        values["tag"] = which.tag
    if which.error is not None:
        conditions.append("EXISTS (SELECT 1 FROM treadle_attempts a WHERE a.job_id = j.id AND a.error_type = :error)")
        values["error"] = which.error
    for name, column in MOMENTS.items():
        moment = getattr(which, name)
        if moment is not None:
            conditions.append(f"j.{column} :{name}")
            values[name] = to_micros(moment)
    return conditions, values


def _record(
    row: Row,
    *,
    tags: tuple[str, ...] = (),
    progress: Progress | None = None,
    attempts: tuple[Attempt, ...] = (),
) -> JobRecord:
    (number, task, queue, state, priority, due_at, enqueued_at, attempt, failures, crashes, lease,
     started_at, finished_at, reason, codec, data, extra, expires_at, cancel_reason, version, worker) = row  # fmt: skip
    return JobRecord(
        id=number, task=task, queue=queue, state=STATES[state], priority=priority,
        due_at=to_datetime(due_at), enqueued_at=to_datetime(enqueued_at), attempt=attempt,
        failures=failures, crashes=crashes, lease=lease, started_at=_moment(started_at),
        finished_at=_moment(finished_at), reason=reason, codec=codec, arguments=data,
        meta=meta_of(extra),
        tags=tags, progress=progress, attempts=attempts, expires_at=_moment(expires_at), cancel_reason=cancel_reason,
        version=version, worker=worker,
    )  # fmt: skip


def _attempt(row: Row) -> Attempt:
    return Attempt(
        job_id=row[0], lease=row[1], attempt=row[2], worker=row[3], outcome=OUTCOMES[row[4]],
        started_at=to_datetime(row[5]), finished_at=to_datetime(row[6]), error_type=row[7],
        message=row[8], traceback=row[9], seq=row[10], task=row[14],
        usage=None if row[11:14] == (None, None, None) else Usage(*row[11:14]),
    )  # fmt: skip


def _progress(row: Row | None) -> Progress | None:
    return Progress(fraction=row[0], message=row[1], updated_at=to_datetime(row[2])) if row else None


def _moment(micros: int | None) -> datetime | None:
    return None if micros is None else to_datetime(micros)
