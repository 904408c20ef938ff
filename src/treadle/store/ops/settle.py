"""Storing outcomes: guarded by the lease, whole batches at a time.

Every write of an attempt goes through the unique index of live leases, so one that lost its lease
changes nothing here, whatever it claims.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Final, NamedTuple

import msgspec

from treadle.model.job import JobState, NewJob
from treadle.model.settle import Transition, called_off
from treadle.store.dialect import Sql
from treadle.store.ops import logs
from treadle.store.ops.insert import insert_accepted, placed
from treadle.store.ops.sequences import burn
from treadle.store.session import Session

SUCCEEDED_HISTORY: Final = Sql(lambda d: f"""
INSERT INTO treadle_attempts (job_id, lease, attempt, worker, outcome, started_at, finished_at)
SELECT j.id, j.lease, j.attempt, :worker, 1, {d.item("e.value", 1)}, {d.item("e.value", 2)}
FROM {d.rows("times")} e CROSS JOIN treadle_jobs j {d.index("treadle_jobs_running")}
WHERE j.state = 5 AND j.lease = {d.item("e.value", 0)}
""")
LIVE: Final = Sql(lambda d: f"""
SELECT {d.list_of(d.row_of("lease", "cancel_reason"))} FROM (
    SELECT lease, cancel_reason FROM treadle_jobs {d.index("treadle_jobs_running")}
    WHERE state = 5 AND lease {d.one_of_ints("leases")}) live
""")
# Where several may write at once, whoever judges leases keeps their rows until the end. Sorted by an expression: by the
# id itself a planner that takes the table for empty walks the primary key.
OWN: Final = Sql(lambda d: f"""
SELECT {d.list_of(d.row_of("lease", "id"))} FROM (
    SELECT lease, id FROM treadle_jobs {d.index("treadle_jobs_running")}
    WHERE state = 5 AND lease {d.one_of_ints("leases")} ORDER BY id + 0 {d.for_update}) own
""")
SUCCEED: Final = Sql(lambda d: f"""
UPDATE treadle_jobs {d.index("treadle_jobs_running")}
SET state = 7, finished_at = :now, lease = NULL
WHERE state = 5 AND lease {d.one_of_ints("leases")}
""")
EXPLAIN_MISSING_RESULT: Final = "UPDATE treadle_jobs SET reason = :reason WHERE id = :id"
RESULTS: Final = Sql(lambda d: f"""
INSERT INTO treadle_results (job_id, codec, data)
SELECT key, :codec, {d.slice("blob", "value")} FROM {d.pairs("placed")} e WHERE key > 0
ON CONFLICT (job_id) DO UPDATE SET codec = excluded.codec, data = excluded.data
""")
# One row per transition: lease, state, due_at, failed, reason, finished_at, outcome, started_at, error_type,
# message, traceback, history, crashed.
HISTORY: Final = Sql(lambda d: f"""
INSERT INTO treadle_attempts
    (job_id, lease, attempt, worker, outcome, started_at, finished_at, error_type, message, traceback)
SELECT j.id, j.lease, j.attempt, :worker, {d.item("e.value", 6)}, {d.item("e.value", 7)}, {d.item("e.value", 5)},
    {d.item("e.value", 8, "text")}, {d.item("e.value", 9, "text")}, {d.item("e.value", 10, "text")}
FROM {d.rows("rows")} e CROSS JOIN treadle_jobs j {d.index("treadle_jobs_running")}
WHERE j.state = 5 AND j.lease = {d.item("e.value", 0)} AND {d.item("e.value", 11)} = 1
""")
# Materialized: flattened into the UPDATE, SQLite's planner scans every job once per row.
MOVE: Final = Sql(lambda d: f"""
WITH moved AS MATERIALIZED (
    SELECT j.id, {d.item("e.value", 1)} AS state, {d.item("e.value", 2)} AS due_at, {d.item("e.value", 3)} AS failed,
        {d.item("e.value", 4, "text")} AS reason, {d.item("e.value", 5)} AS finished_at,
        {d.item("e.value", 12)} AS crashed
    FROM {d.rows("rows")} e CROSS JOIN treadle_jobs j {d.index("treadle_jobs_running")}
    WHERE j.state = 5 AND j.lease = {d.item("e.value", 0)})
