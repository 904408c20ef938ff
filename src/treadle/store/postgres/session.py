"""Sessions on PostgreSQL: one clock reading of the server per transaction, and texts it can hold."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import psycopg

from treadle.clock import Clock
from treadle.store.dialect import PostgresDialect, Sql
from treadle.store.session import Parameters, Row, Session

# Whatever the database's default is: a statement that has waited for others must see what they did.
BEGIN: Final = (
    "BEGIN ISOLATION LEVEL READ COMMITTED; SELECT {settings}, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
)
# A snapshot for the whole read, as SQLite gives it.
BEGIN_READ: Final = (
    "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL statement_timeout = {milliseconds}; "
    "SET LOCAL plan_cache_mode = force_custom_plan; "
    "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
)
NO_TEXT: Final = "\N{REPLACEMENT CHARACTER}"
_ESCAPED_NUL: Final = re.compile(r"(?<!\\)((?:\\\\)*)\\u0000")


class Moment:
    """A clock that stands still at the moment a transaction began, by the server's clock."""

    __slots__ = ("_monotonic", "_now")

    def __init__(self, now: int, clock: Clock) -> None:
        self._now = now
        self._monotonic = clock.monotonic

    def now(self) -> int:
        """When the transaction began, microseconds."""
        return self._now

    def monotonic(self) -> float:
        """Seconds on the machine's monotonic clock."""
        return self._monotonic()


class PostgresSession(Session):
    """Runs statements inside one transaction of a psycopg connection.

    Attributes:
        wrote: something was written, so the commit matters.
        insists: the commit waits for the server's disk.
    """

    __slots__ = ("insists", "wrote")

    def __init__(
        self, connection: psycopg.Connection[Any], dialect: PostgresDialect, clock: Clock, cursor: Any = None
    ) -> None:
        self.connection = connection
        self.dialect = dialect
        self.clock = clock
        self.rings = b""
        self.settles = False
        self.wrote = False
        self.insists = False
        self._cursor = connection.cursor() if cursor is None else cursor

    def rows(self, sql: Sql | str, parameters: Parameters = ()) -> list[Row]:
        """Run *sql* and return every row."""
        found: list[Row] = self._run(sql, parameters).fetchall()
        return found

    def row(self, sql: Sql | str, parameters: Parameters = ()) -> Row | None:
        """Run *sql* and return its first row, None when there is none."""
        found: Row | None = self._run(sql, parameters).fetchone()
        return found

    def change(self, sql: Sql | str, parameters: Parameters = ()) -> int:
        """Run *sql* and return how many rows it changed."""
        return int(self._run(sql, parameters).rowcount)

    def insist(self) -> None:
        """Ask for the commit to wait for the disk. In a caller's own transaction that is for the caller to say."""
        self.insists = True

    def _run(self, sql: Sql | str, parameters: Parameters) -> Any:
        # Without parameters the server would keep its plan whatever plan_cache_mode says.
        prepare = None if parameters else False
        cursor = self._cursor.execute(self.dialect.text(sql), storable(parameters), prepare=prepare)
        self.wrote = self.wrote or not (cursor.statusmessage or "").startswith("SELECT")
        return cursor


def storable(parameters: Parameters) -> Parameters:
    """The same parameters without NUL in texts, which PostgreSQL cannot hold; arguments are bytes and keep theirs."""
    if isinstance(parameters, Mapping):
        if any(type(value) is str and ("\0" in value or "\\u0000" in value) for value in parameters.values()):
            return {name: without_nul(value) for name, value in parameters.items()}
    elif any(type(value) is str and "\0" in value for value in parameters):
        return [without_nul(value) for value in parameters]
    return parameters


def without_nul(value: object) -> object:
    """A value as PostgreSQL can hold it."""
    if type(value) is not str:
        return value
    return _ESCAPED_NUL.sub(rf"\1{NO_TEXT}", value.replace("\0", NO_TEXT))
