"""What the lane writes through: the connection, its gate, its checks, its bell and its checkpoints."""

from __future__ import annotations

import contextlib
import itertools
import logging
import sqlite3
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from treadle import defaults
from treadle.clock import Clock
from treadle.errors import StoreBroken, StoreLost, StoreUnusable
from treadle.host.bells import Ringer
from treadle.host.failpoints import reach
from treadle.host.files import FileIdentity, identity_of
from treadle.host.locks import Gate
from treadle.host.process import own_identity
from treadle.store import suspicion
from treadle.store.dialect import SQLITE, Dialect
from treadle.store.session import Session
from treadle.store.sqlite import connect, is_busy, is_damage, probe_dialect, translate
from treadle.store.transaction import begin

GATE: Final = "gate"
WAITERS: Final = "waiters"
WAL_CHECKPOINT: Final = "wal_checkpoint"
ROWS_PER_FRAME: Final = 8
"""First guess of how many changed rows fill one frame; each checkpoint corrects it."""
log = logging.getLogger("treadle.store")


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFacts:
    """What is fixed about an open file.

    Attributes:
        path: resolved path of the database.
        side: folder of locks and bells beside it.
        identity: the file's device and inode when it was opened.
        durability: "full", "normal" or "off".
    """

    path: Path
    side: Path
    identity: FileIdentity
    durability: str = defaults.DURABILITY

    def check(self) -> None:
        """Make sure that the path still names the file that was opened; costs one ``stat``.

        Raises:
            StoreLost: it was deleted or replaced.
            StoreUnusable: the system does not say.
        """
        try:
            same = identity_of(self.path) == self.identity
        except OSError as error:
            raise StoreUnusable(
                f"The database {self.path} cannot be reached any more ({error}); check its folders' owner and mode."
            ) from error
        if not same:
            raise StoreLost(
                f"The database {self.path} was deleted or replaced while it was open. Nothing more is written or "
                "read; stop this process and start it on the file you want."
            )


