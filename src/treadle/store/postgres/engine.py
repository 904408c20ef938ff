"""The engine for PostgreSQL: a few lanes that write, reads beside them, one connection that listens."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from typing import Final, TypeVar

import psycopg

from treadle import defaults
from treadle.clock import Clock
from treadle.errors import StoreBusy, StoreError
from treadle.host.files import run_folder
from treadle.store.dialect import PostgresDialect
from treadle.store.engine import About, Bell, Engine, Watch
from treadle.store.given import areduced, reduced
from treadle.store.lending import Lent
from treadle.store.ops import meta
from treadle.store.ops.sequences import burn
from treadle.store.options import StoreOptions
from treadle.store.postgres import health, places
from treadle.store.postgres.callers import Callers
from treadle.store.postgres.checks import CHECKS
from treadle.store.postgres.clock import ServerClock
from treadle.store.postgres.connections import Connection, Connections, check_url
from treadle.store.postgres.errors import is_lost, none_free, translate, unreachable
from treadle.store.postgres.lanes import Lanes
from treadle.store.postgres.lending import Lending
from treadle.store.postgres.listener import Listener
from treadle.store.postgres.opening import bring_up_to_date
from treadle.store.postgres.reading import Reads
from treadle.store.postgres.seats import ServerJudge, ServerSeat
from treadle.store.postgres.session import PostgresSession, without_nul
from treadle.store.postgres.transactions import Transactions
from treadle.store.replies import Reply
from treadle.store.session import Row, Session
from treadle.store.urls import without_password
from treadle.store.verdict import Check

T = TypeVar("T")
READ_DEADLINE: Final = 10.0
log = logging.getLogger("treadle.store")


class PostgresEngine(Engine):
    """One open database.

    Args:
        url: ``postgresql://…``.
        options: how to use it.
        clock: where monotonic time comes from; times are the server's.
    """

    beat_every = look_every = defaults.SERVER_BEAT.total_seconds()
    leases_expire = True

    def __init__(self, url: str, options: StoreOptions, clock: Clock) -> None:
        self._options = options
        self._url = check_url(url)
        self.place = without_password(url)
        self._server_clock = ServerClock(clock)
        self.clock = self._server_clock
        self._dialect = PostgresDialect(options.schema)
        self._channel = f"treadle_{options.schema}"[:63]
        self._connections = Connections(url, self.place, options, clock)
        self._lanes = self._make_lanes(self._connections, clock, max(1, options.connections // 2))
        # Signs of life have a connection of their own: somebody's open transaction may hold up every other one.
        self._sign_connections = Connections(url, self.place, replace(options, connections=1), clock)
        self._signs = self._make_lanes(self._sign_connections, clock, 1)
        self._lending = Lending(
            self._connections, self._make_transactions(self._connections), self.place, clock,
            max(1, options.connections // 3), options.lock_timeout, self._after_commit,
        )  # fmt: skip
        self._reads = Reads(self._connections, self._dialect, self._server_clock, self.place, options.lock_timeout)
        self._listener = Listener(self._connect_listener, self._channel, self.place)
        self._open()

    def _make_lanes(self, connections: Connections, clock: Clock, count: int) -> Lanes:
        transactions = self._make_transactions(connections)
        return Lanes(
            connections, transactions, self.place, clock, count, self._options.lock_timeout, self._after_commit
        )

    def _make_transactions(self, connections: Connections) -> Transactions:
        return Transactions(
            connections, self._dialect, self._server_clock, self.place, self._options.durability,
            self._options.lock_timeout,
        )  # fmt: skip

    def _open(self) -> None:
        try:
            self._prepare_tables(self.clock.monotonic() + self._options.lock_timeout)
        except psycopg.Error as error:
            self.close(0)
            raise translate(error, self.place) from error
        except StoreError:
            self.close(0)  # old tables, or newer ones: nobody will close what was never opened
            raise
        self._store_id = self.read(meta.store_id)
        self._callers = Callers(self._dialect, self._server_clock, self.place, self._store_id, self._channel)
        self.side = run_folder(self._store_id)

    def _prepare_tables(self, until: float) -> None:
        """Look at the tables, from the beginning when the connection is lost: each step is done whole or not at all."""
        options = self._options
        while True:
            try:
                with self._connections.lent(until) as connection:
                    bring_up_to_date(connection, options.schema, self.place, auto_migrate=options.auto_migrate)
                    return
            except psycopg.Error as error:
                if not is_lost(error) or self.clock.monotonic() > until:
                    raise
                self._connections.drop_idle()

    @property
    def is_remote(self) -> bool:
        """True."""
        return True

    @property
    def skew(self) -> float:
        """By the last readings of the server's clock."""
        return self._server_clock.skew

    @property
    def checks(self) -> Sequence[Check]:
        """What the server says of its pages and indexes, and the numbers it gives."""
        return CHECKS

    def about(self, session: Session) -> About:
        """The tables of our schema, and the server."""
        return About(health.size(session), None, "PostgreSQL", health.version(session))

    def submit(self, operation: Callable[[Session], T], reply: Reply, *, guarded: bool) -> None:
        """Queue a write for the lanes."""
        self._lanes.submit(operation, reply, guarded=guarded)

    def sign(self, operation: Callable[[Session], T]) -> T:
        """Run a sign of life on a connection of its own."""
        here = self._signs.run_here(operation)
        if here is not None:
            return here[0]
        reply: Future[T] = Future()
        self._signs.submit(operation, reply, guarded=False)
        return reply.result()

    def run_here(self, operation: Callable[[Session], T]) -> tuple[T] | None:
        """Run a write on this thread while a lane is idle."""
        return self._lanes.run_here(operation)

    def read(self, operation: Callable[[Session], T]) -> T:
        """Run a read on this thread."""
        return self._reads.run(operation, READ_DEADLINE)

    def read_long(self, operation: Callable[[Session], T], seconds: float) -> T:
        """Run a read with another deadline."""
        return self._reads.run(operation, seconds)

    def submit_read(self, operation: Callable[[Session], T]) -> Future[T]:
        """Run a read on the pool of readers."""
        return self._reads.submit(operation, READ_DEADLINE)

    def run_in(self, connection: object, operation: Callable[[Session], T]) -> T:
        """Run a write in the caller's transaction; the notification travels with its commit."""
        return self._callers.run_in(reduced(connection), operation)

    async def arun_in(self, connection: object, operation: Callable[[Session], T]) -> T:
        """The same from async code."""
        return await self._callers.arun_in(await areduced(connection), operation)

    def lend(self, holder: str, deadline: float) -> Lent:
        """A transaction on a connection of its own."""
        return self._lending.lend(holder, deadline)

    def ring(self, token: bytes = b"r") -> None:
        """Wake every worker, here and elsewhere."""
        self._listener.ring(token, settled=False)
        with suppress(StoreError, psycopg.Error), self._connections.lent(self.clock.monotonic() + 1) as connection:
            self._listener.tell(connection, self._listener.payload(token, settled=False))

    def worker_bell(self, slot: int) -> Bell | None:
        """Rung by the listener."""
        return self._listener.worker_bell()

    def waiter_bell(self) -> Bell:
        """Rung by the listener, when anything was settled."""
        self._lanes.check_open()
        return self._listener.waiter_bell()

    def watch(self) -> Watch:
        """Says yes each time: looking would cost as much as claiming."""
        return _Always()

    def take_seat(self, is_free: Callable[[int], bool]) -> ServerSeat:
        """A number never given before."""
        reply: Future[int] = Future()
        self.submit(lambda session: burn(session, "epoch", 1)[0], reply, guarded=False)
        return ServerSeat(reply.result(), self._listener, self._store_id)

    def judge(self) -> ServerJudge:
        """By signs of life and locks."""
        return ServerJudge(self.read, self._listener, self._store_id, self.clock)

    def check_health(self, session: Session) -> None:
        """A connection that answers is healthy."""

    def kept(self, row: Row) -> Row:
        """Without NUL in its texts, which PostgreSQL cannot hold."""
        return tuple(without_nul(value) for value in row)

    def last_place(self, session: Session) -> int:
        """The place of a transaction that would begin now."""
        return places.last(session.connection, self._options.schema)

    def go_on_from(self, session: Session, place: int) -> None:
        """Raise the offset of places if need be."""
        places.catch_up(session.connection, self._options.schema, beyond=place)

    def check_after_damage(self) -> None:
        """The server looks after its disk."""

    def check_room(self, coming: int) -> None:
        """The server says when it is full."""

    def check_own_transaction(self) -> None:
        """Transactions do not stand in each other's way here."""

    def busy(self) -> StoreBusy:
        """Why a write did not begin in time."""
        if self._connections.failure is not None:
            return unreachable(self.place, self._connections.failure)
        return none_free(self.place, self._options.lock_timeout)

    def close(self, timeout: float) -> None:
        """Finish what is queued, then close every connection."""
        for lanes in (self._lanes, self._signs):
            lanes.close(timeout)
        self._reads.close()
        self._listener.close()
        for connections, lanes in ((self._connections, self._lanes), (self._sign_connections, self._signs)):
            connections.close(lanes.transactions.forget)

    def before_fork(self) -> None:
        """Nothing: the child leaves its parent's connections alone."""

    def after_fork_in_parent(self) -> None:
        """Nothing."""

    def after_fork_in_child(self) -> bool:
        """Fresh locks, no threads, no connections."""
        for connections in (self._connections, self._sign_connections):
            connections.start_anew()
        for lanes in (self._lanes, self._signs):
            lanes.start_anew()
        self._lending.start_anew()
        self._reads.start_anew()
        self._listener.start_anew()
        return True

    def _after_commit(self, session: PostgresSession, connection: Connection) -> None:
        """Ring here at once, then tell others."""
        if not session.rings and not session.settles:
            return
        self._listener.ring(session.rings, settled=session.settles)
        # In a transaction of its own: commits that notify wait for each other, all over the server.
        payload = self._listener.payload(session.rings, settled=session.settles)
        try:
            self._listener.tell(connection, payload)
        except psycopg.Error as error:
            log.debug("Others were not notified (%s); they find out by polling.", error)

    def _connect_listener(self) -> Connection:
        connection = self._connections.connect(self._options.listen_url)
        self._listener.since = self.clock.monotonic()
        return connection


class _Always:
    def changed(self) -> bool:
        """True."""
        return True

    def close(self) -> None:
        """Nothing."""
