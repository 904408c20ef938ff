"""Opening a store: where the file is, whether it may be used, and bringing its tables up to date."""

from __future__ import annotations

import logging
import os
import sqlite3
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from treadle.clock import Clock
from treadle.errors import ConfigurationError, StoreBusy, StoreUnusable
from treadle.host.children import is_child
from treadle.host.failpoints import reach
from treadle.host.files import (
    SIDE_SUFFIX,
    create_private,
    file_system_problem,
    identity_of,
    resolve,
    side_folder,
)
from treadle.host.guard import find_second_sqlite
from treadle.host.locks import Gate
from treadle.store.connections import GATE, FileFacts
from treadle.store.migrate import check_reader, migrate, migrations, version
from treadle.store.sqlite import check_version, connect, is_busy, is_wal, set_wal, translate
from treadle.store.transaction import begin, commit
from treadle.store.urls import without_password

MEMORY_FOLDER: Final = Path("/dev/shm")  # noqa: S108 - only as a place for a private folder
DURABILITIES: Final = ("full", "normal", "off")
GATE_PAUSE: Final = 0.01
MIGRATE: Final = "migrate"
log = logging.getLogger("treadle.store")


def file_of(url: str) -> Path | None:
    """The path a store URL names, None for ``memory://``.

    Raises:
        ConfigurationError: not ``sqlite:///path`` or ``memory://``.

    Example:
        >>> file_of("sqlite:///jobs.db")
        PosixPath('jobs.db')
    """
    if url == "memory://":
        return None
    if url.startswith("sqlite:///") and len(url) > len("sqlite:///"):
        return Path(url.removeprefix("sqlite:///"))
    raise ConfigurationError(
        f"{without_password(url)!r} is not a store. Use 'sqlite:///jobs.db' (relative), "
        "'sqlite:////var/lib/app/jobs.db' (absolute), 'postgresql://user@host/database' or 'memory://'."
    )


def private_folder() -> Path:
    """A new folder for a ``memory://`` store: in memory where the system has a place for it.

    Raises:
        ConfigurationError: this is a child process of a worker.
    """
    if is_child():
        raise ConfigurationError(
            "A memory:// store is private to its process, and this is a child process of a worker: jobs stored in it "
            "would be lost without a word. Use a file, such as sqlite:///jobs.db."
        )
    parent = MEMORY_FOLDER if MEMORY_FOLDER.is_dir() else None
    return Path(tempfile.mkdtemp(prefix="treadle-", dir=parent))


def open_file(
    path: Path, clock: Clock, *, durability: str, lock_timeout: float, auto_migrate: bool, create: bool = True
) -> FileFacts:
    """Make sure *path* is a usable store with current tables, and say what is fixed about it.

    Raises:
        StoreUnusable: the file system, the file or the SQLite library is not safe; the message has the remedy.
        SchemaTooNew: the file needs a newer Treadle.
        StoreBusy: the write lock was not free in time.
    """
    if durability not in DURABILITIES:
        raise ConfigurationError(f"durability={durability!r} is unknown; choose one of {', '.join(DURABILITIES)}.")
    check_version()
    resolved = _usable(path, create=create)
    side = _side(resolved)
    gate = Gate(side / GATE)
    try:
        if not _is_current(resolved):
            _enter(gate, clock, lock_timeout, resolved)
            _bring_up_to_date(resolved, clock, durability, lock_timeout, auto_migrate=auto_migrate)
    except sqlite3.Error as error:
        raise translate(error, resolved) from error
    finally:
        gate.close()
    identity = identity_of(resolved)
    if identity is None:
        raise StoreUnusable(f"The database {resolved} was deleted while it was opened; open it again.")
    return FileFacts(path=resolved, side=side, identity=identity, durability=durability)


