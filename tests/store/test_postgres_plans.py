"""Query plans of every hot statement on PostgreSQL: fresh, analysed while empty, and grown large since.

With the settings of the lanes: statistics that are out of date, as after a burst, must not change what is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql

import postgres
from store.making import register
from store.test_sqlite_plans import HOT
from treadle.store.dialect import PostgresDialect, Sql
from treadle.store.ops import find, insert, meta
from treadle.store.options import StoreOptions
from treadle.store.postgres.transactions import PLANS, local
from treadle.store.store import Store

DIALECT = PostgresDialect()
GROWING = {"jobs", "payloads", "results", "tags", "attempts", "logs", "progress", "checkpoints", "immediates"}
FILL = """
INSERT INTO treadle.treadle_jobs (id, queue, task, state, priority, due_at, enqueued_at, attempt, lease, epoch,
    finished_at, reason)
SELECT i, CASE WHEN i % 10 > 0 THEN 'default' ELSE 'q' || (i % 70) END, 'task' || (i % 7), state, i % 3, i, i, 1,
    CASE WHEN state = 5 THEN i END, CASE WHEN state = 5 THEN i % 4 END, CASE WHEN state >= 7 THEN i END,
    CASE WHEN state = 6 THEN 'unknown task: x' END
FROM (SELECT i, CASE WHEN i % 100 < 40 THEN 7 WHEN i % 100 < 45 THEN 8 WHEN i % 100 < 93 THEN 3
    WHEN i % 100 < 98 THEN 2 WHEN i % 100 < 99 THEN 6 WHEN i % 200 < 100 THEN 5 ELSE 9 END AS state
    FROM generate_series(1, 20000) AS n (i)) AS s;
INSERT INTO treadle.treadle_payloads (job_id, codec, data) SELECT id, 'json', '{}' FROM treadle.treadle_jobs;
INSERT INTO treadle.treadle_results (job_id, codec, data)
    SELECT id, 'json', '1' FROM treadle.treadle_jobs WHERE state = 7;
INSERT INTO treadle.treadle_tags (tag, job_id) SELECT 'tag' || (id % 5), id FROM treadle.treadle_jobs WHERE id % 3 = 0;
INSERT INTO treadle.treadle_attempts (job_id, lease, attempt, worker, outcome, started_at, finished_at)
    SELECT id, id, 1, 'w', 1, id, id FROM treadle.treadle_jobs WHERE state >= 7;
INSERT INTO treadle.treadle_logs (job_id, lease, logged_at, level, source, text)
    SELECT id, id, id, 20, 'job', 'line' FROM treadle.treadle_jobs;
