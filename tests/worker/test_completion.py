"""A handler commits its own rows together with its job's success, on both databases."""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest

import postgres
from treadle import Job, JobContext, JobState, Snooze, Treadle
from treadle.errors import (
    ConfigurationError,
    JobFailed,
    JobStateError,
    LeaseLost,
    OwnTransactionOpen,
    StoreError,
    TransactionTooLong,
)
from treadle.host.failpoints import arm, disarm, raising
from treadle.testing import perform
from worker.isolated import TASKS
from worker.kit import PATIENCE, change, eventually, heard, run_all, states

TABLE = "CREATE TABLE effects (job BIGINT PRIMARY KEY)"


class Bank:
    """A database with a table of the user's beside the jobs."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.is_file = url.startswith("sqlite")
        self.app = Treadle(url)
        assert states(self.app) == []
        self._run(TABLE)
        mark = "?" if self.is_file else "%s"
        self.add = f"INSERT INTO effects (job) VALUES ({mark})"

    def effects(self) -> list[int]:
        """What is visible."""
        return [row[0] for row in self._run("SELECT job FROM effects ORDER BY job")]

    def steal(self, job: int) -> None:
        """Take a running job away, as a rescue by another worker does."""
        table = "treadle_jobs" if self.is_file else "treadle.treadle_jobs"
        self._run(f"UPDATE {table} SET state = {JobState.HELD.code}, lease = NULL WHERE id = {job}")

    def _run(self, sql: str) -> list[Any]:
        if self.is_file:
            with closing(sqlite3.connect(self.url.removeprefix("sqlite:///"), isolation_level=None)) as connection:
                return connection.execute(sql).fetchall()
        with psycopg.connect(self.url, autocommit=True) as server:
            cursor = server.execute(sql)
            return cursor.fetchall() if cursor.description else []


@pytest.fixture(params=["sqlite", "postgresql"])
def bank(request: pytest.FixtureRequest, path: Path) -> Iterator[Bank]:
    if request.param == "sqlite":
        made = Bank(f"sqlite:///{path}")
        with made.app:
            yield made
    else:
        with postgres.database() as url:
            made = Bank(url)
            with made.app:
                yield made


on_sqlite = pytest.mark.parametrize("bank", ["sqlite"], indirect=True)
Body = Callable[[JobContext], object]


def plain(bank: Bank, body: Body, **policy: Any) -> Any:
    """A task whose handler is *body*."""

    @bank.app.task(name="pay", retry=0, **policy)
    def pay(job: JobContext) -> object:
        return body(job)

    return pay


def ran(bank: Bank, body: Body, **policy: Any) -> Job[Any]:
    """One job that a worker has run."""
    job: Job[Any] = plain(bank, body, **policy).enqueue()
    run_all(bank.app)
    return job


def test_rows_and_success_are_one_commit(bank: Bank) -> None:
    """Inside the block nobody sees either; afterwards both are there, with the result and one attempt."""
    seen: list[Any] = []

    def body(job: JobContext) -> object:
        with job.transaction() as tx:
            tx.execute(bank.add, (job.id,))
            seen.append((bank.effects(), str(bank.app.get(job.id).state)))
            tx.succeed({"paid": job.id})
        seen.append((bank.effects(), str(bank.app.get(job.id).state)))
        return None

    job = ran(bank, body)
    assert seen == [([], "running"), ([job.id], "succeeded")]
    assert job.result(PATIENCE) == {"paid": job.id}
    assert [str(one.outcome) for one in bank.app.get(job.id).attempts] == ["succeeded"]


def test_without_a_word_there_is_no_result(bank: Bank, caplog: pytest.LogCaptureFixture) -> None:
    """What the handler returns afterwards is not the result, and the log says how to give one."""

    def body(job: JobContext) -> object:
        with job.transaction() as tx:
            tx.execute(bank.add, (job.id,))
        return "late"

    job = ran(bank, body)
    assert job.result(PATIENCE) is None
    assert "tx.succeed" in caplog.text


def test_the_drivers_connection_is_there(bank: Bank) -> None:
    """Tx.connection is the driver's own, inside the same transaction; execute returns the driver's cursor."""
    kinds: list[bool] = []

    def body(job: JobContext) -> object:
        with job.transaction() as tx:
            kinds.append(isinstance(tx.connection, sqlite3.Connection if bank.is_file else psycopg.Connection))
            tx.connection.cursor().execute(bank.add, (job.id,))
            assert tx.execute("SELECT count(*) FROM effects").fetchone() == (1,)
        return None

    job = ran(bank, body)
    assert kinds == [True]
    assert bank.effects() == [job.id]


def test_an_error_inside_undoes_all_and_is_an_ordinary_failure(bank: Bank) -> None:
    """The block's rows are rolled back and the attempt fails with the handler's error."""

    def body(job: JobContext) -> object:
        with job.transaction() as tx:
            tx.execute(bank.add, (job.id,))
            raise ValueError("no money")

    job = ran(bank, body)
    assert bank.effects() == []
    with pytest.raises(JobFailed, match="no money"):
        job.result(PATIENCE)


def test_an_error_after_the_commit_changes_nothing(bank: Bank, caplog: pytest.LogCaptureFixture) -> None:
    """The job stays succeeded, nothing runs again, and the log has the error."""

    def body(job: JobContext) -> object:
        with job.transaction() as tx:
            tx.execute(bank.add, (job.id,))
        raise ValueError("too late")

    job = ran(bank, body)
    assert (states(bank.app), bank.effects()) == (["succeeded"], [job.id])
    assert "too late" in caplog.text


def test_a_wish_after_the_commit_changes_nothing(bank: Bank, caplog: pytest.LogCaptureFixture) -> None:
    """Snooze after the commit is logged and not obeyed."""

    def body(job: JobContext) -> object:
        with job.transaction() as tx:
            tx.execute(bank.add, (job.id,))
        raise Snooze(10)

    ran(bank, body)
    assert states(bank.app) == ["succeeded"]
    assert "Snoozed" in caplog.text


def test_who_lost_the_lease_stores_nothing(bank: Bank) -> None:
    """The rows are rolled back, the handler gets LeaseLost, and its job is another's."""
    told: list[object] = []

    def body(job: JobContext) -> object:
        bank.steal(job.id)
        try:
            with job.transaction() as tx:
                tx.execute(bank.add, (job.id,))
        except LeaseLost:
            told.append(job.cancelled)
            bank.app.cancel(job.id)
            raise
        return None

    ran(bank, body)
    assert (told, bank.effects(), states(bank.app)) == ([True], [], ["cancelled"])


