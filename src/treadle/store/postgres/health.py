"""Reads about the server: how large our tables are, whether vacuum keeps up, what we may not do."""

from __future__ import annotations

from typing import Final, NamedTuple

from treadle.store.dialect import PostgresDialect
from treadle.store.session import Session

SIZE: Final = """
SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = :schema AND c.relkind = 'r'
"""
VERSION: Final = "SELECT current_setting('server_version')"
SERVER: Final = """
SELECT current_setting('server_version'), pg_is_in_recovery(), current_setting('fsync'),
    current_setting('synchronous_commit'), current_setting('autovacuum'),
    (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'),
    current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int,
    (SELECT coalesce(sum(checksum_failures), 0)::bigint FROM pg_stat_database WHERE datname = current_database()),
    current_user::text
"""
TABLES: Final = """
SELECT relname, n_live_tup, n_dead_tup,
    (extract(epoch FROM greatest(last_autovacuum, last_vacuum)) * 1000000)::bigint
FROM pg_stat_user_tables WHERE schemaname = :schema ORDER BY n_dead_tup DESC, relname
"""
# What is prepared and forgotten holds vacuum back like an open transaction, and survives a restart.
HOLDERS: Final = """
SELECT 'pid ' || pid, coalesce(nullif(application_name, ''), 'a program without a name'), coalesce(state, 'open'),
    extract(epoch FROM clock_timestamp() - xact_start)::bigint AS seconds
FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND xact_start IS NOT NULL
    AND (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL)
UNION ALL
SELECT 'prepared transaction ' || gid, owner::text, 'prepared',
    extract(epoch FROM clock_timestamp() - prepared)::bigint
FROM pg_prepared_xacts WHERE database = current_database()
ORDER BY seconds DESC LIMIT 1
"""
MISSING: Final = """
SELECT p.right || ' on ' || c.relname
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
CROSS JOIN (VALUES ('SELECT'), ('INSERT'), ('UPDATE'), ('DELETE')) AS p ("right")
WHERE n.nspname = :schema AND c.relkind = 'r' AND c.relname <> :migrations AND NOT has_table_privilege(c.oid, p.right)
UNION ALL
SELECT 'USAGE on ' || c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = :schema
    AND CASE WHEN c.relkind = 'S' THEN NOT has_sequence_privilege(c.oid, 'USAGE') ELSE false END
ORDER BY 1
"""


class Server(NamedTuple):
    """The server and its settings; *connections* are those of clients, *most* is how many an ordinary role may have."""

    version: str
    standby: bool
    fsync: str
    synchronous_commit: str
    autovacuum: str
    connections: int
    most: int
    checksum_failures: int
    role: str


class Table(NamedTuple):
    """What the server counts of one table; *vacuumed_at* in microseconds, None for never since it counts."""

    name: str
    live: int
    dead: int
    vacuumed_at: int | None


class Holder(NamedTuple):
    """What has been open the longest, so that vacuum must keep what it may still see."""

    what: str
    who: str
    state: str
    seconds: int


def size(session: Session) -> int:
    """Bytes of our tables, with their indexes and long values."""
    return int(session.value(SIZE, {"schema": _schema(session)}))


def version(session: Session) -> str:
    """The server's version."""
    return str(session.value(VERSION))


def server(session: Session) -> Server:
    """The server, its settings that matter here, and how many are connected."""
    return Server(*session.rows(SERVER)[0])


def tables(session: Session) -> list[Table]:
    """Our tables, those with most dead rows first."""
    return [Table(*row) for row in session.rows(TABLES, {"schema": _schema(session)})]


def holder(session: Session) -> Holder | None:
    """The oldest open transaction of this database; None without one, or where the role may not see those of others."""
    found = session.row(HOLDERS)
    return None if found is None else Holder(*found)


def missing_rights(session: Session) -> list[str]:
    """What the role may not do and work needs."""
    names = {"schema": _schema(session), "migrations": "treadle_migrations"}
    return [str(right) for (right,) in session.rows(MISSING, names)]


def _schema(session: Session) -> str:
    assert isinstance(session.dialect, PostgresDialect)
    return session.dialect.schema
