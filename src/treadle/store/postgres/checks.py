"""What verify asks a PostgreSQL store only: its tables and indexes, the numbers it gives."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from treadle.store.dialect import PostgresDialect
from treadle.store.migrate import migrations
from treadle.store.session import Session
from treadle.store.verdict import Check, Verdict, numbers

INVALID: Final = """
SELECT c.relname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = :schema AND NOT (i.indisvalid AND i.indisready) ORDER BY 1
"""
OBJECTS: Final = """
SELECT CASE c.relkind WHEN 'r' THEN 'table' WHEN 'i' THEN 'index' WHEN 'v' THEN 'view' WHEN 'S' THEN 'sequence' END,
    c.relname
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = :schema AND c.relkind IN ('r', 'i', 'v', 'S')
UNION ALL
SELECT 'function', p.proname FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE n.nspname = :schema
UNION ALL
SELECT 'trigger', t.tgname FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = :schema AND NOT t.tgisinternal AND t.tgenabled <> 'D'
UNION ALL
SELECT 'column', c.relname || '.' || a.attname FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = :schema AND c.relkind = 'r' AND a.attnum > 0 AND NOT a.attisdropped
"""
SEQUENCES: Final = """
SELECT 'job', (SELECT last_value + is_called::int FROM treadle_job_numbers),
    (SELECT coalesce(max(id), 0) FROM treadle_jobs)
UNION ALL
SELECT 'lease', (SELECT last_value + is_called::int * 4096 FROM treadle_lease_numbers),
    greatest((SELECT max(lease) FROM treadle_jobs), (SELECT max(lease) FROM treadle_attempts), 0)
UNION ALL
SELECT 'epoch', (SELECT last_value + is_called::int FROM treadle_epoch_numbers),
    greatest((SELECT max(epoch) FROM treadle_jobs), (SELECT max(greatest(epoch, slot)) FROM treadle_workers), 0)
"""
REMEDY: Final = "SELECT setval('{schema}.treadle_{{name}}_numbers', {{next}}, false);"
AHEAD: Final = """
SELECT greatest((SELECT max(seq) FROM treadle_attempts), (SELECT max(seq) FROM treadle_logs), 0) / 1048576 + 1
    - pg_snapshot_xmax(pg_current_snapshot())::text::bigint
    - (SELECT value::bigint FROM treadle_meta WHERE name = 'place_offset')
"""
CREATED: Final = re.compile(
    r"^(CREATE|DROP)(?: OR REPLACE)?(?: UNIQUE)? (TABLE|INDEX|VIEW|SEQUENCE|FUNCTION|TRIGGER)(?: IF (?:NOT )?EXISTS)? "
    r"(treadle_\w+)(?: \((.*?)^\))?", re.MULTILINE | re.DOTALL,
)  # fmt: skip
ADDED: Final = re.compile(r"^ALTER TABLE (treadle_\w+) (ADD|DROP) COLUMN (\w+)", re.MULTILINE)
COLUMN: Final = re.compile(r"^    ([a-z_]+) ", re.MULTILINE)


class Made(NamedTuple):
    """Something that a migration makes: "table", "index" …, and its name; a column as ``table.column``."""

    kind: str
    name: str


def expected() -> set[Made]:
    """Everything that the migrations make, as their scripts say; without what gets no name there."""
    made: set[Made] = set()
    for step in migrations("postgresql"):
        for verb, kind, name, body in CREATED.findall(step.text):
            columns = {Made("column", f"{name}.{column}") for column in COLUMN.findall(body) if kind == "TABLE"}
            found = {Made(kind.lower(), name), *columns}
            made = made | found if verb == "CREATE" else {one for one in made if not _belongs(one, name)}
        for table, verb, column in ADDED.findall(step.text):
            one = Made("column", f"{table}.{column}")
            made = made | {one} if verb == "ADD" else made - {one}
    return made


def indexes(session: Session) -> Verdict:
    """Whether the server itself calls an index broken."""
    broken = [name for (name,) in session.rows(INVALID, {"schema": _dialect(session).schema})]
    if broken:
        text = f"the server does not use {', '.join(broken)}: making them was interrupted"
        remedy = " ".join(f"REINDEX INDEX {_dialect(session).text(name)};" for name in broken)
        return Verdict("indexes", sound=False, text=text, remedy=remedy)
    return Verdict("indexes", sound=True, text="the server uses every index; pg_amcheck looks into their pages")


def schema(session: Session) -> Verdict:
    """Compare tables, columns, indexes, views, sequences, functions and triggers with what the migrations make."""
    there = {Made(*row) for row in session.rows(OBJECTS, {"schema": _dialect(session).schema})}
    gone = sorted(expected() - there)
    if gone:
        text = f"missing or switched off: {', '.join(' '.join(one) for one in gone)}"
        remedy = "Take them from the script of 'treadle migrate --sql' for an empty schema, or restore a backup."
        return Verdict("schema", sound=False, text=text, remedy=remedy)
    return Verdict("schema", sound=True, text="every table, column, index, view, function and trigger is there")


def sequences(session: Session) -> Verdict:
    """Whether a number could be given twice."""
    rows = session.rows(SEQUENCES)
    quoted = _dialect(session).quoted
    return numbers([(name, following, largest) for name, following, largest in rows], REMEDY.format(schema=quoted))


def places(session: Session) -> Verdict:
    """Whether a place in commit order could be given twice, as after a restore from another server."""
    if session.value(AHEAD) > 0:
        text = "places in the history and the logs are ahead of the server's transaction numbers"
        remedy = "Run 'treadle migrate': it puts what comes behind what is there. Workers do so when they start."
        return Verdict("places", sound=False, text=text, remedy=remedy)
    return Verdict("places", sound=True, text="no place in the history or the logs can be given twice")


CHECKS: Final[tuple[Check, ...]] = (indexes, schema, sequences, places)


def _dialect(session: Session) -> PostgresDialect:
    assert isinstance(session.dialect, PostgresDialect)
    return session.dialect


def _belongs(one: Made, name: str) -> bool:
    return one.name == name or one.name.startswith(f"{name}.")
