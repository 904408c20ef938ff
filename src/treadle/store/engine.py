"""What a kind of database offers to the store above it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Final, NamedTuple, Protocol, TypeVar

from treadle import defaults
from treadle.clock import Clock
from treadle.errors import NotSupportedHere, StoreBroken, StoreBusy
from treadle.store.lending import Lent
from treadle.store.ops.workers import IdentityRow
from treadle.store.replies import Reply
from treadle.store.session import Row, Session
from treadle.store.verdict import Check

T = TypeVar("T")
INSTEAD: Final = "On PostgreSQL pg_dump makes copies, and the server's VACUUM gives space back."


class Bell(Protocol):
    """Rung when there may be something new; carries no truth."""

    def fileno(self) -> int:
        """The descriptor, for event loops; readable when rung."""

    def drain(self) -> bytes:
        """Take all tokens rung so far; never waits."""

    def wait(self, timeout: float | None) -> bytes:
        """Wait for a ring, at most *timeout* seconds, and take all tokens."""

    def close(self) -> None:
        """Stop listening."""


class Watch(Protocol):
    """Notices that somebody has committed, for when no bell rang."""

    def changed(self) -> bool:
        """True when something may be new since the last call; cheap enough for an event loop."""

    def close(self) -> None:
        """Let go of what it needs."""


class Seat(Protocol):
    """What a worker holds while it lives, so that others can prove its death.

    Attributes:
        slot: its number.
        dev: device of the lock file, 0 where there is none.
        ino: inode of the lock file, 0 where there is none.
    """

    slot: int
    dev: int
    ino: int

    def registered(self, epoch: int) -> None:
        """The worker is registered under *epoch* from now on."""

    def check(self) -> None:
        """Make sure that others can still see us.

        Raises:
            StoreLost: they cannot, so what we hold may be given to others at any time.
        """

    def release(self) -> None:
        """Let go; a second call does nothing."""


class Judge(Protocol):
    """Proves other workers alive or dead."""

    def is_dead(self, row: IdentityRow) -> bool:
        """True when the worker of that registration has provably ended, or its lease by server time has."""

    def looks_alive(self, row: IdentityRow, now: int) -> bool:
        """What to tell people who look once; *now* is the store's time, microseconds."""

    def close(self) -> None:
        """Let go of what it needs."""


class About(NamedTuple):
    """What a database says of itself.

    Attributes:
        size: bytes of its tables and indexes; of a file, bytes of the file.
        log_size: bytes of a file's write-ahead log, None where it is the server's.
        software: "SQLite" or "PostgreSQL".
        version: of the library or the server.
    """

    size: int
    log_size: int | None
    software: str
    version: str


