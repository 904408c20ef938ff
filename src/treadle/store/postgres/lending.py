"""Lending a write transaction to a handler on PostgreSQL: one of the store's connections, for a moment."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any, TypeVar

import psycopg

from treadle.clock import Clock
from treadle.errors import StoreBusy, StoreUnreachable
from treadle.host.failpoints import reach
from treadle.store.lending import WORK, Lent
from treadle.store.postgres.connections import Connection, Connections
from treadle.store.postgres.errors import translate, unreachable
from treadle.store.postgres.session import PostgresSession
from treadle.store.postgres.transactions import Transactions, undo
from treadle.store.session import Session

T = TypeVar("T")
CANCEL_PATIENCE = 1.0
log = logging.getLogger("treadle.store")


class ServerLent(Lent):
    """A transaction on a connection that goes back afterwards, or is closed when it was open too long.

    Args:
        session: in the transaction.
        transactions: commits it.
        place: how messages name the database.
        held: gives the connection back.
        committed: told the session that has committed.
        holder: where it was begun.
        deadline: seconds.
    """

    connection: Connection

    def __init__(
        self, session: PostgresSession, transactions: Transactions, place: str, held: ExitStack,
        committed: Callable[[PostgresSession, Connection], None], holder: str, deadline: float,
    ) -> None:  # fmt: skip
        super().__init__(session.connection, place, holder, deadline)
        self._session = session
        self._transactions = transactions
        self._held = held
        self._committed = committed
        self.connection.lent = True

    def _store(self, operation: Callable[[Session], T]) -> T:
        try:
            result = operation(self._session)
            stored = self._transactions.finish(self._session, WORK)
        except psycopg.Error as error:
            raise translate(error, self.place) from error
        if not stored:
            raise unreachable(self.place, None)
        try:
            reach("after_commit", WORK)
            self._committed(self._session, self.connection)
        except Exception:
            log.exception("Something failed on %s after a commit; what was stored stays stored.", self.place)
        return result

    def _interrupt(self) -> None:
        with suppress(psycopg.Error):
            self.connection.cancel_safe(timeout=CANCEL_PATIENCE)
        with self.connection.lock:
            self.connection.close()  # the server rolls back

    def _close(self) -> None:
        with self._held:
            undo(self.connection)
            self.connection.lent = False


class Lending:
    """Lends transactions, and only so many at a time: the lanes need connections too.

    Args:
        connections: where connections come from.
        transactions: begins and commits.
        place: how messages name the database.
        clock: for deadlines.
        most: how many at once.
        lock_timeout: seconds to wait for one.
        committed: told each session that has committed, with its connection idle again.
    """

    def __init__(
        self, connections: Connections, transactions: Transactions, place: str, clock: Clock, most: int,
        lock_timeout: float, committed: Callable[[PostgresSession, Connection], None],
    ) -> None:  # fmt: skip
        self._connections = connections
        self._transactions = transactions
        self._place = place
        self._clock = clock
        self._most = most
        self._lock_timeout = lock_timeout
        self._committed = committed
        self.start_anew()

    def start_anew(self) -> None:
        """Nothing is lent, as in a forked child."""
        self._free = threading.BoundedSemaphore(self._most)

    def lend(self, holder: str, deadline: float) -> Lent:
        """Begin one.

        Raises:
            StoreBusy: others had all there are for ``lock_timeout``.
            StoreUnreachable: the server cannot be reached.
        """
        try:
            return self._begun(holder, deadline)
        except StoreUnreachable:
            self._connections.drop_idle()  # the server went away and came back: they may all be dead
            return self._begun(holder, deadline)

    def _begun(self, holder: str, deadline: float) -> Lent:
        until = self._clock.monotonic() + self._lock_timeout
        with ExitStack() as held:
            if not self._free.acquire(timeout=self._lock_timeout):
                raise StoreBusy(
                    f"{self._most} transactions of handlers are open on {self._place}, and none ended within "
                    f"{self._lock_timeout:g} s (lock_timeout). Give the store more connections: it lends a third."
                )
            held.callback(self._free.release)
            connection: Any = held.enter_context(self._connections.lent(until))
            held.callback(undo, connection)
            try:
                session = self._transactions.begin(connection, WORK)
            except psycopg.Error as error:
                raise translate(error, self._place) from error
            reach("after_begin", WORK)
            lent = ServerLent(
                session, self._transactions, self._place, held.pop_all(), self._committed, holder, deadline
            )
        lent.watch()
        return lent