def test_follow_ups_lines_and_progress_go_along(bank: Bank) -> None:
    """Jobs of on_success and lines of the log are stored in the same commit."""
    after = bank.app.task(name="after")(_nothing)

    def body(job: JobContext) -> object:
        job.log("before")
        job.progress(0.5)
        job.on_success(after.job())
        with job.transaction() as tx:
            tx.execute(bank.add, (job.id,))
        return None

    job = ran(bank, body)
    assert states(bank.app) == ["succeeded", "succeeded"]
    assert [line.text for line in bank.app.logs(job.id)] == ["before"]


def test_lines_of_a_failed_transaction_are_kept(bank: Bank) -> None:
    """What was logged before a transaction that was undone is stored with the failure."""

    def body(job: JobContext) -> object:
        job.log("before")
        with job.transaction() as tx:
            tx.execute(bank.add, (job.id,))
            tx.succeed(object())  # cannot be stored, which is a result's own fault
        return None

    job = ran(bank, body)
    assert [line.text for line in bank.app.logs(job.id)] == ["before"]


def test_a_second_transaction_is_refused(bank: Bank) -> None:
    """After the commit the attempt is over."""
    told: list[str] = []

    def body(job: JobContext) -> object:
        with job.transaction() as tx:
            tx.execute(bank.add, (job.id,))
        try:
            job.transaction()
        except JobStateError as error:
            told.append(str(error))
        return None

    ran(bank, body)
    assert len(told) == 1


