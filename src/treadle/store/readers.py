"""Connections that only read: short, bounded, beside the writer."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, TypeVar

from treadle.clock import Clock
from treadle.errors import StoreBusy, StoreClosed
from treadle.store.connections import FileFacts
from treadle.store.dialect import SQLITE
from treadle.store.session import Session
from treadle.store.sqlite import connect, translate

T = TypeVar("T")
THREADS: Final = 2
DEADLINE: Final = 10.0
"""Seconds a read may take: a read that never ends would keep the write-ahead log from shrinking."""
OPCODES: Final = 20_000
FORK_PATIENCE: Final = 5.0


class Readers:
    """Runs reads, each in a transaction of its own, on the calling thread or on a small pool.

    Args:
        facts: which file.
        clock: where sessions get their time.
        deadline: seconds after which a read is interrupted.
    """

    _pool: ThreadPoolExecutor | None
    _idle: list[sqlite3.Connection]
    _busy: int
    _fork_busy: bool
    _closed: bool

    def __init__(self, facts: FileFacts, clock: Clock, *, deadline: float = DEADLINE) -> None:
        self._facts = facts
        self._clock = clock
        self._deadline = deadline
        self._start_anew()

    def run(self, operation: Callable[[Session], T]) -> T:
        """Run *operation* on this thread and return its result.

        Raises:
            StoreClosed: the store is closed.
            StoreLost: the file was deleted or replaced.
            StoreBusy: it took longer than the deadline.
        """
        connection = self._take()
        try:
            return self._read(connection, operation)
        finally:
            self._give_back(connection)

    def submit(self, operation: Callable[[Session], T]) -> Future[T]:
        """Run *operation* on the pool; for callers that must not block."""
        with self._lock:
            if self._closed:
                raise StoreClosed(f"The store {self._facts.path} is closed; open a new Treadle.")
            if self._pool is None:
                self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="treadle-read")
            return self._pool.submit(self.run, operation)

    def close(self) -> None:
        """Close every connection; safe to call twice."""
        with self._lock:
            self._closed = True
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=True)
        self._close_idle()

    def before_fork(self) -> None:
        """Let running reads end, start none, and close: a child must not be born beside an open connection.

        A thread that is inside SQLite at the fork does not exist in the child, but its lock would: the child
        would hang when it drops that thread's connection.
        """
        self._lock.acquire()
        self._quiet.wait_for(lambda: self._busy == 0, timeout=FORK_PATIENCE)
        self._fork_busy = self._busy > 0
        self._close_all(self._idle)

    def after_fork_in_parent(self) -> None:
        """Go on as before; connections are opened again when needed."""
        self._lock.release()

    def after_fork_in_child(self) -> bool:
        """Start anew; False when a read was going on at the fork, so the child may not open the file."""
        busy, closed = self._fork_busy, self._closed
        self._start_anew()
        self._closed = closed
        return not busy

    def _start_anew(self) -> None:
        self._lock = threading.RLock()
        self._quiet = threading.Condition(self._lock)
        self._idle = []
        self._pool = None
        self._busy = 0
        self._fork_busy = False
        self._closed = False

    def _take(self) -> sqlite3.Connection:
        with self._lock:
            if self._closed:
                raise StoreClosed(f"The store {self._facts.path} is closed; open a new Treadle.")
            # A connection to a file that lost its name would go on showing what was, as if it were.
            self._facts.check()
            self._busy += 1
            if self._idle:
                return self._idle.pop()
        try:
            return connect(self._facts.path, read_only=True)
        except sqlite3.Error as error:
            with self._lock:
                self._busy -= 1
                self._quiet.notify_all()
            raise translate(error, self._facts.path) from error

    def _give_back(self, connection: sqlite3.Connection) -> None:
        with self._lock:
            self._busy -= 1
            self._quiet.notify_all()
            if not self._closed and len(self._idle) < THREADS * 2:
                self._idle.append(connection)
                return
        connection.close()

    def _read(self, connection: sqlite3.Connection, operation: Callable[[Session], T]) -> T:
        until = self._clock.monotonic() + self._deadline
        connection.set_progress_handler(lambda: self._clock.monotonic() > until, OPCODES)
        try:
            connection.execute("BEGIN")
            return operation(Session(connection, SQLITE, self._clock))
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_INTERRUPT:
                if self._clock.monotonic() <= until:
                    # Not the deadline, so Ctrl-C came while the handler was called; sqlite3 keeps that to itself.
                    raise KeyboardInterrupt from error
                raise StoreBusy(
                    f"The read took longer than {self._deadline:g} s and was stopped; narrow the filter."
                ) from error
            raise translate(error, self._facts.path) from error
        finally:
            connection.set_progress_handler(None, 0)
            if connection.in_transaction:
                connection.execute("ROLLBACK")

    def _close_idle(self) -> None:
        with self._lock:
            self._close_all(self._idle)

    @staticmethod
    def _close_all(connections: list[sqlite3.Connection]) -> None:
        while connections:
            connections.pop().close()
