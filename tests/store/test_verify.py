"""verify names every promise that the file has broken, and none that it keeps."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from store.making import apply, broken, change, failure, put, register, success, take
from treadle.clock import HeldClock
from treadle.errors import StoreError
from treadle.store.ops import logs, notes
from treadle.store.options import StoreOptions
from treadle.store.store import Store
from treadle.store.verify import OF_JOBS, RULES, verify


@pytest.fixture
def used(file_store: Store) -> Store:
    """A store with a succeeded job (1), one that waits for its retry (2), a running one (3) and a ready one (4)."""
    register(file_store, 1, epoch=file_store.run(lambda session: session.value(
        "UPDATE treadle_sequences SET next = next + 1 WHERE name = 'epoch' RETURNING next - 1"
    )))  # fmt: skip
    put(file_store, tags=("vip",))
    put(file_store, 3)
    first, second, third = take(file_store, 3)
    file_store.run(partial(notes.progress, lease=third.lease, fraction=0.5, message="half"))
    file_store.run(partial(notes.checkpoint, lease=third.lease, codec="json", data=b"1"))
    file_store.run(partial(logs.write, lines=[(third.lease, [logs.LogLine(1, 20, "job", "said")])]))
    apply(file_store, success(first, data=b"1", codec="json"), failure(second, immediate="ValueError"))
    return file_store


def test_a_store_at_work_is_sound(used: Store) -> None:
    """Jobs in every stage break nothing, and every rule was looked at."""
    found = list(verify(used))
    assert [verdict for verdict in found if not verdict.sound or verdict.remedy] == []
    assert {verdict.check for verdict in found} == {rule.check for rule in RULES} | {
        "schema", "sequences", "places", "counts", "integrity",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("sql", "check", "told"),
    [
        ("DELETE FROM treadle_workers", "running jobs", "1 (3)"),
        ("UPDATE treadle_jobs SET started_at = NULL WHERE id = 3", "states and times", "1 (3)"),
        ("UPDATE treadle_jobs SET finished_at = 5 WHERE id = 4", "states and times", "1 (4)"),
        ("UPDATE treadle_jobs SET finished_at = NULL WHERE id = 1", "states and times", "1 (1)"),
        ("DELETE FROM treadle_payloads WHERE job_id > 2", "arguments", "2 (3, 4)"),
        ("UPDATE treadle_attempts SET outcome = 1, job_id = 1", "one success", "1 (1)"),
        ("UPDATE treadle_attempts SET outcome = 2", "success has a history", "1 (1)"),
        ("UPDATE treadle_attempts SET lease = 2", "leases", "1 (2)"),
        ("UPDATE treadle_attempts SET lease = 3 WHERE job_id = 1", "leases", "1 (3)"),
        ("UPDATE treadle_jobs SET attempt = 0 WHERE id = 2", "counts of attempts", "1 (2)"),
        ("UPDATE treadle_jobs SET crashes = 5 WHERE id = 4", "counts of attempts", "1 (4)"),
        ("UPDATE treadle_sequences SET next = 4 WHERE name = 'job'", "sequences", "job gives 4 next, but 4 is used"),
        ("UPDATE treadle_sequences SET next = 1 WHERE name = 'lease'", "sequences", "lease gives 1 next"),
        ("UPDATE treadle_sequences SET next = 1 WHERE name = 'epoch'", "sequences", "epoch gives 1 next"),
        ("DELETE FROM treadle_sequences WHERE name = 'lease'", "sequences", "lease: the row is gone"),
        ("UPDATE sqlite_sequence SET seq = 0 WHERE name = 'treadle_logs'", "places", "treadle_logs"),
        ("UPDATE sqlite_sequence SET seq = 1 WHERE name = 'treadle_attempts'", "places", "treadle_attempts"),
        ("DROP TRIGGER treadle_job_deleted", "schema", "trigger treadle_job_deleted"),
        ("DROP INDEX treadle_tags_job", "schema", "index treadle_tags_job"),
        ("ALTER TABLE treadle_workers DROP COLUMN ordered_by", "schema", "treadle_workers ordered_by"),
    ],
)  # fmt: skip
def test_each_broken_promise_is_named(used: Store, sql: str, check: str, told: str) -> None:
    """A change that no operation makes is found by the check that is there for it."""
    change(used, sql)
    assert told in broken(used)[check]


@pytest.mark.parametrize("table", OF_JOBS)
def test_rows_of_jobs_that_are_gone(used: Store, table: str) -> None:
    """A row that outlived its job is found, in every table that has such rows."""
    change(used, "DROP TRIGGER treadle_job_deleted")
    change(used, "DELETE FROM treadle_jobs")
    assert f"rows of {table}" in broken(used)


def test_a_view_that_counts_wrongly(used: Store) -> None:
    """The public view is compared with the table."""
    change(used, "DROP VIEW treadle_queue_view")
    change(used, "CREATE VIEW treadle_queue_view AS SELECT 'q' AS queue, 'ready' AS state, 9 AS jobs, 0 AS average")
    assert "'ready': 9" in broken(used)["counts"]


def test_the_remedy_of_a_sequence_heals_it(used: Store) -> None:
    """The statements that are offered make the file sound again."""
    change(used, "UPDATE treadle_sequences SET next = 1")
    (verdict,) = [one for one in verify(used) if not one.sound]
    assert verdict.remedy is not None
    for statement in verdict.remedy.partition(": ")[2].rstrip(";").split("; "):
        change(used, statement)
    assert broken(used) == {}


def test_damage_comes_first_and_alone(path: Path, clock: HeldClock) -> None:
    """When SQLite's own check fails nothing else is asked: no other answer could be trusted."""
    store = Store(f"sqlite:///{path}", StoreOptions(durability="normal"), clock)
    put(store, 500)
    store.close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (root,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'treadle_jobs_ready'").fetchone()
    data = bytearray(path.read_bytes())
    data[(root - 1) * 4096 + 200 : root * 4096] = bytes(4096 - 200)
    path.write_bytes(data)
    store = Store(f"sqlite:///{path}", StoreOptions(durability="normal"), clock)
    try:
        found = list(verify(store))
    except StoreError as error:
        pytest.fail(f"the check itself failed: {error}")
    finally:
        store.close()
    assert [(verdict.check, verdict.sound) for verdict in found] == [("integrity", False)]