def test_a_second_try_after_an_undone_one(bank: Bank) -> None:
    """A handler may undo one transaction by raising, and complete another."""

    def body(job: JobContext) -> object:
        try:
            with job.transaction() as tx:
                tx.execute(bank.add, (-1,))
                raise ValueError
        except ValueError:
            pass
        with job.transaction() as tx:
            tx.execute(bank.add, (job.id,))
        return None

    job = ran(bank, body)
    assert (bank.effects(), states(bank.app)) == ([job.id], ["succeeded"])


@pytest.mark.parametrize("statement", ["COMMIT", " rollback", "/* x */ BEGIN", "-- x\nSAVEPOINT a", "PRAGMA x"])
def test_the_block_alone_begins_and_ends(bank: Bank, statement: str) -> None:
    """Statements that end the transaction are refused, and nothing is stored."""

    def body(job: JobContext) -> object:
        with job.transaction() as tx:
            tx.execute(bank.add, (job.id,))
            tx.execute(statement)
        return None

    job = ran(bank, body)
    with pytest.raises(JobFailed, match=r"job\.transaction"):
        job.result(PATIENCE)
    assert bank.effects() == []


@pytest.mark.parametrize("verb", ["commit", "rollback"])
def test_the_connection_cannot_end_it_either(bank: Bank, verb: str) -> None:
    """Commit and rollback of the driver's connection are refused; the block still decides."""
    told: list[BaseException] = []

    def body(job: JobContext) -> object:
        with job.transaction() as tx:
            tx.execute(bank.add, (job.id,))
            try:
                getattr(tx.connection, verb)()
            except (sqlite3.DatabaseError, psycopg.ProgrammingError) as error:
                told.append(error)
            raise ValueError
        return None

    ran(bank, body)
    assert len(told) == 1
    assert bank.effects() == []


def test_too_long_is_undone_while_the_handler_sleeps(bank: Bank, caplog: pytest.LogCaptureFixture) -> None:
    """At the deadline others may write again, although the block has not ended; then the handler is told."""
    entered, gone, told = threading.Event(), threading.Event(), list[BaseException]()

    def body(job: JobContext) -> object:
        try:
            with job.transaction(deadline=0.7) as tx:
                tx.execute(bank.add, (job.id,))
                entered.set()
                heard(gone)  # set by another job, which can only be stored once the lock is free
                tx.execute(bank.add, (-1,))
        except TransactionTooLong as error:
            told.append(error)
        assert bank.effects() == []
        with job.transaction() as tx:
            tx.execute(bank.add, (job.id,))
        return None

    task = plain(bank, body)

    @bank.app.task(name="free")
    def free() -> None:
        gone.set()

    with bank.app.worker():
        job = task.enqueue()
        heard(entered)
        if not bank.is_file:
            eventually(lambda: "rolled back" in caplog.text)
        free.using(priority=1).enqueue()
        job.result(PATIENCE)
    assert [type(error) for error in told] == [TransactionTooLong]
    assert __file__ in str(told[0])
    warned = [one for one in caplog.records if "is open for" in one.message]
    assert __file__ in warned[0].message
    assert warned[0].levelno == logging.WARNING
    assert bank.effects() == [job.id]


def test_a_statement_that_takes_too_long_is_stopped(bank: Bank) -> None:
    """The deadline interrupts a statement that runs, also one on the driver's connection."""
    endless = (
        "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
        if bank.is_file else "SELECT pg_sleep(60)"
    )  # fmt: skip

    def body(job: JobContext) -> object:
        with pytest.raises(TransactionTooLong), job.transaction(deadline=0.2) as tx:
            tx.execute(endless)
        with pytest.raises(TransactionTooLong), job.transaction(deadline=0.2) as tx:
            tx.connection.execute(endless)
        return None

    job = ran(bank, body)
    assert job.result(PATIENCE) is None