UPDATE treadle_jobs
SET state = moved.state, lease = NULL, due_at = coalesce(moved.due_at, treadle_jobs.due_at),
    failures = treadle_jobs.failures + moved.failed, crashes = treadle_jobs.crashes + moved.crashed,
    reason = moved.reason, cancel_reason = NULL,
    finished_at = CASE WHEN moved.state >= 7 THEN moved.finished_at END
FROM moved WHERE treadle_jobs.id = moved.id
""")
IMMEDIATE: Final = """
INSERT INTO treadle_immediates (job_id, error_type, granted) VALUES (:job, :error_type, 1)
ON CONFLICT (job_id, error_type) DO UPDATE SET granted = treadle_immediates.granted + 1
"""
IMMEDIATES: Final = "SELECT error_type, granted FROM treadle_immediates WHERE job_id = ?"
USAGE: Final = """
UPDATE treadle_attempts SET peak_rss = :peak_rss, cpu = :cpu, exit_code = :exit_code
WHERE job_id = :job AND lease = :lease
"""
RELEASE: Final = Sql(lambda d: f"""
UPDATE treadle_jobs {d.index("treadle_jobs_running")}
SET state = CASE WHEN cancel_reason IS NULL THEN 3 ELSE 9 END, reason = cancel_reason,
    finished_at = CASE WHEN cancel_reason IS NOT NULL THEN CAST(:now AS BIGINT) END, lease = NULL, cancel_reason = NULL