class Engine(ABC):
    """One open database.

    Attributes:
        place: how messages name it; no secrets.
        clock: where times come from.
        side: a folder of this machine beside it, for locks and lists of begun attempts.
        beat_every: seconds between the signs of life of a worker.
        look_every: seconds between two looks at those of others.
        leases_expire: a worker that is silent for long is taken for dead although nothing proves it, so it may find
            itself forgotten and comes back.
    """

    place: str
    clock: Clock
    side: Path
    beat_every = defaults.BEAT.total_seconds()
    look_every = defaults.RESCUE_EVERY.total_seconds()
    leases_expire = False

    @property
    def path(self) -> Path:
        """The database file.

        Raises:
            NotSupportedHere: it is not a file.
        """
        raise NotSupportedHere(f"{self.place} is no SQLite file, and this is for files only. {INSTEAD}")

    @property
    def damage(self) -> StoreBroken | None:
        """What the disk did to this database, None while all is well; a worker on it must stop."""
        return None

    @property
    def is_remote(self) -> bool:
        """True for a server: workers may be on other hosts, where nobody can see a process end."""
        return False

    @property
    def skew(self) -> float:
        """Seconds by which this machine's clock is ahead of the store's."""
        return 0.0

    @property
    @abstractmethod
    def checks(self) -> Sequence[Check]:
        """What verify asks this kind of database only; nothing else can be trusted when the first one fails."""

    @abstractmethod
    def about(self, session: Session) -> About:
        """How large it is, and what it runs on."""

    @abstractmethod
    def submit(self, operation: Callable[[Session], T], reply: Reply, *, guarded: bool) -> None:
        """Queue a write; *reply* is answered after the commit. Never blocks."""

    def sign(self, operation: Callable[[Session], T]) -> T:
        """Run a write that must not wait behind others: a worker's sign of life."""
        reply: Future[T] = Future()
        self.submit(operation, reply, guarded=False)
        return reply.result()

    @abstractmethod
    def run_here(self, operation: Callable[[Session], T]) -> tuple[T] | None:
        """Run a write on this thread if that needs no waiting; its result in a tuple, None when it was not run."""

    @abstractmethod
    def read(self, operation: Callable[[Session], T]) -> T:
        """Run a read on this thread."""

    @abstractmethod
    def read_long(self, operation: Callable[[Session], T], seconds: float) -> T:
        """Run a read that may take so long, on this thread and a connection of its own."""

    @abstractmethod
    def submit_read(self, operation: Callable[[Session], T]) -> Future[T]:
        """Run a read on a pool; for callers that must not block."""

    @abstractmethod
    def run_in(self, connection: object, operation: Callable[[Session], T]) -> T:
        """Run a write on the caller's connection, inside the transaction they opened."""

    @abstractmethod
    async def arun_in(self, connection: object, operation: Callable[[Session], T]) -> T:
        """The same from async code, on connections of async libraries too."""

    @abstractmethod
    def lend(self, holder: str, deadline: float) -> Lent:
        """Begin a write transaction for this thread to fill.

        Args:
            holder: where in the code, for messages.
            deadline: seconds after which it is undone.

        Raises:
            StoreBusy: it could not begin within ``lock_timeout``.
        """

    @abstractmethod
    def ring(self, token: bytes = b"r") -> None:
        """Wake every worker."""

    @abstractmethod
    def worker_bell(self, slot: int) -> Bell | None:
        """A bell that rings when there may be work; None where this system has none."""

    @abstractmethod
    def waiter_bell(self) -> Bell:
        """A bell that every settle rings.

        Raises:
            StoreClosed: the store is closed.
        """

    @abstractmethod
    def watch(self) -> Watch:
        """Notices commits that no bell told of."""

    @abstractmethod
    def take_seat(self, is_free: Callable[[int], bool]) -> Seat:
        """Take a seat for a worker; *is_free* says whether the last holder of a slot has left nothing living."""

    @abstractmethod
    def judge(self) -> Judge:
        """Who tells the living workers from the dead."""

    @abstractmethod
    def check_health(self, session: Session) -> None:
        """Look, in an open transaction, whether this process may still trust its connection.

        Raises:
            StoreLost: it may not.
        """

    def kept(self, row: Row) -> Row:
        """A row as it comes back when it was stored here."""
        return row

    @abstractmethod
    def last_place(self, session: Session) -> int:
        """A number that no place in the history or the logs exceeds, of rows that are deleted by now too."""

    @abstractmethod
    def go_on_from(self, session: Session, place: int) -> None:
        """Put places to come behind *place* and behind all that are there, in the transaction that ends a move."""

    @abstractmethod
    def check_after_damage(self) -> None:
        """Look whether the database is whole if a process saw it fail.

        Raises:
            StoreBroken: it is not.
        """

    @abstractmethod
    def check_room(self, coming: int) -> None:
        """Refuse *coming* bytes of new work for which there is no room.

        Raises:
            StoreFull: nothing was stored.
        """

    @abstractmethod
    def check_own_transaction(self) -> None:
        """Raise when waiting for a write is hopeless, because this very thread stands in its way.

        Raises:
            OwnTransactionOpen: with the remedy.
        """

    @abstractmethod
    def busy(self) -> StoreBusy:
        """What to say when a write did not begin within ``lock_timeout``."""

    @abstractmethod
    def close(self, timeout: float) -> None:
        """Finish what is queued and close; safe to call twice."""

    @abstractmethod
    def before_fork(self) -> None:
        """Prepare for a fork."""

    @abstractmethod
    def after_fork_in_parent(self) -> None:
        """Go on as before."""

    @abstractmethod
    def after_fork_in_child(self) -> bool:
        """Start anew, what waited belongs to the parent; False when the child may not read."""
