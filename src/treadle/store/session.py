"""A session is one open transaction, as operations see it."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

from treadle.clock import Clock
from treadle.store.dialect import Dialect, Sql

Row = tuple[Any, ...]
Parameters = Mapping[str, object] | Sequence[object]


class Session:
    """Runs statements on one connection inside one transaction.

    Args:
        connection: an open connection with a transaction already begun.
        dialect: the SQL fragments of this database.
        clock: where "now" comes from.
    """

    __slots__ = ("_cursor", "clock", "connection", "dialect", "rings", "settles")

    def __init__(self, connection: sqlite3.Connection, dialect: Dialect, clock: Clock) -> None:
        self.connection: Any = connection
        self.dialect = dialect
        self.clock = clock
        self.rings = b""
        self.settles = False
        self._cursor: Any = connection.cursor()
        # A caller's connection may make rows of its own kind; ours are plain tuples.
        self._cursor.row_factory = None

    def rows(self, sql: Sql | str, parameters: Parameters = ()) -> list[Row]:
        """Run *sql* and return every row; never leaves a cursor open."""
        found: list[Row] = self._cursor.execute(self.dialect.text(sql), parameters).fetchall()
        return found

    def row(self, sql: Sql | str, parameters: Parameters = ()) -> Row | None:
        """Run *sql* and return its first row, None when there is none."""
        found = self._cursor.execute(self.dialect.text(sql), parameters).fetchall()
        return found[0] if found else None

    def value(self, sql: Sql | str, parameters: Parameters = ()) -> Any:
        """Run *sql* and return the first column of its first row, None when there is none."""
        found = self.row(sql, parameters)
        return found[0] if found else None

    def change(self, sql: Sql | str, parameters: Parameters = ()) -> int:
        """Run *sql* and return how many rows it changed."""
        return int(self._cursor.execute(self.dialect.text(sql), parameters).rowcount)

    def ring(self, token: bytes = b"r") -> None:
        """Ask for the bell to ring once this transaction has committed.

        Args:
            token: what is new: "r" work, "c" running jobs to cancel, "o" orders for workers.
        """
        if token not in self.rings:
            self.rings += token

    def settle(self) -> None:
        """Ask for everybody who waits for a job's end to be told once this transaction has committed."""
        self.settles = True

    def insist(self) -> None:
        """Ask for the commit to wait for the disk, whatever the durability; a file's own numbers need no such thing."""
