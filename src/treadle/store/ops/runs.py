"""What a benchmark needs of the history: when each job was stored, begun and done."""

from __future__ import annotations

from typing import Final, NamedTuple

from treadle.store.session import Session

PAGE_MOST: Final = 5000

OF_TASK: Final = """
SELECT a.seq, a.job_id, j.enqueued_at, a.started_at, a.finished_at
FROM treadle_attempts a CROSS JOIN treadle_jobs j
WHERE j.id = a.job_id AND a.seq > :after AND j.task = :task ORDER BY a.seq LIMIT :most
"""
CLAIMS: Final = "SELECT coalesce(sum(attempt), 0) FROM treadle_jobs WHERE task = :task"


class Run(NamedTuple):
    """One begun attempt; times are microseconds. *seq* is its place in commit order."""

    seq: int
    job_id: int
    enqueued_at: int
    started_at: int
    finished_at: int


def of_task(session: Session, task: str, after: int) -> list[Run]:
    """Attempts of a task's jobs after the place *after*, in commit order; at most 5000."""
    return [Run(*row) for row in session.rows(OF_TASK, {"task": task, "after": after, "most": PAGE_MOST})]


def claims(session: Session, task: str) -> int:
    """How often jobs of a task were claimed, those claims included that were given back before anything began."""
    return int(session.value(CLAIMS, {"task": task}))
