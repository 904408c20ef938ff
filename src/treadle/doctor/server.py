"""What may be wrong with a PostgreSQL server and our tables there: reach, rights, clocks, vacuum, connections."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Final

from treadle.clock import to_datetime
from treadle.doctor.finding import Finding, note, ok, problem
from treadle.errors import StoreError, StoreUnreachable
from treadle.store import schemas
from treadle.store.options import StoreOptions
from treadle.store.postgres import health
from treadle.store.store import Store

SKEW_MOST: Final = 1.0
"""Seconds two clocks may be apart before a person should know; nothing is decided by it."""
DEAD_LEAST: Final = 50_000
"""Dead rows of a table, as many as a quarter of the live ones, from which on vacuum does not keep up."""
OPEN_NOTE, OPEN_MOST = timedelta(minutes=5), timedelta(hours=1)
"""How long a transaction may be open before it is told, and before it is a problem."""
FULL_NOTE, FULL_MOST = 0.75, 0.95


def reach(url: str, options: StoreOptions) -> Iterator[Finding]:
    """Whether the server answers, and which schema it has; a store cannot be opened where this is a problem."""
    try:
        schema = schemas.look(url, options)
    except StoreUnreachable as error:
        remedy = "Look whether it runs, whether its address is right and a firewall lets it through."
        yield problem("server", str(error).replace(" Nothing was stored; try again.", ""), remedy)
        return
    except StoreError as error:
        yield problem("server", str(error), "Do what it says, then look again.")
        return
    name = f"Schema {options.schema!r}"
    if schema.found < schema.newest:
        text = f"{name} has version {schema.found}, this Treadle needs {schema.newest}."
        yield problem("schema", text, "Run 'treadle migrate', or have what 'treadle migrate --sql' prints applied.")
    elif schema.found > schema.newest:
        text = f"{name} has version {schema.found}; this Treadle was made for {schema.newest}."
        yield note("schema", text, "Upgrade Treadle here too.")
    else:
        yield ok("schema", f"{options.schema}, version {schema.found}")


def condition(store: Store) -> Iterator[Finding]:
    """Look at the server, and at how our tables fare there."""
    found = store.read(health.server)
    yield _server(found)
    yield _durability(found)
    if found.checksum_failures:
        text = f"The server has read {found.checksum_failures:,} pages of this database with a wrong checksum."
        yield problem("pages", text, "Its disk is failing: look into its log, check with pg_amcheck, restore a backup.")
    yield _rights(store, found)
    yield _clock(store)
    yield _vacuum(store, found)
    yield _open(store)
    yield _connections(found)


def _server(found: health.Server) -> Finding:
    if found.standby:
        return problem("server", "It is a standby: nothing can be stored there.", "Use the address of the primary.")
    return ok("server", f"PostgreSQL {found.version}")


def _durability(found: health.Server) -> Finding:
    if found.fsync != "on":
        text = "fsync is off: a power cut loses accepted jobs and may destroy the whole database."
        return problem("durability", text, "Set fsync = on in postgresql.conf and reload.")
    if found.synchronous_commit == "off":
        text = "synchronous_commit is off for this role or database: a crash of the server loses the last commits."
        return problem("durability", text, f'ALTER ROLE "{found.role}" SET synchronous_commit = on;')
    return ok("durability", f"fsync on, synchronous_commit {found.synchronous_commit}")


def _rights(store: Store, found: health.Server) -> Finding:
    missing = store.read(health.missing_rights)
    if missing:
        text = f"Role {found.role} lacks {', '.join(missing[:5])}{', …' if len(missing) > 5 else ''}."
        schema = store.options.schema
        remedy = (
            f'As the owner: GRANT USAGE ON SCHEMA "{schema}" TO "{found.role}"; '
            f'GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA "{schema}" TO "{found.role}"; '
            f'GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA "{schema}" TO "{found.role}";'
        )
        return problem("rights", text, remedy)
    return ok("rights", f"role {found.role} may do everything that work needs")


def _clock(store: Store) -> Finding:
    skew = store.engine.skew
    if abs(skew) > SKEW_MOST:
        text = (
            f"This machine's clock is {abs(skew):.1f} s {'ahead of' if skew > 0 else 'behind'} the server's. Stored "
            "times are the server's, so jobs are not harmed."
        )
        return note("clock", text, "Let both machines keep their time by NTP.")
    return ok("clock", f"{abs(skew) * 1000:.0f} ms apart from the server's")


def _vacuum(store: Store, found: health.Server) -> Finding:
    if found.autovacuum != "on":
        text = "autovacuum is off: the tables grow without end and claims become slow."
        return problem("vacuum", text, "Set autovacuum = on in postgresql.conf and reload; VACUUM ANALYZE once.")
    worst = store.read(health.tables)[0]
    when = "never" if worst.vacuumed_at is None else f"{to_datetime(worst.vacuumed_at):%Y-%m-%dT%H:%M:%SZ}"
    text = f"most in {worst.name}: {worst.dead:,} dead rows beside {worst.live:,} live ones, vacuumed last: {when}"
    if worst.dead > DEAD_LEAST and worst.dead * 4 > worst.live:
        remedy = "Look for old open transactions (below); then VACUUM that table, and let autovacuum have more workers."
        return note("vacuum", f"Vacuum does not keep up, {text}", remedy)
    return ok("vacuum", text)


def _open(store: Store) -> Finding:
    oldest = store.read(health.holder)
    if oldest is None:
        return ok("open transactions", "none that keeps vacuum from its work")
    length = timedelta(seconds=oldest.seconds)
    text = f"The oldest has been open for {length}: {oldest.what}, {oldest.who}, {oldest.state}."
    pid = oldest.what.removeprefix("pid ")
    remedy = f"End it: SELECT pg_terminate_backend({pid}); and let its program commit sooner."
    if oldest.state == "prepared":
        remedy = "COMMIT PREPARED or ROLLBACK PREPARED it; whoever prepared it has forgotten it."
    if length > OPEN_MOST:
        return problem("open transactions", f"{text} Dead rows pile up since, and claims become slow.", remedy)
    if length > OPEN_NOTE:
        return note("open transactions", f"{text} Dead rows pile up meanwhile.", remedy)
    return ok("open transactions", text)


def _connections(found: health.Server) -> Finding:
    text = f"{found.connections:,} of {found.most:,} connections are used"
    remedy = "Lower connections= and processes of your programs, put pgbouncer in between, or raise max_connections."
    if found.connections > FULL_MOST * found.most:
        return problem("connections", f"{text}: new ones will be refused.", remedy)
    if found.connections > FULL_NOTE * found.most:
        return note("connections", f"{text}.", remedy)
    return ok("connections", text)
