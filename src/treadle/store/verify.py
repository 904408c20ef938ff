"""Whether the file keeps Treadle's own promises: what must hold between its tables, looked up and changed by nobody.

Each check is one read, so it sees the file as it was at one moment, however busy the file is.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from typing import Final, NamedTuple

from treadle.clock import Clock
from treadle.model.job import STATES
from treadle.store import migrate
from treadle.store.session import Session
from treadle.store.store import Store

PATIENCE: Final = 3600.0
"""Seconds one check may take. It keeps the write-ahead log from shrinking meanwhile."""
RESTORE: Final = "Stop the workers and restore a backup; check the disk."
REPORT: Final = "This must not happen: keep a copy made by 'treadle backup' and report it."

# SQLite writes out at most a hundred findings; a few are enough to know.
INTEGRITY: Final = "PRAGMA integrity_check(20)"
OFFENDERS: Final = """
WITH bad (id) AS MATERIALIZED ({query})
SELECT count(*), (SELECT group_concat(id, ', ') FROM (SELECT id FROM bad LIMIT 5)) FROM bad
"""
SEQUENCES: Final = """
SELECT name, next, coalesce(CASE name
    WHEN 'job' THEN (SELECT max(id) FROM treadle_jobs)
    WHEN 'lease' THEN max((SELECT coalesce(max(lease), 0) FROM treadle_jobs),
        (SELECT coalesce(max(lease), 0) FROM treadle_attempts))
    WHEN 'epoch' THEN max((SELECT coalesce(max(epoch), 0) FROM treadle_jobs),
        (SELECT coalesce(max(epoch), 0) FROM treadle_workers)) END, 0)
FROM treadle_sequences WHERE name IN ('job', 'lease', 'epoch')
"""
PLACES: Final = """
SELECT s.name, s.seq, CASE s.name WHEN 'treadle_logs' THEN (SELECT max(seq) FROM treadle_logs)
    ELSE (SELECT max(seq) FROM treadle_attempts) END