@on_sqlite
def test_nothing_slips_through_after_the_deadline(bank: Bank) -> None:
    """Statements on the driver's connection fail once the transaction is gone, prepared or not: no row is left."""

    def body(job: JobContext) -> object:
        with pytest.raises(TransactionTooLong), job.transaction(deadline=0.1) as tx:
            tx.connection.executemany(bank.add, ((number,) for number in range(100_000_000)))
        return None

    job = ran(bank, body)
    assert job.result(PATIENCE) is None
    assert bank.effects() == []


@on_sqlite
def test_rows_that_come_after_the_deadline_are_refused(bank: Bank, caplog: pytest.LogCaptureFixture) -> None:
    """A call that stands still between two rows when the deadline comes ends at the next row, and leaves none."""

    def rows() -> Iterator[tuple[int]]:
        yield (1,)
        eventually(lambda: "was rolled back" in caplog.text)
        yield (2,)

    def body(job: JobContext) -> object:
        with pytest.raises(TransactionTooLong), job.transaction(deadline=0.1) as tx:
            tx.connection.executemany(bank.add, rows())
        return None

    assert ran(bank, body).result(PATIENCE) is None
    assert bank.effects() == []


@on_sqlite
def test_a_plain_enqueue_inside_is_noticed(bank: Bank) -> None:
    """It would wait for its own transaction; the error says how to do it, and that works."""
    told: list[BaseException] = []
    other = bank.app.task(name="other")(_nothing)

    def body(job: JobContext) -> object:
        with job.transaction() as tx:
            try:
                other.enqueue()
            except OwnTransactionOpen as error:
                told.append(error)
            other.using(connection=tx.connection).enqueue()
        return None

    ran(bank, body)
    assert len(told) == 1
    assert states(bank.app) == ["succeeded", "succeeded"]


def test_an_enqueue_on_its_connection_shares_its_fate(bank: Bank) -> None:
    """Using(connection=tx.connection) stores the job with the rows."""
    other = bank.app.task(name="other")(_nothing)

    def body(job: JobContext) -> object:
        with job.transaction() as tx:
            other.using(connection=tx.connection).enqueue()
            raise ValueError
        return None

    ran(bank, body)
    assert states(bank.app) == ["failed"]


def test_many_at_once_all_complete(bank: Bank) -> None:
    """Ten slots that complete by transactions get through, beside claims and settles."""

    def body(job: JobContext) -> object:
        with job.transaction() as tx:
            tx.execute(bank.add, (job.id,))
        return None

    task = plain(bank, body)
    ids = bank.app.enqueue_many(task.job() for _ in range(60))
    run_all(bank.app)
    assert bank.effects() == sorted(ids)
    assert set(states(bank.app)) == {"succeeded"}


def broken_at(bank: Bank, point: str) -> Job[Any]:
    """Run a job that commits an effect, with a failure at *point*."""

    def body(job: JobContext) -> object:
        arm(raising(lambda: RuntimeError("broken")), point)
        try:
            with job.transaction() as tx:
                tx.execute(bank.add, (job.id,))
        finally:
            disarm()
        return None

    return ran(bank, body)


def test_a_failed_commit_leaves_nothing(bank: Bank) -> None:
    """What fails just before the commit undoes the rows, and the attempt fails as usual."""
    broken_at(bank, "transaction.before_commit")
    assert (bank.effects(), states(bank.app)) == ([], ["failed"])


def test_a_failure_behind_the_commit_denies_nothing(bank: Bank) -> None:
    """What fails after the commit is logged; rows and success are there."""
    job = broken_at(bank, "transaction.after_commit")
    assert (bank.effects(), states(bank.app)) == ([job.id], ["succeeded"])


# --- the async form -----------------------------------------------------------------------------------------------


