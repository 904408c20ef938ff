"""Noticing that another connection has committed, for the price of a few microseconds."""

from __future__ import annotations

import sqlite3
import threading

from treadle.host.process import on_fork
from treadle.store.connections import FileFacts
from treadle.store.sqlite import connect


class FileWatch:
    """Looks at SQLite's ``data_version``; used by one thread at a time.

    Args:
        facts: which file.
    """

    def __init__(self, facts: FileFacts) -> None:
        self._facts = facts
        self._connection: sqlite3.Connection | None = None
        self._seen = -1
        self._lock = threading.Lock()
        on_fork(
            self, before=self._before_fork, after_in_parent=self._after_fork_in_parent,
            after_in_child=self._after_fork_in_child,
        )  # fmt: skip

    def changed(self) -> bool:
        """True when anything was committed since the last call; True at the first call, and when in doubt."""
        with self._lock:
            try:
                found = self._look()
            except sqlite3.Error:
                self._drop()
                return True
            changed = found != self._seen
            self._seen = found
            return changed

    def close(self) -> None:
        """Close the connection; it opens again when needed."""
        with self._lock:
            self._drop()

    def _look(self) -> int:
        if self._connection is None:
            self._connection = connect(self._facts.path, read_only=True)
        (found,) = self._connection.execute("PRAGMA data_version").fetchone()
        return int(found)

    def _drop(self) -> None:
        self._seen = -1  # another connection counts from anew, and may well arrive at the same number
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _before_fork(self) -> None:
        self._lock.acquire()
        self._drop()

    def _after_fork_in_parent(self) -> None:
        self._lock.release()

    def _after_fork_in_child(self) -> None:
        self._lock = threading.Lock()
