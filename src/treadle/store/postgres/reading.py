"""Reads on PostgreSQL: one snapshot each, bounded in time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, TypeVar

import psycopg

from treadle.errors import StoreClosed
from treadle.store.dialect import PostgresDialect
from treadle.store.postgres.clock import ServerClock
from treadle.store.postgres.connections import Connection, Connections
from treadle.store.postgres.errors import is_lost, translate
from treadle.store.postgres.session import BEGIN_READ, PostgresSession
from treadle.store.postgres.transactions import last_row, undo
from treadle.store.session import Session

T = TypeVar("T")
THREADS: Final = 2
TRIES: Final = 10
"""How often a read is begun again after its connection was lost; each time on a new one."""


class Reads:
    """Runs reads on the calling thread or on a small pool.

    Args:
        connections: where connections come from.
        dialect: the SQL fragments.
        clock: the server's.
        place: how messages name the database.
        patience: seconds a read waits for a connection.
    """

    def __init__(
        self, connections: Connections, dialect: PostgresDialect, clock: ServerClock, place: str, patience: float
    ) -> None:
        self._connections = connections
        self._dialect = dialect
        self._clock = clock
        self._place = place
        self._patience = patience
        self.start_anew()

    def start_anew(self) -> None:
        """No threads, as in a forked child."""
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._closed = False

    def run(self, operation: Callable[[Session], T], deadline: float) -> T:
        """Run *operation* on this thread and return its result.

        Raises:
            StoreClosed: the store is closed.
            StoreUnreachable: there was no connection in time.
            StoreBusy: every connection was in use, or a statement took longer than *deadline* seconds.
        """
        until = self._clock.monotonic() + self._patience
        for _ in range(TRIES):
            try:
                with self._connections.lent(until) as connection:
                    return self._once(connection, operation, deadline)
            except psycopg.Error as error:
                if not is_lost(error):
                    raise translate(error, self._place) from error
                lost = error
            self._connections.drop_idle()
        raise translate(lost, self._place) from lost

    def submit(self, operation: Callable[[Session], T], deadline: float) -> Future[T]:
        """Run *operation* on the pool; for callers that must not block."""
        with self._lock:
            if self._closed:
                raise StoreClosed(f"The store {self._place} is closed; open a new Treadle.")
            if self._pool is None:
                self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="treadle-read")
            return self._pool.submit(self.run, operation, deadline)

    def close(self) -> None:
        """End the pool; safe to call twice."""
        with self._lock:
            self._closed = True
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=True)

    def _once(self, connection: Connection, operation: Callable[[Session], T], deadline: float) -> T:
        asked = self._clock.monotonic()
        try:
            (now,) = last_row(connection, BEGIN_READ.format(milliseconds=round(deadline * 1000)))
            result = operation(PostgresSession(connection, self._dialect, self._clock.reading(now, asked)))
            connection.execute("COMMIT")
        except BaseException:
            undo(connection)
            raise
        return result
