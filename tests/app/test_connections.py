"""Enqueueing in the transaction of every library that is taken, on both databases."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import aiosqlite
import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

import postgres
from app import connections as libraries
from treadle import Task, Treadle
from treadle.errors import ConfigurationError, NoTransaction, StoreError, StoreUnusable
from worker.kit import PATIENCE, SOURCE, states

ORDERS = "CREATE TABLE orders (id INTEGER PRIMARY KEY)"
Ship = Task[[int], int]


def ship(order: int) -> int:
    return order


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, path: Path) -> Iterator[str]:
    """An empty database with a table of the caller's."""
    if request.param == "sqlite":
        with closing(sqlite3.connect(path)) as connection:
            connection.execute(ORDERS)
        yield f"sqlite:///{path}"
    else:
        with postgres.database() as made:
            with psycopg.connect(made, autocommit=True) as admin:
                admin.execute(ORDERS)
            yield made


@pytest.fixture
def store(url: str) -> Iterator[Treadle]:
    with Treadle(url) as made:
        assert states(made) == []  # opened: the tables are there
        yield made


@pytest.fixture
def task(store: Treadle) -> Ship:
    return store.task(ship)


def openings(sqlite: list[Any], server: list[Any]) -> pytest.MarkDecorator:
    """Every way to open a connection on every database that has it."""
    pairs = [("sqlite", one) for one in sqlite] + [("postgresql", one) for one in server]
    ids = [f"{database}-{one.__name__.removeprefix('by_')}" for database, one in pairs]
    return pytest.mark.parametrize(("url", "opening"), pairs, indirect=["url"], ids=ids)


every = openings(libraries.SQLITE, libraries.POSTGRES)
every_async = openings(libraries.ASYNC_SQLITE, libraries.ASYNC_POSTGRES)
on_sqlite = pytest.mark.parametrize("url", ["sqlite"], indirect=True)
on_server = pytest.mark.parametrize("url", ["postgresql"], indirect=True)


def orders(url: str) -> list[int]:
    """What the caller has committed."""
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(libraries.file_of(url))) as connection:
            return [row[0] for row in connection.execute("SELECT id FROM orders")]
    with psycopg.connect(url) as server:
        return [row[0] for row in server.execute("SELECT id FROM orders").fetchall()]


@every
def test_the_job_is_committed_with_the_callers_work(task: Ship, url: str, opening: Any, store: Treadle) -> None:
    """Inside the transaction nobody sees the job; after its commit a waiting worker runs it."""
    with store.worker(), opening(url) as own:
        own.add()
        job = task.using(connection=own.given, tags=["a"]).enqueue(7)
        assert states(store) == []
        own.commit()
        assert job.result(timeout=PATIENCE) == 7
    assert orders(url) == [7]


@every
def test_the_job_is_rolled_back_with_the_callers_work(task: Ship, url: str, opening: Any, store: Treadle) -> None:
    """After a rollback there is neither work nor job, and the connection can be used again."""
    with opening(url) as own:
        own.add()
        task.using(connection=own.given).enqueue(7)
        own.undo()
    assert (orders(url), states(store)) == ([], [])


@openings([*libraries.BOTH], [libraries.by_psycopg, *libraries.BOTH])
def test_the_enqueue_may_come_first(task: Ship, url: str, opening: Any, store: Treadle) -> None:
    """Where a library begins transactions by itself, the job may be the first that is written."""
    with opening(url) as own:
        task.using(connection=own.given).enqueue(7)
        own.undo()
        assert states(store) == []
        task.using(connection=own.given).enqueue(8)
        own.add()
        own.commit()
    assert (orders(url), states(store)) == ([7], ["ready"])


@every_async
def test_async_code_shares_a_transaction(task: Ship, url: str, opening: Any, store: Treadle) -> None:
    """Aenqueue joins the transaction of an async connection: committed together, undone together."""

    async def main() -> int:
        async with opening(url) as own:
            await own.add()
            await task.using(connection=own.given).aenqueue(1)
            await own.undo()
        async with store.worker(), opening(url) as own:
            await own.add()
            job = await task.using(connection=own.given).aenqueue(7)
            await own.commit()
            return await job.aresult(timeout=PATIENCE)

    result = asyncio.run(main())
    assert (result, orders(url), states(store)) == (7, [7], ["succeeded"])


