"""Query plans of every hot statement: on a fresh file, an analysed empty one and an analysed large one."""

from __future__ import annotations

import inspect
import re
import sqlite3
from contextlib import closing
from pathlib import Path
from types import ModuleType

import pytest

from store.making import START, register
from treadle.store.dialect import SQLITE_HEX, Sql
from treadle.store.ops import (
    change,
    claim,
    find,
    heads,
    insert,
    logs,
    meta,
    notes,
    pauses,
    prune,
    rescue,
    sequences,
    settle,
    unknown,
    workers,
)
from treadle.store.options import StoreOptions
from treadle.store.store import Store

HOT: tuple[ModuleType, ...] = (
    change, claim, heads, insert, logs, notes, pauses, prune, rescue, sequences, settle, unknown, workers,
)  # fmt: skip
PARTIAL = (
    "treadle_jobs_ready", "treadle_jobs_scheduled", "treadle_jobs_running", "treadle_jobs_held", "treadle_jobs_blocked",
    "treadle_jobs_expiring", "treadle_jobs_cancelling",
)  # fmt: skip
"""Indexes of living jobs: reading one from end to end is reading what is alive."""
FILL = """
INSERT INTO treadle_jobs (id, queue, task, state, priority, due_at, enqueued_at, attempt, lease, epoch, finished_at,
    reason)
SELECT i, CASE WHEN i % 10 THEN 'default' ELSE 'q' || (i % 70) END, 'task' || (i % 7),
    state, i % 3, i, i, 1, CASE WHEN state = 5 THEN i END, CASE WHEN state = 5 THEN i % 4 END,
    CASE WHEN state >= 7 THEN i END, CASE WHEN state = 6 THEN 'unknown task: x' END
FROM (WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)
    SELECT i, CASE WHEN i % 100 < 80 THEN 7 WHEN i % 100 < 85 THEN 8 WHEN i % 100 < 93 THEN 3 WHEN i % 100 < 98 THEN 2
        WHEN i % 100 < 99 THEN 6 WHEN i % 200 < 100 THEN 5 ELSE 9 END AS state FROM n);
INSERT INTO treadle_payloads (job_id, codec, data) SELECT id, 'json', x'7b7d' FROM treadle_jobs;
INSERT INTO treadle_results (job_id, codec, data) SELECT id, 'json', x'31' FROM treadle_jobs WHERE state = 7;
INSERT INTO treadle_tags (tag, job_id) SELECT 'tag' || (id % 5), id FROM treadle_jobs WHERE id % 3 = 0;
INSERT INTO treadle_attempts (job_id, lease, attempt, worker, outcome, started_at, finished_at)
    SELECT id, id, 1, 'w', 1, id, id FROM treadle_jobs WHERE state >= 7;
"""


def statements() -> dict[str, str]:
    """Every SQL constant of the hot operations, by name."""
    found: dict[str, str] = {"find.ONE": find.ONE, "find.ENDING": find.ENDING, "meta.GET": meta.GET}
    found |= {"find.SETTLED": find.SETTLED.sqlite, "find.LAST_SETTLED": find.LAST_SETTLED.sqlite}
    found |= {"find.NEWEST": find.NEWEST}
    found |= {"find.ATTEMPTS": find.ATTEMPTS, "find.TAGS": find.TAGS}
    for module in HOT:
        for name, value in vars(module).items():
            if name.startswith("SERVER_"):
                continue  # for PostgreSQL only
            text = value.sqlite if isinstance(value, Sql) else value
            if name.isupper() and isinstance(text, str) and re.match(r"\s*(SELECT|INSERT|UPDATE|DELETE|WITH)\b", text):
                found[f"{module.__name__.rsplit('.')[-1]}.{name}"] = text
    found |= {f"{name} hex": getattr(claim, name[6:]).make(SQLITE_HEX) for name in ("claim.PICK", "claim.PICK_FRESH")}
    for name in ("OLD", "ANY", "NTH_NEWEST", "COUNT_OLD"):
        found |= {f"prune.{name} {state}": sql.sqlite for state, sql in getattr(prune, name).items()}
    found.pop("sequences.NEXT")  # PostgreSQL only
    of_job = "l.seq > :after AND l.job_id = :job AND l.level >= :level"
    found |= {name: text.replace("{conditions}", of_job) for name, text in found.items() if name.startswith("logs.")}
    return found


