"""Write transactions on PostgreSQL: begun by the server's clock, run again as a whole, never left in doubt.

A commit whose answer never came is resolved by a row that it would have changed. Nothing is ever run a second time on a
guess.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from typing import Any, Final
from uuid import uuid4

import psycopg
from psycopg.pq import TransactionStatus

from treadle.errors import OutcomeUnknown, StoreError
from treadle.host.failpoints import reach
from treadle.store.dialect import PostgresDialect
from treadle.store.postgres.clock import ServerClock
from treadle.store.postgres.connections import Connection, Connections
from treadle.store.postgres.errors import first_line, is_lost
from treadle.store.postgres.session import BEGIN, PostgresSession

OFF: Final = ("seqscan", "bitmapscan", "sort", "hashjoin", "mergejoin")
PLANS: Final = {**{f"enable_{name}": "off" for name in OFF}, "plan_cache_mode": "force_custom_plan"}
"""Each statement of a lane reads a few rows by an index, in its order, and joins them by nested loops. A table that was
empty when the server last counted, or is full of dead rows, must not talk the planner into reading all of it: a merge
join of 200 picked jobs with their arguments read the arguments of everything older first. Nor is a plan kept that was
made while a table was empty: 150,000 jobs that came to a worker with such plans took up to 130 s instead of 4."""
# A connection's own row, which each of its commits numbers. Transaction numbers would not do: after a crash the server
# gives those that no one has seen again, and says "committed" of the wrong one.
MAKE_MARK: Final = """
BEGIN; SET LOCAL synchronous_commit = off;
DELETE FROM treadle_commits WHERE made_at < {before};
INSERT INTO treadle_commits (mark, number, made_at)
VALUES ('{mark}', 0, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint);
COMMIT
"""
# In one exchange with the COMMIT. Without its row the division fails, and so does the commit: who takes the row away
# knows that this connection, whatever still travels or waits, never commits again.
COMMIT: Final = """
WITH mine AS (UPDATE treadle_commits SET number = {number} WHERE mark = '{mark}' RETURNING 1)
SELECT 1 / (SELECT count(*) FROM mine); COMMIT
"""
TAKE_MARK: Final = "DELETE FROM treadle_commits WHERE mark = %s RETURNING number"
INSIST: Final = "SET LOCAL synchronous_commit = on; "
KEPT: Final = 30 * 24 * 3600 * 1_000_000
"""How long the mark of a connection is kept at least; no connection lives that long."""
log = logging.getLogger("treadle.store")


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
        settings = {**PLANS, "lock_timeout": str(round(lock_timeout * 1000))}
        self._insist = ""
        if durability != "full":
            settings["synchronous_commit"] = "off"
            self._insist = INSIST
        self._begin = BEGIN.format(settings=local(settings))
        self._make_mark, self._commit, self._take_mark = map(dialect.qualified, (MAKE_MARK, COMMIT, TAKE_MARK))

    def begin(self, connection: Connection, work: object, how: str = "") -> PostgresSession:
        """Open a transaction; one exchange with the server also brings its time.

        Args:
            connection: an idle one.
            work: for the fail point, as is *how*.
            how: see *work*.
        """
        reach("before_begin", work, how)
        if not connection.mark:
            self._prepare(connection)
        asked = self._clock.monotonic()
        now = last_row(connection, self._begin)[-1]
        return PostgresSession(connection, self._dialect, self._clock.reading(now, asked))

    def finish(self, session: PostgresSession, work: object, how: str = "") -> bool:
        """Commit, and be sure; False when the transaction was undone although nobody asked, so it may run again.

        Raises:
            StoreError: an operation has ended the transaction, or hidden that it failed.
            OutcomeUnknown: the store was closed before the server could say.
            psycopg.Error: it was refused, so nothing was stored.
        """
        connection: Connection = session.connection
        reach("before_commit", work, how)
        status = connection.info.transaction_status
        if status != TransactionStatus.INTRANS and not connection.closed:
            # PostgreSQL takes the COMMIT of a failed transaction for a ROLLBACK, and says so only in passing.
            raise StoreError(f"A transaction on {self._place} was not committed: an operation left it {status.name}.")
        insist = self._insist if session.insists else ""
        if not session.wrote:
            return self._end_reading(connection, insist)
        number = connection.commits + 1
        try:
            connection.execute(insist + self._commit.format(number=number, mark=connection.mark))
        except psycopg.errors.DivisionByZero:
            connection.close()  # its mark was taken away
            return False
        except psycopg.Error as error:
            if not is_lost(error):
                raise
            log.warning("The connection to %s was lost during a commit (%s).", self._place, first_line(error))
            return self._was_committed(connection.mark, number, error)
        connection.commits = number
        return True

    def forget(self, connection: Connection) -> None:
        """Take away the mark of a connection that is to be closed."""
        if connection.mark and not connection.closed:
            with contextlib.suppress(psycopg.Error):  # then somebody else does, in a month
                connection.execute(self._take_mark, (connection.mark,))

    def _end_reading(self, connection: Connection, insist: str) -> bool:
        try:
            connection.execute(f"{insist}COMMIT")
        except psycopg.Error as error:
            return not is_lost(error)
        return True

    def _prepare(self, connection: Connection) -> None:
        """Make the mark of a new connection, before its first transaction."""
        mark = uuid4().hex
        connection.execute(self._make_mark.format(mark=mark, before=self._clock.now() - KEPT))
        connection.mark = mark

    def _was_committed(self, mark: str, number: int, error: BaseException) -> bool:
        """Take the mark away and see: it has our number, or the commit can never happen any more."""
        while True:
            try:
                with self._connections.connect() as connection:
                    found = connection.execute(self._take_mark, (mark,)).fetchone()
                return found is not None and int(found[0]) >= number
            except psycopg.Error as failed:
                if not is_lost(failed):
                    raise self._unknown(error) from error
                self._connections.drop_idle()
            if not self._connections.pause():
                raise self._unknown(error) from error

    def _unknown(self, error: BaseException) -> OutcomeUnknown:
        return OutcomeUnknown(
            f"The connection to {self._place} was lost during a commit ({first_line(error)}), and the server could not "
            "be asked what became of it: it may be stored or not. Look before you do it again."
        )


def local(settings: Mapping[str, str]) -> str:
    """Columns of a select that set them until the transaction ends: behind a pooler a session is nobody's own."""
    return ", ".join(f"set_config('{name}', '{value}', true)" for name, value in settings.items())


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
