"""Enqueueing inside the caller's own transaction, and noticing one they forgot to pass."""

from __future__ import annotations

import gc
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from treadle.clock import Clock
from treadle.errors import (
    ConfigurationError,
    NoTransaction,
    OwnTransactionOpen,
    StoreBusy,
    StoreError,
    StoreUnusable,
    TransactionTooOld,
)
from treadle.host.failpoints import reach
from treadle.store.dialect import SQLITE
from treadle.store.given import SQLITE as SQLITE_GIVEN
from treadle.store.given import Given, is_a, refused
from treadle.store.ops import sequences
from treadle.store.session import Session
from treadle.store.sqlite import OwnConnection, is_busy, translate

T = TypeVar("T")
OWN_THREADS: Final = ("treadle-lane", "treadle-read", "treadle-upkeep")
"""Threads of Treadle's that never run anybody else's code."""


def run_in(given: Given, operation: Callable[[Session], T], *, path: Path, clock: Clock) -> T:
    """Run *operation* on the caller's connection, inside the transaction they opened.

    Nothing but the operation's statements is run: no PRAGMA, no COMMIT, no ROLLBACK. Durability, isolation
    and the patience with locks are that connection's. It becomes the writer before anything is read, so that
    a transaction that has done nothing yet waits for its turn instead of being too old.

    Args:
        given: an open ``sqlite3.Connection`` on the same file.
        operation: what to store.
        path: the store's own file, for the check and for messages.
        clock: where the session gets its time.

    Raises:
        ConfigurationError: not a ``sqlite3.Connection``, or one that is closed or another thread's.
        NoTransaction: no transaction is open on it.
        StoreUnusable: it is open on another file.
        StoreBusy: another connection writes, for longer than this one's timeout.
        TransactionTooOld: its snapshot is too old to write; begin with BEGIN IMMEDIATE.
    """
    connection = given.connection
    if not isinstance(connection, sqlite3.Connection):
        raise refused(connection, str(path), SQLITE_GIVEN)
    session = _session(given, path, clock)
    try:
        # Even the question for its file would make a reader of the transaction, so the lock comes first.
        reach("before_own", operation)
        sequences.lock(session)
        _check_same_file(connection, path)
        with _texts_as(connection, str):
            result = operation(session)
        reach("after_own", operation)
        return result
    except sqlite3.Error as error:
        _check_same_file(connection, path)
        raise _told(error, path) from error


async def arun_in(given: Given, operation: Callable[[Session], T], *, path: Path, clock: Clock) -> T:
    """The same for connections of async libraries, on the thread that owns them.

    Raises:
        ConfigurationError: also for an aiosqlite whose insides are unknown.
    """
    owner: Any = given.connection
    if isinstance(owner, sqlite3.Connection):
        return run_in(given, operation, path=path, clock=clock)
    if not is_a(owner, "aiosqlite", "Connection"):
        raise refused(owner, str(path), SQLITE_GIVEN, awaited=True)
    if not hasattr(owner, "_execute") or not hasattr(owner, "_conn"):
        raise ConfigurationError("This aiosqlite is too new for this Treadle; its connections cannot be used.")
    # It has no public way to run a function on its thread. SQLAlchemy goes the same way.
    own = given._replace(connection=owner._conn)
    found: T = await owner._execute(partial(run_in, own, operation, path=path, clock=clock))
    return found


def check_own_transaction(path: Path) -> None:
    """Raise when a connection of this thread has a transaction open on *path*: waiting for it is hopeless.

    Called only after the write lock was seen in this very process's hands for a while. Only what is certain
    counts. A connection with sqlite3's usual ``check_same_thread=True`` is its maker's alone: when this
    thread may use it and another may not, it is this thread's. One with ``check_same_thread=False`` may be in
    another thread's hands, which will commit in a moment; it counts only while there is no such thread. In
    doubt nobody is blamed, and the caller gets StoreBusy after its ``lock_timeout``.

    Raises:
        OwnTransactionOpen: with the remedy.
    """
    for found in gc.get_objects():
        # By its type: isinstance() also asks the object, and wakes up lazy ones, such as a web framework's user.
        if issubclass(type(found), sqlite3.Connection) and _is_mine_and_open(found) and _is_open_on(found, path):
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
    except sqlite3.ProgrammingError:
        return False  # closed
    return _may_use(connection) and (_is_alone() or not _may_another_thread_use(connection))


def _may_use(connection: sqlite3.Connection) -> bool:
    """Whether the calling thread may use *connection*; the database is not touched."""
    try:
        sqlite3.Connection.cursor(connection).close()
    except sqlite3.ProgrammingError:
        return False
    return True


def _may_another_thread_use(connection: sqlite3.Connection) -> bool:
    # sqlite3 does not tell how a connection was made, but it refuses the wrong thread.
    answers: list[bool] = []
    asker = threading.Thread(target=lambda: answers.append(_may_use(connection)), name="treadle-ask", daemon=True)
    try:
        asker.start()
    except RuntimeError:
        return True  # no thread can be started, so nothing is certain
    asker.join()
    return answers != [False]


def _is_alone() -> bool:
    """True when no other thread of this process runs code that is not Treadle's."""
    here = threading.current_thread()
    return all(each is here or each.name.startswith(OWN_THREADS) for each in threading.enumerate())


def _is_open_on(connection: sqlite3.Connection, path: Path) -> bool:
    try:
        return path in _files(connection).values()
    except sqlite3.Error:
        return False


def _session(given: Given, path: Path, clock: Clock) -> Session:
    connection: sqlite3.Connection = given.connection
    try:
        # Python's own way of beginning, before the first write, is as good: whoever wraps it will end it.
        if connection.in_transaction or (given.begun and connection.isolation_level is not None):
            return Session(connection, SQLITE, clock)
    except sqlite3.ProgrammingError as error:
        raise ConfigurationError(
            f"The connection given cannot be used here ({error}); pass one on {path} that is open and this thread's."
        ) from error
    raise NoTransaction(
        "The connection given has no open transaction, so the job could not share its fate. "
        "Run BEGIN IMMEDIATE first, or enqueue without connection=."
    )


def _check_same_file(connection: sqlite3.Connection, path: Path) -> None:
    found = _files(connection).get("main")
    if found != path:
        raise StoreUnusable(
            f"The connection given is open on {found or 'a private database'}, but this app stores its jobs in {path}."
        )


def _files(connection: sqlite3.Connection) -> dict[str, Path]:
    with _texts_as(connection, bytes):
        cursor = connection.cursor()
        cursor.row_factory = None
        # The table-valued form: a caller's connection never gets a PRAGMA from us.
        found = cursor.execute("SELECT name, file FROM pragma_database_list").fetchall()
    return {os.fsdecode(name): Path(os.fsdecode(file)).resolve() for name, file in found if file}


@contextmanager
def _texts_as(connection: sqlite3.Connection, kind: type) -> Iterator[None]:
    """Texts of the caller's connection come as *kind* meanwhile, whatever they made of them."""
    before = connection.text_factory
    connection.text_factory = kind
    try:
        yield
    finally:
        connection.text_factory = before


def _told(error: sqlite3.Error, path: Path) -> StoreError:
    if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY_SNAPSHOT:
        return TransactionTooOld(
            "This transaction began by reading and another one has written since, so it cannot become a "
            "writer. Roll it back and start it with BEGIN IMMEDIATE."
        )
    if is_busy(error):
        return StoreBusy(
            f"Another connection writes to {path}, so this transaction could not become a writer within its "
            "connection's timeout. Roll it back, start it with BEGIN IMMEDIATE and try again."
        )
    return translate(error, path)
