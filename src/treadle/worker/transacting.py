"""What ``job.transaction()`` gives a handler: its own rows and its job's success, committed together."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import Any, Protocol

from treadle.errors import ConfigurationError, TransactionTooLong
from treadle.store.lending import Lent, refuse_control

Parameters = Any
"""As the driver takes them: a sequence or a mapping."""


class Completion(Protocol):
    """What settles one attempt from inside its handler."""

    def lend(self, holder: str, deadline: float) -> Lent:
        """Begin a write transaction."""

    def succeed(self, lent: Lent, result: object) -> None:
        """Store the attempt's success in it, and commit."""

    async def run(
        self, statements: Sequence[tuple[Any, Parameters]], holder: str, deadline: float, result: object
    ) -> None:
        """Run statements, store the attempt's success and commit, in one go."""


class Transaction:
    """One open transaction of a plain function, made by :meth:`treadle.JobContext.transaction`.

    Attributes:
        connection: the ``sqlite3.Connection`` or ``psycopg.Connection`` it is open on. Use it inside the block only,
            and leave BEGIN, COMMIT and ROLLBACK to the block.
    """

    __slots__ = ("_lent", "result")

    def __init__(self, lent: Lent) -> None:
        self._lent = lent
        self.result: object = None

    @property
    def connection(self) -> Any:
        """The driver's connection."""
        return self._lent.connection

    def execute(self, statement: Any, parameters: Parameters = ()) -> Any:
        """Run one statement and return the driver's cursor.

        Args:
            statement: in the database's SQL.
            parameters: in the driver's style: ``?`` on SQLite, ``%s`` on PostgreSQL.

        Raises:
            TransactionTooLong: the deadline is over; everything was rolled back.
        """
        return self._lent.execute(statement, parameters)

    def succeed(self, result: object) -> None:
        """What the job's result is to be; without it there is none. What the handler returns later does not count."""
        self.result = result


class AsyncTransaction:
    """The same for ``async def`` handlers: statements are collected, and run in one go at the end of the block."""

    __slots__ = ("result", "statements")

    def __init__(self) -> None:
        self.statements: list[tuple[Any, Parameters]] = []
        self.result: object = None

    async def execute(self, statement: Any, parameters: Parameters = ()) -> None:
        """Collect one statement. It returns no rows: read before, or in a plain function."""
        refuse_control(statement)
        self.statements.append((statement, parameters))

    def succeed(self, result: object) -> None:
        """What the job's result is to be; without it there is none."""
        self.result = result


class Transacting:
    """Enter it by ``with`` in a plain function, by ``async with`` in a coroutine function.

    Args:
        completion: settles the attempt.
        deadline: seconds.
        on_loop: it was asked for on an event loop, which must not wait for the database.
    """

    def __init__(self, completion: Completion, deadline: float, *, on_loop: bool) -> None:
        self._completion = completion
        self._deadline = deadline
        self._on_loop = on_loop
        self._lent: Lent | None = None
        self._plain: Transaction | None = None
        self._buffer: AsyncTransaction | None = None
        self._holder = ""

    def __enter__(self) -> Transaction:
        if self._on_loop:
            raise ConfigurationError("transaction() would block the event loop; use 'async with job.transaction()'.")
        self._check_unused()
        self._lent = self._completion.lend(_line(sys._getframe(1)), self._deadline)
        self._plain = Transaction(self._lent)
        return self._plain

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        lent, made = self._lent, self._plain
        assert lent is not None
        assert made is not None
        try:
            if error is None:
                self._completion.succeed(lent, made.result)
        finally:
            lent.undo()  # nothing is left of what was not committed
        if lent.is_too_long and not isinstance(error, TransactionTooLong):
            raise lent.too_long() from error

    async def __aenter__(self) -> AsyncTransaction:
        self._check_unused()
        self._holder = _line(sys._getframe(1))
        self._buffer = AsyncTransaction()
        return self._buffer

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        made = self._buffer
        assert made is not None
        if error is None:
            await self._completion.run(made.statements, self._holder, self._deadline, made.result)

    def _check_unused(self) -> None:
        if self._plain is not None or self._buffer is not None:
            raise ConfigurationError("This transaction was used before; call job.transaction() again.")


def _line(frame: FrameType) -> str:
    """Where the code of a frame stands."""
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"
