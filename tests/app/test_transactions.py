from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from treadle import Task, Treadle
from treadle.errors import ConfigurationError, NoTransaction, OwnTransactionOpen, StoreUnusable, TransactionTooOld
from treadle.host.locks import Gate
from worker.kit import PATIENCE, eventually, every_job, open_app, states


def ship(order: int) -> int:
    return order


Ship = Task[[int], int]


@pytest.fixture
def task(file_app: Treadle) -> Ship:
    return file_app.task(ship)


@pytest.fixture
def own(task: Ship, file_app: Treadle, path: Path) -> Iterator[sqlite3.Connection]:
    """The caller's own connection on the file, with a table of their own."""
    assert states(file_app) == []
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY)")
    yield connection
    connection.close()


def orders(connection: sqlite3.Connection) -> list[Any]:
    return [row[0] for row in connection.execute("SELECT id FROM orders ORDER BY id")]


def test_the_job_is_committed_with_the_callers_work(task: Ship, own: sqlite3.Connection, file_app: Treadle) -> None:
    """Inside the caller's transaction nobody sees the job; after its COMMIT the job runs."""
    with file_app.worker():
        own.execute("BEGIN IMMEDIATE")
        own.execute("INSERT INTO orders VALUES (7)")
        job = task.using(connection=own).enqueue(7)
        assert states(file_app) == []
        own.execute("COMMIT")
        assert job.result(timeout=PATIENCE) == 7
    assert orders(own) == [7]


def test_the_first_use_of_an_app_inside_a_transaction(own: sqlite3.Connection, file_app: Treadle, path: Path) -> None:
    """A store is opened inside the caller's transaction while a worker waits for it at the gate: nobody is stuck."""
    own.execute("BEGIN IMMEDIATE")
    waiting = file_app.store.submit(lambda _: "through")
    gate = Gate(file_app.store.side / "gate")
    eventually(lambda: not gate.acquire(blocking=False) or gate.release())
    gate.close()
    with open_app(path, lock_timeout=2.0) as late:
        late.task(ship).using(connection=own).enqueue(7)
        assert not waiting.done()
        own.execute("COMMIT")
    assert waiting.result(PATIENCE) == "through"
    assert states(file_app) == ["ready"]


def test_the_job_is_rolled_back_with_the_callers_work(task: Ship, own: sqlite3.Connection, file_app: Treadle) -> None:
    """After the caller's ROLLBACK there is neither work nor job."""
    own.execute("BEGIN IMMEDIATE")
    own.execute("INSERT INTO orders VALUES (7)")
    task.using(connection=own).enqueue(7)
    own.execute("ROLLBACK")
    assert (orders(own), states(file_app)) == ([], [])


def test_an_id_that_was_rolled_back_runs_no_other_job(task: Ship, own: sqlite3.Connection, file_app: Treadle) -> None:
    """In a program that enqueued before, a handle of a rolled-back job never comes to mean another job."""
    task.enqueue(1)
    own.execute("BEGIN IMMEDIATE")
    gone = task.using(connection=own).enqueue(7)
    own.execute("ROLLBACK")
    kept = [task.enqueue(number) for number in range(300)]
    assert gone.id not in {job.id for job in kept}


def test_the_transaction_stays_the_callers(task: Ship, own: sqlite3.Connection) -> None:
    """Enqueueing neither commits nor ends the transaction, nor changes the connection."""
    own.row_factory = sqlite3.Row
    seen: list[str] = []
    own.execute("BEGIN IMMEDIATE")
    own.set_trace_callback(seen.append)
    task.using(connection=own, tags=["a"]).enqueue(7)
    own.set_trace_callback(None)
    assert own.in_transaction
    assert own.row_factory is sqlite3.Row
    assert [sql for sql in seen if sql.lstrip().upper().startswith(("COMMIT", "ROLLBACK", "BEGIN", "PRAGMA"))] == []
    own.execute("ROLLBACK")