"""
KINDS = ("fresh", "analysed empty", "large since", "analysed large")


def statements() -> dict[str, str]:
    """Every SQL constant of the hot operations as PostgreSQL takes it, by name."""
    found: dict[str, Sql | str] = {f"find.{name}": getattr(find, name) for name in (
        "ONE", "ENDING", "SETTLED", "LAST_SETTLED", "NEWEST", "ATTEMPTS", "TAGS",
    )}  # fmt: skip
    found["meta.GET"] = meta.GET
    for module in HOT:
        room = module.__name__.rsplit(".")[-1]
        for name, value in vars(module).items():
            text = value.sqlite if isinstance(value, Sql) else value
            if name.isupper() and isinstance(text, str) and re.match(r"\s*(SELECT|INSERT|UPDATE|DELETE|WITH)\b", text):
                found[f"{room}.{name}"] = value
            elif isinstance(value, dict) and all(isinstance(one, Sql) for one in value.values()):
                found |= {f"{room}.{name} {key}": one for key, one in value.items()}
    found.pop("logs.COLUMNS")  # a part of others
    # Numbers are SQLite's rows, or sequences that no table is read for; the rest of that room is for a move.
    found = {name: one for name, one in found.items() if not name.startswith("sequences.")}
    of_job = "l.seq > :after AND l.job_id = :job AND l.level >= :level"
    texts = {name: one.replace("{conditions}", of_job) if isinstance(one, str) else one for name, one in found.items()}
    return {name: DIALECT.text(one) for name, one in texts.items()}


STATEMENTS = statements()


@pytest.fixture(scope="module", params=KINDS)
def conditioned(request: pytest.FixtureRequest) -> Iterator[psycopg.Connection[Any]]:
    """A connection to a database in each condition, with the settings of a lane."""
    with postgres.database() as url:
        store = Store(url, StoreOptions(durability="off"))
        for slot in range(3):
            register(store, slot, epoch=slot)
        store.close()
        with psycopg.connect(url, autocommit=True) as connection:
            _make(connection, request.param)
            connection.autocommit = False
            connection.execute(f"SELECT {local(PLANS)}")
            yield connection
            connection.rollback()


def _make(connection: psycopg.Connection[Any], kind: str) -> None:
    if kind in ("analysed empty", "large since"):
        connection.execute("VACUUM ANALYZE")
    if kind.startswith("large") or kind.endswith("large"):
        connection.execute(FILL)
    if kind == "analysed large":
        connection.execute("VACUUM ANALYZE")


def nodes(connection: psycopg.Connection[Any], text: str) -> list[dict[str, Any]]:
    """Every node of a plan, each with the names of those above it; parameters have values that could be."""
    names = dict.fromkeys(re.findall(r"%\((\w+)\)s", text))
    values: Any = {name: VALUES.get(name, 1) for name in names} or PLACED.get(text) or [1] * text.count("%s")
    bound = psycopg.ClientCursor(connection).mogrify(text, values)
    with connection.transaction(force_rollback=True):
        found = connection.execute(b"EXPLAIN (FORMAT JSON) " + bound.encode()).fetchone()
    assert found is not None
    listed: list[dict[str, Any]] = []

    def walk(node: dict[str, Any], above: tuple[str, ...]) -> None:
        listed.append({**node, "above": above})
        for one in node.get("Plans", ()):
            walk(one, (*above, node["Node Type"]))

    walk(found[0][0]["Plan"], ())
    return listed


VALUES: dict[str, Any] = {
    "ids": "[93, 193, 293]", "leases": "[99, 299]", "tasks": '["task1", "task2"]', "tags": '["tag1"]',
    "queue": "default", "times": "[[99, 1, 2]]", "rows": '[[99, 3, null, 0, null, 1, 2, 1, null, null, null, 1, 0]]',
    "lines": '[[99, 1, 20, "job", "x"]]',
    "placed": '{"30001": 2}', "blob": b"{}", "data": b"{}", "begun": "[99]", "caps": '{"task1": 1}', "codec": "json",
    "task": "task1", "reason": "why", "worker": "w", "why": "why", "kind": "task", "name": "task1", "by": "me",
    "error_type": "ValueError", "message": "half", "fraction": 0.5, "extra": None, "most": 200, "lease": 99,
}  # fmt: skip


PLACED = {
    DIALECT.text(insert.ONE_PAYLOAD): [30001, "json", b"{}", None, 1],
    DIALECT.text(meta.GET): ["store_id"],
}


def test_the_statements_were_found() -> None:
    """The tests below look at what they claim to look at."""
    expected = {
        "claim.PICK", "claim.PICK_FRESH", "claim.TAKE", "claim.PROMOTE", "claim.KEEP_REGISTERED", "settle.OWN",
        "settle.MOVE", "settle.SUCCEED", "rescue.TAKE_HOLD", "change.KEEP", "prune.OLD failed", "heads.READY_QUEUES",
        "insert.TURN", "insert.LENGTH", "find.SETTLED", "logs.AFTER", "unknown.HOLD", "pauses.PARK",
    }  # fmt: skip
    assert expected <= set(STATEMENTS)


@pytest.mark.parametrize("name", sorted(STATEMENTS))
def test_no_hot_statement_reads_a_whole_table(conditioned: psycopg.Connection[Any], name: str) -> None:
    """No table that grows is read from end to end, whatever the statistics say."""
    scanned = {
        node["Relation Name"].removeprefix("treadle_") for node in nodes(conditioned, STATEMENTS[name])
        if node["Node Type"] == "Seq Scan"
    }  # fmt: skip
    assert scanned & GROWING == set()


@pytest.mark.parametrize("conditioned", [kind for kind in KINDS if kind != "analysed empty"], indirect=True)
@pytest.mark.parametrize("name", sorted(STATEMENTS))
def test_no_hot_statement_reads_a_whole_index(conditioned: psycopg.Connection[Any], name: str) -> None:
    """An index of a table that grows is read from a place on, or is one of living jobs."""
    whole = {
        node["Index Name"] for node in nodes(conditioned, STATEMENTS[name])
        if node["Node Type"] in ("Index Scan", "Index Only Scan", "Bitmap Index Scan") and "Index Cond" not in node
        and "Limit" not in node["above"]
    }  # fmt: skip
    grows = tuple(f"treadle_{table}_" for table in GROWING)
    assert {one for one in whole if one.startswith(grows) and one.endswith(("_pkey", "_ended", "_job"))} == set()


@pytest.mark.parametrize("name", ["claim.PICK", "claim.PICK_FRESH", "heads.HEAD_TASKS", "claim.PROMOTE"])
def test_order_comes_from_the_index(conditioned: psycopg.Connection[Any], name: str) -> None:
    """What is taken in order is not sorted first, however long the queue."""
    found = nodes(conditioned, STATEMENTS[name])
    assert any(node["Node Type"] == "Limit" for node in found)
    assert [node for node in found if "Sort" in node["Node Type"] and "Limit" in node["above"]] == []


@pytest.mark.parametrize("name", ["prune.OLD succeeded", "prune.NTH_NEWEST failed", "find.SETTLED", "logs.AFTER"])
def test_history_is_not_sorted(conditioned: psycopg.Connection[Any], name: str) -> None:
    """Old jobs, the stream and the lines of a job are found in the order of an index."""
    found = nodes(conditioned, STATEMENTS[name])
    assert [node for node in found if "Sort" in node["Node Type"] and "Limit" in node["above"]] == []


def test_the_planner_is_what_is_held_back(conditioned: psycopg.Connection[Any]) -> None:
    """Without the settings of a lane a statement is free to scan: these tests can fail."""
    text = sql.SQL("EXPLAIN (FORMAT JSON) SELECT max(attempt) FROM treadle.treadle_jobs")
    conditioned.execute("SET LOCAL enable_seqscan = on")
    found = conditioned.execute(text).fetchone()
    conditioned.execute(sql.SQL("SELECT " + local(PLANS)))
    assert found is not None
    assert found[0][0]["Plan"]["Plans"][0]["Node Type"] == "Seq Scan"
