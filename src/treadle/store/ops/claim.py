"""Taking jobs: promote what is due, pick in order, mark as running under fresh leases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec

from treadle.model.job import Claimed
from treadle.store.dialect import SQLITE, SQLITE_HEX
from treadle.store.ops.sequences import burn
from treadle.store.session import Session

INLINE_MOST: Final = 16_384
"""Arguments up to this size come with the claim; larger ones are read when their attempt starts."""
PROMOTE_LEAST: Final = 500

NEXT_DUE: Final = "SELECT min(due_at) FROM treadle_jobs INDEXED BY treadle_jobs_scheduled WHERE state = 2"
# One million jobs due at once must not stall the writer for seconds: each claim promotes a slice, in due order.
PROMOTE: Final = """
UPDATE treadle_jobs SET state = 3 WHERE id IN (
    SELECT id FROM treadle_jobs INDEXED BY treadle_jobs_scheduled
    WHERE state = 2 AND due_at <= :now ORDER BY due_at LIMIT :most)
"""
# Loose index scan: one seek per queue that has work, however long the queues are.
READY_QUEUES: Final = """
WITH RECURSIVE found (queue) AS (
    SELECT (SELECT min(queue) FROM treadle_jobs INDEXED BY treadle_jobs_ready WHERE state = 3)
    UNION ALL
    SELECT (SELECT min(queue) FROM treadle_jobs INDEXED BY treadle_jobs_ready
            WHERE state = 3 AND queue > found.queue)
    FROM found WHERE found.queue IS NOT NULL)
SELECT json_group_array(queue) FROM found WHERE queue IS NOT NULL
"""
# One row, not one per job: each fetched row would hand the interpreter lock over (19 ms against 4 ms
# for 200 jobs beside a busy event loop).
PICK: Final = """
SELECT json_group_array(json_array(
        id, task, attempt + 1, failures, crashes, priority, due_at, enqueued_at, codec, size, extra)),
    {joined}
FROM (SELECT j.id, j.task, j.attempt, j.failures, j.crashes, j.priority, j.due_at, j.enqueued_at,
        coalesce(p.codec, '') AS codec, length(p.data) AS size, p.extra,
        CASE WHEN length(p.data) <= 16384 THEN p.data ELSE x'' END AS data
    FROM (SELECT id, task, attempt, failures, crashes, priority, due_at, enqueued_at
        FROM treadle_jobs INDEXED BY treadle_jobs_ready
        WHERE state = 3 AND queue = :queue AND task IN (SELECT value FROM json_each(:tasks))
        ORDER BY priority DESC, due_at, id LIMIT :most) j
    LEFT JOIN treadle_payloads p ON p.job_id = j.id)
"""
PICKS: Final = {
    dialect: PICK.format(joined=dialect.joined_blob) for dialect in (SQLITE, SQLITE_HEX)
}
# CROSS JOIN pins the order: without it an analysed file may scan the table once per id.
TAKE: Final = """
UPDATE treadle_jobs SET state = 5, attempt = attempt + 1, lease = :lease + taken.place, epoch = :epoch,
    started_at = :now,
    finished_at = NULL, reason = NULL
FROM (SELECT e.key AS place, j.id FROM json_each(:ids) e CROSS JOIN treadle_jobs j WHERE j.id = e.value) taken
WHERE treadle_jobs.id = taken.id
"""
ARGUMENTS: Final = "SELECT data FROM treadle_payloads WHERE job_id = ?"


class ClaimRequest(NamedTuple):
    """What a worker can take now.

    Attributes:
        queues: names in the order to try; None means every queue, fairest first.
        tasks: JSON array of the task names this worker knows.
        most: how many jobs to take at most.
        epoch: the registration these jobs will belong to.
        turn: rotates the order of queues when *queues* is None.
    """

    queues: tuple[str, ...] | None
    tasks: str
    most: int
    epoch: int
    turn: int = 0


class Claim(NamedTuple):
    """What a claim brought: jobs in order, and when the next scheduled job is due (None: nothing scheduled)."""

    jobs: list[Claimed]
    next_due: int | None


_Row = tuple[int, str, int, int, int, int, int, int, str, int | None, str | None]


class _Pick(NamedTuple):
    queue: str
    rows: list[_Row]
    blob: bytes


_ROWS: Final = msgspec.json.Decoder(list[_Row])
_NAMES: Final = msgspec.json.Decoder(list[str])


def claim(session: Session, request: ClaimRequest) -> Claim:
    """Take up to ``request.most`` ready jobs; each is the caller's until settled, released or rescued."""
    now = session.clock.now()
    next_due = session.value(NEXT_DUE)
    if next_due is not None and next_due <= now:
        session.change(PROMOTE, {"now": now, "most": max(4 * request.most, PROMOTE_LEAST)})
        next_due = session.value(NEXT_DUE)
    picks: list[_Pick] = []
    count = 0
    for queue in _queues(session, request):
        if count >= request.most:
            break
        pick = _pick(session, request, queue, request.most - count)
        count += len(pick.rows)
        picks.append(pick)
    return Claim(_take(session, picks, request.epoch, now) if count else [], next_due)


def arguments(session: Session, job_id: int) -> bytes | None:
    """The stored arguments of a job, None when they are missing."""
    data: bytes | None = session.value(ARGUMENTS, (job_id,))
    return data


def _queues(session: Session, request: ClaimRequest) -> Sequence[str]:
    if request.queues is not None:
        return tuple(dict.fromkeys(request.queues))
    ready = _NAMES.decode(session.value(READY_QUEUES))
    turn = request.turn % len(ready) if ready else 0
    return ready[turn:] + ready[:turn]


def _pick(session: Session, request: ClaimRequest, queue: str, most: int) -> _Pick:
    found = session.row(PICKS[session.dialect], {"queue": queue, "tasks": request.tasks, "most": most})
    assert found is not None
    return _Pick(queue, _ROWS.decode(found[0]), session.dialect.joined(found[1]))


def _take(session: Session, picks: Sequence[_Pick], epoch: int, now: int) -> list[Claimed]:
    """Mark what was picked as running. The leases are burned here: undone with us, nobody has seen them."""
    ids = [row[0] for pick in picks for row in pick.rows]
    lease = burn(session, "lease", len(ids))
    session.change(TAKE, {"lease": lease, "epoch": epoch, "ids": msgspec.json.encode(ids).decode(), "now": now})
    taken: list[Claimed] = []
    for pick in picks:
        taken += _claimed(pick, lease + len(taken), now)
    return taken


def _claimed(pick: _Pick, lease: int, now: int) -> list[Claimed]:
    queue, rows, blob = pick
    start = 0
    jobs = []
    for row in rows:
        size = row[9]
        data: bytes | None = None
        if size is not None and size <= INLINE_MOST:
            end = start + size
            data = blob[start:end]
            start = end
        jobs.append(Claimed(*row, queue, lease, data, now))
        lease += 1
    return jobs
