"""Reads about the whole file: what attempts came to, what is stuck, and what SQLite says about itself."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Final, NamedTuple

from treadle.model.job import ENDED, OUTCOMES, STATES, AttemptOutcome, JobState
from treadle.store import migrate
from treadle.store.dialect import Sql
from treadle.store.session import Session
from treadle.store.sqlite import connect, translate

OUTCOME_COUNTS: Final = "SELECT outcome, count(*) FROM treadle_attempts GROUP BY outcome"
TWICE: Final = """
SELECT count(*) FROM (SELECT 1 FROM treadle_attempts WHERE outcome = 1 GROUP BY job_id HAVING count(*) > 1) AS several
"""
CRASHES: Final = """
SELECT count(*), min(finished_at) FROM treadle_attempts
WHERE outcome = 8 AND worker = :worker AND finished_at >= :since
"""
HELD: Final = Sql(lambda d: f"""
SELECT queue, task, coalesce(reason, 'no reason'), count(*) FROM treadle_jobs {d.index("treadle_jobs_held")}
WHERE state = 6 GROUP BY queue, task, reason ORDER BY count(*) DESC LIMIT 20
""")
OLDEST_READY: Final = Sql(lambda d: f"""
SELECT queue, count(*), min(due_at) FROM treadle_jobs {d.index("treadle_jobs_ready")} WHERE state = 3 GROUP BY queue
""")
QUEUE_STATES: Final = "SELECT queue, state, count(*), avg(attempt) FROM treadle_jobs GROUP BY queue, state"
PARKED: Final = Sql(lambda d: f"""
SELECT task, count(*) FROM treadle_jobs {d.index("treadle_jobs_blocked")} WHERE state = 4 GROUP BY task
""")
OVERDUE: Final = Sql(lambda d: f"""
SELECT count(*), coalesce(min(due_at), 0) FROM treadle_jobs {d.index("treadle_jobs_scheduled")}
WHERE state = 2 AND due_at <= :before
""")
CANCELLING: Final = Sql(lambda d: f"""
SELECT coalesce(min(w.name), 'that is not registered'), count(*), min(j.started_at)
FROM treadle_jobs j {d.index("treadle_jobs_cancelling")} LEFT JOIN treadle_workers w ON w.epoch = j.epoch
WHERE j.state = 5 AND j.cancel_reason IS NOT NULL GROUP BY j.epoch
""")
# Each state by itself: the partial index is used only when the condition is written out.
ENDED_SINCE: Final = Sql(lambda d: " UNION ALL ".join(f"""
SELECT {state.code}, count(*) FROM treadle_jobs {d.index("treadle_jobs_ended")}
WHERE state = {state.code} AND state >= 7 AND finished_at >= :since
""" for state in sorted(ENDED)))
# The texts themselves are not summed: that would read all of them.
LOG_SIZE: Final = Sql(lambda d: f"""
SELECT count(*), (SELECT coalesce(avg(length(newest.text)), 0) FROM (
    SELECT text FROM treadle_logs ORDER BY seq DESC LIMIT 1000) AS newest)