FROM sqlite_sequence s WHERE s.name IN ('treadle_logs', 'treadle_attempts')
"""
BY_TABLE: Final = "SELECT state, count(*) FROM treadle_jobs NOT INDEXED GROUP BY state"
BY_VIEW: Final = "SELECT state, sum(jobs) FROM treadle_queue_view GROUP BY state"
OBJECTS: Final = "SELECT type, name FROM sqlite_master WHERE name GLOB 'treadle_*'"
COLUMNS: Final = """
SELECT m.name, c.name FROM sqlite_master m CROSS JOIN pragma_table_info(m.name) c
WHERE m.type IN ('table', 'view') AND m.name GLOB 'treadle_*'
"""
OF_JOBS: Final = ("payloads", "results", "attempts", "progress", "checkpoints", "immediates", "tags", "logs")
"""Tables whose rows belong to a job."""


class Verdict(NamedTuple):
    """What one check found.

    Attributes:
        check: what was looked at, in a few words.
        sound: True when it is as it must be.
        text: what was found.
        remedy: what to do, None when it is sound.
    """

    check: str
    sound: bool
    text: str
    remedy: str | None = None


class Rule(NamedTuple):
    """Something no row may be.

    Attributes:
        check: in a few words.
        query: selects one number (of a job, a lease …) for each offender.
        holds: what is true when there is none.
        broken: what offenders are.
        remedy: what to do.
    """

    check: str
    query: str
    holds: str
    broken: str
    remedy: str


RULES: Final = (
    Rule(
        "running jobs",
        "SELECT id FROM treadle_jobs WHERE state = 5 AND NOT EXISTS"
        " (SELECT 1 FROM treadle_workers w WHERE w.epoch = treadle_jobs.epoch)",
        "every running job has a registered worker", "running jobs without a registered worker",
        "Start a worker: it takes them back.",
    ),
    Rule(
        "states and times",
        "SELECT id FROM treadle_jobs WHERE (state >= 7) <> (finished_at IS NOT NULL)"
        " OR (state = 5 AND (started_at IS NULL OR epoch IS NULL))",
        "ended jobs have an end, running ones a start", "jobs whose times do not fit their state", REPORT,
    ),
    Rule(
        "arguments",
        "SELECT id FROM treadle_jobs j WHERE NOT EXISTS (SELECT 1 FROM treadle_payloads p WHERE p.job_id = j.id)",
        "every job has its arguments", "jobs that have lost their arguments",
        "Restore a backup, or delete them: treadle jobs delete ID.",
    ),
    Rule(
        "one success",
        "SELECT job_id FROM treadle_attempts WHERE outcome = 1 GROUP BY job_id HAVING count(*) > 1",
        "no job has succeeded twice", "jobs that have succeeded more than once", REPORT,
    ),
    Rule(
        "success has a history",
        "SELECT id FROM treadle_jobs j WHERE state = 7 AND NOT EXISTS"
        " (SELECT 1 FROM treadle_attempts a WHERE a.job_id = j.id AND a.outcome = 1)",
        "every succeeded job has the attempt that did it", "succeeded jobs without a succeeded attempt", REPORT,
    ),
    Rule(
        "leases",
        "SELECT lease FROM (SELECT lease FROM treadle_attempts"
        " UNION ALL SELECT lease FROM treadle_jobs WHERE state = 5) GROUP BY lease HAVING count(*) > 1",
        "no lease was given twice", "leases of more than one attempt", REPORT,
    ),
    Rule(
        "counts of attempts",
        "SELECT j.id FROM treadle_jobs j LEFT JOIN treadle_attempts a ON a.job_id = j.id GROUP BY j.id"
        " HAVING count(a.seq) > j.attempt OR max(a.attempt) > j.attempt OR j.failures > j.attempt"
        " OR j.crashes > j.attempt",
        "no job has more history than attempts", "jobs with more history than attempts", REPORT,
    ),
    *(
        Rule(
            f"rows of {table}",
            f"SELECT job_id FROM treadle_{table} t"
            " WHERE NOT EXISTS (SELECT 1 FROM treadle_jobs j WHERE j.id = t.job_id)",
            "each belongs to a job", "rows of jobs that are gone",
            f"DELETE FROM treadle_{table} WHERE job_id NOT IN (SELECT id FROM treadle_jobs);",
        )
        for table in OF_JOBS
    ),
)  # fmt: skip


def verify(store: Store) -> Iterator[Verdict]:
    """Check everything; nothing after SQLite's own check when that fails, because nothing else can be trusted then.

    Raises:
        StoreError: the file cannot be read.
    """
    checks: list[Callable[[Session], Verdict]] = [
        partial(_schema, store.clock), _sequences, _places, _counts, *(partial(_rule, rule) for rule in RULES),
    ]  # fmt: skip
    whole = store.engine.read_long(_integrity, PATIENCE)
    yield whole
    for check in checks if whole.sound else ():
        yield store.engine.read_long(check, PATIENCE)


def _rule(rule: Rule, session: Session) -> Verdict:
    found = session.row(OFFENDERS.format(query=rule.query))
    assert found is not None
    number, some = found
    if not number:
        return Verdict(rule.check, sound=True, text=rule.holds)
    more = ", …" if number > 5 else ""
    text = f"{rule.broken}: {number:,} ({some}{more})"
    return Verdict(rule.check, sound=False, text=text, remedy=rule.remedy)


def _sequences(session: Session) -> Verdict:
    check = "sequences"
    rows = session.rows(SEQUENCES)
    missing = {"job", "lease", "epoch"} - {name for name, _, _ in rows}
    if missing:
        return Verdict(check, sound=False, text=f"{', '.join(sorted(missing))}: the row is gone", remedy=RESTORE)
    behind = [(name, following, largest) for name, following, largest in rows if following <= largest]
    if not behind:
        return Verdict(check, sound=True, text="no number of a job, lease or worker can be given twice")
    text = "; ".join(f"{name} gives {following} next, but {largest} is used" for name, following, largest in behind)
    remedy = " ".join(
        f"UPDATE treadle_sequences SET next = {largest + 1} WHERE name = '{name}';" for name, _, largest in behind
    )
    return Verdict(check, sound=False, text=text, remedy=f"Stop every program that uses the file, then: {remedy}")


def _places(session: Session) -> Verdict:
    behind = [name for name, given, largest in session.rows(PLACES) if largest is not None and given < largest]
    if behind:
        return Verdict("places", sound=False, text=f"{', '.join(behind)}: a place could be given twice", remedy=RESTORE)
    return Verdict("places", sound=True, text="no place in the history or the logs can be given twice")


def _counts(session: Session) -> Verdict:
    by_table = {str(STATES[state]): number for state, number in session.rows(BY_TABLE)}
    by_view: dict[str, int] = dict(session.rows(BY_VIEW))
    if by_table != by_view:
        text = f"treadle_queue_view counts {by_view}, the table has {by_table}"
        remedy = "Somebody changed the view. Restore a backup, or the view."
        return Verdict("counts", sound=False, text=text, remedy=remedy)
    return Verdict("counts", sound=True, text=f"{sum(by_table.values()):,} jobs, by the table and by the view")


def _schema(clock: Clock, session: Session) -> Verdict:
    """Compare the file's tables, columns, indexes, views and triggers with those of a new file."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as fresh:
        migrate.migrate(fresh, clock)
        made = Session(fresh, session.dialect, clock)
        gone = [row for sql in (OBJECTS, COLUMNS) for row in sorted(set(made.rows(sql)) - set(session.rows(sql)))]
    if gone:
        text = f"missing in the file: {', '.join(' '.join(row) for row in gone)}"
        return Verdict("schema", sound=False, text=text, remedy="Restore a backup, or apply 'treadle migrate --sql'.")
    return Verdict("schema", sound=True, text="every table, column, index, view and trigger is there")


def _integrity(session: Session) -> Verdict:
    found = [str(line) for (line,) in session.rows(INTEGRITY)]
    if found != ["ok"]:
        return Verdict("integrity", sound=False, text="; ".join(found), remedy=RESTORE)
    return Verdict("integrity", sound=True, text="SQLite's full check found nothing")
