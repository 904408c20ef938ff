"""Connections to one PostgreSQL database: opened when needed, kept, and made anew when they are lost."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import psycopg
from psycopg import conninfo

from treadle.clock import Clock
from treadle.errors import ConfigurationError, StoreClosed, StoreUnusable
from treadle.host.process import no_fork
from treadle.store.options import StoreOptions
from treadle.store.postgres.errors import is_lost, none_free, translate, unreachable
from treadle.store.urls import without_password

FLOOR: Final = 140000
AGAIN_AFTER: Final = (0.02, 0.5)
"""Seconds between attempts to connect: short at first, and no more than this later, each with jitter."""
LIFETIME: Final = 24 * 3600.0
"""Seconds after which a connection is replaced."""
PLAIN: Final = {
    "connect_timeout": 10, "keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}  # fmt: skip
"""A host that vanishes without a word must not hold a connection for hours, as the system's defaults would."""


def check_url(url: str) -> str:
    """The connection string of *url*, as psycopg takes it.

    Raises:
        ConfigurationError: it cannot be read.
    """
    try:
        parts = conninfo.conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        parts = {"dbname": "@"}
    ports = str(parts.get("port") or "0").split(",")
    if "@" in str(parts.get("dbname") or "") or not all(port.isdecimal() for port in ports):
        # Its words are not told, nor is it chained: they quote the part that they stumbled over, a password perhaps.
        raise ConfigurationError(
            f"{without_password(url)} is no PostgreSQL URL, such as postgresql://user:password@host:5432/database; "
            "letters such as @ : / # ? % in the password are written as %40 %3A %2F %23 %3F %25."
        ) from None
    return url


class Connection(psycopg.Connection[Any]):
    """A connection of Treadle's own.

    Attributes:
        since: when it was made, monotonic.
        mark: names its row in ``treadle_commits``; empty before its first transaction.
        commits: how many it has made.
    """

    since = 0.0
    mark = ""
    commits = 0
    lent = False
    """A handler has it, and must not end the transaction that its job's success completes."""

    def commit(self) -> None:
        """Refused while it is lent."""
        self._refuse_when_lent("commit()")
        super().commit()

    def rollback(self) -> None:
        """Refused while it is lent."""
        self._refuse_when_lent("rollback()")
        super().rollback()

    def _refuse_when_lent(self, verb: str) -> None:
        if self.lent:
            raise psycopg.ProgrammingError(f"{verb} cannot be called in job.transaction(): it ends with its block.")


class Connections:
    """Hands out connections, each to one thread at a time.

    Args:
        url: the connection string.
        place: how messages name the database.
        options: how many at most, and whether statements are prepared.
        clock: for deadlines.
    """

    def __init__(self, url: str, place: str, options: StoreOptions, clock: Clock) -> None:
        self._url = url
        self._place = place
        self._options = options
        self._clock = clock
        self.start_anew()

    def start_anew(self) -> None:
        """Forget every connection, as a forked child must: they are its parent's."""
        self._lock = threading.Lock()
        self._free = threading.BoundedSemaphore(self._options.connections)
        self._idle: list[Connection] = []
        self._closing = threading.Event()
        self.failure: BaseException | None = None

    @contextmanager
    def lent(self, until: float | None, wanted: Callable[[], bool] = lambda: True) -> Iterator[Connection]:
        """Lend a connection that has answered, at most until the moment *until* (monotonic; None: for ever).

        Args:
            until: when to give up.
            wanted: asked between attempts; False gives up too.

        Raises:
            StoreBusy: all were in use until then.
            StoreUnreachable: none could be had in time.
            StoreClosed: the store was closed.
        """
        left = None if until is None else max(0.0, until - self._clock.monotonic())
        if not self._free.acquire(timeout=left):
            if self.failure is not None:
                raise unreachable(self._place, self.failure)
            raise none_free(self._place, self._options.lock_timeout)
        connection: Connection | None = None
        try:
            connection = self._take(until, wanted)
            yield connection
        finally:
            if connection is not None:
                self._give_back(connection)
            self._free.release()  # last, or whoever waits would make one more

    def drop_idle(self, parting: Callable[[Connection], None] = lambda _: None) -> None:
        """Close every connection that nobody uses: they may all be dead."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            parting(connection)
            connection.close()

    def close(self, parting: Callable[[Connection], None] = lambda _: None) -> None:
        """Close, each after *parting*; whoever waits for a connection hears of it."""
        self._closing.set()
        self.drop_idle(parting)

    def _take(self, until: float | None, wanted: Callable[[], bool]) -> Connection:
        if self._closing.is_set():
            raise StoreClosed(f"The store {self._place} is closed; open a new Treadle.")
        with self._lock:
            if self._idle:
                return self._idle.pop()
        pause = AGAIN_AFTER[0]
        while True:
            try:
                connection = self.connect()
            except psycopg.Error as error:
                self.failure = error
                if not is_lost(error):
                    raise translate(error, self._place) from error
            else:
                self.failure = None
                return connection
            late = until is not None and self._clock.monotonic() + pause > until
            if late or not wanted() or self._closing.wait(random.uniform(pause / 2, pause)):  # noqa: S311 - jitter
                raise unreachable(self._place, self.failure)
            pause = min(AGAIN_AFTER[1], pause * 2)

    def connect(self, url: str | None = None) -> Connection:
        """A new connection, checked to be to a server that is new enough; *url* when it is not the usual one.

        Raises:
            psycopg.Error: it could not be made.
            StoreUnusable: the server is too old.
        """
        with no_fork():
            connection = Connection.connect(url or self._url, autocommit=True, **self._kwargs())
        if connection.info.server_version < FLOOR:
            found = connection.info.server_version // 10000
            connection.close()
            raise StoreUnusable(f"{self._place} runs PostgreSQL {found}; Treadle needs 14 or newer.")
        connection.since = self._clock.monotonic()
        return connection

    def pause(self) -> bool:
        """Wait a moment before trying again; False when the store is closing."""
        return not self._closing.wait(random.uniform(*AGAIN_AFTER) / 5)  # noqa: S311 - jitter

    def _kwargs(self) -> dict[str, Any]:
        given = conninfo.conninfo_to_dict(self._url)
        plain = {name: value for name, value in PLAIN.items() if name not in given}
        name = {} if "application_name" in given else {"application_name": "treadle"}
        return {**plain, **name, "prepare_threshold": 5 if self._options.prepared else None}

    def _give_back(self, connection: Connection) -> None:
        old = self._clock.monotonic() - connection.since > LIFETIME
        if connection.closed or old or connection.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
            connection.close()
            return
        with self._lock:
            if not self._closing.is_set():
                self._idle.append(connection)
                return
        connection.close()
