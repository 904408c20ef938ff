"""Locks that end with their process: one byte of a file per holder.

On Linux these are open-file-description locks: two descriptors conflict even inside one process, no other
``close()`` drops them, and the kernel frees them when the process dies. Elsewhere each slot is a file of its
own under ``flock``. Both kinds live on in a forked child's copy of the descriptor, so the child closes it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from pathlib import Path
from typing import Final

from treadle.errors import NotSupportedHere
from treadle.host.bytelocks import Kind, kind_here
from treadle.host.files import FileIdentity, create_beside, identity_of
from treadle.host.process import forget_on_fork, no_fork, on_fork

_TAKE_TRIES: Final = 20
_KIND: Kind | None = kind_here()


def _kind() -> Kind:
    if _KIND is None:
        raise NotSupportedHere(
            f"{sys.platform} has no file locks that end with their process; run workers on Linux or macOS."
        )
    return _KIND


def _open(path: Path) -> int:
    create_beside(path)
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)


def _identity(descriptor: int) -> FileIdentity:
    status = os.fstat(descriptor)
    return FileIdentity(status.st_dev, status.st_ino)


class Hold:
    """An exclusive lock on one slot of a file, held until released or until this process ends.

    A forked child does not hold it: a hook closes the child's copy of the descriptor.

    Attributes:
        slot: the locked slot.
        identity: the file the lock is on. Another file under the same name proves nothing about this lock.

    Example:
        >>> hold = Hold.take(Path("workers.lock"), 3)  # doctest: +SKIP
        >>> Hold.take(Path("workers.lock"), 3) is None  # doctest: +SKIP
        True
    """

    def __init__(self, path: Path, slot: int, identity: FileIdentity, descriptor: int) -> None:
        self.slot = slot
        self.identity = identity
        self._path = path
        self._descriptor: int | None = descriptor
        on_fork(self, after_in_child=self._drop)

    @classmethod
    def take(cls, path: Path, slot: int) -> Hold | None:
        """Lock *slot* of the file at *path*, creating the file (mode 0600) when missing.

        Args:
            path: the lock file; in a side folder a new file takes the folder's access.
            slot: the byte, 0 or more.

        Returns:
            The hold, or None when somebody holds the slot already, in this process or another.

        Raises:
            NotSupportedHere: this system has no such locks.
            OSError: the file cannot be opened.
        """
        kind = _kind()
        if slot < 0:
            raise ValueError(f"slot {slot} is negative; slots count from 0")
        for _ in range(_TAKE_TRIES):
            # A child forked between open and the hook's registration would keep the lock alive.
            with no_fork():
                hold, busy = cls._try(path, kind.slot_path(path, slot), slot)
            if hold is not None or busy:
                return hold
        raise FileNotFoundError(errno.ENOENT, "the lock file is removed again and again", str(path))

    @classmethod
    def _try(cls, path: Path, slot_path: Path, slot: int) -> tuple[Hold | None, bool]:
        """Try once; the second value says that somebody else holds the slot."""
        descriptor = _open(slot_path)
        try:
            taken = _kind().lock(descriptor, slot, wait=False)
            # Between opening and locking the file may have been removed: then this lock guards nothing.
            if taken and identity_of(slot_path) == _identity(descriptor):
                return cls(path, slot, _base_identity(path, slot_path, descriptor), descriptor), False
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        return None, not taken

    def release(self) -> None:
        """Free the slot; a second call, and a call in a forked child, do nothing."""
        descriptor, self._descriptor = self._descriptor, None
        forget_on_fork(self)
        if descriptor is not None:
            try:
                # Closing is not enough while a child that has not yet run its hook shares the description.
                _kind().unlock(descriptor, self.slot)
            finally:
                os.close(descriptor)

    def still_ours(self) -> bool:
        """Say whether the lock is held and the path still names the locked file."""
        return self._descriptor is not None and identity_of(self._path) == self.identity

    def _drop(self) -> None:
        """Close without unlocking: in a child, unlocking would free the parent's lock."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def __del__(self) -> None:
        # A hold nobody can release any more must not outlive its object.
        with contextlib.suppress(AttributeError, OSError):
            self._drop()


def _base_identity(path: Path, slot_path: Path, descriptor: int) -> FileIdentity:
    if slot_path == path:
        return _identity(descriptor)
    create_beside(path)
    found = identity_of(path)
    return _identity(descriptor) if found is None else found


class Probe:
    """Asks whether slots of a lock file are free, without ever taking one (Linux).

    It keeps one read-only descriptor, so it goes on asking about the file it opened even when the path comes
    to name another one; compare :attr:`identity`.

    Attributes:
        identity: the file that was opened; None when there is none, as beside a backup that was moved here.

    Raises:
        NotSupportedHere: this system has no such locks.
    """

    def __init__(self, path: Path) -> None:
        _kind()
        self._path = path
        self._descriptor: int | None = None
        with contextlib.suppress(FileNotFoundError):
            self._descriptor = os.open(path, os.O_RDONLY)
        self.identity = None if self._descriptor is None else _identity(self._descriptor)

    def is_free(self, slot: int) -> bool:
        """Say whether nobody, not even this process, holds *slot* at this moment.

        Raises:
            ValueError: the probe is closed, or there was no file to open.
        """
        if self._descriptor is None:
            raise ValueError("the probe is closed, or has no file")
        return _kind().is_free(self._descriptor, self._path, slot)

    def close(self) -> None:
        """Close the descriptor; a second call does nothing. No lock is touched."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


class Gate:
    """A queue before the database's write lock, for fairness only; it guards nothing by itself.

    Not re-entrant; one thread uses one gate at a time, and two gates on one file exclude each other even
    in one process. A forked child starts with a gate that is not held and opens a descriptor of its own.

    Raises:
        NotSupportedHere: this system has no such locks.
    """

    def __init__(self, path: Path) -> None:
        self._path = _kind().slot_path(path, 0)
        self._descriptor: int | None = None
        self._held = False
        on_fork(self, after_in_child=self._drop)

    def acquire(self, *, blocking: bool) -> bool:
        """Take the gate.

        Args:
            blocking: wait for as long as it takes; otherwise come back at once.

        Returns:
            Whether the gate is ours now; always True after a wait.

        Raises:
            RuntimeError: this gate is held already.
            OSError: the file cannot be opened.
        """
        if self._held:
            raise RuntimeError(f"the gate {self._path} is held already; release it first")
        if self._descriptor is None:
            with no_fork():
                self._descriptor = _open(self._path)
        self._held = _kind().lock(self._descriptor, 0, wait=blocking)
        return self._held

    def release(self) -> None:
        """Let the next one in; does nothing when the gate is not held."""
        if self._held and self._descriptor is not None:
            self._held = False
            _kind().unlock(self._descriptor, 0)

    def close(self) -> None:
        """Release and close the descriptor; a later acquire opens it again."""
        self.release()
        self._drop()

    def _drop(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        self._held = False
        if descriptor is not None:
            os.close(descriptor)

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, OSError):
            self._drop()
