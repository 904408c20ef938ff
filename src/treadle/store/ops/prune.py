"""Deleting old history in short slices, so writers never wait long."""

from __future__ import annotations

from typing import Final

from treadle.model.job import JobState
from treadle.store.session import Session

OLD: Final = """
DELETE FROM treadle_jobs WHERE id IN (
    SELECT id FROM treadle_jobs INDEXED BY treadle_jobs_ended
    WHERE state = {state} AND state >= 7 AND (finished_at, id) < (:before, :below)
    ORDER BY finished_at, id LIMIT :most)
"""
ANY: Final = """
SELECT 1 FROM treadle_jobs INDEXED BY treadle_jobs_ended
WHERE state = {state} AND state >= 7 AND (finished_at, id) < (:before, :below) LIMIT 1
"""
# The bound on finished_at makes an analysed file use both columns of the index instead of sorting.
NTH_NEWEST: Final = """
SELECT finished_at, id FROM treadle_jobs INDEXED BY treadle_jobs_ended
WHERE state = {state} AND state >= 7 AND finished_at >= 0 ORDER BY finished_at DESC, id DESC LIMIT 1 OFFSET :skip
"""


def prune(session: Session, state: JobState, before: int, most: int, below: int = 0) -> int:
    """Delete up to *most* jobs that ended in *state* before the moment *before*, oldest first.

    Their arguments, results, attempts and tags go with them in the same transaction.

    Args:
        session: an open transaction.
        state: an ended state.
        before: a moment, microseconds.
        most: length of the slice.
        below: of the jobs that ended at *before* itself, those with smaller ids go too.

    Returns:
        How many were deleted; fewer than *most* means none are left.
    """
    return session.change(OLD.format(state=_ended(state)), {"before": before, "below": below, "most": most})


def has_old(session: Session, state: JobState, before: int, below: int = 0) -> bool:
    """True when :func:`prune` would find something; a read, so that idle costs nothing."""
    return bool(session.rows(ANY.format(state=_ended(state)), {"before": before, "below": below}))


def cutoff_by_count(session: Session, state: JobState, keep: int) -> tuple[int, int] | None:
    """Where jobs of *state* begin to exceed the newest *keep*: *before* and *below* of :func:`prune`.

    Jobs settled together ended at one moment; of them those with the larger ids count as newer.

    Returns:
        A moment and an id, None when there are not so many jobs.
    """
    row = session.row(NTH_NEWEST.format(state=_ended(state)), {"skip": max(0, keep - 1)})
    if row is None:
        return None
    finished_at, number = row
    return finished_at, number + (keep == 0)


def _ended(state: JobState) -> int:
    if not state.ended:
        raise ValueError(f"Only ended jobs are pruned, not {state} ones.")
    return state.code