STATEMENTS = statements()
KINDS = ("fresh", "analysed empty", "analysed large")


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file in each condition."""
    path = tmp_path_factory.mktemp("plans") / "jobs.db"
    store = Store(f"sqlite:///{path}", StoreOptions(durability="off"))
    for slot in range(3):
        register(store, slot, epoch=slot)
    store.close()
    with closing(sqlite3.connect(path)) as connection:
        if request.param.endswith("large"):
            connection.executescript(FILL)
        if request.param.startswith("analysed"):
            connection.execute("ANALYZE")
        connection.commit()
    return path


def plan(path: Path, sql: str) -> list[str]:
    """What SQLite says it would do; every parameter is bound to NULL."""
    names = set(re.findall(r":([a-z_]+)", sql))
    values: object = dict.fromkeys(names) if names else [None] * sql.count("?")
    with closing(sqlite3.connect(path)) as connection:
        return [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}", values)]  # type: ignore[arg-type]


def full_scans(steps: list[str]) -> list[str]:
    """Steps that read a whole table of jobs, history or bytes; what a subquery made is no table."""
    made = {step.split()[1] for step in steps if step.startswith(("CO-ROUTINE", "MATERIALIZE"))}
    found = [step for step in steps if step.startswith("SCAN ") and "VIRTUAL TABLE" not in step]
    tables = [
        step for step in found if re.match(r"SCAN (treadle_(jobs|attempts|payloads|results|tags)|[jpar])\b", step)
    ]
    return [s for s in tables if s.split()[1] not in made and not any(f"INDEX {name}" in s for name in PARTIAL)]


def test_the_statements_were_found() -> None:
    """The tests below look at what they claim to look at."""
    expected = {
        "claim.NEXT_DUE", "claim.PROMOTE", "heads.READY_QUEUES", "claim.TAKE", "claim.ARGUMENTS", "rescue.RESCUE",
        "rescue.CRASHED_HISTORY", "heads.HEAD_TASKS", "unknown.HOLD", "unknown.FREE", "prune.OLD failed",
        "insert.JOBS", "insert.PAYLOADS", "insert.LENGTH", "sequences.BURN", "notes.PROGRESS", "notes.CHECKPOINT",
    }  # fmt: skip
    assert expected <= set(STATEMENTS)
    assert len([name for name in STATEMENTS if name.startswith("settle.")]) >= 6
    assert len([name for name in STATEMENTS if name.startswith("claim.PICK")]) == 4
    assert all(inspect.ismodule(module) for module in HOT)


@pytest.mark.parametrize("name", sorted(STATEMENTS))
def test_no_hot_statement_reads_a_whole_table(kind: Path, name: str) -> None:
    """Every hot statement finds its rows by key or by an index of living jobs."""
    assert full_scans(plan(kind, STATEMENTS[name])) == []


@pytest.mark.parametrize("name", sorted(STATEMENTS))
def test_no_hot_statement_builds_an_index(kind: Path, name: str) -> None:
    """No statement needs an index that is not there."""
    assert [step for step in plan(kind, STATEMENTS[name]) if "AUTOMATIC" in step] == []


@pytest.mark.parametrize(
    "name", sorted(name for name in STATEMENTS if name.startswith(("claim.PICK", "claim.PROMOTE", "heads.HEAD")))
)
def test_order_comes_from_the_index(kind: Path, name: str) -> None:
    """What is taken in order is not sorted first, however long the queue."""
    assert [step for step in plan(kind, STATEMENTS[name]) if "ORDER BY" in step] == []


@pytest.mark.parametrize("name", ["prune.OLD succeeded", "prune.NTH_NEWEST failed", "find.ATTEMPTS"])
def test_history_is_not_sorted(kind: Path, name: str) -> None:
    """Old jobs and latest attempts are found in the order of an index."""
    assert [step for step in plan(kind, STATEMENTS[name]) if "ORDER BY" in step] == []


def steps_of(path: Path, sql: str, values: object) -> int:
    """How much work a statement is, in hundreds of SQLite's own steps."""
    count = 0

    def tick() -> int:
        nonlocal count
        count += 1
        return 0

    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN")
        connection.set_progress_handler(tick, 100)
        connection.execute(sql, values).fetchall()  # type: ignore[arg-type]
        connection.set_progress_handler(None, 0)
        connection.execute("ROLLBACK")
    return count


@pytest.mark.parametrize("kind", ["analysed large"], indirect=True)
@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("claim.NEXT_DUE", {}),
        ("claim.PROMOTE", {"now": START, "most": 10}),
        ("claim.TAKE", {"lease": 10**9, "epoch": 1, "ids": "[93,193,293]", "now": START, "cap": 3}),
        ("prune.OLD succeeded", {"before": 10**9, "below": 0, "most": 10}),
        ("heads.HEAD_TASKS", {"queue": "q10"}),
        ("unknown.HOLD", {"queue": "q10", "task": "none", "reason": "unknown task"}),
        ("heads.READY_QUEUES", {}),
        ("find.ONE", [100]),
        ("find.ENDING", [100]),
    ],
)
def test_work_does_not_grow_with_the_file(kind: Path, name: str, values: object) -> None:
    """On a file with 20,000 jobs a statement that concerns a few touches a few."""
    assert steps_of(kind, STATEMENTS[name], values) < 150
