"""What surrounds the file: the library, the file system, modes, disk, write-ahead log, schema."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from treadle.doctor.finding import Finding, note, ok, problem
from treadle.errors import StoreError
from treadle.host.files import file_system_problem, free_bytes
from treadle.host.guard import find_second_sqlite
from treadle.store import health
from treadle.store.migrate import migrations
from treadle.store.sqlite import check_version, has_wal_reset_bug

WAL_MOST: Final = 256_000_000


def library() -> Iterator[Finding]:
    """The SQLite library of this process."""
    yield _library()
    yield _second_library()


def surroundings(path: Path, min_free: int, max_size: int | None) -> Iterator[Finding]:
    """What can be seen of an existing file without opening a store on it; the limits are those of enqueue."""
    yield _modes(path)
    yield _disk(path, min_free)
    if max_size is not None:
        yield _budget(path, max_size)
    yield _wal(path)
    yield _schema(path)


def place(path: Path) -> Finding:
    """Where the file is, or would be."""
    found = file_system_problem(path)
    if found:
        return problem("file system", found, "Move the database's folder to a local disk, or mount the whole folder.")
    return ok("file system", "local, and not a mount point of its own")


def _library() -> Finding:
    version = health.library_version()
    try:
        check_version()
    except StoreError as error:
        return problem("SQLite", str(error), "Use a Python built with a newer SQLite.")
    if has_wal_reset_bug():
        return note(
            "SQLite",
            f"Version {version} has the WAL-reset bug: Treadle cannot trigger it, other programs on the file can.",
            "Let other programs on the file set PRAGMA wal_autocheckpoint=0, or use SQLite 3.51.3 or newer.",
        )
    return ok("SQLite", f"version {version}")


def _second_library() -> Finding:
    found = find_second_sqlite()
    if found:
        return problem("SQLite library", found, "Use only the standard library's sqlite3 on the file.")
    return ok("SQLite library", "one copy in this process")


def _modes(path: Path) -> Finding:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & stat.S_IWOTH:
        return problem("file mode", f"{path} has mode {mode:o}: every user can change jobs.", f"chmod o-w {path}")
    if mode & stat.S_IROTH:
        text = f"{path} has mode {mode:o}: every user can read arguments and results."
        return note("file mode", text, f"chmod o-r {path}, unless it is meant.")
    return ok("file mode", f"{mode:o}")


def _disk(path: Path, min_free: int) -> Finding:
    free = free_bytes(path)
    if free < min_free:
        text = f"{free:,} bytes are free; below {min_free:,} (min_free) enqueue is refused."
        return problem("disk", text, "Free space; work resumes by itself.")
    return ok("disk", f"{free:,} bytes free")


def _budget(path: Path, max_size: int) -> Finding:
    used = health.bytes_of(path)
    if used >= max_size:
        text = f"The database has {used:,} bytes of at most {max_size:,} (max_size): enqueue is refused."
        return problem("size budget", text, "Prune and compact: treadle prune, treadle compact. Or raise max_size.")
    return ok("size budget", f"{used:,} of {max_size:,} bytes")


def _wal(path: Path) -> Finding:
    size = health.wal_bytes(path)
    if size > WAL_MOST:
        remedy = "Find the program that keeps a read transaction open on the file, and end it."
        return problem("write-ahead log", f"{size:,} bytes: something keeps it from shrinking.", remedy)
    return ok("write-ahead log", f"{size:,} bytes")


def _schema(path: Path) -> Finding:
    newest = migrations()[-1].version
    try:
        found = health.file_schema(path)
    except StoreError as error:
        return problem("schema", str(error), "Do what it says; check --store; restore a backup if the file is damaged.")
    if found < newest:
        text = f"The file has schema {found}, this Treadle needs {newest}."
        return problem("schema", text, "Run 'treadle migrate'.")
    if found > newest:
        text = f"The file has schema {found}; this Treadle was made for {newest}."  # refused or not: see "opening"
        return note("schema", text, "Upgrade Treadle here too.")
    return ok("schema", f"version {found}")
