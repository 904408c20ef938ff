"""Write transactions on PostgreSQL: begun by the server's clock, run again as a whole, never left in doubt.

A commit whose answer never came is resolved by asking the server what became of that transaction's number. Nothing is
ever run a second time on a guess.
"""

from __future__ import annotations

import contextlib
import logging
from typing import Any, Final, NamedTuple

import psycopg
from psycopg.pq import TransactionStatus

from treadle.errors import OutcomeUnknown, StoreError, StoreUnreachable
from treadle.host.failpoints import reach
from treadle.store.dialect import PostgresDialect
from treadle.store.postgres.clock import ServerClock
from treadle.store.postgres.connections import Connection, Connections
from treadle.store.postgres.errors import first_line, is_lost
from treadle.store.postgres.session import BEGIN, PostgresSession

STATUS: Final = "SELECT pg_xact_status(%s::text::xid8)"
NUMBER: Final = "SELECT pg_current_xact_id_if_assigned()::text"
NUMBERED: Final = ", pg_current_xact_id()::text"
log = logging.getLogger("treadle.store")


class Number(NamedTuple):
    """Which transaction it was: its number, None when it wrote nothing, and the timeline that gave it."""

    xid: str | None
    timeline: int | None


class Transactions:
    """Begins, commits and, after a lost connection, finds out.

    Args:
        connections: where connections come from.
        dialect: the SQL fragments.
        clock: the server's clock; its readings are kept.
        place: how messages name the database.
        durability: "full" waits for the server's disk; anything else lets it acknowledge before.
        lock_timeout: seconds a statement waits for rows that others have locked.
    """

    def __init__(
        self,
        connections: Connections,
        dialect: PostgresDialect,
        clock: ServerClock,
        place: str,
        durability: str,
        lock_timeout: float,
    ) -> None:
        self._connections = connections
        self._dialect = dialect
        self._clock = clock
        self._place = place
        # SET LOCAL travels with the transaction: behind a pooler a session is nobody's own.
        local = f"SET LOCAL lock_timeout = {round(lock_timeout * 1000)}; "
        if durability != "full":
            local += "SET LOCAL synchronous_commit = off; "
        self._begin = BEGIN.format(local=local)

    def begin(self, connection: Connection, work: object, how: str = "", *, writes: bool = False) -> PostgresSession:
        """Open a transaction; one exchange with the server also brings its time.

        Args:
            connection: an idle one.
            work: for the fail point, as is *how*.
            how: see *work*.
            writes: it is sure to write something, so the same exchange brings its number too.
        """
        reach("before_begin", work, how)
        asked = self._clock.monotonic()
        now, *number = last_row(connection, self._begin + NUMBERED if writes else self._begin)
        session = PostgresSession(connection, self._dialect, self._clock.reading(now, asked))
        session.number = number[0] if number else None
        return session

    def commit(self, session: PostgresSession, work: object, how: str = "") -> bool:
        """Commit, and be sure; False when the transaction was undone although nobody asked, so it may run again.

        Raises:
            StoreError: an operation has ended the transaction, or hidden that it failed.
            OutcomeUnknown: the server that could say is gone: another one took its place.
            psycopg.Error: it was refused, so nothing was stored.
        """
        connection: Connection = session.connection
        reach("before_commit", work, how)
        status = connection.info.transaction_status
        if status != TransactionStatus.INTRANS and not connection.closed:
            # PostgreSQL takes the COMMIT of a failed transaction for a ROLLBACK, and says so only in passing.
            raise StoreError(f"A transaction on {self._place} was not committed: an operation left it {status.name}.")
        number = self._number(session)
        try:
            connection.execute("COMMIT")
        except psycopg.Error as error:
            if number.xid is None:
                return not is_lost(error)
            if not is_lost(error):
                raise
            log.warning("The connection to %s was lost during a commit (%s).", self._place, first_line(error))
            return self._was_committed(number, error)
        return True

    def _number(self, session: PostgresSession) -> Number:
        xid = session.number or (session.value(NUMBER) if session.wrote else None)
        return Number(xid, session.connection.timeline)

    def _was_committed(self, number: Number, error: BaseException) -> bool:
        """Ask until the server knows; one that is starting up again will."""
        while True:
            try:
                status, timeline = self._ask(number)
            except psycopg.Error as failed:
                if not is_lost(failed):
                    raise self._unknown(error) from error
                self._connections.drop_idle()
                continue
            except StoreUnreachable:
                continue
            if timeline != number.timeline or status is None:
                raise self._unknown(error) from error
            if status != "in progress":
                return bool(status == "committed")
            self._connections.pause()  # its server process has not noticed yet that we are gone

    def _ask(self, number: Number) -> tuple[str | None, int | None]:
        with self._connections.lent(None) as connection:
            (status,) = last_row(connection, STATUS, (number.xid,))
            return status, connection.timeline

    def _unknown(self, error: BaseException) -> OutcomeUnknown:
        return OutcomeUnknown(
            f"The connection to {self._place} was lost during a commit ({first_line(error)}), and the server that "
            "answers now cannot say what became of it: it may be stored or not. Look before you do it again."
        )


def last_row(connection: Connection, statements: str, parameters: tuple[object, ...] | None = None) -> Any:
    """Run statements in one exchange and return the only row of the last one."""
    cursor: Any = connection.execute(statements, parameters)
    while cursor.nextset():
        pass
    return cursor.fetchone()


def undo(connection: Connection) -> None:
    """Roll back whatever is open; a connection that cannot even do that is closed when it is given back."""
    if connection.closed or connection.info.transaction_status == TransactionStatus.IDLE:
        return
    with contextlib.suppress(psycopg.Error):
        connection.execute("ROLLBACK")