def aran(bank: Bank, body: Callable[[JobContext], Any], **policy: Any) -> Job[Any]:
    """One job with an async handler that a worker has run."""

    @bank.app.task(name="apay", retry=0, **policy)
    async def apay(job: JobContext) -> object:
        return await body(job)

    job: Job[Any] = apay.enqueue()
    run_all(bank.app)
    return job


def test_async_rows_and_success_are_one_commit(bank: Bank) -> None:
    """Statements are collected and run at the end of the block, with the success."""
    seen: list[Any] = []

    async def body(job: JobContext) -> object:
        async with job.transaction() as tx:
            await tx.execute(bank.add, (job.id,))
            await tx.execute("SELECT job FROM effects")
            tx.succeed(5)
            seen.append(bank.effects())
        seen.append(bank.effects())
        return None

    job = aran(bank, body)
    assert seen == [[], [job.id]]
    assert job.result(PATIENCE) == 5


def test_async_errors(bank: Bank, caplog: pytest.LogCaptureFixture) -> None:
    """Raising inside stores nothing; a statement that fails undoes all of it; raising afterwards changes nothing."""

    async def body(job: JobContext) -> object:
        async def inside() -> None:
            async with job.transaction() as tx:
                await tx.execute(bank.add, (-1,))
                raise ValueError("inside")

        async def nowhere() -> None:
            async with job.transaction() as tx:
                await tx.execute(bank.add, (-2,))
                await tx.execute("INSERT INTO nowhere VALUES (1)")

        with pytest.raises(ValueError, match="inside"):
            await inside()
        with pytest.raises(StoreError, match="nowhere"):
            await nowhere()
        with pytest.raises(ConfigurationError, match="COMMIT"):
            async with job.transaction() as tx:
                await tx.execute("COMMIT")
        async with job.transaction() as tx:
            await tx.execute(bank.add, (job.id,))
        raise ValueError("afterwards")

    job = aran(bank, body)
    assert (bank.effects(), states(bank.app)) == ([job.id], ["succeeded"])
    assert "afterwards" in caplog.text


def test_async_who_lost_the_lease_stores_nothing(bank: Bank) -> None:
    """The same as for plain functions."""

    async def body(job: JobContext) -> object:
        bank.steal(job.id)
        with pytest.raises(LeaseLost):
            async with job.transaction() as tx:
                await tx.execute(bank.add, (job.id,))
        bank.app.cancel(job.id)
        return None

    aran(bank, body)
    assert (bank.effects(), states(bank.app)) == ([], ["cancelled"])


def test_async_statements_have_a_deadline(bank: Bank) -> None:
    """Statements that take too long are stopped and undone; neighbours in the lane are stored all the same."""
    slow = (
        "INSERT INTO effects (job) WITH RECURSIVE n (i) AS (SELECT -2 UNION ALL SELECT i - 1 FROM n) SELECT i FROM n"
        if bank.is_file else "SELECT pg_sleep(60)"
    )  # fmt: skip

    async def body(job: JobContext) -> object:
        async def transact() -> None:
            async with job.transaction(deadline=0.2) as tx:
                await tx.execute(bank.add, (-1,))
                await tx.execute(slow)

        async def log() -> None:
            await job.acheckpoint("kept")

        found = await asyncio.gather(transact(), log(), return_exceptions=True)
        assert isinstance(found[0], TransactionTooLong)
        assert await job.alast_checkpoint() == "kept"
        return "ended"

    assert aran(bank, body).result(PATIENCE) == "ended"
    assert bank.effects() == []


def test_an_async_handler_cannot_block_its_loop(bank: Bank) -> None:
    """The plain form in a coroutine function names the other one."""

    async def body(job: JobContext) -> object:
        with pytest.raises(ConfigurationError, match="async with"), job.transaction():
            pass
        return None

    assert aran(bank, body).result(PATIENCE) is None


