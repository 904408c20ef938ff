"""Opening a PostgreSQL store: its schema is made and brought up to date once, however many processes start at once."""

from __future__ import annotations

from typing import Final

import psycopg
from psycopg import sql

from treadle.clock import SystemClock
from treadle.errors import SchemaTooNew, StoreUnusable
from treadle.store.migrate import READER, Migration, migrations
from treadle.store.options import StoreOptions
from treadle.store.postgres import places
from treadle.store.postgres.connections import Connection, Connections, check_url
from treadle.store.postgres.errors import translate
from treadle.store.urls import without_password

DIALECT: Final = "postgresql"
LOCK: Final = 0x7EAD1E
"""The advisory lock under which one process at a time changes tables."""
VERSION_TABLE: Final = """
CREATE TABLE IF NOT EXISTS treadle_migrations (
    version integer PRIMARY KEY, name text NOT NULL, reader integer NOT NULL, applied_at bigint NOT NULL
)
"""
RECORD: Final = """
INSERT INTO treadle_migrations (version, name, reader, applied_at)
VALUES (%s, %s, %s, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint)
"""
# Read from the catalogue's tables. to_regclass() asks a cache of the session, which still says no when another process
# has made the tables while we waited for the lock.
KNOWN: Final = """
SELECT EXISTS (SELECT 1 FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = %s AND c.relname = 'treadle_migrations')
"""
KNOWN_SCHEMA: Final = "SELECT EXISTS (SELECT 1 FROM pg_catalog.pg_namespace WHERE nspname = %s)"
VERSION: Final = "SELECT coalesce(max(version), 0), coalesce(max(reader), 0) FROM {}"


def bring_up_to_date(connection: Connection, schema: str, place: str, *, auto_migrate: bool) -> None:
    """Create or upgrade the tables in *schema*.

    Raises:
        SchemaTooNew: they need a newer Treadle.
        StoreUnusable: they are missing or old, and *auto_migrate* is False.
        psycopg.Error: the role may not, or the connection was lost.
    """
    newest = migrations(DIALECT)[-1].version
    old = _version(connection, schema, place) < newest
    if not old and not places.are_behind(connection, schema):
        return
    if not auto_migrate:
        raise StoreUnusable(
            f"Schema {schema!r} of {place} is not at version {newest}. Run 'treadle migrate', or apply the script that "
            "'treadle migrate --sql' prints."
            if old
            else f"Schema {schema!r} of {place} was restored from another server, whose transactions had higher "
            "numbers. Run 'treadle migrate' once: it puts what comes behind what is there."
        )
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (LOCK,))
        done = _version(connection, schema, place)
        _enter(connection, schema)
        for step in migrations(DIALECT):
            if step.version > done:
                _apply(connection, step)
        places.catch_up(connection, schema)


def found(url: str, options: StoreOptions) -> int:
    """The version of the tables of *url*, on a connection of its own; nothing is changed.

    Raises:
        StoreError: it cannot be reached or read.
    """
    place = without_password(url)
    connections = Connections(check_url(url), place, options, SystemClock())
    try:
        connection = connections.connect()
        try:
            return version(connection, options.schema)[0]
        finally:
            connection.close()
    except psycopg.Error as error:
        raise translate(error, place) from error


def version(connection: Connection, schema: str) -> tuple[int, int]:
    """The highest version and reader applied in *schema*; 0, 0 without Treadle's tables."""
    table = sql.Identifier(schema, "treadle_migrations").as_string(connection)
    (known,) = connection.execute(KNOWN, (schema,)).fetchone() or (False,)
    if not known:
        return 0, 0
    found = connection.execute(sql.SQL(VERSION).format(sql.SQL(table))).fetchone()
    return found or (0, 0)


def script(schema: str, after: int = 0) -> str:
    """Every migration after version *after* as one script, for people who run their own."""
    quoted = '"' + schema.replace('"', '""') + '"'
    parts = [f"BEGIN;\nCREATE SCHEMA IF NOT EXISTS {quoted};\nSET LOCAL search_path = {quoted}, pg_catalog;"]
    for step in migrations(DIALECT):
        if step.version > after:
            moment = "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
            parts += [
                f"-- {step.name}", f"{VERSION_TABLE.strip()};", step.text.strip(),
                "INSERT INTO treadle_migrations (version, name, reader, applied_at) "
                f"VALUES ({step.version}, '{step.name}', {READER}, {moment});",
            ]  # fmt: skip
    return "\n".join([*parts, "COMMIT;\n"])


def _version(connection: Connection, schema: str, place: str) -> int:
    found, needed = version(connection, schema)
    if needed > READER:
        raise SchemaTooNew(
            f"Schema {schema!r} of {place} is at version {found}, which needs reader {needed}; this Treadle is reader "
            f"{READER}. Install the newer Treadle."
        )
    return found


def _enter(connection: Connection, schema: str) -> None:
    name = sql.Identifier(schema)
    found = connection.execute(KNOWN_SCHEMA, (schema,)).fetchone()
    if found != (True,):  # IF NOT EXISTS would ask for the right to create schemas even when it is there
        connection.execute(sql.SQL("CREATE SCHEMA {}").format(name))
    connection.execute(sql.SQL("SET LOCAL search_path = {}, pg_catalog").format(name))


def _apply(connection: Connection, step: Migration) -> None:
    connection.execute(VERSION_TABLE)
    connection.execute(step.text)
    connection.execute(RECORD, (step.version, step.name, READER))
