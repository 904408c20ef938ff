"""The victim of a disk: the same as of the fail points, but SQLite's N-th write, sync or read fails."""

from __future__ import annotations

import os
import signal
import sqlite3
import threading
import time
from multiprocessing.connection import Connection

from faults import vfs
from faults.chaos_app import Setup
from faults.ledger import Ledger
from faults.points_app import FOR_EVER, Plan, live

CODES = {
    "write": sqlite3.SQLITE_IOERR_WRITE, "sync": sqlite3.SQLITE_IOERR_FSYNC, "read": sqlite3.SQLITE_IOERR_READ,
    "truncate": sqlite3.SQLITE_IOERR_TRUNCATE, "delete": sqlite3.SQLITE_IOERR_DELETE,
}  # fmt: skip
CRASH_AFTER = 0.01


class FailingDisk(vfs.Disk):
    """Fails the N-th touch of one kind, once or from then on.

    A full disk has room again after a while; with a crash the process dies soon after, and leaves its log as it is.
    """

    def __init__(self, setup: Setup, plan: Plan, pipe: Connection) -> None:
        ((self._kind, self._at),) = plan.points
        self.reads = self._kind == "read"
        self._for_ever = plan.times is None
        self._full = plan.fault.endswith("full")
        self._crash = plan.fault.endswith("crash")
        self._ledger = Ledger(setup.folder / "ledgers")
        self._pipe = pipe
        self._lock = threading.Lock()
        self._seen = 0
        self._failed_at = 0.0

    def before(self, touch: vfs.Touch) -> int:
        """Refuse it if it is its turn."""
        if touch.kind != self._kind or not self._is_due(touch):
            return vfs.OK
        return sqlite3.SQLITE_FULL if self._full else CODES[self._kind]

    def _is_due(self, touch: vfs.Touch) -> bool:
        with self._lock:
            self._seen += 1
            if self._seen < self._at:
                return False
            if self._seen == self._at:
                self._failed_at = time.monotonic()
                self._pipe.send(("sprung", f"{touch.kind} {self._at} of {touch.name}"))
                if self._crash:
                    threading.Timer(CRASH_AFTER, self._die).start()
                return True
            return self._for_ever and not (self._full and time.monotonic() > self._failed_at + FOR_EVER)

    def _die(self) -> None:
        self._ledger.write("kill", victim=os.getpid(), role="crash")
        os.kill(os.getpid(), signal.SIGKILL)


def suffer(setup: Setup, pipe: Connection, plan: Plan) -> None:
    """Be the victim of a disk; *plan* has one point: the kind of touch, and the how-manieth fails."""
    vfs.install(FailingDisk(setup, plan, pipe))
    live(setup, pipe, Plan(rounds=plan.rounds))
