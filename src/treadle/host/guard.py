"""Guards against what makes SQLite lose commits: a second copy of the library, and locks dropped unseen.

Nothing here opens the database or its -shm file: closing such a descriptor would itself drop all locks.
"""

from __future__ import annotations

import enum
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from treadle.host.bytelocks import conflicting_pid
from treadle.host.files import FileIdentity, identity_of, mount_of, read_mountinfo
from treadle.host.locktable import Range, lock_table

if sys.platform != "win32":
    import fcntl

_COPIES: Final = (
    "apsw",
    "pysqlite3",
    "sqlean",
    "sqlcipher3",
    "pysqlcipher3",
    "libsql",
    "libsql_experimental",
    "honker",
)
_LIBRARY: Final = re.compile(r"/(libsqlite3[^/]*\.(?:so|dylib)[^/]*)$")


# SQLite's file format: PENDING_BYTE, RESERVED_BYTE, then 510 bytes shared by all readers.
_SHARED: Final = Range(0x40000000, 512)
# The WAL index: eight lock bytes from 120 on, the first for the writer, then the "dead man's switch".
_WRITER: Final = Range(120, 1)
_ALIVE: Final = Range(128, 1)
_LOCK_READS: Final = 3


class LockState(enum.Enum):
    """What is known about the locks SQLite believes it holds."""

    HELD = "held"
    LOST = "lost"
    UNKNOWN = "unknown"


def find_second_sqlite() -> str | None:
    """Say whether this process has a second copy of SQLite loaded; see :func:`second_sqlite_library`."""
    try:
        maps = os.fsdecode(Path("/proc/self/maps").read_bytes())
    except OSError:
        maps = None
    return second_sqlite_library(sys.modules.copy(), maps)


def second_sqlite_library(modules: Mapping[str, object], maps: str | None) -> str | None:
    """Name a second copy of SQLite among the loaded modules and mapped files.

    Two copies in one process on one file drop each other's locks and lose acknowledged commits. A module that
    stands in for ``sqlite3`` itself is the only copy and therefore fine.

    Args:
        modules: names and modules, as in ``sys.modules``.
        maps: the text of ``/proc/self/maps``, or None when there is none.

    Returns:
        A sentence with the remedy, or None.

    Example:
        >>> second_sqlite_library({"sqlite3": None}, None) is None
        True
    """
    stand_in = str(getattr(modules.get("sqlite3"), "__name__", "")).partition(".")[0]
    for name in _COPIES:
        if name in modules and name != stand_in:
            return _advice(f"the module {name} brings its own copy of SQLite")
    libraries = sorted(_mapped_libraries(maps or ""))
    if len(libraries) > 1:
        return _advice(f"{len(libraries)} SQLite libraries are loaded ({', '.join(libraries)})")
    return None


def _advice(finding: str) -> str:
    return (
        f"In this process {finding}; two copies on one database file drop each other's locks and lose "
        "commits. Use only the standard library's sqlite3 on it, or keep the other copy in another process."
    )


def _mapped_libraries(maps: str) -> set[str]:
    found: dict[tuple[str, str], str] = {}
    for line in maps.splitlines():
        fields = line.split(None, 5)
        if len(fields) == 6:
            path = fields[5].removesuffix(" (deleted)")
            if _LIBRARY.search(path):
                found[fields[3], fields[4]] = f"{path} inode {fields[4]}"
    return set(found.values())


def sqlite_locks(database: Path) -> LockState:
    """Say whether the locks SQLite set on *database* in this process still exist.

    Call it only while an idle WAL connection to the file is open in this process: then SQLite holds a shared
    lock on the file and one on its -shm file. SQLite's own descriptors, found by inode, are asked.

    Args:
        database: the resolved path of the database.

    Returns:
        LOST only with proof: other processes may now write or remove the WAL, so stop writing at once.
        UNKNOWN when there is nothing to ask (another system, no connection open, or the path now
        names another file).
    """
    if not _can_ask():
        return LockState.UNKNOWN
    shm = Path(f"{database}-shm")
    if _has_deleted(shm):
        return LockState.LOST
    alive = _held(shm, _ALIVE)
    if alive is not LockState.HELD:
        # Without an open -shm no connection here is in WAL mode, and an idle one holds no lock at all.
        return alive
    return _held(database, _SHARED)


