"""A SQLite connection that one thread at a time is inside of, whatever a handler does with it.

Two threads inside one connection of Python's ``sqlite3`` are not safe as soon as it calls back into Python: the one in
SQLite holds its mutex and waits for the interpreter, the other holds the interpreter and waits for the mutex. And a
connection that is closed under a running statement takes the process with it. A deadline needs a second thread.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final, TypeVar

from treadle.store.sqlite import OwnConnection

C = TypeVar("C", bound=sqlite3.Cursor)
Guard = Callable[[], AbstractContextManager[object]]
FREE: Final[Guard] = nullcontext


class GuardedCursor(sqlite3.Cursor):
    """A cursor whose calls wait for each other, all over its connection."""

    connection: GuardedConnection

    def execute(self, sql: str, parameters: Any = (), /) -> GuardedCursor:
        """Run one statement."""
        with self.connection.guard():
            super().execute(sql, parameters)
        return self

    def executemany(self, sql: str, rows: Iterable[Any], /) -> GuardedCursor:
        """Run one statement for each row, and look before each whether it may go on."""
        with self.connection.guard():
            super().executemany(sql, self._while_allowed(rows))
        return self

    def executescript(self, script: str, /) -> GuardedCursor:
        """Run several statements."""
        with self.connection.guard():
            super().executescript(script)
        return self

    def __next__(self) -> Any:
        with self.connection.guard():
            return super().__next__()

    def fetchone(self) -> Any:
        """Fetch the next row."""
        with self.connection.guard():
            return super().fetchone()

    def fetchmany(self, size: int | None = None) -> list[Any]:
        """Fetch some rows."""
        with self.connection.guard():
            return super().fetchmany(self.arraysize if size is None else size)

    def fetchall(self) -> list[Any]:
        """Fetch the rest of the rows."""
        with self.connection.guard():
            return super().fetchall()

    def _while_allowed(self, rows: Iterable[Any]) -> Iterator[Any]:
        for row in rows:
            with self.connection.guard():
                yield row


class GuardedConnection(OwnConnection):
    """A connection whose cursors are of that kind.

    Attributes:
        guard: entered around every call; raises where none is allowed any more.
    """

    guard: Guard = staticmethod(FREE)

    def cursor(self, factory: Any = None) -> Any:
        """A guarded cursor; *factory* is not asked for."""
        return super().cursor(GuardedCursor)

    # sqlite3's own shortcuts do not call the methods of the cursor that they make.

    def execute(self, sql: str, parameters: Any = (), /) -> GuardedCursor:
        """Run one statement."""
        return GuardedCursor(self).execute(sql, parameters)

    def executemany(self, sql: str, rows: Iterable[Any], /) -> GuardedCursor:
        """Run one statement for each row."""
        return GuardedCursor(self).executemany(sql, rows)

    def executescript(self, script: str, /) -> GuardedCursor:
        """Run several statements."""
        return GuardedCursor(self).executescript(script)

    def commit(self) -> None:
        """Commit, where that is not refused."""
        with self.guard():
            super().commit()

    def rollback(self) -> None:
        """Roll back, where that is not refused."""
        with self.guard():
            super().rollback()
