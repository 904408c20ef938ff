"""Taking one job by its id, in whatever order and however early: for tests that run exactly this one."""

from __future__ import annotations

from typing import Final

from treadle.model.job import Claimed
from treadle.store.ops.sequences import burn
from treadle.store.session import Session

TAKE: Final = """
UPDATE treadle_jobs SET state = 5, attempt = coalesce(:attempt, attempt + 1),
    failures = coalesce(:failures, failures), lease = :lease, epoch = :epoch, started_at = :now, finished_at = NULL,
    reason = NULL, cancel_reason = NULL, crash_cap = :cap
WHERE id = :id AND state IN (2, 3)
"""
TAKEN: Final = """
SELECT j.id, j.task, j.attempt, j.failures, j.crashes, j.priority, j.due_at, j.enqueued_at, coalesce(p.codec, ''),
    length(p.data), p.extra, coalesce(p.version, 1), j.queue, j.lease, p.data, j.started_at
FROM treadle_jobs j LEFT JOIN treadle_payloads p ON p.job_id = j.id WHERE j.id = :id
"""


def claim_one(
    session: Session,
    job_id: int,
    epoch: int,
    crash_cap: int,
    attempt: int | None = None,
    failures: int | None = None,
) -> Claimed | None:
    """Take one scheduled or ready job, whatever is due before it; it is the caller's until settled or rescued.

    Args:
        session: an open transaction.
        job_id: which job.
        epoch: the registration it will belong to.
        crash_cap: of its task; 0 holds it when its attempt dies.
        attempt: number of this attempt; by default the next one.
        failures: how often it is to have failed before; by default as often as it has.

    Returns:
        None when there is no such job, or it is in another state.
    """
    values = {"id": job_id, "epoch": epoch, "cap": crash_cap, "attempt": attempt, "failures": failures}
    lease = burn(session, "lease", 1)[0]
    if not session.change(TAKE, {**values, "lease": lease, "now": session.clock.now()}):
        return None
    row = session.row(TAKEN, {"id": job_id})
    assert row is not None
    return Claimed(*row)
