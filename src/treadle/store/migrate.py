"""Numbered migrations: atomic with their version row, safe when many processes start at once."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from importlib import resources
from typing import Final, NamedTuple

from treadle.clock import Clock
from treadle.errors import SchemaTooNew

READER: Final = 1
"""What this code can read: a file that demands a higher number is refused."""


class Migration(NamedTuple):
    """One numbered step; *text* is its SQL script."""

    version: int
    name: str
    text: str


def migrations(dialect: str = "sqlite") -> tuple[Migration, ...]:
    """Every migration of *dialect*, in order."""
    folder = resources.files("treadle.store.schema") / dialect
    files = sorted((item for item in folder.iterdir() if item.name.endswith(".sql")), key=lambda item: item.name)
    return tuple(
        Migration(int(item.name.split("_", 1)[0]), item.name.removesuffix(".sql"), item.read_text("utf-8"))
        for item in files
    )


def statements(script: str) -> Iterator[str]:
    """Split a script into statements; ``executescript`` would commit our transaction first.

    Example:
        >>> list(statements("SELECT 1; SELECT 2;"))
        ['SELECT 1;', 'SELECT 2;']
    """
    held = ""
    for piece in script.split(";"):
        held += piece + ";"
        if sqlite3.complete_statement(held):
            if _has_code(held):
                yield held.strip()
            held = ""


def pending_sql(dialect: str = "sqlite", after: int = 0) -> str:
    """The script of every migration after version *after*, for people who run their own migrations."""
    parts = []
    for migration in migrations(dialect):
        if migration.version > after:
            parts.append(f"-- {migration.name}\n{_VERSION_TABLE}\n{migration.text.strip()}\n{_record_sql(migration)}\n")
    return "\n".join(parts)


def version(connection: sqlite3.Connection) -> int:
    """The highest version applied, 0 for a database without Treadle's tables."""
    known = connection.execute(
        "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'treadle_migrations'"
    ).fetchall()
    if not known:
        return 0
    return int(connection.execute("SELECT coalesce(max(version), 0) FROM treadle_migrations").fetchone()[0])


def check_reader(connection: sqlite3.Connection) -> None:
    """Refuse a file that a newer Treadle has changed beyond this code's reach.

    Raises:
        SchemaTooNew: naming both numbers.
    """
    found = version(connection)
    if not found:
        return
    (needed,) = connection.execute("SELECT max(reader) FROM treadle_migrations").fetchone()
    if needed > READER:
        raise SchemaTooNew(
            f"This file has schema {found}, which needs reader {needed}; this Treadle is reader {READER}. "
            "Install the newer Treadle, or restore a backup made before the upgrade."
        )


def migrate(connection: sqlite3.Connection, clock: Clock, steps: Iterable[Migration] | None = None) -> int:
    """Apply what is missing, inside the write transaction the caller began.

    Each script and its version row commit together or not at all.

    Returns:
        How many migrations were applied.
    """
    check_reader(connection)
    done = version(connection)
    applied = 0
    for step in migrations() if steps is None else steps:
        if step.version <= done:
            continue
        connection.execute(_VERSION_TABLE)
        for statement in statements(step.text):
            connection.execute(statement)
        connection.execute(
            "INSERT INTO treadle_migrations (version, name, reader, applied_at) VALUES (?, ?, ?, ?)",
            (step.version, step.name, READER, clock.now()),
        )
        applied += 1
    return applied


_VERSION_TABLE: Final = """CREATE TABLE IF NOT EXISTS treadle_migrations (
    version INTEGER PRIMARY KEY, name TEXT NOT NULL, reader INTEGER NOT NULL, applied_at INTEGER NOT NULL
) STRICT;"""


def _record_sql(step: Migration) -> str:
    return (
        "INSERT INTO treadle_migrations (version, name, reader, applied_at) VALUES "
        f"({step.version}, '{step.name}', {READER}, CAST(strftime('%s', 'now') AS INTEGER) * 1000000);"
    )


def _has_code(text: str) -> bool:
    lines = (line.strip() for line in text.splitlines())
    return any(line and not line.startswith("--") and line != ";" for line in lines)
