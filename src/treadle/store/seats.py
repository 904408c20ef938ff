"""Seats of workers on a SQLite file: a locked byte each, which the kernel frees when its holder dies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from treadle.errors import NotSupportedHere, StoreLost
from treadle.host.files import FileIdentity
from treadle.host.locks import Hold, Probe
from treadle.host.process import ProcessIdentity, is_gone, own_identity
from treadle.store.connections import FileFacts
from treadle.store.ops.workers import IdentityRow

SLOTS: Final = "workers"
MOST_SLOTS: Final = 4096


class FileSeat:
    """One locked byte of the file of slots."""

    def __init__(self, hold: Hold, facts: FileFacts) -> None:
        self._hold = hold
        self._facts = facts
        self.slot = hold.slot
        self.dev, self.ino = hold.identity

    @classmethod
    def take(cls, facts: FileFacts, is_free: Callable[[int], bool]) -> FileSeat:
        """Lock the lowest free byte for which *is_free* is true.

        Raises:
            NotSupportedHere: there is none.
        """
        path = facts.side / SLOTS
        for slot in range(1, MOST_SLOTS):
            hold = Hold.take(path, slot)
            if hold is None:
                continue
            if is_free(slot):
                return cls(hold, facts)
            hold.release()
        raise NotSupportedHere(f"All {MOST_SLOTS} worker slots of {path} are taken.")

    def registered(self, epoch: int) -> None:
        """The byte is locked already; nothing more is needed."""

    def check(self) -> None:
        """Raise StoreLost when the file of slots was replaced, so that our lock proves nothing any more."""
        if not self._hold.still_ours():
            raise StoreLost(
                f"The lock file beside {self._facts.path} was deleted or replaced while this worker ran, so other "
                "workers could not see that it lives. Restart the worker; never delete the -treadle folder."
            )

    def release(self) -> None:
        """Unlock the byte."""
        self._hold.release()


class FileJudge:
    """Asks for the locks of others.

    Args:
        side: the folder beside the database.
    """

    def __init__(self, side: Path) -> None:
        self._probe = Probe(side / SLOTS)

    def is_dead(self, row: IdentityRow) -> bool:
        """True when the registration's lock is free, or its process is provably gone."""
        if FileIdentity(row.dev, row.ino) == self._probe.identity:
            return self._probe.is_free(row.slot)
        # Its lock lies in a file that was replaced, so a free byte here proves nothing; a process that is
        # provably gone does.
        worker = ProcessIdentity(
            pid=row.pid, started=row.pid_started, boot_id=row.boot_id, namespace=row.pid_namespace
        )
        return is_gone(worker, own_identity())

    def looks_alive(self, row: IdentityRow, now: int) -> bool:
        """The same at one look as at many; *now* proves nothing."""
        return not self.is_dead(row)

    def close(self) -> None:
        """Close the file of slots; no lock is touched."""
        self._probe.close()
