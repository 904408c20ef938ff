"""Facts about the file itself: backup marks, declared queues."""

from __future__ import annotations

from typing import Final

from treadle.store.dialect import Sql
from treadle.store.ops.rescue import rescue
from treadle.store.session import Session

GET: Final = "SELECT value FROM treadle_meta WHERE name = ?"
SET: Final = """
INSERT INTO treadle_meta (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value
"""
UNSET: Final = "DELETE FROM treadle_meta WHERE name = ?"
EPOCHS: Final = Sql(lambda d: f"""
SELECT DISTINCT epoch FROM treadle_jobs {d.index("treadle_jobs_running")} WHERE state = 5
""")
FORGET_WORKERS: Final = "DELETE FROM treadle_workers"
DECLARE: Final = """
INSERT INTO treadle_queues (name, max_length, when_full) VALUES (:name, :max_length, :when_full)
ON CONFLICT (name) DO UPDATE SET max_length = :max_length, when_full = :when_full
"""
BACKUP_MARK: Final = "backup_made_at"
COMPACTED: Final = "compacted_at"


def backup_mark(session: Session) -> str | None:
    """When this file was made as a backup copy and not adopted since; None for an ordinary file."""
    mark: str | None = session.value(GET, (BACKUP_MARK,))
    return mark


def store_id(session: Session) -> str:
    """The database's own stable name, made with its tables."""
    return str(session.value(GET, ("store_id",)))


def mark_backup(session: Session) -> None:
    """Mark this file as a copy: workers refuse it until it is adopted."""
    session.change(SET, (BACKUP_MARK, str(session.clock.now())))


def mark_compacted(session: Session) -> None:
    """Note when the file was compacted last."""
    session.change(SET, (COMPACTED, str(session.clock.now())))


def adopt(session: Session) -> int:
    """Make a backup copy the file to work on: its workers are gone, what they ran is ready again.

    Nobody is charged with a crash: the copy interrupted those attempts, not they themselves.

    Returns:
        How many jobs were taken back.
    """
    taken = sum(
        rescue(session, epoch, f"epoch {epoch}", "the file is a copy", begun=()) for (epoch,) in session.rows(EPOCHS)
    )
    session.change(FORGET_WORKERS)
    session.change(UNSET, (BACKUP_MARK,))
    return taken


def declare_queue(session: Session, name: str, max_length: int | None, when_full: str) -> None:
    """Store a queue's cap and what enqueue does when it is reached."""
    session.change(DECLARE, {"name": name, "max_length": max_length, "when_full": when_full})