def test_python_begins_the_transaction_of_a_legacy_connection(task: Ship, own: sqlite3.Connection, path: Path) -> None:
    """With sqlite3's default isolation a first write begins the transaction, and the job joins it."""
    with sqlite3.connect(path) as legacy:
        legacy.execute("INSERT INTO orders VALUES (8)")
        job = task.using(connection=legacy).enqueue(8)
    legacy.close()
    assert job.record().state == "ready"


def test_a_connection_without_transaction_is_refused(task: Ship, own: sqlite3.Connection, file_app: Treadle) -> None:
    """In autocommit the job could not share the fate of anything; the message says to begin."""
    with pytest.raises(NoTransaction, match="BEGIN IMMEDIATE"):
        task.using(connection=own).enqueue(7)
    assert states(file_app) == []


def test_a_connection_on_another_file_is_refused(task: Ship, tmp_path: Path) -> None:
    """A job stored in another file would never run."""
    other = sqlite3.connect(tmp_path / "other.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnusable, match=r"other\.db.*jobs\.db"):
        task.using(connection=other).enqueue(7)
    other.close()


def test_something_else_is_no_connection(task: Ship) -> None:
    """The message says what connection= takes."""
    with pytest.raises(ConfigurationError, match=r"sqlite3\.Connection"):
        task.using(connection="jobs.db").enqueue(7)


def test_a_transaction_that_cannot_write_any_more_says_so(task: Ship, own: sqlite3.Connection) -> None:
    """A transaction that began by reading, with a write of others since, gets the remedy."""
    own.execute("BEGIN")
    orders(own)
    task.enqueue(1)
    with pytest.raises(TransactionTooOld, match="BEGIN IMMEDIATE"):
        task.using(connection=own).enqueue(7)
    own.execute("ROLLBACK")


def test_a_forgotten_connection_is_noticed(task: Ship, own: sqlite3.Connection, file_app: Treadle) -> None:
    """Plain enqueue inside one's own transaction is refused with the remedy instead of waiting for itself."""
    own.execute("BEGIN IMMEDIATE")
    with pytest.raises(OwnTransactionOpen, match="connection=conn"):
        task.enqueue(7)
    own.execute("COMMIT")
    assert states(file_app) == []
    task.enqueue(8)
    assert len(every_job(file_app)) == 1


def test_looking_for_a_forgotten_connection_wakes_nobody(
    task: Ship, own: sqlite3.Connection, path: Path
) -> None:
    """Objects that are made when somebody asks for their class, as web frameworks have them, are left asleep."""
    woken: list[str] = []

    class Lazy:
        @property
        def __class__(self) -> Any:
            woken.append("made")
            raise RuntimeError("made too early")

    lazy = [Lazy()]
    with closing(sqlite3.connect(path, isolation_level=None)) as later:  # the search comes by the older object first
        later.execute("BEGIN IMMEDIATE")
        with pytest.raises(OwnTransactionOpen):
            task.enqueue(7)
        later.execute("COMMIT")
    assert (len(lazy), woken) == (1, [])


def test_async_code_can_enqueue_in_its_transaction(task: Ship, own: sqlite3.Connection) -> None:
    """Aenqueue joins a transaction too."""
    async def main() -> int:
        own.execute("BEGIN IMMEDIATE")
        job = await task.using(connection=own).aenqueue(7)
        own.execute("COMMIT")
        return job.id

    assert asyncio.run(main()) > 0


def test_two_apps_on_one_file_keep_their_ids_apart(own: sqlite3.Connection, task: Ship, path: Path) -> None:
    """Ids taken in a caller's transaction and by another app never meet."""
    with open_app(path) as second:
        far = second.task(name=task.name)(ship)
        far.enqueue(1)
        own.execute("BEGIN IMMEDIATE")
        mine = [task.using(connection=own).enqueue(number).id for number in range(50)]
        own.execute("COMMIT")
        theirs = [far.enqueue(number).id for number in range(50)]
    assert set(mine).isdisjoint(theirs)
