"""Whether a store keeps Treadle's own promises: what must hold between its tables, looked up and changed by nobody.

Each check is one read, so it sees the store as it was at one moment, however busy that is.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Final, NamedTuple

import msgspec

from treadle.model.job import STATES
from treadle.store.dialect import Sql
from treadle.store.session import Session
from treadle.store.store import Store
from treadle.store.verdict import Check, Verdict

PATIENCE: Final = 3600.0
"""Seconds one check may take. It keeps a file's log from shrinking, and a server from vacuuming, meanwhile."""
REPORT: Final = "This must not happen: keep a copy (treadle backup, or pg_dump) and report it."

OFFENDERS: Final = """
WITH bad (id) AS MATERIALIZED ({query})
SELECT count(*), (SELECT {some} FROM (SELECT id FROM bad ORDER BY id LIMIT 5) first) FROM bad
"""
# Past every index: what SQLite reads for the view may come from one.
BY_TABLE: Final = Sql(lambda d: f"""
SELECT state, count(*) FROM treadle_jobs {"" if d.shares_rows else "NOT INDEXED"} GROUP BY state
""")
BY_VIEW: Final = "SELECT state, sum(jobs) FROM treadle_queue_view GROUP BY state"
OF_JOBS: Final = ("payloads", "results", "attempts", "progress", "checkpoints", "immediates", "tags", "logs")
"""Tables whose rows belong to a job."""


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
        " UNION ALL SELECT lease FROM treadle_jobs WHERE state = 5) every GROUP BY lease HAVING count(*) > 1",
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
    """Check everything; nothing after the database's own check when that fails: nothing else can be trusted then.

    Raises:
        StoreError: the store cannot be read.
    """
    whole, *others = store.engine.checks
    verdict = store.engine.read_long(whole, PATIENCE)
    yield verdict
    checks: list[Check] = [*others, _counts, *(partial(_rule, rule) for rule in RULES)]
    for check in checks if verdict.sound else ():
        yield store.engine.read_long(check, PATIENCE)


def _rule(rule: Rule, session: Session) -> Verdict:
    found = session.row(OFFENDERS.format(query=rule.query, some=session.dialect.list_of("id", "id")))
    assert found is not None
    number, some = found
    if not number:
        return Verdict(rule.check, sound=True, text=rule.holds)
    shown = ", ".join(str(one) for one in msgspec.json.decode(some))
    text = f"{rule.broken}: {number:,} ({shown}{', …' if number > 5 else ''})"
    return Verdict(rule.check, sound=False, text=text, remedy=session.dialect.text(rule.remedy))


def _counts(session: Session) -> Verdict:
    by_table = {str(STATES[state]): number for state, number in session.rows(BY_TABLE)}
    by_view = {str(state): int(number) for state, number in session.rows(BY_VIEW)}
    if by_table != by_view:
        text = f"treadle_queue_view counts {by_view}, the table has {by_table}"
        remedy = "Somebody changed the view. Restore a backup, or the view."
        return Verdict("counts", sound=False, text=text, remedy=remedy)
    return Verdict("counts", sound=True, text=f"{sum(by_table.values()):,} jobs, by the table and by the view")
