"""The engine for SQLite files: one lane that writes, a few readers beside it, locks and bells in the side folder."""

from __future__ import annotations

import logging
import shutil
import sqlite3
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

from treadle.clock import Clock
from treadle.errors import NotSupportedHere, OwnTransactionOpen, StoreBroken, StoreBusy, StoreLost
from treadle.host import bells
from treadle.host.guard import LockState, process_name, sqlite_locks, write_lock_holder
from treadle.host.process import own_identity
from treadle.store import callers, file_checks, health, room, suspicion
from treadle.store.connections import Connections
from treadle.store.engine import About, Bell, Engine
from treadle.store.given import areduced, reduced
from treadle.store.lane import Lane
from treadle.store.lending import Lent
from treadle.store.opening import file_of, open_file, private_folder
from treadle.store.ops import sequences
from treadle.store.options import StoreOptions
from treadle.store.readers import Readers
from treadle.store.replies import Reply
from treadle.store.seats import FileJudge, FileSeat
from treadle.store.session import Session
from treadle.store.sqlite import translate
from treadle.store.sqlite_lending import lend
from treadle.store.verdict import Check
from treadle.store.watch import FileWatch

T = TypeVar("T")
log = logging.getLogger("treadle.store")


class SqliteEngine(Engine):
    """One open file.

    Args:
        url: ``sqlite:///path`` or ``memory://``.
        options: how to use it.
        clock: where times come from.
    """

    def __init__(self, url: str, options: StoreOptions, clock: Clock) -> None:
        self._options = options
        self.clock = clock
        self._private: Path | None = None
        path, durability = file_of(url), options.durability
        if path is None:
            self._private = private_folder()
            path, durability = self._private / "memory.db", "off"
        self.facts = open_file(
            path, clock, durability=durability, lock_timeout=options.lock_timeout, auto_migrate=options.auto_migrate
        )
        self.place, self.side = str(self.facts.path), self.facts.side
        self.connections = Connections(self.facts, clock)
        if suspicion.is_marked(self.side):
            self.connections.owe_checkpoint()
        self._lane = Lane(self.connections)
        self._readers = Readers(self.facts, clock)

    @property
    def path(self) -> Path:
        """The database file."""
        return self.facts.path

    @property
    def damage(self) -> StoreBroken | None:
        """What the disk did to this file."""
        return self.connections.damage

    @property
    def checks(self) -> Sequence[Check]:
        """SQLite's full check, and what it keeps about itself."""
        return file_checks.CHECKS

    def about(self, session: Session) -> About:
        """The file and its log."""
        return About(self.path.stat().st_size, health.wal_bytes(self.path), "SQLite", health.library_version())

    def submit(self, operation: Callable[[Session], T], reply: Reply, *, guarded: bool) -> None:
        """Queue a write for the lane."""
        self._lane.submit(operation, reply, guarded=guarded)

    def run_here(self, operation: Callable[[Session], T]) -> tuple[T] | None:
        """Run a write on this thread while the lane is idle."""
        return self._lane.run_here(operation)

    def read(self, operation: Callable[[Session], T]) -> T:
        """Run a read on this thread."""
        return self._readers.run(operation)

    def read_long(self, operation: Callable[[Session], T], seconds: float) -> T:
        """Run a read with another deadline."""
        patient = Readers(self.facts, self.clock, deadline=seconds)
        try:
            return patient.run(operation)
        finally:
            patient.close()

    def submit_read(self, operation: Callable[[Session], T]) -> Future[T]:
        """Run a read on the pool of readers."""
        return self._readers.submit(operation)

    def run_in(self, connection: object, operation: Callable[[Session], T]) -> T:
        """Run a write in the caller's transaction. Nobody tells us of its commit: workers look often for a while."""
        result = callers.run_in(reduced(connection), operation, path=self.path, clock=self.clock)
        self.connections.ring(b"t")
        return result

    async def arun_in(self, connection: object, operation: Callable[[Session], T]) -> T:
        """The same from async code, on the connection's own thread."""
        result = await callers.arun_in(await areduced(connection), operation, path=self.path, clock=self.clock)
        self.connections.ring(b"t")
        return result

    def lend(self, holder: str, deadline: float) -> Lent:
        """The write lock itself: the lane and everybody else waits meanwhile."""
        patience = self._options.lock_timeout
        try:
            return lend(self._lane, self.connections, self.facts, self.busy, patience, holder, deadline)
        except sqlite3.Error as error:
            raise translate(error, self.path) from error

    def ring(self, token: bytes = b"r") -> None:
        """Wake every worker on this file."""
        self.connections.ring(token)

    def worker_bell(self, slot: int) -> Bell | None:
        """A FIFO in the side folder."""
        try:
            return bells.Bell(self.side / f"bell-{slot}")
        except NotSupportedHere:
            return None

    def waiter_bell(self) -> Bell:
        """A FIFO in the folder that every settle rings."""
        self._lane.check_open()
        return bells.Bell(self.connections.waiters_path())

    def watch(self) -> FileWatch:
        """By SQLite's ``data_version``."""
        return FileWatch(self.facts)

    def take_seat(self, is_free: Callable[[int], bool]) -> FileSeat:
        """Lock the lowest free byte of the file of slots."""
        return FileSeat.take(self.facts, is_free)

    def judge(self) -> FileJudge:
        """By the locks on the file of slots."""
        return FileJudge(self.side)

    def check_health(self, session: Session) -> None:
        """Look whether SQLite's locks are still ours."""
        # On the lane, which keeps a connection open meanwhile: between a fork's closing and reopening of every
        # connection SQLite holds no lock, and that must not be taken for a loss.
        if sqlite_locks(self.path) is LockState.LOST:
            raise StoreLost(
                f"This process lost SQLite's locks on {self.path}: something in it opened and closed the file "
                "by hand, or a second SQLite library did. Committed work could be lost, so this worker stops."
            )

    def last_place(self, session: Session) -> int:
        """What SQLite remembers of them."""
        return sequences.last_place(session)

    def go_on_from(self, session: Session, place: int) -> None:
        """Let SQLite remember another."""
        sequences.go_on_from_place(session, place)

    def check_after_damage(self) -> None:
        """Let SQLite check the file if it is marked."""
        if self.connections.damage is None and not suspicion.is_marked(self.side):
            return
        self.connections.owe_checkpoint()
        self.connections.damage = None
        try:
            found = self.read(health.damage)
        except StoreBusy as error:
            log.warning("%s was marked as suspect and is too large to check at start: %s", self.path, error)
            return
        if found:
            raise StoreBroken(f"The database {self.path} is corrupt: {'; '.join(found)}. Restore a backup.")
        log.warning("The disk under %s failed before; SQLite's quick check finds the file whole.", self.path)
        suspicion.clear(self.side)

    def check_room(self, coming: int) -> None:
        """Look at the disk and the budget of the file."""
        room.check(self.path, coming, min_free=self._options.min_free, max_size=self._options.max_size)

    def check_own_transaction(self) -> None:
        """Look whether this thread holds the write lock."""
        if self._lane.lent_to == threading.get_ident():
            raise OwnTransactionOpen(
                "This thread is inside job.transaction(), and enqueue would wait for it to end. Pass its connection: "
                "task.using(connection=tx.connection).enqueue(...), or use job.on_success(...)."
            )
        if write_lock_holder(self.path) == own_identity().pid:
            callers.check_own_transaction(self.path)

    def busy(self) -> StoreBusy:
        """Who holds the write lock."""
        holder = write_lock_holder(self.path)
        who = process_name(holder) if holder else "another process"
        return StoreBusy(
            f"The database {self.path} stayed locked for {self._options.lock_timeout:g} s (lock_timeout) by {who}. "
            "Nothing was stored."
        )

    def close(self, timeout: float) -> None:
        """Close lane and readers; a ``memory://`` store is gone afterwards."""
        self._lane.close(timeout)
        self._readers.close()
        self.connections.forget_bells()
        if self._private is not None:
            shutil.rmtree(self._private, ignore_errors=True)

    def before_fork(self) -> None:
        """Close every connection, so that the child inherits none."""
        self._lane.before_fork()
        self._readers.before_fork()

    def after_fork_in_parent(self) -> None:
        """Connections open again when needed."""
        self._readers.after_fork_in_parent()
        self._lane.after_fork_in_parent()

    def after_fork_in_child(self) -> bool:
        """Fresh locks and threads; False when the child may not use the file."""
        self._lane.after_fork_in_child()
        return self._readers.after_fork_in_child()
