"""The lane: one connection that writes, one thread that owns it, one transaction for all that waits.

Group commit: every operation that waits when the thread comes by shares one ``BEGIN IMMEDIATE … COMMIT``
and one sync of the disk. An operation that fails is undone by its savepoint and fails alone. A caller
off any event loop may run its operation itself while the lane is idle, which saves a thread hop.
"""

from __future__ import annotations

import logging
import queue
import random
import sqlite3
import threading
from typing import Any, TypeVar

from treadle.errors import ForkedConnectionError, StoreBroken, StoreClosed, TreadleError
from treadle.host.failpoints import ALONE, reach
from treadle.store.connections import Connections
from treadle.store.replies import Reply
from treadle.store.session import Session
from treadle.store.sqlite import is_busy, is_damage, translate
from treadle.store.transaction import begin, commit
from treadle.store.work import Answer, Operation, Work, bundles, failed, run_bundle, starting, tell

T = TypeVar("T")
GROUP_MOST = 512
log = logging.getLogger("treadle.store")


class Lane:
    """Runs operations that write, one transaction at a time.

    Args:
        connections: opens and keeps the writing connection, its gate, checks and bell.
    """

    _thread: threading.Thread | None
    _closed: bool
    _poisoned: bool
    _abandoned: bool
    _fork_ready: bool
    lent_to: int | None
    """The thread that has the lane's turn for a transaction of its own."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._start_anew()

    def submit(self, operation: Operation[T], reply: Reply, *, guarded: bool = True) -> None:
        """Queue *operation*; *reply* is answered after the commit. Never blocks.

        Raises:
            StoreClosed: the lane is closed.
        """
        with self._closing:
            self.check_open()
            self._ensure_thread()
            self._waiting.put(Work(operation, reply, guarded))

    def check_open(self) -> None:
        """Raise StoreClosed when the lane is closed."""
        if self._closed:
            raise StoreClosed(f"The store {self._connections.path} is closed; open a new Treadle.")

    def run_here(self, operation: Operation[T]) -> tuple[T] | None:
        """Run *operation* on the calling thread if the lane is idle and the gate is free.

        No future, no group: that machinery would be a third of what a single enqueue costs beside its sync.

        Returns:
            The result in a tuple, or None when the lane is busy: then use :meth:`submit`.
        """
        if self._closed or self._poisoned or not self._waiting.empty() or not self._turn.acquire(blocking=False):
            return None
        try:
            if not self._connections.enter_gate(blocking=False):
                return None
            try:
                result = self._alone(operation)
            finally:
                self._connections.leave_gate()
            self._finish("before_told", operation, ALONE)
        except _StillBusy:
            return None
        except sqlite3.Error as error:
            raise translate(error, self._connections.path) from error
        finally:
            self._turn.release()
        return (result,)

    def take_turn(self, timeout: float) -> bool:
        """Keep the lane from working until :meth:`end_turn`; what it gets waits. False when it did not stop in time.

        Raises:
            StoreClosed: the lane is closed.
        """
        self.check_open()
        if self._poisoned or not self._turn.acquire(timeout=timeout):
            return False
        self.lent_to = threading.get_ident()
        return True

    def end_turn(self) -> None:
        """Let the lane go on; any thread may call this."""
        self.lent_to = None
        self._turn.release()

    def close(self, timeout: float) -> None:
        """Finish what waits, stop the thread and close the connection; safe to call twice."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
            self._waiting.put(None)
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)
            self._abandoned = True
        self._fail_waiting()
        if self._turn.acquire(timeout=timeout):
            try:
                self._connections.close()
            finally:
                self._turn.release()
        else:
            log.warning("The lane of %s is still busy at close; its connection is left open.", self._connections.path)

    # Fork: the parent closes its idle connections first and both sides reopen them when needed, because a
    # connection opened in a child while the parent had one open loses commits.

    def before_fork(self) -> None:
        """Close the connection so that the child cannot inherit it; a busy lane poisons the child."""
        self._fork_ready = self._turn.acquire(timeout=5)
        if self._fork_ready:
            self._connections.close()

    def after_fork_in_parent(self) -> None:
        """Go on as before; the connection is opened again when needed."""
        if self._fork_ready:
            self._turn.release()

    def after_fork_in_child(self) -> None:
        """Start with fresh locks and no thread; what waited belongs to the parent."""
        poisoned = not self._fork_ready
        closed = self._closed
        self._start_anew()
        self._poisoned, self._closed = poisoned, closed

    def _start_anew(self) -> None:
        self._waiting: queue.SimpleQueue[Work[Any] | None] = queue.SimpleQueue()
        self._turn = threading.Lock()
        self.lent_to = None
        self._closing = threading.Lock()
        self._thread = None
        self._closed = False
        self._poisoned = False
        self._abandoned = False
        self._fork_ready = True

    def _ensure_thread(self) -> None:
        if self._poisoned:
            raise ForkedConnectionError(
                "This process was forked while the store was in the middle of a transaction, so it may not touch "
                "the file. Start workers with subprocess or multiprocessing's 'spawn' instead of fork."
            )
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="treadle-lane", daemon=True)
            self._thread.start()

    def _serve(self) -> None:
        while True:
            first = self._waiting.get()
            group = self._collect(first)
            if group:
                self._run_group(group)
            if self._closed and self._waiting.empty():
                return

    def _collect(self, first: Work[Any] | None) -> list[Work[Any]]:
        group = [first] if first is not None else []
        while len(group) < GROUP_MOST:
            try:
                work = self._waiting.get_nowait()
            except queue.Empty:
                break
            if work is not None:
                group.append(work)
        return group

    def _run_group(self, group: list[Work[Any]]) -> None:
        with self._turn:
            tell(self._through_gate(group))
            self._finish("after_told", group)

    def _through_gate(self, group: list[Work[Any]]) -> list[Answer]:
        """What came of each of *group*. Nothing is raised: without this thread everybody would wait for ever."""
        answers: list[Answer] = []
        try:
            self._connections.enter_gate(blocking=True)
            try:
                answers = self._transact(group)
            finally:
                # Before anybody is told: a process stopped from now on keeps nobody else waiting.
                self._connections.leave_gate()
            reach("before_told", group)
        except Exception as error:
            if not answers:
                return failed(starting(group), self._told(error))
            self._log_aftermath()
        return answers

    def _alone(self, operation: Operation[T]) -> T:
        try:
            connection = self._connections.writer()
            begin(connection, operation, ALONE)
            reach("after_begin", operation, ALONE)
            session = self._connections.session(connection)
            result = operation(session)
            commit(connection, self._connections.path, operation, ALONE)
        except BaseException as error:
            self._connections.undo_for(error)
            if is_busy(error):
                raise _StillBusy from error
            raise
        self._ring(session, operation, ALONE)
        return result

    def _transact(self, group: list[Work[Any]]) -> list[Answer]:
        """One transaction for the group; what came of each that was not given up."""
        running: list[Work[Any]] = []
        answers: list[Answer] = []
        try:
            connection = self._begin(group)
            running = starting(group) if connection is not None else []
            if connection is None or not running:
                self._connections.undo()
                return []
            reach("after_begin", running)
            session = self._connections.session(connection)
            for works in bundles(running):
                answers += self._run(session, works)
            commit(connection, self._connections.path, running)
        except BaseException as error:
            self._connections.undo_for(error)
            return self._again_or_fail(running, error) if running else failed(starting(group), self._told(error))
        self._ring(session, running)
        return answers

    def _ring(self, session: Session, work: object, how: str = "") -> None:
        """Tell the bells. Whatever fails here, the work is stored, and its callers must hear so."""
        try:
            reach("after_commit", work, how)
            self._connections.committed(session)
        except Exception:
            self._log_aftermath()

    def _finish(self, boundary: str, work: object, how: str = "") -> None:
        """Checkpoint if it is time; the same holds for what fails here."""
        try:
            reach(boundary, work, how)
            self._connections.after_commit()
        except Exception:
            self._log_aftermath()

    def _log_aftermath(self) -> None:
        log.exception("Something failed on %s after a commit; what was stored stays stored.", self._connections.path)

    def _run(self, session: Session, works: list[Work[Any]]) -> list[Answer]:
        if not works[0].guarded:
            return run_bundle(session, works)
        connection = session.connection
        connection.execute("SAVEPOINT work")
        try:
            answers = run_bundle(session, works)
        except Exception as error:
            if not connection.in_transaction or is_damage(error):
                raise  # SQLite rolled the whole group back, or the disk failed: everyone must hear of it
            connection.execute("ROLLBACK TO work")
            connection.execute("RELEASE work")
            if len(works) > 1:
                return [answer for work in works for answer in self._run(session, [work])]
            return [Answer(works[0], None, self._told(error))]
        connection.execute("RELEASE work")
        return answers

    def _again_or_fail(self, running: list[Work[Any]], error: BaseException) -> list[Answer]:
        # The transaction is gone, so nothing was stored: the group runs once more, one by one, so that
        # the culprit fails alone. Not after a failure of the disk: a blind second try could store twice what the
        # first had stored.
        again = isinstance(error, sqlite3.Error | TreadleError) and not isinstance(error, StoreBroken)
        if len(running) == 1 or not again or is_damage(error):
            return failed(running, self._told(error))
        return [answer for work in running for answer in self._transact([work])]

    def _begin(self, group: list[Work[Any]]) -> sqlite3.Connection | None:
        """Open the write transaction; None when every caller gave up while we waited for the lock."""
        connection = self._connections.writer()
        while True:
            try:
                begin(connection, group)
                return connection
            except sqlite3.OperationalError as error:
                if not is_busy(error):
                    raise
            if self._abandoned:
                raise StoreClosed("The store was closed while it waited for the database's write lock.")
            if all(work.reply.cancelled() for work in group):
                return None
            self._connections.pause(random.uniform(0.001, 0.01))  # noqa: S311 - jitter, not a secret

    def _told(self, error: BaseException) -> BaseException:
        if isinstance(error, sqlite3.Error):
            told = translate(error, self._connections.path)
            told.__cause__ = error
            return told
        return error

    def _fail_waiting(self) -> None:
        tell(failed(starting(self._collect(None)), StoreClosed("The store was closed before this was stored.")))


class _StillBusy(Exception):
    """The database's write lock is taken; the caller should go through the lane's thread."""