class Connections:
    """The writing side of one open file; used by one thread at a time.

    Args:
        facts: which file.
        clock: where sessions get their time.
    """

    damage: StoreBroken | None
    """What the disk did to us, None while all is well: workers on it must stop."""

    def __init__(self, facts: FileFacts, clock: Clock) -> None:
        self.path = facts.path
        self.damage = None
        self._facts = facts
        self._clock = clock
        self._gate = Gate(facts.side / GATE)
        self._ringer = Ringer(facts.side)
        self._waiters_folder = facts.side / WAITERS
        try:
            self._waiters_folder.mkdir(mode=facts.side.stat().st_mode & 0o777, exist_ok=True)
        except OSError as error:
            raise StoreUnusable(f"The folder of bells {self._waiters_folder} cannot be made: {error}.") from error
        self._waiters = Ringer(self._waiters_folder)
        self._bells = itertools.count(1)
        self._writer: sqlite3.Connection | None = None
        self._keeper: sqlite3.Connection | None = None
        self._dialect: Dialect = SQLITE
        self._pause = threading.Event()
        self._frames = 0.0
        self._rows_per_frame = float(ROWS_PER_FRAME)
        self._changes = 0
        self._owes_checkpoint = False

    @property
    def dialect(self) -> Dialect:
        """The SQL fragments this file needs; known once a connection was opened."""
        return self._dialect

    def writer(self) -> sqlite3.Connection:
        """The writing connection, opened when needed; the file is checked to be the same as ever.

        Raises:
            StoreLost: the file was replaced or deleted.
        """
        self._facts.check()
        writer = self._writer or self._open()
        if self._owes_checkpoint:
            self._owes_checkpoint = not self.checkpoint()
        return writer

    def _open(self) -> sqlite3.Connection:
        try:
            writer = self._writer = connect(self.path, durability=self._facts.durability)
            self._keeper = connect(self.path, durability=self._facts.durability)
            self._dialect = probe_dialect(writer)
        except BaseException:
            self._close_connections()  # one without the other would never checkpoint
            raise
        self._changes = 0
        return writer

    def session(self, connection: sqlite3.Connection) -> Session:
        """A session on the open transaction of *connection*."""
        return Session(connection, self._dialect, self._clock)

    def enter_gate(self, *, blocking: bool) -> bool:
        """Queue up before the write lock: fairness between processes, nothing else.

        With the busy handler alone a producer beside two busy workers waited up to 700 ms; queued, 27 ms.
        """
        try:
            return self._gate.acquire(blocking=blocking)
        except OSError as error:
            raise StoreUnusable(
                f"The folder of locks {self._facts.side} cannot be used ({error}): it was removed, or this process "
                "is out of file descriptors. Restart this process."
            ) from error

    def leave_gate(self) -> None:
        """Let the next process try for the write lock."""
        self._gate.release()

    def undo(self) -> None:
        """Roll back whatever is open; a connection that cannot even do that is closed."""
        if self._writer is None or not self._writer.in_transaction:
            return
        try:
            self._writer.execute("ROLLBACK")
        except sqlite3.Error as error:
            log.warning("Rollback on %s failed (%s); its connection is opened anew.", self.path, error)
            self._close_connections()

    def undo_for(self, error: BaseException) -> None:
        """Roll back because of *error*, and remember a failure of the disk.

        The connections stay open on purpose. What a failed commit has written lies beyond the end of the log that they
        agree on, so the next commit overwrites it. Opened anew, recovery might take it for committed; later commits
        would then build on bytes that the kernel may have given up writing.
        """
        self.undo()
        if is_damage(error) or isinstance(error, StoreBroken):
            self._note_damage(error)

    def committed(self, session: Session) -> None:
        """Ring the bell when the transaction made work, and count what it added to the write-ahead log."""
        if session.rings:
            self._ringer.ring(session.rings)
        if session.settles:
            self._waiters.ring()
        changes = session.connection.total_changes
        if session.connection is self._writer:
            changes, self._changes = changes - self._changes, changes
        self._frames += 3 + changes / self._rows_per_frame

    def ring(self, token: bytes = b"r") -> None:
        """Ring every worker's bell."""
        self._ringer.ring(token)

    def waiters_path(self) -> Path:
        """A path for one more bell that every settle rings."""
        return self._waiters_folder / f"bell-{own_identity().pid}-{next(self._bells)}-{id(self):x}"

    def after_commit(self) -> None:
        """Checkpoint when enough frames have gathered; call it outside the gate and any transaction."""
        overdue = self._frames >= 2 * defaults.CHECKPOINT_FRAMES
        if self._frames >= defaults.CHECKPOINT_FRAMES and self.enter_gate(blocking=overdue):
            # A busy gate means that others write: one of them may do it, or our next commit; but not for ever.
            try:
                self.checkpoint()
            finally:
                self.leave_gate()

    def checkpoint(self) -> bool:
        """Copy the write-ahead log into the database, holding the write lock meanwhile.

        The lock matters: SQLite up to 3.51.2 can lose committed pages when a checkpoint races with a
        writer that resets the log. Under the lock nobody can.

        Returns:
            Whether all of it was copied.
        """
        if self._writer is None or self._keeper is None:
            return False
        guessed, self._frames = self._frames, 0.0
        try:
            begin(self._writer, WAL_CHECKPOINT)
            reach("after_begin", WAL_CHECKPOINT)
            _, frames, copied = self._keeper.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        except sqlite3.Error as error:
            # Held by someone else, or the disk is full: the frames stay and the next commit tries again.
            self._frames = guessed / 2
            if is_damage(error):
                self._note_damage(error)
            elif not is_busy(error):
                log.warning("Checkpoint of %s failed: %s", self.path, error)
            return False
        finally:
            self.undo()
        if copied < frames:
            self._frames = min(float(frames - copied), defaults.CHECKPOINT_FRAMES / 2)
        correction = max(0.5, min(2.0, guessed / max(frames, 1)))
        self._rows_per_frame = max(1.0, min(200.0, self._rows_per_frame * correction))
        return bool(copied == frames)

    def owe_checkpoint(self) -> None:
        """Copy the whole write-ahead log into the database before anything more is committed.

        After a failed sync recovery may have found frames that are in memory only, on pages the kernel has given up.
        Commits behind them would not survive a power cut, although their own sync is honest.
        """
        self._owes_checkpoint = True

    def pause(self, seconds: float) -> None:
        """Wait a moment before trying for the write lock again."""
        self._pause.wait(seconds)

    def close(self) -> None:
        """Close connections and the gate; they open again when needed."""
        self._close_connections()
        self._gate.close()

    def forget_bells(self) -> None:
        """Close the ringer's descriptors; for the final close."""
        self._ringer.close()
        self._waiters.close()

    def _note_damage(self, error: BaseException) -> None:
        told = translate(error, self.path) if isinstance(error, sqlite3.Error) else error
        assert isinstance(told, StoreBroken)
        log.critical("The disk or the file failed: %s", told)
        self.damage = self.damage or told
        suspicion.mark(self._facts.side)

    def _close_connections(self) -> None:
        for connection in (self._keeper, self._writer):
            if connection is not None:
                with contextlib.suppress(sqlite3.Error):
                    connection.close()
        self._keeper = self._writer = None
