"""The one connection that listens: it turns notifications into rings, and its session's locks say that workers live.

A ring carries no truth. Whoever misses one, because the connection was lost or a pooler stood in between, finds the
work at the next slow poll.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable
from typing import Final
from uuid import uuid4

import psycopg
from psycopg import sql

from treadle.errors import StoreError
from treadle.host.localbells import LocalBell
from treadle.store.postgres.connections import Connection
from treadle.store.postgres.errors import first_line

LOOK_EVERY: Final = 1.0
"""Seconds after which the listener looks whether it is still wanted."""
SETTLED: Final = "s"
LOCK: Final = "SELECT pg_try_advisory_lock(%s::bigint)"
NOTIFY: Final = "SELECT pg_notify(%s, %s)"
# In a transaction of its own, whose commit would wait for the disk and changes nothing there.
TELL: Final = "BEGIN; SET LOCAL synchronous_commit = off; SELECT pg_notify({channel}, {payload}); COMMIT"
UNLOCK: Final = "SELECT pg_advisory_unlock(%s::bigint)"
log = logging.getLogger("treadle.store")


class Listener:
    """Listens for one process, on a thread of its own that begins with the first bell.

    Args:
        connect: makes a direct connection.
        channel: the channel's name.
        place: how messages name the database.
    """

    def __init__(self, connect: Callable[[], Connection], channel: str, place: str) -> None:
        self._connect = connect
        self._channel = channel
        self._place = place
        self.start_anew()

    def start_anew(self) -> None:
        """Nothing to listen for yet, as in a forked child."""
        self._own = uuid4().hex[:12]
        self._lock = threading.Lock()
        self._workers: set[LocalBell] = set()
        self._waiters: set[LocalBell] = set()
        self._wanted: set[int] = set()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.since: float | None = None
        """When the present connection was made, monotonic; None while there is none."""

    def worker_bell(self) -> LocalBell:
        """A bell for a worker of this process."""
        return self._add(self._workers)

    def waiter_bell(self) -> LocalBell:
        """A bell for somebody of this process who waits for a job's end."""
        return self._add(self._waiters)

    def payload(self, tokens: bytes, *, settled: bool) -> str:
        """What to notify others with; our own listener does not hear it again."""
        return f"{self._own}:{tokens.decode()}{SETTLED if settled else ''}"

    @staticmethod
    def payload_for_all(tokens: bytes, *, settled: bool) -> str:
        """The same for a commit that this process does not hear of otherwise: our own listener hears it too."""
        return f":{tokens.decode()}{SETTLED if settled else ''}"

    def tell(self, connection: Connection, payload: str) -> None:
        """Notify others on an idle *connection*.

        Raises:
            psycopg.Error: they were not notified.
        """
        parts = {"channel": sql.Literal(self._channel), "payload": sql.Literal(payload)}
        connection.execute(sql.SQL(TELL).format(**parts))

    def ring(self, tokens: bytes, *, settled: bool) -> None:
        """Ring the bells of this process."""
        with self._lock:
            workers = list(self._workers) if tokens else []
            waiters = list(self._waiters) if settled else []
        for bell in workers:
            bell.ring(tokens)
        for bell in waiters:
            bell.ring(b"s")

    def hold(self, key: int) -> None:
        """Keep an advisory lock on the listening session, whenever there is one."""
        with self._lock:
            self._wanted.add(key)
        self._begin()

    def let_go(self, key: int) -> None:
        """Stop keeping that lock."""
        with self._lock:
            self._wanted.discard(key)

    def close(self) -> None:
        """Stop listening; the thread ends by itself within a second."""
        self._stop.set()

    def _add(self, bells: set[LocalBell]) -> LocalBell:
        bell = LocalBell(self._remove)
        with self._lock:
            bells.add(bell)
        self._begin()
        return bell

    def _remove(self, bell: LocalBell) -> None:
        with self._lock:
            self._workers.discard(bell)
            self._waiters.discard(bell)

    def _begin(self) -> None:
        with self._lock:
            if self._thread is None and not self._stop.is_set():
                self._thread = threading.Thread(target=self._serve, name="treadle-listen", daemon=True)
                self._thread.start()

    def _serve(self) -> None:
        stop, told = self._stop, False
        while not stop.is_set():
            try:
                with self._connect() as connection:
                    told = False
                    self._listen(connection, stop)
            except (psycopg.Error, StoreError) as error:
                if not told and not stop.is_set():
                    log.warning("Not listening to %s (%s); work is found by polling.", self._place, first_line(error))
                told = True
            self.since = None
            stop.wait(random.uniform(0.05, 0.5))  # noqa: S311 - jitter

    def _listen(self, connection: Connection, stop: threading.Event) -> None:
        connection.execute(f'LISTEN "{self._channel}"')
        held: set[int] = set()
        self.ring(b"r", settled=True)  # whatever came before this connection
        while not stop.is_set():
            self._keep_locks(connection, held)
            for notice in connection.notifies(timeout=LOOK_EVERY, stop_after=1):
                sender, _, tokens = notice.payload.partition(":")
                if sender != self._own:
                    self.ring(tokens.replace(SETTLED, "").encode(), settled=SETTLED in tokens)

    def _keep_locks(self, connection: Connection, held: set[int]) -> None:
        with self._lock:
            wanted = set(self._wanted)
        for key in wanted - held:
            connection.execute(LOCK, (key,))
        for key in held - wanted:
            connection.execute(UNLOCK, (key,))
        held.clear()
        held |= wanted
