"""What verify asks a SQLite file only: SQLite's own check, its tables, the numbers it gives."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import Final

from treadle.store import migrate
from treadle.store.session import Session
from treadle.store.verdict import RESTORE, Check, Verdict, numbers

# SQLite writes out at most a hundred findings; a few are enough to know.
INTEGRITY: Final = "PRAGMA integrity_check(20)"
SEQUENCES: Final = """
SELECT name, next, coalesce(CASE name
    WHEN 'job' THEN (SELECT max(id) FROM treadle_jobs)
    WHEN 'lease' THEN max((SELECT coalesce(max(lease), 0) FROM treadle_jobs),
        (SELECT coalesce(max(lease), 0) FROM treadle_attempts))
    WHEN 'epoch' THEN max((SELECT coalesce(max(epoch), 0) FROM treadle_jobs),
        (SELECT coalesce(max(epoch), 0) FROM treadle_workers)) END, 0)
FROM treadle_sequences WHERE name IN ('job', 'lease', 'epoch')
"""
REMEDY: Final = "UPDATE treadle_sequences SET next = {next} WHERE name = '{name}';"
PLACES: Final = """
SELECT s.name, s.seq, CASE s.name WHEN 'treadle_logs' THEN (SELECT max(seq) FROM treadle_logs)
    ELSE (SELECT max(seq) FROM treadle_attempts) END
FROM sqlite_sequence s WHERE s.name IN ('treadle_logs', 'treadle_attempts')
"""
OBJECTS: Final = "SELECT type, name FROM sqlite_master WHERE name GLOB 'treadle_*'"
COLUMNS: Final = """
SELECT m.name, c.name FROM sqlite_master m CROSS JOIN pragma_table_info(m.name) c
WHERE m.type IN ('table', 'view') AND m.name GLOB 'treadle_*'
"""


def integrity(session: Session) -> Verdict:
    """SQLite's own full check."""
    found = [str(line) for (line,) in session.rows(INTEGRITY)]
    if found != ["ok"]:
        return Verdict("integrity", sound=False, text="; ".join(found), remedy=RESTORE)
    return Verdict("integrity", sound=True, text="SQLite's full check found nothing")


def schema(session: Session) -> Verdict:
    """Compare the file's tables, columns, indexes, views and triggers with those of a new file."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as fresh:
        migrate.migrate(fresh, session.clock)
        made = Session(fresh, session.dialect, session.clock)
        gone = [row for sql in (OBJECTS, COLUMNS) for row in sorted(set(made.rows(sql)) - set(session.rows(sql)))]
    if gone:
        text = f"missing in the file: {', '.join(' '.join(row) for row in gone)}"
        return Verdict("schema", sound=False, text=text, remedy="Restore a backup, or apply 'treadle migrate --sql'.")
    return Verdict("schema", sound=True, text="every table, column, index, view and trigger is there")


def sequences(session: Session) -> Verdict:
    """Whether a number could be given twice."""
    rows = session.rows(SEQUENCES)
    missing = {"job", "lease", "epoch"} - {name for name, _, _ in rows}
    if missing:
        return Verdict("sequences", sound=False, text=f"{', '.join(sorted(missing))}: the row is gone", remedy=RESTORE)
    return numbers([(name, following, largest) for name, following, largest in rows], REMEDY)


def places(session: Session) -> Verdict:
    """Whether a place in the history or the logs could be given twice."""
    behind = [name for name, given, largest in session.rows(PLACES) if largest is not None and given < largest]
    if behind:
        return Verdict("places", sound=False, text=f"{', '.join(behind)}: a place could be given twice", remedy=RESTORE)
    return Verdict("places", sound=True, text="no place in the history or the logs can be given twice")


CHECKS: Final[tuple[Check, ...]] = (integrity, schema, sequences, places)
