"""Enqueueing inside the caller's own transaction on PostgreSQL, by psycopg's connections of both kinds.

The caller's settings are left alone: row factory, cursor factory, prepared statements, search path. Only statements of
the operation are run, and one that notifies; their commit takes the notification along.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, TypeVar
from weakref import WeakSet

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from treadle.errors import ConfigurationError, NoTransaction, StoreUnusable
from treadle.host.failpoints import reach
from treadle.store.dialect import PostgresDialect
from treadle.store.given import POSTGRES, Given, refused
from treadle.store.ops import meta
from treadle.store.postgres.clock import ServerClock
from treadle.store.postgres.errors import translate
from treadle.store.postgres.listener import NOTIFY, Listener
from treadle.store.postgres.session import PostgresSession
from treadle.store.session import Session

T = TypeVar("T")
LOOK: Final = (
    "SELECT to_regclass(%s) IS NOT NULL, current_database(), (extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
)
"""Asks before it reads: a table that is not there would end the caller's transaction."""


class Callers:
    """Runs operations on connections of others.

    Args:
        dialect: the SQL fragments.
        clock: the server's clock.
        place: how messages name the database.
        store_id: which database it has to be.
        channel: where the bell is notified.
    """

    def __init__(
        self, dialect: PostgresDialect, clock: ServerClock, place: str, store_id: str, channel: str
    ) -> None:
        self._dialect = dialect
        self._clock = clock
        self._place = place
        self._store_id = store_id
        self._channel = channel
        self._meta = dialect.text("treadle_meta")
        self._known: WeakSet[Any] = WeakSet()

    def run_in(self, given: Given, operation: Callable[[Session], T]) -> T:
        """Run *operation* on the caller's connection, inside the transaction they opened.

        Nothing is committed or rolled back. Isolation, durability and the patience with locks are that connection's.

        Raises:
            ConfigurationError: not a psycopg connection, or a closed one.
            NoTransaction: it is in autocommit, and no transaction is open on it.
            StoreUnusable: it is on another database, or this schema is not there.
            StoreError: the database refused a statement. PostgreSQL has ended the transaction: roll it back.
        """
        connection = given.connection
        if not isinstance(connection, psycopg.Connection):
            raise refused(connection, self._place, POSTGRES)
        self._check(connection)
        return self._run(connection, psycopg.Cursor(connection, row_factory=tuple_row), operation)

    async def arun_in(self, given: Given, operation: Callable[[Session], T]) -> T:
        """The same for psycopg's async connections.

        The operation runs on a thread, its statements on the caller's loop, as any other of that connection.
        """
        connection = given.connection
        if isinstance(connection, psycopg.Connection):
            return self.run_in(given, operation)
        if not isinstance(connection, psycopg.AsyncConnection):
            raise refused(connection, self._place, POSTGRES, awaited=True)
        self._check(connection)
        bridge = _Bridge(connection, asyncio.get_running_loop())
        running = asyncio.ensure_future(asyncio.to_thread(self._run, connection, bridge, operation))
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            # What it still does would come between the caller's next statements.
            await asyncio.wait([running])
            raise

    def _run(self, connection: Any, cursor: Any, operation: Callable[[Session], T]) -> T:
        try:
            reach("before_own", operation)
            session = self._session(connection, cursor)
            result = operation(session)
            if session.rings or session.settles:
                payload = Listener.payload_for_all(session.rings, settled=session.settles)
                cursor.execute(NOTIFY, (self._channel, payload))
            reach("after_own", operation)
        except psycopg.Error as error:
            raise translate(error, self._place) from error
        return result

    def _check(self, connection: Any) -> None:
        if connection.closed:
            raise ConfigurationError(f"The connection given is closed; pass one on {self._place} that is open.")
        if connection.autocommit and connection.info.transaction_status == TransactionStatus.IDLE:
            raise NoTransaction(
                "The connection given is in autocommit and has no open transaction, so the job could not share its "
                "fate. Open one (with connection.transaction(): ...), or enqueue without connection=."
            )

    def _session(self, connection: Any, cursor: Any) -> PostgresSession:
        asked = self._clock.monotonic()
        there, database, now = cursor.execute(LOOK, (self._meta,)).fetchone()
        session = PostgresSession(connection, self._dialect, self._clock.reading(now, asked), cursor)
        if connection not in self._known:
            if not there or meta.store_id(session) != self._store_id:
                raise StoreUnusable(
                    f"The connection given is on the database {database!r}, which does not hold the tables of "
                    f"{self._place}, where this app stores its jobs."
                )
            self._known.add(connection)
        return session


class _Bridge:
    """A cursor for a thread, whose statements run on the loop of an async connection."""

    def __init__(self, connection: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._cursor = psycopg.AsyncCursor(connection, row_factory=tuple_row)
        self._loop = loop
        self._rows: list[Any] = []
        self.rowcount = -1
        self.statusmessage: str | None = None

    def execute(self, statement: Any, parameters: Any = None, *, prepare: bool | None = None) -> _Bridge:
        """Run one statement and fetch what it returns."""
        asyncio.run_coroutine_threadsafe(self._execute(statement, parameters, prepare), self._loop).result()
        return self

    def fetchall(self) -> list[Any]:
        """All rows."""
        return self._rows

    def fetchone(self) -> Any:
        """The first row."""
        return self._rows[0] if self._rows else None

    async def _execute(self, statement: Any, parameters: Any, prepare: bool | None) -> None:  # noqa: FBT001 - passed on
        await self._cursor.execute(statement, parameters, prepare=prepare)
        self._rows = await self._cursor.fetchall() if self._cursor.description else []
        self.rowcount, self.statusmessage = self._cursor.rowcount, self._cursor.statusmessage