def write_lock_holder(database: Path) -> int | None:
    """Say which process is in a write transaction on *database*, this one included.

    Args:
        database: the resolved path of the database.

    Returns:
        Its pid; None when nobody is, or when it cannot be told (another system, another pid namespace).
    """
    shm = Path(f"{database}-shm")
    identity = identity_of(shm)
    if identity is None or sys.platform != "linux":
        return None
    if _can_ask():
        for descriptor in _descriptors(identity):
            known, pid = _ask(descriptor, identity, fcntl.F_RDLCK, _WRITER)
            if known:
                return pid if pid is not None and pid > 0 else None
    devices = _devices(shm, identity)
    for row in lock_table():
        if row.inode == identity.ino and row.device in devices and row.writes and row.meets(_WRITER):
            return row.pid if row.pid > 0 else None
    return None


def process_name(pid: int) -> str:
    """Name a process for messages: its pid and, where known, the beginning of its command line.

    Example:
        >>> process_name(0)
        'pid 0'
    """
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "replace").rstrip("\0").split("\0")
        name = " ".join([os.path.basename(words[0]), *words[1:3]]).strip()
        if not name:
            name = Path(f"/proc/{pid}/comm").read_bytes().decode("utf-8", "replace").strip()
    except OSError:
        return f"pid {pid}"
    # Another user may have chosen this text: it must not be able to forge log lines or fill them.
    name = "".join(letter if letter.isprintable() else "?" for letter in name)
    return f"pid {pid} ({name if len(name) <= 60 else name[:57] + '...'})"


def _can_ask() -> bool:
    return sys.platform == "linux" and hasattr(fcntl, "F_OFD_GETLK")


def _held(path: Path, wanted: Range) -> LockState:
    """Ask until one of SQLite's descriptors gives an answer."""
    identity = identity_of(path)
    if identity is None:
        return LockState.UNKNOWN
    for descriptor in _descriptors(identity):
        known, pid = _ask(descriptor, identity, fcntl.F_WRLCK, wanted)
        if known:
            return _judge(pid, identity, wanted)
    return LockState.UNKNOWN


def _judge(pid: int | None, identity: FileIdentity, wanted: Range) -> LockState:
    if pid is None:
        return LockState.LOST
    if pid == os.getpid():
        return LockState.HELD
    # Somebody else's lock stands first in the kernel's list and hides ours; the full table knows.
    # The table is read in pages and rows can slip between two of them, so one miss is no proof.
    for _ in range(_LOCK_READS):
        rows = lock_table()
        ours = (row for row in rows if row.pid == os.getpid() and row.inode == identity.ino)
        if any(row.meets(wanted) for row in ours):
            return LockState.HELD
        if not any(row.inode == identity.ino for row in rows):
            return LockState.UNKNOWN  # the table does not show this file at all
    return LockState.LOST


def _ask(descriptor: int, identity: FileIdentity, kind: int, wanted: Range) -> tuple[bool, int | None]:
    """Query one descriptor; the first value says whether the answer is about the right file."""
    try:
        pid = conflicting_pid(descriptor, kind, wanted.start, wanted.length)
    except OSError:
        return False, None
    # Another thread may have closed it and opened something else under its number.
    return _names(descriptor, identity), pid


def _descriptors(identity: FileIdentity) -> Iterator[int]:
    for descriptor in _open_descriptors():
        if _names(descriptor, identity):
            yield descriptor


def _open_descriptors() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:
        return []


def _names(descriptor: int, identity: FileIdentity) -> bool:
    try:
        status = os.fstat(descriptor)
    except OSError:
        return False
    return FileIdentity(status.st_dev, status.st_ino) == identity


def _has_deleted(shm: Path) -> bool:
    """Whether a descriptor of ours is on a -shm file of this name that has been removed."""
    name = f"{shm} (deleted)"
    for descriptor in _open_descriptors():
        try:
            if os.readlink(f"/proc/self/fd/{descriptor}") == name and os.fstat(descriptor).st_nlink == 0:
                return True
        except OSError:
            continue
    return False


def _devices(path: Path, identity: FileIdentity) -> set[tuple[int, int]]:
    """The numbers /proc/locks may use: btrfs gives files another device than its lock table shows."""
    devices = {(os.major(identity.dev), os.minor(identity.dev))}
    mount = mount_of(str(path), read_mountinfo() or "")
    return devices if mount is None else devices | {mount.device}
