"""The system calls under :mod:`treadle.host.locks`: byte locks on Linux, flock elsewhere."""

from __future__ import annotations

import errno
import os
import struct
import sys
from pathlib import Path
from typing import Final, Protocol

if sys.platform != "win32":
    import fcntl

# struct flock: type, whence, start, length, pid, padded to the alignment of off_t.
_FLOCK: Final = struct.Struct("hhqqi0q")
_BUSY: Final = (errno.EAGAIN, errno.EACCES, errno.EWOULDBLOCK)


class Kind(Protocol):
    """One way to lock a slot."""

    def slot_path(self, path: Path, slot: int) -> Path:
        """The file whose lock stands for *slot* of *path*."""

    def lock(self, descriptor: int, slot: int, *, wait: bool) -> bool:
        """Lock, waiting if asked to; False when somebody else has it."""

    def unlock(self, descriptor: int, slot: int) -> None:
        """Give the lock back."""

    def is_free(self, descriptor: int, path: Path, slot: int) -> bool:
        """Say whether nobody holds *slot*; *descriptor* is open on *path*."""


class _ByteLocks:
    """Linux: a slot is a byte, locked through the open file description."""

    def slot_path(self, path: Path, slot: int) -> Path:
        return path

    def lock(self, descriptor: int, slot: int, *, wait: bool) -> bool:
        command = fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK
        try:
            fcntl.fcntl(descriptor, command, _flock(fcntl.F_WRLCK, slot, 1))
        except OSError as error:
            if error.errno in _BUSY:
                return False
            raise
        return True

    def unlock(self, descriptor: int, slot: int) -> None:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _flock(fcntl.F_UNLCK, slot, 1))

    def is_free(self, descriptor: int, path: Path, slot: int) -> bool:
        return conflicting_pid(descriptor, fcntl.F_WRLCK, slot, 1) is None


class _FileLocks:
    """Elsewhere: a slot is a file of its own under flock."""

    def slot_path(self, path: Path, slot: int) -> Path:
        return Path(f"{path}.{slot}")

    def lock(self, descriptor: int, slot: int, *, wait: bool) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            if error.errno in _BUSY:
                return False
            raise
        return True

    def unlock(self, descriptor: int, slot: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_UN)

    def is_free(self, descriptor: int, path: Path, slot: int) -> bool:
        # flock cannot be asked: a shared lock is taken for an instant, and a taker may see it as busy.
        try:
            own = os.open(self.slot_path(path, slot), os.O_RDONLY)
        except FileNotFoundError:
            return True
        try:
            fcntl.flock(own, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _BUSY:
                return False
            raise
        finally:
            os.close(own)
        return True


def kind_here() -> Kind | None:
    """The means of this system; None where there is none."""
    if sys.platform == "win32":
        return None
    return _ByteLocks() if hasattr(fcntl, "F_OFD_SETLK") else _FileLocks()


def _flock(kind: int, start: int, length: int) -> bytes:
    return _FLOCK.pack(kind, os.SEEK_SET, start, length, 0)


def conflicting_pid(descriptor: int, kind: int, start: int, length: int) -> int | None:
    """Ask, on Linux, whose lock stands in the way of a lock on a byte range; nothing is taken.

    The question is asked for the open file description, so this process's own classic POSIX locks are seen.

    Args:
        descriptor: any open descriptor of the file.
        kind: ``fcntl.F_RDLCK`` or ``fcntl.F_WRLCK``.
        start: first byte.
        length: number of bytes.

    Returns:
        None when nothing is in the way; the holder's pid; -1 for a lock that belongs to a description;
        0 for a process outside this pid namespace.
    """
    answer = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, _flock(kind, start, length))
    found, _, _, _, pid = _FLOCK.unpack(answer)
    return None if found == fcntl.F_UNLCK else int(pid)


def anybody_locks(path: Path) -> bool:
    """True when any byte of the file *path* is locked by somebody, on Linux; False when there is no such file."""
    if kind_here() is None or not hasattr(fcntl, "F_OFD_GETLK"):
        return False
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        return conflicting_pid(descriptor, fcntl.F_WRLCK, 0, 0) is not None
    finally:
        os.close(descriptor)
