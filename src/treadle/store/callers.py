"""Enqueueing inside the caller's own transaction, and noticing one they forgot to pass."""

from __future__ import annotations

import gc
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from treadle.clock import Clock
from treadle.errors import (
    ConfigurationError,
    NoTransaction,
    OwnTransactionOpen,
    StoreUnusable,
    TransactionTooOld,
)
from treadle.store.dialect import SQLITE
from treadle.store.session import Session
from treadle.store.sqlite import OwnConnection, is_busy, translate

T = TypeVar("T")


def run_in(connection: object, operation: Callable[[Session], T], *, path: Path, clock: Clock) -> T:
    """Run *operation* on the caller's connection, inside the transaction they opened.

    Nothing but the operation's statements is run: no PRAGMA, no COMMIT, no ROLLBACK. Durability and
    isolation are that connection's.

    Args:
        connection: an open ``sqlite3.Connection`` on the same file.
        operation: what to store.
        path: the store's own file, for the check and for messages.
        clock: where the session gets its time.

    Raises:
        ConfigurationError: not a ``sqlite3.Connection``.
        NoTransaction: no transaction is open on it.
        StoreUnusable: it is open on another file.
        TransactionTooOld: its snapshot is too old to write; begin with BEGIN IMMEDIATE.
    """
    if not isinstance(connection, sqlite3.Connection):
        raise ConfigurationError(
            f"connection= takes an open sqlite3.Connection on {path}, not {type(connection).__name__}."
        )
    if not connection.in_transaction:
        raise NoTransaction(
            "The connection given has no open transaction, so the job could not share its fate. "
            "Run BEGIN IMMEDIATE first, or enqueue without connection=."
        )
    _check_same_file(connection, path)
    try:
        return operation(Session(connection, SQLITE, clock))
    except sqlite3.OperationalError as error:
        if is_busy(error):
            raise TransactionTooOld(
                "This transaction began by reading and another one has written since, so it cannot become a "
                "writer. Roll it back and start it with BEGIN IMMEDIATE."
            ) from error
        raise translate(error, path) from error


def check_own_transaction(path: Path) -> None:
    """Raise when a connection of this thread has a transaction open on *path*: waiting for it is hopeless.

    Called only after the write lock was seen in this very process's hands for a while.

    Raises:
        OwnTransactionOpen: with the remedy.
    """
    for found in gc.get_objects():
        if isinstance(found, sqlite3.Connection) and _is_mine_and_open(found) and _is_open_on(found, path):
            raise OwnTransactionOpen(
                f"This thread has a transaction of its own open on {path}, and enqueue would wait for it for ever. "
                "Pass it: task.using(connection=conn).enqueue(...), or commit first."
            )


def _is_mine_and_open(connection: sqlite3.Connection) -> bool:
    if isinstance(connection, OwnConnection):
        return False  # a lane's: whoever waits for it is served in its turn
    try:
        if not connection.in_transaction:
            return False
        connection.cursor().close()
    except sqlite3.ProgrammingError:
        return False  # closed, or another thread's
    return True


def _is_open_on(connection: sqlite3.Connection, path: Path) -> bool:
    try:
        return path in _files(connection).values()
    except sqlite3.Error:
        return False


def _check_same_file(connection: sqlite3.Connection, path: Path) -> None:
    found = _files(connection).get("main")
    if found != path:
        raise StoreUnusable(
            f"The connection given is open on {found or 'a private database'}, but this app stores its jobs in {path}."
        )


def _files(connection: sqlite3.Connection) -> dict[str, Path]:
    cursor = connection.cursor()
    cursor.row_factory = None
    # The table-valued form: a caller's connection never gets a PRAGMA from us.
    found = cursor.execute("SELECT name, file FROM pragma_database_list").fetchall()
    return {name: Path(file).resolve() for name, file in found if file}
