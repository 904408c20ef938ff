"""Connections to a SQLite file: pragmas, version floor, feature probe, error translation."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Final

from treadle.errors import StoreBroken, StoreBusy, StoreClosed, StoreError, StoreFull, StoreUnusable
from treadle.store.dialect import SQLITE, SQLITE_HEX, Dialect
from treadle.store.ops.closing import refusal_in

FLOOR: Final = (3, 37, 2)
SYNCHRONOUS: Final = {"full": "FULL", "normal": "NORMAL", "off": "OFF"}
FULL: Final = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE)
"""The second: there was no room for the shared memory beside the file to grow."""
HARMLESS: Final = (sqlite3.SQLITE_IOERR_SHMSIZE, sqlite3.SQLITE_IOERR_NOMEM, sqlite3.SQLITE_IOERR_BLOCKED)
"""Called I/O errors by SQLite, but no fault of the disk."""
BUSY_TIMEOUT_MS: Final = 100
"""Short on purpose: the lane retries by itself, so it can see deadlines and a closing store."""


def check_version(version: tuple[int, ...] = sqlite3.sqlite_version_info) -> None:
    """Refuse a SQLite older than :data:`FLOOR`.

    Raises:
        StoreUnusable: with the version found and the remedy.
    """
    if version < FLOOR:
        raise StoreUnusable(
            f"SQLite {'.'.join(map(str, version))} is too old: Treadle needs "
            f"{'.'.join(map(str, FLOOR))} or newer (STRICT tables). Use a Python built with a newer SQLite."
        )


def has_wal_reset_bug(version: tuple[int, ...] = sqlite3.sqlite_version_info) -> bool:
    """True when this SQLite has the WAL-reset bug (3.7.0 to 3.51.2, fixed in 3.44.6 and 3.50.7).

    Treadle's own checkpoints cannot trigger it; other connections to the file can.
    """
    if version >= (3, 51, 3):
        return False
    return not ((3, 50, 7) <= version < (3, 51) or (3, 44, 6) <= version < (3, 45))


class OwnConnection(sqlite3.Connection):
    """A connection of Treadle's own, to be told from the caller's."""


def connect(
    path: Path, *, durability: str = "full", read_only: bool = False, cached: int = 256,
    factory: type[sqlite3.Connection] = OwnConnection,
) -> sqlite3.Connection:  # fmt: skip
    """Open a connection with Treadle's pragmas; the caller serialises its use.

    Args:
        path: the database file; it must exist.
        durability: "full", "normal" or "off": SQLite's ``synchronous``.
        read_only: refuse writes on this connection.
        cached: how many prepared statements are kept.
        factory: its class.
    """
    connection = sqlite3.connect(
        f"{path.as_uri()}?mode=rw", uri=True, isolation_level=None, check_same_thread=False,
        timeout=BUSY_TIMEOUT_MS / 1000, cached_statements=cached, factory=factory,
    )  # fmt: skip
    for pragma in (
        f"synchronous = {SYNCHRONOUS[durability]}",
        "temp_store = MEMORY",
        "foreign_keys = ON",
        "trusted_schema = OFF",
        "cell_size_check = ON",
        "wal_autocheckpoint = 0",
        "mmap_size = 0",
        "fullfsync = ON",
        "checkpoint_fullfsync = ON",
        "journal_size_limit = 67108864",
        f"query_only = {'ON' if read_only else 'OFF'}",
    ):
        connection.execute(f"PRAGMA {pragma}")
    return connection


def is_wal(connection: sqlite3.Connection) -> bool:
    """True when the file has a write-ahead log."""
    return bool(connection.execute("PRAGMA journal_mode").fetchone() == ("wal",))


def set_wal(connection: sqlite3.Connection) -> None:
    """Switch the file to WAL unless it is; only done once, when the tables are created.

    Raises:
        StoreUnusable: the file cannot use WAL.
    """
    if is_wal(connection):
        return
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise StoreUnusable(f"The database cannot use write-ahead logging (journal mode stays {mode!r}).")


def probe_dialect(connection: sqlite3.Connection) -> Dialect:
    """Choose the way to join blobs that this build and this file's text encoding do right."""
    every = bytes(range(256))
    joined = connection.execute(
        "SELECT CAST(group_concat(x, '') AS BLOB) FROM (SELECT ?1 AS x UNION ALL SELECT ?1)", (every,)
    ).fetchone()[0]
    return SQLITE if joined == every + every else SQLITE_HEX


def is_busy(error: BaseException) -> bool:
    """True when *error* says another connection holds the lock."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def is_damage(error: BaseException) -> bool:
    """True when *error* means the file or the disk can no longer be trusted."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code not in HARMLESS and code & 0xFF in (
        sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB,
    )  # fmt: skip


def failure(name: str) -> sqlite3.OperationalError:
    """A made-up error with the code of that name, as SQLite would raise it; for fail points.

    Example:
        >>> is_busy(failure("SQLITE_BUSY"))
        True
    """
    error = sqlite3.OperationalError(f"made-up {name}")
    error.sqlite_errorcode = getattr(sqlite3, name)
    error.sqlite_errorname = name
    return error


def translate(error: sqlite3.Error, path: Path) -> StoreError:
    """Say *error* in Treadle's words, naming the file and what to do."""
    code = getattr(error, "sqlite_errorcode", None)
    refused = refusal_in(str(error)) if code == sqlite3.SQLITE_CONSTRAINT_TRIGGER else None
    if refused is not None:
        return refused
    primary = code & 0xFF if code is not None else None
    if isinstance(error, sqlite3.ProgrammingError) and "closed" in str(error):
        return StoreClosed(f"The store {path} is closed.")
    if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return StoreBusy(f"The database {path} is locked by another connection; try again.")
    if code in FULL:
        return StoreFull(f"The disk under {path} is full ({error}); free space, work resumes by itself.")
    if primary in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return StoreUnusable(f"The database {path} cannot be written ({error}); check owner and mode.")
    if is_damage(error):
        return StoreBroken(
            f"The database {path} failed: {error}. Nothing was stored. Check the disk, run 'treadle doctor', "
            "then restart this process."
        )
    return StoreError(f"The database {path} refused a statement: {error}")
