"""The store: one open database, behind a handful of verbs that are the same for every kind of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from pathlib import Path
from typing import Final, TypeVar

from treadle.clock import Clock, SystemClock
from treadle.errors import ForkedConnectionError, OutcomeUnknown, OwnTransactionOpen, StoreBroken
from treadle.host.process import forget_on_fork, on_fork
from treadle.model.job import NewJob
from treadle.store.engine import Engine
from treadle.store.engines import open_engine
from treadle.store.ids import IdBlock
from treadle.store.lending import Lent
from treadle.store.options import StoreOptions
from treadle.store.replies import LoopReply
from treadle.store.session import Session
from treadle.store.work import Insert

T = TypeVar("T")
OWN_TRANSACTION_AFTER: Final = 0.2
ROOM_EVERY: Final = 0.02
ROOM_ALWAYS: Final = 500


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
        self.engine: Engine = open_engine(url, self.options, clock or SystemClock())
        self._ids = IdBlock(self.run, self.arun)
        self._room_until = 0.0
        self._forked = False
        on_fork(
            self, before=self.engine.before_fork, after_in_parent=self.engine.after_fork_in_parent,
            after_in_child=self._after_fork_in_child,
        )  # fmt: skip

    @property
    def clock(self) -> Clock:
        """Where times come from: the machine's clock, or the server's."""
        return self.engine.clock

    @property
    def place(self) -> str:
        """How messages name the database; no secrets."""
        return self.engine.place

    @property
    def path(self) -> Path:
        """The database file.

        Raises:
            NotSupportedHere: the database is not a file.
        """
        return self.engine.path

    @property
    def side(self) -> Path:
        """A folder of this machine for locks and lists of begun attempts."""
        return self.engine.side

    @property
    def damage(self) -> StoreBroken | None:
        """What the disk did to this store, None while all is well; a worker on it must stop."""
        return self.engine.damage

    # Writing -----------------------------------------------------------------------------------

    def submit(self, operation: Callable[[Session], T], *, guarded: bool = True) -> Future[T]:
        """Queue a write and return its future, answered after the commit. Never blocks."""
        future: Future[T] = Future()
        self.engine.submit(operation, future, guarded=guarded)
        return future

    def run(self, operation: Callable[[Session], T]) -> T:
        """Run a write and return its result after the commit; for callers off any event loop.

        Raises:
            StoreBusy: the write lock was not free within ``lock_timeout``.
            OwnTransactionOpen: this thread's own transaction holds it.
        """
        here = self.engine.run_here(operation)
        return self.wait(self.submit(operation)) if here is None else here[0]

    async def arun(self, operation: Callable[[Session], T]) -> T:
        """The same for callers on an event loop; many at once share one commit."""
        reply: LoopReply[T] = LoopReply()
        self.engine.submit(operation, reply, guarded=True)
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
        self.engine.submit(operation, reply, guarded=guarded)
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
        """Store *jobs* on the caller's connection, inside the transaction they opened."""
        self.check_room(jobs)
        return self.engine.run_in(connection, self._inserting(jobs))

    async def ainsert_in(self, connection: object, jobs: Sequence[NewJob]) -> Sequence[int]:
        """The same from async code, on connections of async libraries too."""
        self.check_room(jobs)
        return await self.engine.arun_in(connection, self._inserting(jobs))

    def _inserting(self, jobs: Sequence[NewJob]) -> Callable[[Session], Sequence[int]]:
        def insert(session: Session) -> Sequence[int]:
            ids = self._ids.take_in(session, len(jobs))
            return Insert(jobs, ids)(session)

        return insert

    def lend(self, holder: str, deadline: float) -> Lent:
        """Begin a write transaction for this thread to fill; see :class:`~treadle.store.lending.Lent`."""
        return self.engine.lend(holder, deadline)

    # Reading -----------------------------------------------------------------------------------

    def read(self, operation: Callable[[Session], T]) -> T:
        """Run a read on this thread."""
        self._refuse_in_forked_child()
        return self.engine.read(operation)

    def submit_read(self, operation: Callable[[Session], T]) -> Future[T]:
        """Run a read on the pool; for callers that must not block."""
        self._refuse_in_forked_child()
        return self.engine.submit_read(operation)

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
        raise self.engine.busy()

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
        self.engine.check_room(coming)
        self._room_until = now + ROOM_EVERY

    def ring(self) -> None:
        """Wake every worker on this database."""
        self.engine.ring()

    def close(self, timeout: float = 30.0) -> None:
        """Finish what is queued and close; safe to call twice. A ``memory://`` store is gone afterwards."""
        forget_on_fork(self)
        self.engine.close(timeout)

    def _check_own_transaction(self, future: Future[T]) -> None:
        if future.done():
            return
        try:
            self.engine.check_own_transaction()
        except OwnTransactionOpen:
            if future.cancel():
                raise

    def _suspect_own_transaction(self, reply: LoopReply[T]) -> None:
        if reply.waiter.done():
            return
        try:
            self.engine.check_own_transaction()
        except OwnTransactionOpen as error:
            if reply.cancel() and not reply.waiter.done():
                reply.waiter.set_exception(error)

    def _give_up(self, reply: LoopReply[T]) -> None:
        if not reply.waiter.done() and reply.cancel():
            reply.waiter.set_exception(self.engine.busy())

    def _refuse_in_forked_child(self) -> None:
        if self._forked:
            raise ForkedConnectionError(
                "This process was forked while the store was reading, so it may not touch the file. "
                "Start workers with subprocess or multiprocessing's 'spawn' instead of fork."
            )

    def _after_fork_in_child(self) -> None:
        self._forked = not self.engine.after_fork_in_child()
        self._ids.forget()
