"""Deleting old history in short slices, so writers never wait long."""

from __future__ import annotations

from typing import Final

from treadle.model.job import JobState
from treadle.store.session import Session

OLD: Final = """
DELETE FROM treadle_jobs WHERE id IN (
    SELECT id FROM treadle_jobs INDEXED BY treadle_jobs_ended
    WHERE state = {state} AND state >= 7 AND finished_at < :before ORDER BY finished_at LIMIT :most)
"""
# The bound on finished_at makes an analysed file use both columns of the index instead of sorting.
NTH_NEWEST: Final = """
SELECT finished_at FROM treadle_jobs INDEXED BY treadle_jobs_ended
WHERE state = {state} AND state >= 7 AND finished_at >= 0 ORDER BY finished_at DESC LIMIT 1 OFFSET :skip
"""


def prune(session: Session, state: JobState, before: int, most: int) -> int:
    """Delete up to *most* jobs that ended in *state* before the moment *before* (microseconds).

    Their arguments, results, attempts and tags go with them in the same transaction.

    Returns:
        How many were deleted; fewer than *most* means none are left.
    """
    return session.change(OLD.format(state=_ended(state)), {"before": before, "most": most})


def cutoff_by_count(session: Session, state: JobState, keep: int) -> int | None:
    """The end time below which jobs of *state* exceed the newest *keep*; None when there are not so many.

    Jobs settled together ended at one moment: those that ended with the last one to keep are kept too.
    """
    found: int | None = session.value(NTH_NEWEST.format(state=_ended(state)), {"skip": max(0, keep - 1)})
    return found + 1 if found is not None and keep == 0 else found


def _ended(state: JobState) -> int:
    if not state.ended:
        raise ValueError(f"Only ended jobs are pruned, not {state} ones.")
    return state.code