@every_async
def test_an_async_connection_needs_the_async_verb(task: Ship, url: str, opening: Any) -> None:
    """Enqueue says which verb takes such a connection."""

    async def main() -> None:
        async with opening(url) as own:
            with pytest.raises(ConfigurationError, match="aenqueue"):
                task.using(connection=own.given).enqueue(7)
            await own.undo()

    asyncio.run(main())


@every_async
def test_many_async_callers_at_once(task: Ship, url: str, opening: Any, store: Treadle) -> None:
    """Several transactions at once, each with its own connection, all store their job."""

    async def one(number: int) -> None:
        async with opening(url) as own:
            await task.using(connection=own.given).aenqueue(number)
            await own.commit()

    async def main() -> None:
        await asyncio.gather(*map(one, range(8)))

    asyncio.run(main())
    assert states(store) == ["ready"] * 8


def test_djangos_connection_by_its_name(
    task: Ship, url: str, store: Treadle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name means that connection of Django's; an unknown one is refused like anything else."""
    with libraries.django_connections(url) as connections:
        monkeypatch.setattr("django.db.connections", connections)
        connections["default"].set_autocommit(False)
        task.using(connection="default").enqueue(7)
        connections["default"].commit()
        with pytest.raises(ConfigurationError, match="Django"):
            task.using(connection="other").enqueue(7)
    assert states(store) == ["ready"]


def test_django_outside_of_atomic_is_refused(task: Ship, url: str, store: Treadle) -> None:
    """In Django's autocommit there is no transaction to share."""
    with libraries.django_connections(url) as connections, pytest.raises(NoTransaction):
        task.using(connection=connections["default"]).enqueue(7)
    assert states(store) == []


def test_alchemy_in_autocommit_is_refused(task: Ship, url: str, store: Treadle) -> None:
    """SQLAlchemy's AUTOCOMMIT has no transaction to share either."""
    engine = sa.create_engine(libraries.alchemy_url(url), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection, pytest.raises(NoTransaction):
        task.using(connection=connection).enqueue(7)
    engine.dispose()
    assert states(store) == []


@on_server
def test_psycopg_in_autocommit_is_refused(task: Ship, url: str, store: Treadle) -> None:
    """Without an open transaction on an autocommit connection the job could not share anything's fate."""
    with psycopg.connect(url, autocommit=True) as connection, pytest.raises(NoTransaction, match="transaction"):
        task.using(connection=connection).enqueue(7)
    assert states(store) == []


@on_server
def test_a_closed_psycopg_connection_is_refused(task: Ship, url: str) -> None:
    """It says that the connection is closed."""
    connection = psycopg.connect(url)
    connection.close()
    with pytest.raises(ConfigurationError, match="closed"):
        task.using(connection=connection).enqueue(7)


@on_server
def test_another_database_of_the_server_is_refused(task: Ship, url: str) -> None:
    """Without the tables, or with those of another store; and the caller's transaction goes on."""
    with postgres.database(empty=True) as other, psycopg.connect(other) as connection:
        with pytest.raises(StoreUnusable, match="does not hold the tables"):
            task.using(connection=connection).enqueue(7)
        assert connection.execute("SELECT 1").fetchone() == (1,)
        connection.execute("CREATE SCHEMA treadle")
        connection.execute("CREATE TABLE treadle.treadle_meta (name text, value text)")
        connection.execute("INSERT INTO treadle.treadle_meta VALUES ('store_id', 'another')")
        with pytest.raises(StoreUnusable, match="does not hold the tables"):
            task.using(connection=connection).enqueue(7)
        connection.rollback()


@on_server
def test_another_schema_is_another_store(task: Ship, url: str, store: Treadle) -> None:
    """Two stores in two schemas of one database: each job goes where its app keeps jobs."""
    with Treadle(url, schema="second") as second, psycopg.connect(url) as connection:
        second.task(name="ship")(ship).using(connection=connection).enqueue(1)
        task.using(connection=connection).enqueue(2)
        task.using(connection=connection).enqueue(3)
        connection.commit()
        assert (states(store), states(second)) == (["ready"] * 2, ["ready"])


@on_server
def test_a_failed_transaction_says_so(task: Ship, url: str) -> None:
    """In a transaction that PostgreSQL has given up nothing can be stored."""
    with psycopg.connect(url) as connection:
        with pytest.raises(psycopg.errors.UndefinedTable):
            connection.execute("SELECT * FROM nowhere")
        with pytest.raises(StoreError, match="aborted"):
            task.using(connection=connection).enqueue(7)
        connection.rollback()


@on_server
def test_the_callers_settings_stay(task: Ship, url: str) -> None:
    """The connection keeps its row factory, runs no statement that begins or ends anything, and keeps its patience."""
    with psycopg.connect(url, prepare_threshold=None, row_factory=psycopg.rows.dict_row) as connection:
        connection.execute("SET LOCAL lock_timeout = 1234")
        before = connection.execute("SELECT pg_current_xact_id()::text AS xid").fetchone()
        task.using(connection=connection).enqueue(7)
        assert connection.execute("SELECT pg_current_xact_id()::text AS xid").fetchone() == before
        assert connection.execute("SHOW lock_timeout").fetchone() == {"lock_timeout": "1234ms"}
        connection.rollback()


@on_server
def test_a_cancelled_enqueue_leaves_the_connection_alone(task: Ship, url: str) -> None:
    """Once the cancelled caller goes on, no statement of Treadle's comes between its own."""

    async def main() -> list[Any]:
        async with await psycopg.AsyncConnection.connect(url) as connection:
            enqueueing = asyncio.ensure_future(task.using(connection=connection).aenqueue(7))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            enqueueing.cancel()
            await asyncio.wait([enqueueing])
            assert not connection.lock.locked()
            await connection.rollback()
            return await (await connection.execute("SELECT id FROM treadle.treadle_jobs")).fetchall()

    assert asyncio.run(main()) == []


@on_sqlite
def test_aiosqlite_on_another_file_is_refused(task: Ship, tmp_path: Path) -> None:
    """The check is the same as for sqlite3."""

    async def main() -> None:
        async with aiosqlite.connect(tmp_path / "other.db") as connection:
            await connection.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreUnusable, match=r"other\.db"):
                await task.using(connection=connection).aenqueue(7)
            await connection.rollback()

    asyncio.run(main())


@on_sqlite
def test_aiosqlite_without_transaction_is_refused(task: Ship, url: str) -> None:
    """The check is the same as for sqlite3."""

    async def main() -> None:
        async with aiosqlite.connect(libraries.file_of(url)) as connection:
            with pytest.raises(NoTransaction, match="BEGIN IMMEDIATE"):
                await task.using(connection=connection).aenqueue(7)

    asyncio.run(main())


@on_sqlite
def test_a_database_of_another_kind_is_refused(task: Ship) -> None:
    """A connection of PostgreSQL's cannot store into a file; the message says what can."""
    with postgres.database() as server, psycopg.connect(server) as connection:
        with pytest.raises(ConfigurationError, match=r"sqlite3\.Connection.*psycopg\.Connection"):
            task.using(connection=connection).enqueue(7)
        engine = sa.create_engine(libraries.alchemy_url(server))
        with engine.connect() as wrapped, pytest.raises(ConfigurationError, match=r"not psycopg\.Connection"):
            task.using(connection=wrapped).enqueue(7)
        engine.dispose()


@on_server
def test_a_file_is_refused_by_the_server(task: Ship, path: Path) -> None:
    """The same the other way round, by both verbs."""

    async def main() -> None:
        engine = create_async_engine(f"sqlite+aiosqlite:///{path}")
        async with engine.connect() as connection:
            with pytest.raises(ConfigurationError, match=r"psycopg\.Connection.*aiosqlite"):
                await task.using(connection=connection).aenqueue(7)
        await engine.dispose()

    asyncio.run(main())
    with closing(sqlite3.connect(path)) as connection, pytest.raises(ConfigurationError, match=r"psycopg"):
        task.using(connection=connection).enqueue(7)


def test_nobodys_library_is_imported(path: Path) -> None:
    """Enqueueing on a sqlite3 connection loads no optional library."""
    code = f"""
import sqlite3, sys
from treadle import Treadle
app = Treadle("sqlite:///{path}")
@app.task(name="ship")
def ship() -> None: ...
ship.enqueue()
own = sqlite3.connect("{path}", isolation_level=None)
own.execute("BEGIN IMMEDIATE")
ship.using(connection=own).enqueue()
own.execute("COMMIT")
own.close()
app.close()
print([name for name in ("sqlalchemy", "django", "aiosqlite", "psycopg") if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": SOURCE}, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
