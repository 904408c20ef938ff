"""Lending the write lock of a SQLite file: a connection of its own, in the lane's turn and behind the gate."""

from __future__ import annotations

import logging
import random
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Final, TypeVar

from treadle.errors import StoreBusy
from treadle.host.failpoints import reach
from treadle.store.connections import Connections, FileFacts
from treadle.store.lane import Lane
from treadle.store.lending import WORK, Lent
from treadle.store.session import Session
from treadle.store.sqlite import BUSY_TIMEOUT_MS, connect, is_busy, translate
from treadle.store.sqlite_guarded import GuardedConnection
from treadle.store.transaction import begin, commit

T = TypeVar("T")
AGAIN_AFTER: Final = 0.002
"""Seconds between two interruptions of what does not end."""
log = logging.getLogger("treadle.store")
FORBIDDEN: Final = (sqlite3.SQLITE_TRANSACTION, sqlite3.SQLITE_ATTACH, sqlite3.SQLITE_DETACH)


class FileLent(Lent):
    """A transaction on a connection that exists for it alone: nothing a handler does to it outlives it.

    Args:
        connection: with the transaction begun.
        facts: which file.
        connections: the lane's, for bells, checkpoints and what the disk does.
        held: gives the connection, the gate and the turn back.
        holder: where it was begun.
        deadline: seconds.
    """

    connection: GuardedConnection

    def __init__(
        self, connection: GuardedConnection, facts: FileFacts, connections: Connections, held: ExitStack, holder: str,
        deadline: float,
    ) -> None:  # fmt: skip
        super().__init__(connection, str(facts.path), holder, deadline)
        self._path = facts.path
        self._connections = connections
        self._held = held
        self._own: int | None = None
        connection.set_authorizer(_refuse_control)
        connection.guard = self._entered

    def _store(self, operation: Callable[[Session], T]) -> T:
        session = self._connections.session(self.connection)
        try:
            with self._ourselves():
                self.connection.set_authorizer(None)  # the handler has had its say
                result = operation(session)
                commit(self.connection, self._path, WORK)
        except sqlite3.Error as error:
            self._connections.undo_for(error)
            raise translate(error, self._path) from error
        except Exception as error:
            self._connections.undo_for(error)
            raise
        try:
            reach("after_commit", WORK)
            self._connections.committed(session)
        except Exception:
            log.exception("Something failed on %s after a commit; what was stored stays stored.", self._path)
        return result

    def _interrupt(self) -> None:
        # Only what runs at that very moment is interrupted; what begins afterwards is refused.
        while not self._lock.acquire(timeout=AGAIN_AFTER):
            self.connection.interrupt()
        self._lock.release()

    def _close(self) -> None:
        with self._held, self._ourselves():
            self.connection.set_authorizer(None)
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")

    @contextmanager
    def _entered(self) -> Iterator[None]:
        """Around every call of the connection, a handler's or our own."""
        with self._lock:
            if self._state != "open" and self._own != threading.get_ident():
                raise sqlite3.OperationalError("interrupted")
            yield

    @contextmanager
    def _ourselves(self) -> Iterator[None]:
        self._own = threading.get_ident()
        try:
            yield
        finally:
            self._own = None


def _refuse_control(action: int, *_: object) -> int:
    """Whether a statement may do this; SQLite asks when it prepares one."""
    return sqlite3.SQLITE_DENY if action in FORBIDDEN else sqlite3.SQLITE_OK


def lend(
    lane: Lane, connections: Connections, facts: FileFacts, busy: Callable[[], StoreBusy], patience: float,
    holder: str, deadline: float,
) -> FileLent:  # fmt: skip
    """Become the writer on a connection of its own.

    Args:
        lane: stands still meanwhile; what it gets waits.
        connections: the lane's.
        facts: which file.
        busy: what to raise when it does not become the writer.
        patience: seconds to wait for that.
        holder: where it was begun.
        deadline: seconds it may be open.
    """
    with ExitStack() as held:
        if not lane.take_turn(patience):
            raise busy()
        held.callback(lane.end_turn)
        connections.writer()  # looks whether the file is still the same
        held.callback(_finish, connections)
        connections.enter_gate(blocking=True)
        held.callback(connections.leave_gate)
        connection = connect(facts.path, durability=facts.durability, cached=0, factory=GuardedConnection)
        assert isinstance(connection, GuardedConnection)
        held.callback(connection.close)
        for _ in range(max(1, round(patience * 1000 / BUSY_TIMEOUT_MS))):
            if _began(connection, connections):
                break
        else:
            raise busy()
        lent = FileLent(connection, facts, connections, held.pop_all(), holder, deadline)
    lent.watch()
    return lent


def _finish(connections: Connections) -> None:
    try:
        reach("after_told", WORK)
        connections.after_commit()
    except Exception:
        log.exception("Something failed on %s after a transaction; what was stored stays stored.", connections.path)


def _began(connection: sqlite3.Connection, connections: Connections) -> bool:
    try:
        begin(connection, WORK)
    except sqlite3.OperationalError as error:
        if not is_busy(error):
            raise
        connections.pause(random.uniform(0.001, 0.01))  # noqa: S311 - jitter
        return False
    reach("after_begin", WORK)
    return True
