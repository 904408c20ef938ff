"""The two ends of a write transaction of our own, with their fail points. Nobody else says BEGIN or COMMIT.

Whoever calls :func:`begin` reaches ``after_begin`` next, inside what rolls back; whoever calls :func:`commit` reaches
``after_commit`` next, where nothing may undo or deny what is stored. A test holds it.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from treadle.errors import OutcomeUnknown
from treadle.host.failpoints import reach
from treadle.store.sqlite import is_damage


def begin(connection: sqlite3.Connection, work: object, how: str = "") -> None:
    """Become the writer. *work* and *how* name the fail point."""
    reach("before_begin", work, how)
    connection.execute("BEGIN IMMEDIATE")


def commit(connection: sqlite3.Connection, path: Path, work: object, how: str = "") -> None:
    """Store the open transaction; *work* and *how* name the fail point.

    Raises:
        OutcomeUnknown: the disk failed. SQLite has rolled back, but what it had written by then may be found
            whole by the recovery after a crash.
        sqlite3.Error: anything else; nothing was stored.
    """
    try:
        reach("before_commit", work, how)
        connection.execute("COMMIT")
    except sqlite3.Error as error:
        if is_damage(error):
            raise OutcomeUnknown(
                f"The disk under {path} failed while this was committed ({error}): it may be stored or not. Look "
                "before you do it again; check the disk and restart this process."
            ) from error
        raise
