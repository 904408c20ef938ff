"""Big tables, built with set-based SQL through the store's own connection."""

from __future__ import annotations

from functools import partial

from benchmarks.app import ENCODED, make
from treadle import Treadle
from treadle.store.ops.sequences import burn
from treadle.store.session import Session

SLICE = 50_000
DAY = 86_400_000_000
WAITING, SCHEDULED, READY, SUCCEEDED = 1, 2, 3, 7

JOBS = """
WITH RECURSIVE n (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < :count)
INSERT INTO treadle_jobs (id, queue, task, state, due_at, enqueued_at, attempt, started_at, finished_at)
SELECT :first + i, 'default', 'noop', :state, :due_at + i * :step, :now, :state = 7,
    CASE WHEN :state = 7 THEN :due_at + i END, CASE WHEN :state = 7 THEN :due_at + i END FROM n
"""
PAYLOADS = """
INSERT INTO treadle_payloads (job_id, codec, data)
SELECT id, 'json', :data FROM treadle_jobs WHERE id >= :first AND id < :first + :count
"""
ATTEMPTS = """
INSERT INTO treadle_attempts (job_id, lease, attempt, worker, outcome, started_at, finished_at)
SELECT id, 0, 1, 'built', 1, started_at, finished_at FROM treadle_jobs WHERE id >= :first AND id < :first + :count
"""


def build(path: str, *, finished: int = 0, scheduled: int = 0, waiting: int = 0, due: int = 0, old: int = 0) -> None:
    """Fill *path*: ended jobs with their history, jobs due in a year, jobs that wait for others, jobs that were all
    due at one instant a second ago, and ended jobs that retention lets go of."""
    with make(path, "normal").app as app:
        now = app.store.clock.now()
        add(app, SUCCEEDED, old, now - 30 * DAY, 1)
        add(app, SUCCEEDED, finished, now - DAY, 1)
        add(app, SCHEDULED, scheduled, now + 365 * DAY, 1)
        add(app, WAITING, waiting, now, 1)
        add(app, SCHEDULED, due, now - 1_000_000, 0)


def add(app: Treadle, state: int, count: int, due_at: int, step: int) -> None:
    """Add *count* jobs, one transaction per slice."""
    for start in range(0, count, SLICE):
        most = min(SLICE, count - start)
        app.store.run(partial(_add, state=state, count=most, due_at=due_at + start * step, step=step))


def _add(session: Session, state: int, count: int, due_at: int, step: int) -> None:
    first = burn(session, "job", count)[0]
    span = {"first": first, "count": count}
    session.change(JOBS, {**span, "state": state, "due_at": due_at, "step": step, "now": session.clock.now()})
    session.change(PAYLOADS, {**span, "data": ENCODED})
    if state == SUCCEEDED:
        session.change(ATTEMPTS, span)
