"""Deleting old history in short slices, so writers never wait long."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from treadle.model.job import ENDED, JobState
from treadle.store.dialect import Dialect, Sql
from treadle.store.session import Session


def _by_state(make: Callable[[Dialect, int], str]) -> dict[JobState, Sql]:
    """A statement for each ended state, its code written out: a bound one could not use the partial index."""
    return {state: Sql(lambda d, code=state.code: make(d, code)) for state in sorted(ENDED)}  # type: ignore[misc]


OLD: Final = _by_state(lambda d, state: f"""
DELETE FROM treadle_jobs WHERE id {d.among}
    SELECT id FROM treadle_jobs {d.index("treadle_jobs_ended")}
    WHERE state = {state} AND state >= 7 AND (finished_at, id) < (:before, :below)
    ORDER BY finished_at, id LIMIT :most {d.taken}
""")
ANY: Final = _by_state(lambda d, state: f"""
SELECT 1 FROM treadle_jobs {d.index("treadle_jobs_ended")}
WHERE state = {state} AND state >= 7 AND (finished_at, id) < (:before, :below) LIMIT 1
""")
COUNT_OLD: Final = _by_state(lambda d, state: f"""
SELECT count(*) FROM treadle_jobs {d.index("treadle_jobs_ended")}
WHERE state = {state} AND state >= 7 AND finished_at < :before
""")
# The bound on finished_at makes an analysed file use both columns of the index instead of sorting.
NTH_NEWEST: Final = _by_state(lambda d, state: f"""
SELECT finished_at, id FROM treadle_jobs {d.index("treadle_jobs_ended")}
WHERE state = {state} AND state >= 7 AND finished_at >= 0 ORDER BY finished_at DESC, id DESC LIMIT 1 OFFSET :skip
""")


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
    return session.change(_for(OLD, state), {"before": before, "below": below, "most": most})


def has_old(session: Session, state: JobState, before: int, below: int = 0) -> bool:
    """True when :func:`prune` would find something; a read, so that idle costs nothing."""
    return bool(session.rows(_for(ANY, state), {"before": before, "below": below}))


def count_old(session: Session, state: JobState, before: int) -> int:
    """How many jobs :func:`prune` would delete, in all its slices together."""
    return int(session.value(_for(COUNT_OLD, state), {"before": before}))


def cutoff_by_count(session: Session, state: JobState, keep: int) -> tuple[int, int] | None:
    """Where jobs of *state* begin to exceed the newest *keep*: *before* and *below* of :func:`prune`.

    Jobs settled together ended at one moment; of them those with the larger ids count as newer.

    Returns:
        A moment and an id, None when there are not so many jobs.
    """
    row = session.row(_for(NTH_NEWEST, state), {"skip": max(0, keep - 1)})
    if row is None:
        return None
    finished_at, number = row
    return finished_at, number + (keep == 0)


def _for(statements: Mapping[JobState, Sql], state: JobState) -> Sql:
    if not state.ended:
        raise ValueError(f"Only ended jobs are pruned, not {state} ones.")
    return statements[state]
