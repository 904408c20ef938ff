"""Through a real pgbouncer, as docs/pgbouncer.md says: no statement relies on the session of the one before."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

import pooler
import postgres
from store.making import PATIENCE, count, note, notes, put, state, success, take
from store.making import apply as store_outcomes
from treadle import JobState, Treadle
from treadle.errors import StoreError
from treadle.store.options import StoreOptions
from treadle.store.store import Store
from worker.kit import aeventually

LEFT = """
SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database =
    (SELECT oid FROM pg_database WHERE datname = current_database())
"""
SETTINGS = ("enable_seqscan", "enable_sort", "lock_timeout", "statement_timeout", "synchronous_commit", "search_path")


@pytest.fixture
def direct() -> Iterator[str]:
    """A database, by its own address."""
    with postgres.database() as made:
        yield made


@pytest.fixture
def pooled(direct: str) -> str:
    """The same through the pooler."""
    return pooler.shared().url(str(psycopg.conninfo.conninfo_to_dict(direct)["dbname"]))


@pytest.fixture
def store(direct: str, pooled: str) -> Iterator[Store]:
    """A store that works through the pooler and listens beside it."""
    opened = Store(pooled, StoreOptions(durability="normal", prepared=False, listen_url=direct, lock_timeout=20))
    yield opened
    opened.close()


def test_jobs_are_stored_claimed_and_settled(store: Store) -> None:
    """The life of a job, often enough for a driver to prepare what it repeats."""
    for _ in range(12):
        (number,) = put(store)
        (claimed,) = take(store)
        assert store_outcomes(store, success(claimed)) == []
        assert state(store, number) is JobState.SUCCEEDED
    assert count(store, "treadle_attempts") == 12


def test_many_at_once_share_few_server_connections(store: Store) -> None:
    """More clients than the pool has connections: everybody is served, each work once."""
    names = [f"n{number}" for number in range(80)]
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(lambda name: store.run(note(name)), names)) == names
    assert sorted(notes(store)) == sorted(names)


def test_nothing_is_left_on_the_sessions_of_the_pool(store: Store, pooled: str, direct: str) -> None:
    """Settings end with their transaction; somebody else who gets the session next finds it as it was."""
    put(store, 3)
    take(store)
    with psycopg.connect(direct) as clean, psycopg.connect(pooled) as reused:
        for name in SETTINGS:
            assert reused.execute(f"SHOW {name}").fetchone() == clean.execute(f"SHOW {name}").fetchone(), name
        assert clean.execute(LEFT).fetchone() == (0,)


def test_a_bell_rings_by_the_direct_connection(store: Store, direct: str) -> None:
    """What is stored through the pooler by one store is heard by the listener of another."""
    other = Store(direct)
    bell = store.engine.worker_bell(1)
    assert bell is not None
    assert bell.wait(PATIENCE) == b"r"  # it listens now
    put(other)
    assert bell.wait(PATIENCE) == b"r"
    bell.close()
    other.close()


def test_a_worker_drains_a_queue(direct: str, pooled: str) -> None:
    """Two hundred jobs through the pooler: each succeeds once, and the worker's lock is on the direct connection."""
    with Treadle(pooled, prepared=False, listen_url=direct) as app:

        @app.task(name="quick")
        async def quick(number: int) -> int:
            return number

        app.enqueue_many(quick.job(number) for number in range(190))
        handles = [quick.enqueue(number) for number in range(10)]

        async def main() -> None:
            async with app.worker() as worker:
                with psycopg.connect(direct, autocommit=True) as looking:
                    await aeventually(lambda: looking.execute(LEFT).fetchone() == (1,))
                await worker.idle()

        asyncio.run(main())
        assert [handle.result(timeout=PATIENCE) for handle in handles] == [*range(10)]
        assert app.counts() == {"default": {JobState.SUCCEEDED: 200}}
        assert count(app.store, "treadle_attempts") == 200


def other_mode(direct: str, mode: str) -> str:
    """The database through a pooler in another mode."""
    return pooler.shared(mode=mode).url(str(psycopg.conninfo.conninfo_to_dict(direct)["dbname"]))


def test_session_mode_needs_no_setting(direct: str) -> None:
    """A program that enqueues, and a worker that listens, work as they are."""
    with Treadle(other_mode(direct, "session"), connections=2) as app:

        @app.task(name="double")
        async def double(number: int) -> int:
            return 2 * number

        with app.worker():
            assert [double.enqueue(number).result(timeout=PATIENCE) for number in range(8)] == [*range(0, 16, 2)]


def test_statement_mode_is_refused_in_words(direct: str) -> None:
    """The first use says what is wrong; nothing is stored half."""
    with Treadle(other_mode(direct, "statement")) as app, pytest.raises(StoreError, match="statement pooling mode"):
        app.remote("double").enqueue(number=1)