FROM treadle_logs {d.index("treadle_logs_job")}
""")
LOG_ROW: Final = 60
"""Bytes a log line takes beside its text, its entry in the index included; measured: 53 to 73."""
QUICK_CHECK: Final = "PRAGMA quick_check(20)"


class Crashes(NamedTuple):
    """Attempts that died with one worker: how many, and when (microseconds) the first was taken back."""

    jobs: int
    first_at: int | None


class Held(NamedTuple):
    """Jobs that wait for a person, for one reason."""

    queue: str
    task: str
    reason: str
    jobs: int


class Ready(NamedTuple):
    """The ready jobs of one queue, and since when (microseconds) the oldest could run."""

    queue: str
    jobs: int
    oldest_at: int


class QueueState(NamedTuple):
    """How many jobs of a queue are in a state, and how many attempts they took on average."""

    queue: str
    state: JobState
    jobs: int
    average_attempts: float


class Overdue(NamedTuple):
    """Scheduled jobs whose time has come, and since when (microseconds) the first is due; 0 when there are none."""

    jobs: int
    oldest_at: int


class Cancelling(NamedTuple):
    """Running jobs of one worker that were asked to stop, and since when (microseconds) the oldest runs."""

    worker: str
    jobs: int
    oldest_at: int


class Space(NamedTuple):
    """Bytes of the database, and of its pages that hold nothing."""

    size: int
    unused: int


def outcomes(session: Session) -> dict[AttemptOutcome, int]:
    """How many ended attempts came to which outcome."""
    return {OUTCOMES[code]: number for code, number in session.rows(OUTCOME_COUNTS)}


def finished_twice(session: Session) -> int:
    """How many jobs have more than one succeeded attempt in their history; anything but 0 is a defect."""
    return int(session.value(TWICE))


def crashes_of(session: Session, worker: str, since: int) -> Crashes:
    """The attempts of *worker* that were taken back after the moment *since* (microseconds)."""
    return Crashes(*session.rows(CRASHES, {"worker": worker, "since": since})[0])


def held(session: Session) -> list[Held]:
    """Held jobs by reason, the most frequent first, at most 20 reasons."""
    return [Held(*row) for row in session.rows(HELD)]


def ready(session: Session) -> list[Ready]:
    """Ready jobs by queue."""
    return [Ready(*row) for row in session.rows(OLDEST_READY)]


def queue_states(session: Session) -> list[QueueState]:
    """Counts and average attempts by queue and state; reads every job."""
    rows = session.rows(QUEUE_STATES)
    return [QueueState(queue, STATES[state], jobs, float(average)) for queue, state, jobs, average in rows]


def parked(session: Session) -> list[tuple[str, int]]:
    """Tasks with blocked jobs, and how many."""
    return [(task, jobs) for task, jobs in session.rows(PARKED)]


def overdue(session: Session, before: int) -> Overdue:
    """Scheduled jobs that were due before a moment (microseconds): nobody has promoted them."""
    return Overdue(*session.rows(OVERDUE, {"before": before})[0])


def cancelling(session: Session) -> list[Cancelling]:
    """Running jobs that were asked to stop, by worker."""
    return [Cancelling(*row) for row in session.rows(CANCELLING)]


def ended_since(session: Session, since: int) -> dict[JobState, int]:
    """How many jobs ended in which state since a moment (microseconds)."""
    return {STATES[code]: number for code, number in session.rows(ENDED_SINCE, {"since": since})}


def log_size(session: Session) -> tuple[int, int]:
    """How many lines jobs have logged, and about how many bytes they take, judged by the newest thousand."""
    lines, average = session.rows(LOG_SIZE)[0]
    return lines, round(lines * (float(average) + LOG_ROW))


def space(session: Session) -> Space:
    """The size of the database as this read sees it, and how much of it is unused."""
    page, pages, unused = (
        int(session.value(f"PRAGMA {name}")) for name in ("page_size", "page_count", "freelist_count")
    )
    return Space(page * pages, page * unused)


def damage(session: Session) -> list[str]:
    """What SQLite's quick check found, empty when the file is sound. Reads the whole file."""
    found = [str(line) for (line,) in session.rows(QUICK_CHECK)]
    return [] if found == ["ok"] else found


def library_version() -> str:
    """The version of the SQLite library that this process uses."""
    return sqlite3.sqlite_version


def bytes_of(path: Path) -> int:
    """Bytes of the database *path* and of its write-ahead log; neither is opened."""
    return path.stat().st_size + wal_bytes(path)


def wal_bytes(path: Path) -> int:
    """The size of a database's write-ahead log, 0 when there is none."""
    wal = Path(f"{path}-wal")
    return wal.stat().st_size if wal.exists() else 0


def file_schema(path: Path) -> int:
    """The schema version of the file *path*, 0 when it is missing or has no tables of Treadle's; opens no store.

    Raises:
        StoreError: it is not a database, or it cannot be read.
    """
    if not path.exists():
        return 0
    try:
        connection = connect(path.resolve(), read_only=True)
        try:
            return migrate.version(connection)
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise translate(error, path) from error
