"""Taking jobs: promote what is due, expire what came too late, pick in order, mark as running under fresh leases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec

from treadle import defaults
from treadle.model.job import Claimed
from treadle.store.dialect import Dialect, Sql
from treadle.store.ops.heads import READY_QUEUES, ready_queues
from treadle.store.ops.pauses import in_force
from treadle.store.ops.sequences import burn
from treadle.store.session import Session

INLINE_MOST: Final = 16_384
"""Arguments up to this size come with the claim; larger ones are read when their attempt starts."""
PROMOTE_LEAST: Final = 500

NEXT_DUE: Final = Sql(lambda d: f"""
SELECT min(due_at) FROM treadle_jobs {d.index("treadle_jobs_scheduled")} WHERE state = 2
""")
# One million jobs due at once must not stall the writer for seconds: each claim promotes a slice, in due order.
PROMOTE: Final = Sql(lambda d: f"""
UPDATE treadle_jobs SET state = 3 WHERE id {d.among}
    SELECT id FROM treadle_jobs {d.index("treadle_jobs_scheduled")}
    WHERE state = 2 AND due_at <= :now ORDER BY due_at LIMIT :most {d.taken}
""")
# One row, not one per job: each fetched row would hand the interpreter lock over (19 ms against 4 ms
# for 200 jobs beside a busy event loop).
ORDER: Final = "priority DESC, due_at, id"


def _pick_sql(d: Dialect, *, some_expired: bool) -> str:
    # Only while some job that has not begun is past its expiry: every row costs a look at one more column then.
    fresh = "AND (expires_at IS NULL OR expires_at > :now)" if some_expired else ""
    columns = d.row_of(
        "id", "task", "attempt + 1", "failures", "crashes", "priority", "due_at", "enqueued_at", "codec", "size",
        "extra", "version",
    )  # fmt: skip
    return f"""
SELECT {d.list_of(columns, ORDER)}, {d.joined_blobs("data", ORDER)}
FROM (SELECT j.id, j.task, j.attempt, j.failures, j.crashes, j.priority, j.due_at, j.enqueued_at,
        coalesce(p.codec, '') AS codec, length(p.data) AS size, p.extra, coalesce(p.version, 1) AS version,
        CASE WHEN length(p.data) <= 16384 THEN p.data ELSE {d.empty_blob} END AS data
    FROM (SELECT id, task, attempt, failures, crashes, priority, due_at, enqueued_at
        FROM treadle_jobs {d.index("treadle_jobs_ready")}
        WHERE state = 3 AND queue = :queue AND task {d.one_of_texts("tasks")} {fresh}
        ORDER BY {ORDER} LIMIT :most {d.skip_locked}) j
    LEFT JOIN treadle_payloads p ON p.job_id = j.id) picked
"""


PICK: Final = Sql(lambda d: _pick_sql(d, some_expired=False))
PICK_FRESH: Final = Sql(lambda d: _pick_sql(d, some_expired=True))
# CROSS JOIN pins the order: without it an analysed file may scan the table once per id.
TAKE: Final = Sql(lambda d: f"""
UPDATE treadle_jobs SET state = 5, attempt = attempt + 1, lease = :lease + taken.place, epoch = :epoch,
    started_at = :now, finished_at = NULL, reason = NULL, cancel_reason = NULL, crash_cap = :cap
FROM (SELECT e.place, j.id FROM {d.numbered("ids")} e CROSS JOIN treadle_jobs j WHERE j.id = e.value) taken
WHERE treadle_jobs.id = taken.id
""")
# Written with the lease: whoever rescues the job need not know its task.
CRASH_CAPS: Final = Sql(lambda d: f"""
UPDATE treadle_jobs SET crash_cap = (SELECT c.value FROM {d.named("caps")} c WHERE c.key = treadle_jobs.task)
WHERE id {d.one_of_ints("ids")} AND task IN (SELECT c.key FROM {d.named("caps")} c)
""")
EXPIRED: Final = Sql(lambda d: f"""
SELECT 1 FROM treadle_jobs {d.index("treadle_jobs_expiring")}
WHERE state < 5 AND expires_at IS NOT NULL AND expires_at <= :now LIMIT 1
""")
EXPIRE: Final = Sql(lambda d: f"""
UPDATE treadle_jobs SET state = 9, finished_at = :now,
    reason = 'expired: not started before its time ran out' || coalesce(' (' || reason || ')', '')
WHERE id {d.among}
    SELECT id FROM treadle_jobs {d.index("treadle_jobs_expiring")}
    WHERE state < 5 AND expires_at IS NOT NULL AND expires_at <= :now ORDER BY expires_at LIMIT 500 {d.taken}
""")


def _look_sql(d: Dialect, queues: str) -> str:
    """What a claim has to know before it picks, in one exchange with a server."""
    return f"""
SELECT EXISTS (SELECT 1 FROM treadle_workers WHERE slot = :slot AND epoch = :epoch),
    (SELECT min(due_at) FROM treadle_jobs {d.index("treadle_jobs_scheduled")} WHERE state = 2),
    EXISTS (SELECT 1 FROM treadle_jobs {d.index("treadle_jobs_expiring")}
        WHERE state < 5 AND expires_at IS NOT NULL AND expires_at <= :now),
    (SELECT count(*) FROM treadle_pauses), {queues}
