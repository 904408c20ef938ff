"""What a person may do to a job: run it again, or call it off. The move must be legal, and is made in one statement."""

from __future__ import annotations

from typing import Final

from treadle.clock import to_datetime
from treadle.errors import JobNotFound, JobStateError
from treadle.model.job import STATES, JobState
from treadle.store.session import Session

# held 6, failed 8, cancelled 9
RETRY: Final = """
UPDATE treadle_jobs SET state = 3, failures = 0, crashes = 0, reason = NULL, due_at = :now, finished_at = NULL
WHERE id = :id AND state IN (6, 8, 9)
"""
FORGET_IMMEDIATES: Final = "DELETE FROM treadle_immediates WHERE job_id = :id"
# waiting 1, scheduled 2, ready 3, blocked 4, held 6
CANCEL: Final = """
UPDATE treadle_jobs SET state = 9, reason = :reason, finished_at = :now WHERE id = :id AND state IN (1, 2, 3, 4, 6)
"""
STATE: Final = "SELECT state, started_at FROM treadle_jobs WHERE id = :id"


def retry(session: Session, job_id: int) -> None:
    """Make a failed, held or cancelled job ready again with its whole budget; its history stays.

    Raises:
        JobNotFound: there is no such job.
        JobStateError: it is in no state from which it can be retried.
    """
    if not session.change(RETRY, {"id": job_id, "now": session.clock.now()}):
        raise _refusal(session, job_id, "retried; only failed, held and cancelled jobs can be")
    session.change(FORGET_IMMEDIATES, {"id": job_id})
    session.ring()


def cancel(session: Session, job_id: int, reason: str) -> None:
    """Call off a job that has not begun; *reason* is kept.

    Raises:
        JobNotFound: there is no such job.
        JobStateError: it runs or has ended.
    """
    if not session.change(CANCEL, {"id": job_id, "reason": reason, "now": session.clock.now()}):
        raise _refusal(session, job_id, "cancelled; only jobs that have not begun can be")
    session.settle()


def _refusal(session: Session, job_id: int, what: str) -> JobNotFound | JobStateError:
    row = session.row(STATE, {"id": job_id})
    if row is None:
        return JobNotFound(f"There is no job {job_id}; it was never stored, or it was pruned.")
    state = STATES[row[0]]
    since = f" since {to_datetime(row[1]):%Y-%m-%d %H:%M:%S} UTC" if state is JobState.RUNNING else ""
    return JobStateError(f"Job {job_id} is {state}{since} and cannot be {what}.")
