"""Write transactions that a handler fills and that its job's success completes, with a deadline.

Whoever holds one may hold the only write lock there is. So a watcher stands beside it: it says aloud when it takes
long, and ends it when it takes too long, whatever the handler does meanwhile.
"""

from __future__ import annotations

import logging
import re
import sqlite3
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from treadle import defaults
from treadle.errors import ConfigurationError, TransactionTooLong
from treadle.store.session import Parameters, Session

T = TypeVar("T")
WORK: Final = "transaction"
"""What fail points call it."""
CONTROL: Final = re.compile(
    r"(?:\s|;|--[^\n]*(?:\n|$)|/\*.*?\*/)*"
    r"(BEGIN|START|COMMIT|END|ROLLBACK|ABORT|SAVEPOINT|RELEASE|PREPARE\s+TRANSACTION|ATTACH|DETACH|PRAGMA|VACUUM)\b",
    re.IGNORECASE | re.DOTALL,
)
STEPS: Final = 10_000
"""Steps of SQLite's machine between two looks at the deadline."""
log = logging.getLogger("treadle.worker")


class Lent(ABC):
    """One open write transaction in the hands of a handler.

    Args:
        connection: the driver's connection.
        place: how messages name the database.
        holder: where in the code it was begun, for messages.
        deadline: seconds after which it is undone.
    """

    def __init__(self, connection: Any, place: str, holder: str, deadline: float) -> None:
        self.connection = connection
        self.place = place
        self.holder = holder
        self.deadline = deadline
        self._lock = threading.RLock()
        self._state = "open"
        self._moving = threading.Lock()
        self._over = threading.Event()
        self._closed = threading.Event()

    def watch(self) -> None:
        """Start the watcher."""
        threading.Thread(target=self._watch, name="treadle-watch", daemon=True).start()

    @property
    def is_too_long(self) -> bool:
        """True once the deadline has ended it."""
        return self._state == "too long"

    def too_long(self) -> TransactionTooLong:
        """What to say then."""
        return too_long(self.holder, self.deadline, self.place)

    def execute(self, statement: Any, parameters: Any = ()) -> Any:
        """Run one statement and return the driver's cursor.

        Raises:
            TransactionTooLong: the deadline has ended the transaction.
        """
        refuse_control(statement)
        with self._lock:
            try:
                if self._state == "open":
                    return self.connection.execute(statement, parameters)
            except Exception as error:
                if self.is_too_long:
                    raise self.too_long() from error
                raise
        if self.is_too_long:
            raise self.too_long()
        raise ConfigurationError("The transaction is over: its statements belong inside the block.")

    def store(self, operation: Callable[[Session], T]) -> T:
        """Run *operation* in it, then commit.

        Raises:
            TransactionTooLong: it was undone before.
            TreadleError: what the operation or the commit raised; call :meth:`undo`.
        """
        if not self._move("open", "storing"):
            raise self.too_long()
        with self._lock:
            result = self._store(operation)
        self.undo()
        return result

    def undo(self) -> None:
        """Roll back what was not stored, and give everything back; safe to call twice."""
        if self._move("open", "over") or self._move("storing", "over"):
            self._end()
        elif self.is_too_long:
            self._closed.wait()  # or the watcher would close a connection that others have by then

    def _end(self) -> None:
        self._over.set()
        try:
            with self._lock:
                self._close()
        finally:
            self._closed.set()

    def _move(self, before: str, after: str) -> bool:
        with self._moving:
            if self._state != before:
                return False
            self._state = after
            return True

    def _watch(self) -> None:
        patience = min(defaults.TRANSACTION_WARN.total_seconds(), self.deadline)
        if self._over.wait(patience):
            return
        if patience < self.deadline:
            warn_of(self.holder, patience, self.place)
        if self._over.wait(self.deadline - patience) or not self._move("open", "too long"):
            return
        log.error("%s", self.too_long())
        try:
            self._interrupt()
        finally:
            self._end()

    @abstractmethod
    def _store(self, operation: Callable[[Session], T]) -> T:
        """Run *operation* and commit."""

    @abstractmethod
    def _interrupt(self) -> None:
        """End the statement that runs, and let no other begin."""

    @abstractmethod
    def _close(self) -> None:
        """Roll back what is open and give everything back."""


@dataclass(frozen=True, slots=True)
class Buffered(Generic[T]):
    """The same in one go: statements that were collected, and what completes them.

    Attributes:
        statements: with their parameters, in the driver's style.
        complete: the rest of the transaction.
        holder: where in the code it was begun, for messages.
        deadline: seconds the statements may take.
        place: how messages name the database.
    """

    statements: Sequence[tuple[Any, Any]]
    complete: Callable[[Session], T]
    holder: str
    deadline: float
    place: str

    def __call__(self, session: Session) -> T:
        """Run all of it, and return what the rest gave."""
        began = session.clock.monotonic()
        with self._limited(session):
            for statement, parameters in self.statements:
                _run(session, statement, parameters)
        took = session.clock.monotonic() - began
        if took > defaults.TRANSACTION_WARN.total_seconds():
            warn_of(self.holder, took, self.place)
        return self.complete(session)

    @contextmanager
    def _limited(self, session: Session) -> Iterator[None]:
        if session.dialect.shares_rows:
            yield from self._limited_by_server(session)
            return
        until = session.clock.monotonic() + self.deadline
        session.connection.set_progress_handler(lambda: session.clock.monotonic() > until, STEPS)
        try:
            yield
        except sqlite3.OperationalError as error:
            if session.clock.monotonic() > until:
                raise too_long(self.holder, self.deadline, self.place) from error
            raise
        finally:
            session.connection.set_progress_handler(None, 0)

    def _limited_by_server(self, session: Session) -> Iterator[None]:
        session.connection.execute(f"SET LOCAL statement_timeout = {max(1, round(self.deadline * 1000))}")
        try:
            yield
        except Exception as error:
            if getattr(error, "sqlstate", None) == "57014":  # query_canceled
                raise too_long(self.holder, self.deadline, self.place) from error
            raise
        session.connection.execute("SET LOCAL statement_timeout TO DEFAULT")


def refuse_control(statement: object) -> None:
    """Raise for statements that would begin or end transactions, or change the connection.

    Raises:
        ConfigurationError: with the first word.

    Example:
        >>> refuse_control("INSERT INTO orders VALUES (?)")
    """
    found = CONTROL.match(statement) if isinstance(statement, str) else None
    if found is not None:
        raise ConfigurationError(
            f"{found[1].upper()} cannot be run in job.transaction(): it commits with the job's success, or not at all."
        )


def too_long(holder: str, deadline: float, place: str) -> TransactionTooLong:
    """What is said of a transaction that was undone for taking too long."""
    return TransactionTooLong(
        f"The transaction begun at {holder} was open for {deadline:g} s, its deadline, and was rolled back, because "
        f"others wait for it to write to {place}. Do slow work before it, or pass job.transaction(deadline=...)."
    )


def warn_of(holder: str, seconds: float, place: str) -> None:
    """Say where a transaction was begun that takes long."""
    log.warning("The transaction begun at %s is open for %.1f s; others wait to write to %s.", holder, seconds, place)


def _run(session: Session, statement: Any, parameters: Parameters) -> None:
    cursor = session.connection.cursor()
    try:
        cursor.execute(statement, parameters)
        if cursor.description:
            cursor.fetchall()  # a statement is only done when it was read to its end
    finally:
        cursor.close()