"""


LOOK: Final = Sql(lambda d: _look_sql(d, "NULL"))
LOOK_EVERYWHERE: Final = Sql(lambda d: _look_sql(d, f"({READY_QUEUES.make(d)})"))
# Where several may write at once: whoever takes the registration away waits for us, and then finds what we took. Signs
# of life do not wait. And whoever has paused something since we looked is seen now.
KEEP_REGISTERED: Final = Sql(lambda d: f"""
SELECT (SELECT count(*) FROM treadle_pauses) FROM treadle_workers WHERE slot = ? AND epoch = ? {d.for_key_share}
""")
ARGUMENTS: Final = "SELECT data FROM treadle_payloads WHERE job_id = ?"


class ClaimRequest(NamedTuple):
    """What a worker can take now.

    Attributes:
        queues: names in the order to try; None means every queue, fairest first.
        tasks: JSON array of the task names this worker knows.
        most: how many jobs to take at most.
        epoch: the registration these jobs will belong to.
        turn: rotates the order of queues when *queues* is None.
        caps: JSON object of the crash caps of tasks that have one of their own, empty for none.
        slot: of the registration; when it was taken away nothing is claimed. None takes it for granted.
    """

    queues: tuple[str, ...] | None
    tasks: str
    most: int
    epoch: int
    turn: int = 0
    caps: str = ""
    slot: int | None = None


class Claim(NamedTuple):
    """What a claim brought: jobs in order, and when the next scheduled job is due (None: nothing scheduled)."""

    jobs: list[Claimed]
    next_due: int | None


_Row = tuple[int, str, int, int, int, int, int, int, str, int | None, str | None, int]


class _Pick(NamedTuple):
    queue: str
    rows: list[_Row]
    blob: bytes


_ROWS: Final = msgspec.json.Decoder(list[_Row])
_NAMES: Final = msgspec.json.Decoder(list[str])


def claim(session: Session, request: ClaimRequest) -> Claim:
    """Take up to ``request.most`` ready jobs; each is the caller's until settled, released or rescued."""
    now = session.clock.now()
    look = LOOK_EVERYWHERE if request.queues is None else LOOK
    seen = session.row(look, {"slot": request.slot, "epoch": request.epoch, "now": now})
    assert seen is not None
    registered, next_due, some_expired, pauses, ready = seen
    # An evicted worker would take its jobs straight back, under a registration that nobody looks after any more.
    if request.slot is not None and not registered:
        return Claim([], None)
    if next_due is not None and next_due <= now:
        session.change(PROMOTE, {"now": now, "most": max(4 * request.most, PROMOTE_LEAST)})
        next_due, ready = session.value(NEXT_DUE), None
    some_expired = bool(some_expired) and expire(session) > 0 and has_expired(session)
    queues = _queues(session, request, ready)
    allowed = request
    if pauses and (paused := in_force(session, now)) is not None:
        allowed = request._replace(tasks=_without(request.tasks, paused.tasks))
        queues = [queue for queue in queues if queue not in paused.queues]
    picks = _picked(session, allowed, queues, now if some_expired else None)
    if picks and request.slot is not None and session.dialect.shares_rows:
        kept = session.row(KEEP_REGISTERED, (request.slot, request.epoch))
        if kept is None:
            return Claim([], None)
        if kept[0] != pauses:
            return claim(session, request)
    return Claim(_take(session, picks, request, now) if picks else [], next_due)


def has_expired(session: Session) -> bool:
    """True when a job that has not begun is past its expiry; a read, so that idle costs nothing."""
    return bool(session.rows(EXPIRED, {"now": session.clock.now()}))


def expire(session: Session) -> int:
    """Call off jobs that were not started before their expiry, whatever kept them; at most 500 a call."""
    session.settle()
    return session.change(EXPIRE, {"now": session.clock.now()})


def arguments(session: Session, job_id: int) -> bytes | None:
    """The stored arguments of a job, None when they are missing."""
    data: bytes | None = session.value(ARGUMENTS, (job_id,))
    return data


def _queues(session: Session, request: ClaimRequest, found: str | None) -> Sequence[str]:
    if request.queues is not None:
        return tuple(dict.fromkeys(request.queues))
    ready = list(ready_queues(session) if found is None else _NAMES.decode(found))
    turn = request.turn % len(ready) if ready else 0
    return ready[turn:] + ready[:turn]


def _picked(session: Session, request: ClaimRequest, queues: Sequence[str], expired_at: int | None) -> list[_Pick]:
    picks: list[_Pick] = []
    left = request.most
    for queue in queues:
        if left <= 0:
            break
        pick = _pick(session, request, queue, left, expired_at)
        if pick.rows:
            left -= len(pick.rows)
            picks.append(pick)
    return picks


def _pick(session: Session, request: ClaimRequest, queue: str, most: int, expired_at: int | None) -> _Pick:
    values = {"queue": queue, "tasks": request.tasks, "most": most, "now": expired_at}
    found = session.row(PICK if expired_at is None else PICK_FRESH, values)
    assert found is not None
    return _Pick(queue, _ROWS.decode(found[0]), session.dialect.joined(found[1]))


def _take(session: Session, picks: Sequence[_Pick], request: ClaimRequest, now: int) -> list[Claimed]:
    """Mark what was picked as running. The leases are burned here: undone with us, nobody has seen them."""
    ids = [row[0] for pick in picks for row in pick.rows]
    lease = burn(session, "lease", len(ids))[0]
    text = _json(ids)
    session.change(
        TAKE, {"lease": lease, "epoch": request.epoch, "ids": text, "now": now, "cap": defaults.CRASH_CAP}
    )
    if request.caps:
        session.change(CRASH_CAPS, {"ids": text, "caps": request.caps})
    taken: list[Claimed] = []
    for pick in picks:
        taken += _claimed(pick, lease + len(taken), now)
    return taken


def _without(tasks: str, paused: frozenset[str]) -> str:
    return _json([task for task in _NAMES.decode(tasks) if task not in paused]) if paused else tasks


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


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
