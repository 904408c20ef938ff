"""Noticing that another connection has committed, for the price of a few microseconds."""

from __future__ import annotations

import sqlite3

from treadle.host.process import on_fork
from treadle.store.connections import FileFacts
from treadle.store.sqlite import connect


class Watch:
    """Looks at SQLite's ``data_version``; used by one thread at a time.

    Args:
        facts: which file.
    """

    def __init__(self, facts: FileFacts) -> None:
        self._facts = facts
        self._connection: sqlite3.Connection | None = None
        self._seen = -1
        on_fork(self, before=self.close)

    def changed(self) -> bool:
        """True when anything was committed since the last call; True at the first call, and when in doubt."""
        try:
            if self._connection is None:
                self._connection = connect(self._facts.path, read_only=True)
            (found,) = self._connection.execute("PRAGMA data_version").fetchone()
        except sqlite3.Error:
            self.close()
            return True
        changed = bool(found != self._seen)
        self._seen = found
        return changed

    def close(self) -> None:
        """Close the connection; it opens again when needed."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
