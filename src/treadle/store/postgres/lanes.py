"""Lanes on PostgreSQL: a few threads that write, each one transaction for all that waits when it comes by.

Group commit as on SQLite, so that many small writes share one wait for the server's disk; but several lanes, because
here one transaction does not wait for another.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, Final, TypeVar

import psycopg

from treadle.clock import Clock
from treadle.errors import StoreClosed, StoreUnreachable
from treadle.host.failpoints import ALONE, reach
from treadle.store.postgres.connections import Connection, Connections
from treadle.store.postgres.errors import AGAIN, is_lost, translate, unreachable
from treadle.store.postgres.session import PostgresSession
from treadle.store.postgres.transactions import Transactions, undo
from treadle.store.replies import Reply
from treadle.store.work import Operation, Work, bundles, failed, run_bundle, starting, tell

T = TypeVar("T")
GROUP_MOST: Final = 512
TRIES: Final = 20
"""How often a transaction that others undid is run again before its caller is told."""
log = logging.getLogger("treadle.store")


class Lanes:
    """Runs operations that write.

    Args:
        connections: where connections come from.
        transactions: begins and commits.
        place: how messages name the database.
        clock: for deadlines.
        count: how many lanes at most.
        lock_timeout: seconds an operation may be tried again after the connection was lost under it.
        committed: told each session that has committed, on its lane, with its connection idle again.
    """

    def __init__(
        self,
        connections: Connections,
        transactions: Transactions,
        place: str,
        clock: Clock,
        count: int,
        lock_timeout: float,
        committed: Callable[[PostgresSession, Connection], None],
    ) -> None:
        self._connections = connections
        self.transactions = transactions
        self._place = place
        self._clock = clock
        self._count = count
        self._lock_timeout = lock_timeout
        self._committed = committed
        self.start_anew()

    def start_anew(self) -> None:
        """Fresh locks and no threads, as in a forked child; what waited belongs to the parent."""
        self._waiting: queue.SimpleQueue[Work[Any] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._busy = 0
        self._closed = False

    def submit(self, operation: Operation[T], reply: Reply, *, guarded: bool) -> None:
        """Queue *operation*; *reply* is answered after the commit. Never blocks.

        Raises:
            StoreClosed: the lanes are closed.
        """
        with self._lock:
            self.check_open()
            self._waiting.put(Work(operation, reply, guarded))
            if self._busy >= len(self._threads) < self._count:
                self._start_thread()

    def check_open(self) -> None:
        """Raise StoreClosed when the lanes are closed."""
        if self._closed:
            raise StoreClosed(f"The store {self._place} is closed; open a new Treadle.")

    def run_here(self, operation: Operation[T]) -> tuple[T] | None:
        """Run *operation* on the calling thread if a lane would have had nothing else to do.

        Returns:
            The result in a tuple, or None when the lanes are busy: then use :meth:`submit`.

        Raises:
            StoreUnreachable: the server could not be reached within *lock_timeout*.
        """
        with self._lock:
            if self._closed or self._busy >= self._count or not self._waiting.empty():
                return None
            self._busy += 1
        future = _Here()
        try:
            until = self._clock.monotonic() + self._lock_timeout  # nobody else can give it up
            self._run_group([Work(operation, future, guarded=True)], ALONE, until)
        finally:
            with self._lock:
                self._busy -= 1
        return (future.outcome(),)

    def close(self, timeout: float) -> None:
        """Finish what waits and stop the threads; safe to call twice."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            threads = list(self._threads)
            for _ in threads:
                self._waiting.put(None)
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(timeout)
        tell(failed(starting(self._collect(None)), StoreClosed("The store was closed before this was stored.")))

    def _start_thread(self) -> None:
        thread = threading.Thread(target=self._serve, name=f"treadle-lane-{len(self._threads)}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _serve(self) -> None:
        while (first := self._waiting.get()) is not None:
            with self._lock:
                self._busy += 1
            try:
                self._run_group(self._collect(first))
            finally:
                with self._lock:
                    self._busy -= 1

    def _collect(self, first: Work[Any] | None) -> list[Work[Any]]:
        group = [first] if first is not None else []
        while len(group) < GROUP_MOST:
            try:
                work = self._waiting.get_nowait()
            except queue.Empty:
                break
            if work is None:
                self._waiting.put(None)  # the word to stop: one for each lane, and nothing comes after it
                break
            group.append(work)
        return group

    def _run_group(self, group: list[Work[Any]], how: str = "", until: float | None = None) -> None:
        """Run and tell. Nothing is raised: without its thread everybody would wait for ever."""
        try:
            self._store(group, how, until)
        except Exception as error:
            tell(failed(starting([work for work in group if not work.reply.done()]), error))

    def _store(self, group: list[Work[Any]], how: str, until: float | None = None) -> None:
        """Store *group* in one transaction, or, when one of them fails, each in its own.

        What has begun cannot be given up by its callers any more, so there is an end to waiting for the server.
        """
        conflicts = 0
        while (error := self._tried(group, how, until)) is not None:
            if is_lost(error) or isinstance(error, _Undone):
                # The transaction is gone, and so may be every other connection.
                self._connections.drop_idle()
                now = self._clock.monotonic()
                if until is None and _begun(group):
                    until = now + self._lock_timeout
                if until is not None and now > until:
                    raise unreachable(self._place, error)
            elif isinstance(error, AGAIN) and conflicts < TRIES:
                conflicts += 1
                self._connections.pause()
            elif len(group) > 1 and not isinstance(error, StoreUnreachable):
                for work in group:
                    self._store_alone(work, how)
                return
            else:
                raise self._told(error) from error

    def _tried(self, group: list[Work[Any]], how: str, until: float | None) -> Exception | None:
        """Store *group* in one transaction; None when that is done and told."""
        try:
            with self._connections.lent(until, partial(_wanted, group)) as connection:
                return None if self._once(connection, group, how) else _Undone()
        except Exception as error:
            return error

    def _store_alone(self, work: Work[Any], how: str) -> None:
        try:
            self._store([work], how)
        except Exception as error:
            tell(failed(starting([work]), error))

    def _once(self, connection: Connection, group: list[Work[Any]], how: str) -> bool:
        """Store and tell; False when the server undid everything without a reason of ours."""
        try:
            session = self.transactions.begin(connection, group, how)
            running = starting(group)
            reach("after_begin", running, how)
            answers = [answer for works in bundles(running) for answer in run_bundle(session, works)]
            if not self.transactions.finish(session, running, how):
                return False
        except BaseException:
            undo(connection)
            raise
        try:
            reach("after_commit", running, how)
            tell(answers)
            self._committed(session, connection)
            reach("after_told", running, how)
        except Exception:
            tell(answer for answer in answers if not answer.work.reply.done())
            log.exception("Something failed on %s after a commit; what was stored stays stored.", self._place)
        return True

    def _told(self, error: Exception) -> Exception:
        return translate(error, self._place) if isinstance(error, psycopg.Error) else error


class _Undone(Exception):
    """The commit did not happen, although nothing was wrong with it."""


class _Here:
    """The answer to an operation that runs on the thread of its caller."""

    def __init__(self) -> None:
        self._result: Any = None
        self._error: BaseException | None = None
        self._done = False

    def running(self) -> bool:
        """It cannot be given up: its caller is busy running it."""
        return True

    def cancelled(self) -> bool:
        """Never."""
        return False

    def done(self) -> bool:
        """True once there is an answer."""
        return self._done

    def set_running_or_notify_cancel(self) -> bool:
        """It runs."""
        return True

    def set_result(self, result: Any) -> None:
        """Keep the result."""
        self._result, self._done = result, True

    def set_exception(self, exception: BaseException) -> None:
        """Keep the error."""
        self._error, self._done = exception, True

    def outcome(self) -> Any:
        """The result; raises the error."""
        if self._error is not None:
            raise self._error
        return self._result


def _wanted(group: list[Work[Any]]) -> bool:
    return not all(work.reply.cancelled() for work in group)


def _begun(group: list[Work[Any]]) -> bool:
    return any(work.reply.running() for work in group)

