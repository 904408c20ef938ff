"""Copying a store's tables into another store, page by page: what is read, what is written, how both are compared."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from typing import Any, Final, NamedTuple

import msgspec

from treadle.store.session import Row, Session

PAGE_ROWS: Final = 1000
PAGE_BYTES: Final = 8_000_000
"""About how much a page may weigh; one row that weighs more travels alone."""
AT_ONCE: Final = (200, 20, 1)
"""Rows of one INSERT: few different statements, and far below the parameters that any database takes."""
BITS: Final = 128
Key = tuple[int | str, ...]


class Table(NamedTuple):
    """A table that moves.

    Attributes:
        name: the same everywhere.
        columns: all of them.
        key: those by which its pages follow one another.
        heavy: those whose values may be large.
    """

    name: str
    columns: tuple[str, ...]
    key: tuple[str, ...]
    heavy: tuple[str, ...] = ()


TABLES: Final = (
    Table("treadle_queues", ("name", "max_length", "when_full"), ("name",)),
    Table("treadle_pauses", ("kind", "name", "paused_at", "paused_by", "reason", "until_at"), ("kind", "name")),
    Table("treadle_jobs", (
        "id", "queue", "task", "state", "priority", "due_at", "enqueued_at", "attempt", "failures", "crashes", "lease",
        "epoch", "started_at", "finished_at", "reason", "expires_at", "cancel_reason", "crash_cap",
    ), ("id",)),
    Table("treadle_payloads", ("job_id", "codec", "data", "extra", "version"), ("job_id",), ("data", "extra")),
    Table("treadle_results", ("job_id", "codec", "data"), ("job_id",), ("data",)),
    Table("treadle_tags", ("tag", "job_id"), ("tag", "job_id")),
    Table("treadle_progress", ("job_id", "fraction", "message", "updated_at"), ("job_id",)),
    Table("treadle_checkpoints", ("job_id", "codec", "data", "updated_at"), ("job_id",), ("data",)),
    Table("treadle_immediates", ("job_id", "error_type", "granted"), ("job_id", "error_type")),
    Table("treadle_attempts", (
        "seq", "job_id", "lease", "attempt", "worker", "outcome", "started_at", "finished_at", "error_type", "message",
        "traceback", "peak_rss", "cpu", "exit_code",
    ), ("seq",), ("message", "traceback")),
    Table("treadle_logs", ("seq", "job_id", "lease", "logged_at", "level", "source", "text"), ("seq",), ("text",)),
)  # fmt: skip
STAYS: Final = ("treadle_meta", "treadle_migrations", "treadle_sequences", "treadle_workers", "treadle_commits")
"""Tables that are not copied row by row: numbers go on, registrations and commits belong to processes and servers."""

WEIGH: Final = "SELECT {key}, {weight} FROM {table} {where} ORDER BY {key} LIMIT {most}"
READ: Final = "SELECT {columns} FROM {table} {where} ORDER BY {key} LIMIT {most}"
WRITE: Final = "INSERT INTO {table} ({columns}) VALUES {rows}"
COUNT: Final = "SELECT count(*) FROM {table}"
ANY: Final = "SELECT 1 FROM {table} LIMIT 1"


class Sum(NamedTuple):
    """Rows of a table: how many, and the sum of their digests, whatever their order."""

    rows: int = 0
    digest: int = 0

    def plus(self, rows: Sequence[Row]) -> Sum:
        """With these rows too."""
        digest = sum(_digest(row) for row in rows)
        return Sum(self.rows + len(rows), (self.digest + digest) & ((1 << BITS) - 1))


def page(session: Session, table: Table, after: Key | None) -> list[Row]:
    """The rows that follow the key *after*: as many as make a page, at least one unless none follows."""
    most, upto = PAGE_ROWS, None
    if table.heavy:
        weighed = list(_fitting(_weights(session, table, after)))
        if not weighed:
            return []
        most, upto = len(weighed), weighed[-1]
    where, values = _between(table, after, upto)
    sql = READ.format(
        columns=", ".join(table.columns), table=table.name, where=where, key=", ".join(table.key), most=most
    )
    return session.rows(sql, values)


def key_of(table: Table, row: Row) -> Key:
    """The key of a row."""
    return tuple(row[table.columns.index(column)] for column in table.key)


def write(session: Session, table: Table, rows: Sequence[Row]) -> None:
    """Store rows as they are."""
    start = 0
    for size in AT_ONCE:
        while len(rows) - start >= size:
            piece = rows[start : start + size]
            marks = f"({', '.join('?' * len(table.columns))})"
            sql = WRITE.format(table=table.name, columns=", ".join(table.columns), rows=", ".join([marks] * size))
            session.change(sql, [value for row in piece for value in row])
            start += size


def count(session: Session, table: Table) -> int:
    """How many rows a table has."""
    return int(session.value(COUNT.format(table=table.name)))


def filled(session: Session) -> list[str]:
    """Tables that have rows."""
    return [table.name for table in TABLES if session.rows(ANY.format(table=table.name))]


def empty(session: Session) -> None:
    """Delete everything that was copied in."""
    for table in TABLES:
        session.change(f"DELETE FROM {table.name}")


def _weights(session: Session, table: Table, after: Key | None) -> list[tuple[Key, int]]:
    where, values = _between(table, after, None)
    weight = " + ".join(f"coalesce(length({column}), 0)" for column in table.heavy)
    key = ", ".join(table.key)
    rows = session.rows(
        WEIGH.format(key=key, weight=weight, table=table.name, where=where, most=PAGE_ROWS), values
    )
    return [(tuple(row[:-1]), int(row[-1])) for row in rows]


def _fitting(weighed: Iterable[tuple[Key, int]]) -> Iterator[Key]:
    total = 0
    for key, weight in weighed:
        if total and total + weight > PAGE_BYTES:
            return
        total += max(1, weight)
        yield key


def _between(table: Table, after: Key | None, upto: Key | None) -> tuple[str, list[Any]]:
    key, marks = f"({', '.join(table.key)})", f"({', '.join('?' * len(table.key))})"
    bounds = [(sign, bound) for sign, bound in ((">", after), ("<=", upto)) if bound is not None]
    where = " AND ".join(f"{key} {sign} {marks}" for sign, _ in bounds)
    return (f"WHERE {where}" if where else ""), [value for _, bound in bounds for value in bound]


def _digest(row: Row) -> int:
    return int.from_bytes(blake2b(msgspec.msgpack.encode(row), digest_size=BITS // 8).digest(), "big")
