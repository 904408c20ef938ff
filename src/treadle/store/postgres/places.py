"""Places in commit order: attempts and log lines carry the number of the transaction that wrote them.

A reader who goes on from a place must never miss a row that is committed later under a lower one. Transaction numbers
allow that (see ``PostgresDialect.final``), but they belong to a server: after a dump is restored elsewhere, or jobs
were moved in, they are lower than the places already taken. Then an offset makes up for it.
"""

from __future__ import annotations

from typing import Final

from psycopg import sql

from treadle.store.postgres.connections import Connection

TABLES: Final = ("treadle_attempts", "treadle_logs")
# How far the places taken are ahead of those to come; 0 or less is as it should be.
AHEAD: Final = """
SELECT greatest((SELECT max(seq) FROM {attempts}), (SELECT max(seq) FROM {logs}), {beyond}) / 1048576 + 1
    - pg_snapshot_xmax(pg_current_snapshot())::text::bigint
    - (SELECT value::bigint FROM {meta} WHERE name = 'place_offset')
"""
LAST: Final = """
SELECT (pg_snapshot_xmax(pg_current_snapshot())::text::bigint
    + (SELECT value::bigint FROM {meta} WHERE name = 'place_offset')) << 20
"""
MOVE: Final = """
UPDATE {meta} SET value = (value::bigint + {ahead})::text WHERE name = 'place_offset' RETURNING value::bigint
"""
DEFAULT: Final = """
ALTER TABLE {table} ALTER COLUMN seq
SET DEFAULT ((pg_current_xact_id()::text::bigint + {offset}) << 20) | (nextval({numbers}) & 1048575)
"""


def are_behind(connection: Connection, schema: str) -> bool:
    """True when the next place would be lower than one already taken."""
    return _ahead(connection, schema) > 0


def last(connection: Connection, schema: str) -> int:
    """A number that no place taken so far reaches."""
    meta = sql.Identifier(schema, "treadle_meta")
    found = connection.execute(sql.SQL(LAST).format(meta=meta)).fetchone()
    assert found is not None
    return int(found[0])


def catch_up(connection: Connection, schema: str, *, beyond: int = 0) -> None:
    """Put the next place beyond all that are taken; in a transaction of the caller's, which nobody else writes beside.

    Args:
        connection: with an open transaction.
        schema: where the tables are.
        beyond: a place that was taken elsewhere, by rows that may be gone.

    Raises:
        psycopg.errors.InsufficientPrivilege: the role does not own the tables.
    """
    ahead = _ahead(connection, schema, beyond)
    if ahead <= 0:
        return
    meta = sql.Identifier(schema, "treadle_meta")
    moved = connection.execute(sql.SQL(MOVE).format(meta=meta, ahead=sql.Literal(ahead))).fetchone()
    assert moved is not None
    numbers = sql.Literal(sql.Identifier(schema, "treadle_row_numbers").as_string(connection))
    for table in TABLES:
        parts = {"table": sql.Identifier(schema, table), "offset": sql.Literal(moved[0]), "numbers": numbers}
        connection.execute(sql.SQL(DEFAULT).format(**parts))


def _ahead(connection: Connection, schema: str, beyond: int = 0) -> int:
    names = {"attempts": "treadle_attempts", "logs": "treadle_logs", "meta": "treadle_meta"}
    tables = {name: sql.Identifier(schema, table) for name, table in names.items()}
    found = connection.execute(sql.SQL(AHEAD).format(**tables, beyond=sql.Literal(beyond))).fetchone()
    assert found is not None
    return int(found[0])
