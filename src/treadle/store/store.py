"""The store: lane, readers, bell and checks of one database, behind a handful of verbs."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from treadle import defaults
from treadle.clock import Clock, SystemClock
from treadle.errors import ForkedConnectionError, OutcomeUnknown, OwnTransactionOpen, StoreBroken, StoreBusy
from treadle.host.guard import process_name, write_lock_holder
from treadle.host.process import forget_on_fork, on_fork, own_identity
from treadle.model.job import NewJob
from treadle.store import callers, health, room, suspicion
from treadle.store.connections import Connections, FileFacts
from treadle.store.ids import IdBlock
from treadle.store.lane import Lane
from treadle.store.opening import file_of, open_file, private_folder
from treadle.store.readers import Readers
from treadle.store.replies import LoopReply
from treadle.store.session import Session
from treadle.store.work import Insert

T = TypeVar("T")
OWN_TRANSACTION_AFTER = 0.2
ROOM_EVERY = 0.02
ROOM_ALWAYS = 500
log = logging.getLogger("treadle.store")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreOptions:
    """How to open and use a store.

    Attributes:
        durability: "full" survives a power cut at every acknowledged enqueue; "normal" may lose the last
            commits then (never on a crash of the process); "off" is for tests.
        lock_timeout: seconds enqueue waits for the write lock before StoreBusy.
        max_size: bytes of database beyond which enqueue is refused, None for no budget.
        min_free: bytes that enqueue leaves free on the disk, so that running work can still be settled.
        auto_migrate: create and upgrade tables when the store is opened.
    """

    durability: str = defaults.DURABILITY
    lock_timeout: float = defaults.LOCK_TIMEOUT.total_seconds()
    max_size: int | None = None
    min_free: int = defaults.MIN_FREE
    auto_migrate: bool = True


class Store:
    """One open database.

    Args:
        url: ``sqlite:///path`` or ``memory://``.
        options: how to use it.
        clock: where times come from.

    Example:
        >>> store = Store("memory://")
        >>> store.close()
    """

    def __init__(self, url: str, options: StoreOptions | None = None, clock: Clock | None = None) -> None:
        self.options = options or StoreOptions()
        self.clock = clock or SystemClock()
        self._private: Path | None = None
        self.facts = self._open(url)
        self._connections = Connections(self.facts, self.clock)
        self._lane = Lane(self._connections)
        self._readers = Readers(self.facts, self.clock)
        self._ids = IdBlock(self.run, self.arun)
        self._room_until = 0.0
        self._forked = False
        on_fork(
            self, before=self._before_fork, after_in_parent=self._after_fork_in_parent,
            after_in_child=self._after_fork_in_child,
        )  # fmt: skip

    @property
    def path(self) -> Path:
        """The database file."""
        return self.facts.path

    @property
    def damage(self) -> StoreBroken | None:
        """What the disk did to this store, None while all is well; a worker on it must stop."""
        return self._connections.damage

    def check_after_damage(self) -> None:
        """If a process saw the disk fail, look whether the file is whole before any job of it is taken.

        Raises:
            StoreBroken: it is not.
        """
        if self._connections.damage is None and not suspicion.is_marked(self.facts.side):
            return
        try:
            found = self.read(health.damage)
        except StoreBusy as error:
            log.warning("%s was marked as suspect and is too large to check at start: %s", self.path, error)
            return
        if found:
            raise StoreBroken(f"The database {self.path} is corrupt: {'; '.join(found)}. Restore a backup.")
        log.warning("The disk under %s failed before; SQLite's quick check finds the file whole.", self.path)
        self._connections.damage = None
        suspicion.clear(self.facts.side)

    # Writing -----------------------------------------------------------------------------------

    def submit(self, operation: Callable[[Session], T], *, guarded: bool = True) -> Future[T]:
        """Queue a write and return its future, answered after the commit. Never blocks."""
        future: Future[T] = Future()
        self._lane.submit(operation, future, guarded=guarded)
        return future

    def run(self, operation: Callable[[Session], T]) -> T:
        """Run a write and return its result after the commit; for callers off any event loop.

        Raises:
            StoreBusy: the write lock was not free within ``lock_timeout``.
            OwnTransactionOpen: this thread's own transaction holds it.
        """
        here = self._lane.run_here(operation)
        return self.wait(self.submit(operation)) if here is None else here[0]

    async def arun(self, operation: Callable[[Session], T]) -> T:
        """The same for callers on an event loop; many at once share one commit."""
        reply: LoopReply[T] = LoopReply()
        self._lane.submit(operation, reply)
        loop, waiter = reply.loop, reply.waiter
        early = loop.call_later(OWN_TRANSACTION_AFTER, self._suspect_own_transaction, reply)
        late = loop.call_later(self.options.lock_timeout, self._give_up, reply)
        try:
            return await waiter
        finally:
            early.cancel()
            late.cancel()
            reply.cancel()  # a cancelled caller gives up what has not begun; otherwise this does nothing

    async def apatient(self, operation: Callable[[Session], T], *, guarded: bool = True) -> T:
        """Run a write for a worker: it waits for the write lock without limit."""
        reply: LoopReply[T] = LoopReply()
        self._lane.submit(operation, reply, guarded=guarded)
        return await reply.waiter

    def insert(self, jobs: Sequence[NewJob]) -> Sequence[int]:
        """Store *jobs* in one transaction and return their ids, after the commit."""
        ids = self._ids.take(len(jobs))
        self.check_room(jobs)
        try:
            return self.run(Insert(jobs, ids))
        except OutcomeUnknown as error:
            raise OutcomeUnknown(str(error), ids=ids) from error

    async def ainsert(self, jobs: Sequence[NewJob]) -> Sequence[int]:
        """The same for callers on an event loop."""
        ids = self._ids.at_hand(len(jobs)) or await self._ids.atake(len(jobs))
        self.check_room(jobs)
        try:
            return await self.arun(Insert(jobs, ids))
        except OutcomeUnknown as error:
            raise OutcomeUnknown(str(error), ids=ids) from error

    def insert_in(self, connection: object, jobs: Sequence[NewJob]) -> Sequence[int]:
        """Store *jobs* on the caller's connection, inside the transaction they opened.

        The bell rings now and workers then look every few milliseconds for a while, since nobody tells
        us of the commit.
        """
        self.check_room(jobs)

        def insert(session: Session) -> Sequence[int]:
            ids = self._ids.take_in(session, len(jobs))
            return Insert(jobs, ids)(session)

        ids = callers.run_in(connection, insert, path=self.path, clock=self.clock)
        self._connections.ring(b"t")
        return ids

    # Reading -----------------------------------------------------------------------------------

    def read(self, operation: Callable[[Session], T]) -> T:
        """Run a read on this thread."""
        self._refuse_in_forked_child()
        return self._readers.run(operation)

    def submit_read(self, operation: Callable[[Session], T]) -> Future[T]:
        """Run a read on the pool; for callers that must not block."""
        self._refuse_in_forked_child()
        return self._readers.submit(operation)

    # Waiting -----------------------------------------------------------------------------------

    def wait(self, future: Future[T]) -> T:
        """Wait for a write to be stored, at most ``lock_timeout``; then give it up and say who holds the lock."""
        try:
            return future.result(min(OWN_TRANSACTION_AFTER, self.options.lock_timeout))
        except FutureTimeout:
            if future.done():
                raise
        self._check_own_transaction(future)
        try:
            return future.result(max(0.0, self.options.lock_timeout - OWN_TRANSACTION_AFTER))
        except FutureTimeout:
            if future.done():
                raise
        if not future.cancel():
            return future.result()  # it has begun: its outcome is near and must be told
        raise self._busy()

    # Housekeeping ------------------------------------------------------------------------------

    def check_room(self, jobs: Sequence[NewJob]) -> None:
        """Refuse new work before the disk or the budget is full, while there is room to settle what runs.

        Looked at fifty times a second at most, and always for large batches.

        Raises:
            StoreFull: nothing was stored; it can be tried again when there is room.
        """
        now = self.clock.monotonic()
        if now < self._room_until and len(jobs) < ROOM_ALWAYS:
            return
        coming = sum(len(job.data) for job in jobs)
        room.check(self.path, coming, min_free=self.options.min_free, max_size=self.options.max_size)
        self._room_until = now + ROOM_EVERY

    def ring(self) -> None:
        """Wake every worker on this file."""
        self._connections.ring()

    def waiters_path(self) -> Path:
        """A path for one more bell that every settle rings.

        Raises:
            StoreClosed: the store is closed.
        """
        self._lane.check_open()
        return self._connections.waiters_path()

    def close(self, timeout: float = 30.0) -> None:
        """Finish what is queued and close; safe to call twice. A ``memory://`` store is gone afterwards."""
        forget_on_fork(self)
        self._lane.close(timeout)
        self._readers.close()
        self._connections.forget_bells()
        if self._private is not None:
            shutil.rmtree(self._private, ignore_errors=True)

    def _open(self, url: str) -> FileFacts:
        path = file_of(url)
        durability = self.options.durability
        if path is None:
            self._private = private_folder()
            path, durability = self._private / "memory.db", "off"
        return open_file(
            path, self.clock, durability=durability, lock_timeout=self.options.lock_timeout,
            auto_migrate=self.options.auto_migrate,
        )  # fmt: skip

    def _check_own_transaction(self, future: Future[T]) -> None:
        if write_lock_holder(self.path) != own_identity().pid or future.done():
            return
        try:
            callers.check_own_transaction(self.path)
        except OwnTransactionOpen:
            if future.cancel():
                raise

    def _suspect_own_transaction(self, reply: LoopReply[T]) -> None:
        if write_lock_holder(self.path) != own_identity().pid or reply.waiter.done():
            return
        try:
            callers.check_own_transaction(self.path)
        except OwnTransactionOpen as error:
            if reply.cancel() and not reply.waiter.done():
                reply.waiter.set_exception(error)

    def _give_up(self, reply: LoopReply[T]) -> None:
        if not reply.waiter.done() and reply.cancel():
            reply.waiter.set_exception(self._busy())

    def _busy(self) -> StoreBusy:
        holder = write_lock_holder(self.path)
        who = process_name(holder) if holder else "another process"
        return StoreBusy(
            f"The database {self.path} stayed locked for {self.options.lock_timeout:g} s (lock_timeout) by {who}. "
            "Nothing was stored."
        )

    def _refuse_in_forked_child(self) -> None:
        if self._forked:
            raise ForkedConnectionError(
                "This process was forked while the store was reading, so it may not touch the file. "
                "Start workers with subprocess or multiprocessing's 'spawn' instead of fork."
            )

    def _before_fork(self) -> None:
        self._lane.before_fork()
        self._readers.before_fork()

    def _after_fork_in_parent(self) -> None:
        self._readers.after_fork_in_parent()
        self._lane.after_fork_in_parent()

    def _after_fork_in_child(self) -> None:
        self._lane.after_fork_in_child()
        self._forked = not self._readers.after_fork_in_child()
        self._ids.forget()
