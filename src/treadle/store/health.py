"""Reads about the whole file: what attempts came to, what is stuck, and what SQLite says about itself."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Final, NamedTuple

from treadle.model.job import OUTCOMES, AttemptOutcome
from treadle.store import migrate
from treadle.store.dialect import Sql
from treadle.store.session import Session
from treadle.store.sqlite import connect, translate

OUTCOME_COUNTS: Final = "SELECT outcome, count(*) FROM treadle_attempts GROUP BY outcome"
TWICE: Final = """
SELECT count(*) FROM (SELECT 1 FROM treadle_attempts WHERE outcome = 1 GROUP BY job_id HAVING count(*) > 1)
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


def damage(session: Session) -> list[str]:
    """What SQLite's quick check found, empty when the file is sound. Reads the whole file."""
    found = [str(line) for (line,) in session.rows(QUICK_CHECK)]
    return [] if found == ["ok"] else found


def library_version() -> str:
    """The version of the SQLite library that this process uses."""
    return sqlite3.sqlite_version


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
