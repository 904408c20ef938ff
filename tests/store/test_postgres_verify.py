"""verify on PostgreSQL: the same promises, and those that only a server can break."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import psycopg
import pytest

import postgres
from store.making import START, apply, broken, change, failure, put, register, success, take
from treadle.clock import HeldClock
from treadle.store.ops import logs, notes, sequences
from treadle.store.options import StoreOptions
from treadle.store.postgres.checks import OBJECTS, Made, expected
from treadle.store.store import Store
from treadle.store.verify import RULES, verify

UNNAMED = ("_pkey", "_key")
"""How PostgreSQL's own names of indexes end."""


@pytest.fixture(params=["", "15"])
def address(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a new store, on the newest server and on an old one."""
    with postgres.database(request.param) as made:
        yield made


@pytest.fixture
def used(address: str) -> Iterator[Store]:
    """A store with a succeeded job (1), one that waits for its retry (2), a running one (3) and a ready one (4)."""
    store = Store(address, StoreOptions(durability="normal"), HeldClock(START))
    register(store, 1, epoch=store.run(partial(sequences.burn, name="epoch", count=1))[0])
    put(store, tags=("vip",))
    put(store, 3)
    first, second, third = take(store, 3)
    store.run(partial(notes.progress, lease=third.lease, fraction=0.5, message="half"))
    store.run(partial(logs.write, lines=[(third.lease, [logs.LogLine(1, 20, "job", "said")])]))
    apply(store, success(first, data=b"1", codec="json"), failure(second, immediate="ValueError"))
    yield store
    store.close()


def test_a_store_at_work_is_sound(used: Store) -> None:
    """Jobs in every stage break nothing, and every rule was looked at."""
    found = list(verify(used))
    assert [verdict for verdict in found if not verdict.sound or verdict.remedy] == []
    assert {verdict.check for verdict in found} == {rule.check for rule in RULES} | {
        "indexes", "schema", "sequences", "places", "counts",
    }  # fmt: skip


def test_what_is_expected_is_what_a_new_store_has(used: Store) -> None:
    """The list is read from the migrations; a new schema has all of it, and nothing else with a name of ours."""
    there = {Made(*row) for row in used.read(lambda session: session.rows(OBJECTS, {"schema": "treadle"}))}
    assert expected() - there == set()
    others = {one for one in there - expected() if "treadle_migrations" not in one.name}
    assert all(one.kind == "index" and one.name.endswith(UNNAMED) for one in others)


@pytest.mark.parametrize(
    ("sql", "check", "told"),
    [
        ("DELETE FROM treadle_workers", "running jobs", "1 (3)"),
        ("UPDATE treadle_jobs SET finished_at = 5 WHERE id = 4", "states and times", "1 (4)"),
        ("DELETE FROM treadle_payloads WHERE job_id > 2", "arguments", "2 (3, 4)"),
        ("UPDATE treadle_attempts SET outcome = 1, job_id = 1", "one success", "1 (1)"),
        ("UPDATE treadle_attempts SET outcome = 2", "success has a history", "1 (1)"),
        ("UPDATE treadle_attempts SET lease = 2", "leases", "1 (2)"),
        ("UPDATE treadle_jobs SET attempt = 0 WHERE id = 2", "counts of attempts", "1 (2)"),
        ("ALTER SEQUENCE treadle_job_numbers RESTART WITH 4", "sequences", "job gives 4 next, but 4 is used"),
        ("ALTER SEQUENCE treadle_lease_numbers RESTART WITH 1", "sequences", "lease gives 1 next"),
        ("ALTER SEQUENCE treadle_epoch_numbers RESTART WITH 1", "sequences", "epoch gives 1 next"),
        ("UPDATE treadle_logs SET seq = 1::bigint << 52", "places", "ahead of the server"),
        ("DROP TRIGGER treadle_job_deleted ON treadle_jobs", "schema", "trigger treadle_job_deleted"),
        ("ALTER TABLE treadle_jobs DISABLE TRIGGER treadle_job_deleted", "schema", "trigger treadle_job_deleted"),
        ("DROP INDEX treadle_tags_job", "schema", "index treadle_tags_job"),
        ("DROP VIEW treadle_stuck_view", "schema", "view treadle_stuck_view"),
        ("ALTER TABLE treadle_workers DROP COLUMN ordered_by", "schema", "column treadle_workers.ordered_by"),
    ],
)
def test_each_broken_promise_is_named(address: str, used: Store, sql: str, check: str, told: str) -> None:
    """A change that no operation makes is found by the check that is there for it."""
    with psycopg.connect(address, autocommit=True, options="-c search_path=treadle") as connection:
        connection.execute(sql)
    assert told in broken(used)[check]


def test_the_remedy_of_a_sequence_heals_it(address: str, used: Store) -> None:
    """The statements that are offered make the store sound again, whatever its schema is called."""
    change(used, "ALTER SEQUENCE treadle_job_numbers RESTART")
    (verdict,) = [one for one in verify(used) if not one.sound]
    assert verdict.remedy is not None
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute(verdict.remedy.partition(": ")[2].encode())
    assert broken(used) == {}
    assert put(used)[0] > 4


def test_a_half_made_index_comes_first_and_alone(address: str, used: Store) -> None:
    """An index that the server does not use is named with its remedy, which works."""
    with psycopg.connect(address, autocommit=True) as connection:
        index = "'treadle.treadle_tags_job'::regclass"
        connection.execute(f"UPDATE pg_index SET indisvalid = false WHERE indexrelid = {index}".encode())
        (verdict,) = verify(used)
        assert (verdict.check, verdict.sound, "treadle_tags_job" in verdict.text) == ("indexes", False, True)
        connection.execute((verdict.remedy or "").encode())
    assert broken(used) == {}