def _usable(path: Path, *, create: bool) -> Path:
    try:
        resolved = resolve(path)
        problem = file_system_problem(resolved)
        if problem:
            raise StoreUnusable(problem)
        if not create and not resolved.exists():
            raise StoreUnusable(f"There is no database {resolved}; check the path.")
        create_private(resolved)
    except (OSError, ValueError) as error:  # ValueError: a NUL, which no file name can have
        raise StoreUnusable(
            f"The database {str(path)!r} cannot be created ({error}); check the path, the folder's owner and mode."
        ) from error
    if not resolved.is_file():
        raise StoreUnusable(f"{resolved} is not a file.")
    if resolved.stat().st_nlink > 1:
        raise StoreUnusable(
            f"{resolved} has more than one name (hard link). Each name would get a write-ahead log of its own and "
            "corrupt the database; remove the other name."
        )
    second = find_second_sqlite()
    if second:
        log.warning("%s", second)
    return resolved


def _side(path: Path) -> Path:
    folder = Path(f"{path}{SIDE_SUFFIX}")
    # Looked at first, because side_folder() would change the mode of whatever bears that name.
    if os.path.lexists(folder) and not folder.is_dir():
        raise StoreUnusable(
            f"{folder} is not a folder, but Treadle keeps locks and bells under this name; move it away."
        )
    try:
        return side_folder(path)
    except OSError as error:
        raise StoreUnusable(
            f"The folder {folder} cannot be used ({error}); check its owner and mode."
        ) from error


def _enter(gate: Gate, clock: Clock, lock_timeout: float, path: Path) -> None:
    """Take the gate, at most *lock_timeout* seconds: a holder that was stopped would keep it for ever."""
    until = clock.monotonic() + lock_timeout
    pause = threading.Event()
    try:
        while not gate.acquire(blocking=False):
            if clock.monotonic() >= until:
                raise StoreBusy(
                    f"Another process kept the gate of {path} for {lock_timeout:g} s (lock_timeout); it is stopped "
                    "or its disk hangs. Find it with 'treadle doctor', let it go on or end it."
                )
            pause.wait(GATE_PAUSE)
    except OSError as error:
        raise StoreUnusable(
            f"The folder of locks beside {path} cannot be used ({error}); check its owner and mode."
        ) from error


def _is_current(path: Path) -> bool:
    """True when nothing has to be written to use the file; found without waiting for anybody.

    A program may open its store inside a transaction of its own. Who holds the gate may wait for just that transaction.
    """
    connection = connect(path)
    try:
        check_reader(connection)
        return version(connection) >= migrations()[-1].version and is_wal(connection)
    except sqlite3.OperationalError as error:
        if is_busy(error):
            return False  # it is being made, or recovered: that is worth waiting for
        raise
    finally:
        connection.close()


def _bring_up_to_date(
    path: Path, clock: Clock, durability: str, lock_timeout: float, *, auto_migrate: bool
) -> None:
    connection = connect(path, durability=durability)
    try:
        check_reader(connection)
        if version(connection) >= migrations()[-1].version:
            patiently(lambda: set_wal(connection), clock, lock_timeout, path)
            return
        if not auto_migrate:
            raise StoreUnusable(
                f"{path} has schema {version(connection)}, this Treadle needs {migrations()[-1].version}. "
                "Run 'treadle migrate', or apply the script that 'treadle migrate --sql' prints."
            )
        patiently(lambda: set_wal(connection), clock, lock_timeout, path)
        patiently(lambda: begin(connection, MIGRATE), clock, lock_timeout, path)
        try:
            reach("after_begin", MIGRATE)
            migrate(connection, clock)
            commit(connection, path, MIGRATE)
            reach("after_commit", MIGRATE)
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
    finally:
        connection.close()


def patiently(action: Callable[[], object], clock: Clock, lock_timeout: float, path: Path) -> None:
    """Call *action* until the database is not locked, at most *lock_timeout* seconds.

    Raises:
        StoreBusy: it stayed locked.
    """
    until = clock.monotonic() + lock_timeout
    pause = threading.Event()
    while True:
        try:
            action()
            return
        except sqlite3.OperationalError as error:
            if not is_busy(error):
                raise
            if clock.monotonic() >= until:
                raise StoreBusy(
                    f"The database {path} was locked by another program for {lock_timeout:g} s; "
                    "find it with 'treadle doctor'."
                ) from error
            pause.wait(0.01)