def test_a_cancelled_handler_waits_for_its_commit(bank: Bank) -> None:
    """Cancelled while its transaction is stored, a handler's success stands and is not stored twice."""

    async def body(job: JobContext) -> object:
        task = asyncio.current_task()
        assert task is not None
        async with job.transaction() as tx:
            await tx.execute(bank.add, (job.id,))
            asyncio.get_running_loop().call_soon(asyncio.get_running_loop().call_soon, task.cancel)
        return None

    job = aran(bank, body)
    assert (bank.effects(), states(bank.app)) == ([job.id], ["succeeded"])


# --- elsewhere ----------------------------------------------------------------------------------------------------


def test_a_job_claimed_by_hand_has_transactions_too(bank: Bank) -> None:
    """Its attempt is over then: another end is refused."""
    task = plain(bank, lambda job: None)
    task.enqueue()
    (leased,) = bank.app.claim(1)
    with leased.job.transaction() as tx:
        tx.execute(bank.add, (leased.job.id,))
        tx.succeed("by hand")
    with pytest.raises(JobStateError):
        leased.complete()
    assert bank.app.get(leased.job.id).state == "succeeded"
    assert bank.effects() == [leased.job.id]


@on_sqlite
def test_perform_runs_transactions(bank: Bank) -> None:
    """A test that performs a task sees its result and its rows."""

    def body(job: JobContext) -> object:
        with job.transaction() as tx:
            tx.execute(bank.add, (1,))
            tx.succeed("done")
        return None

    ran = perform(bank.app, plain(bank, body).job())
    assert ran.result == "done"
    assert bank.effects() == [1]


def test_subscribers_hear_of_it(bank: Bank) -> None:
    """Events and waiting results are told as of any settle."""
    told: list[str] = []

    def body(job: JobContext) -> object:
        with job.transaction() as tx:
            tx.execute(bank.add, (job.id,))
        return None

    @bank.app.on("succeeded")
    def hear(event: Any) -> None:
        told.append(f"{event.kind} {event.task}")

    ran(bank, body)
    assert told == ["succeeded pay"]


@pytest.fixture
def effects(shop: Treadle, path: Path) -> Callable[[], list[Any]]:
    """A table beside the jobs, and who wrote into it."""
    assert states(shop) == []
    change(path, "CREATE TABLE effects (job INTEGER, pid INTEGER)")

    def look() -> list[Any]:
        with closing(sqlite3.connect(path)) as connection:
            return connection.execute("SELECT job, pid FROM effects").fetchall()

    return look


@pytest.mark.parametrize(("task", "value"), [("act", ""), ("act", "raise"), ("act", "die"), ("aact", "raise")])
def test_a_process_of_its_own_completes_too(shop: Treadle, effects: Any, task: str, value: str) -> None:
    """The child commits by its own connection; however it ends then, the success stands, with its lines."""
    with shop.worker(concurrency=1):
        job = TASKS[task].enqueue("complete", value)
        assert job.result(PATIENCE) == "completed"
    ((number, pid),) = effects()
    assert (number, pid != os.getpid()) == (job.id, True)
    assert [str(one.outcome) for one in job.record().attempts] == ["succeeded"]
    if task == "act":
        assert [line.text for line in shop.logs(job.id) if line.source == "job"] == ["before", "inside", "after"]


def test_a_suspect_of_crashes_completes(shop: Treadle, effects: Any, path: Path) -> None:
    """A job that has to run alone, in a process of its own, has its transaction all the same."""
    job = TASKS["twice"].enqueue("complete")
    change(path, "UPDATE treadle_jobs SET crashes = 1")
    with shop.worker(concurrency=1):
        assert job.result(PATIENCE) == "completed"
    ((_, pid),) = effects()
    assert pid != os.getpid()


def test_lines_said_after_the_commit_are_kept(bank: Bank) -> None:
    """An attempt that is over may still say something: its lines are stored with it."""

    def body(job: JobContext) -> object:
        with job.transaction() as tx:
            tx.execute(bank.add, (job.id,))
        job.log("after")
        return None

    job = ran(bank, body)
    eventually(lambda: [line.text for line in bank.app.logs(job.id)] == ["after"])


def _nothing() -> None: ...