WHERE state = 5 AND lease {d.one_of_ints("leases")} AND epoch = :epoch
""")

_OWN: Final = msgspec.json.Decoder(list[tuple[int, int]])
_LEASES: Final = msgspec.json.Decoder(list[tuple[int, str | None]])


class Applied(NamedTuple):
    """What came of storing outcomes.

    Attributes:
        lost: leases that were lost, whose writes changed nothing.
        followed: ids of the jobs that the others have asked for, in their order.
    """

    lost: list[int]
    followed: Sequence[int]


def apply(session: Session, transitions: Sequence[Transition], worker: str) -> Applied:
    """Store *transitions* of *worker*.

    Args:
        session: an open transaction.
        transitions: what to store, each guarded by its own lease. Of several for one lease the first is
            stored, and the lease is among the lost ones, because the others are not.
        worker: name of the worker, for the history.
    """
    session.settle()
    ended: list[Transition] = []
    others: list[Transition] = []
    for one in transitions:
        (ended if one.state is JobState.SUCCEEDED else others).append(one)
    leases = {one.lease for one in transitions}
    if len(leases) != len(transitions):
        firsts, repeated = _first_of_each(transitions)
        applied = apply(session, firsts, worker)
        return applied._replace(lost=sorted(repeated.union(applied.lost)))
    if session.dialect.shares_rows and (strange := _strange(session, transitions)):
        applied = apply(session, [one for one in transitions if one.lease not in strange], worker)
        return applied._replace(lost=sorted(strange.union(applied.lost)))
    logs.write(session, [(one.lease, one.logs) for one in transitions if one.logs])
    lost = _succeed(session, ended, worker) if ended else set()
    if others:
        lost |= _move(session, others, worker)
    for one in transitions:
        if one.usage is not None and one.lease not in lost:
            session.change(USAGE, {"job": one.job_id, "lease": one.lease, **one.usage._asdict()})
    follow = [job for one in transitions if one.follow and one.lease not in lost for job in one.follow]
    return Applied(sorted(lost), _insert_followers(session, follow) if follow else ())


def _insert_followers(session: Session, follow: Sequence[NewJob]) -> Sequence[int]:
    # Burned here and not in a block: nobody has seen these ids if this transaction is undone.
    # Past the caps: a full queue must not undo the work that asks for these jobs.
    ids = burn(session, "job", len(follow))
    insert_accepted(session, follow, ids)
    return ids


def add(session: Session, ended: Transition) -> None:
    """Add to an attempt that has ended what came after its outcome was stored: lines, and what its process used."""
    logs.write_ended(session, ended.job_id, ended.lease, ended.logs)
    if ended.usage is not None:
        session.change(USAGE, {"job": ended.job_id, "lease": ended.lease, **ended.usage._asdict()})


def release(session: Session, leases: Sequence[int], epoch: int) -> int:
    """Give back leases of a registration whose handlers never began; the jobs are ready again, nothing else changes."""
    session.ring()
    session.settle()
    return session.change(RELEASE, {"leases": _json(leases), "epoch": epoch, "now": session.clock.now()})


def live(session: Session, leases: Sequence[int]) -> dict[int, str | None]:
    """Those of *leases* that still own their jobs, each with the reason why it was asked to stop, or None."""
    return dict(_LEASES.decode(session.value(LIVE, {"leases": _json(leases)})))


def immediates(session: Session, job_id: int) -> dict[str, int]:
    """Immediate retries granted to a job so far, by error class name."""
    return dict(session.rows(IMMEDIATES, (job_id,)))


def _strange(session: Session, transitions: Sequence[Transition]) -> set[int]:
    """Keep the rows of these leases until we have committed; those that are of other jobs are returned.

    A server that lost its last commits, as a standby that lagged has when it takes over, gives leases a second time.
    """
    jobs = {one.lease: one.job_id for one in transitions}
    own = _OWN.decode(session.value(OWN, {"leases": _json(list(jobs))}))
    return {lease for lease, job_id in own if jobs[lease] != job_id}


def _first_of_each(transitions: Sequence[Transition]) -> tuple[list[Transition], set[int]]:
    """The first transition of each lease, and the leases of the others."""
    firsts: dict[int, Transition] = {}
    repeated: set[int] = set()
    for one in transitions:
        if firsts.setdefault(one.lease, one) is not one:
            repeated.add(one.lease)
    return list(firsts.values()), repeated


def _succeed(session: Session, ended: list[Transition], worker: str) -> set[int]:
    times = [(one.lease, one.started_at, one.finished_at) for one in ended]
    stored = session.change(SUCCEEDED_HISTORY, {"times": _json(times), "worker": worker})
    lost: set[int] = set()
    if stored != len(ended):
        leases = {one.lease for one in ended}
        lost = leases - live(session, list(leases)).keys()
        ended = [one for one in ended if one.lease not in lost]
    if not ended:
        return lost
    changed = session.change(
        SUCCEED, {"now": max(one.finished_at for one in ended), "leases": _json([one.lease for one in ended])}
    )
    assert changed == len(ended), f"history and jobs disagree: {changed} of {len(ended)}"
    _store_results(session, ended)
    return lost


def _store_results(session: Session, ended: list[Transition]) -> None:
    kept = [one for one in ended if one.data is not None]
    for codec, group in groupby(sorted(kept, key=lambda one: one.codec), key=lambda one: one.codec):
        places, blob = placed([(one.job_id, one.data or b"") for one in group])
        session.change(RESULTS, {"codec": codec, "blob": blob, "placed": places.decode()})
    for one in ended:
        if one.reason is not None:
            session.change(EXPLAIN_MISSING_RESULT, {"reason": one.reason, "id": one.job_id})


def _move(session: Session, others: list[Transition], worker: str) -> set[int]:
    """Store what did not succeed; returns the leases that were lost."""
    leases = {one.lease for one in others}
    kept = live(session, list(leases))
    # Judged here and not before: the wish to cancel may have come after the worker had judged.
    others = [one if kept.get(one.lease) is None else called_off(one, str(kept[one.lease])) for one in others]
    rows = _json([_row(one) for one in others if one.lease in kept])
    session.change(HISTORY, {"rows": rows, "worker": worker})
    session.change(MOVE, {"rows": rows})
    for one in others:
        if one.immediate is not None and one.lease in kept:
            session.change(IMMEDIATE, {"job": one.job_id, "error_type": one.immediate})
    if any(one.state in (JobState.READY, JobState.SCHEDULED) for one in others):
        session.ring()
    return leases - kept.keys()


def _row(one: Transition) -> tuple[object, ...]:
    # The history says why also where nothing was raised, as when a stop released the attempt.
    message = one.reason if one.message is None else one.message
    return (
        one.lease, one.state.code, one.due_at, one.failed, one.reason, one.finished_at, one.outcome.code,
        one.started_at, one.error_type, message, one.traceback, int(one.history), one.crashed,
    )  # fmt: skip


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()
