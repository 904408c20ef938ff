"""SQLite's write lock in other hands, full disks, and the caller's own transactions."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import pytest

from host.children import Child, child
from store.making import PATIENCE, change, count, get, job, note, notes, put
from treadle.errors import (
    ConfigurationError,
    NoTransaction,
    OwnTransactionOpen,
    QueueFull,
    StoreBusy,
    StoreClosed,
    StoreError,
    StoreFull,
    StoreUnusable,
    TransactionTooOld,
)
from treadle.store.options import StoreOptions
from treadle.store.session import Session
from treadle.store.store import Store

HOLDER = """
    import sqlite3
    connection = sqlite3.connect(sys.argv[1], isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    say("held")
    hear()
    connection.execute("COMMIT")
    say("free")
    hear()
"""
SHARED = """
    import sqlite3, threading
    from treadle.errors import StoreError
    from treadle.model.job import NewJob, Options
    from treadle.store.options import StoreOptions
    from treadle.store.store import Store
    store = Store("sqlite:///" + sys.argv[1], StoreOptions(lock_timeout=0.4))
    store.submit_read(lambda session: None).result()
    end = threading.Event()
    others = [threading.Thread(target=end.wait) for _ in range(int(sys.argv[2]))]
    for other in others:
        other.start()
    connection = sqlite3.connect(sys.argv[1], isolation_level=None, check_same_thread=False)
    connection.execute("BEGIN IMMEDIATE")
    try:
        store.insert([NewJob(Options(task="mail"), b"")])
    except StoreError as error:
        say(type(error).__name__)
    end.set()
"""


@contextmanager
def held_elsewhere(path: Path) -> Iterator[Child]:
    """Another process holds the write lock until it hears something."""
    with child(HOLDER, path) as other:
        assert other.hear() == "held"
        yield other


@pytest.fixture
def mine(file_store: Store, path: Path) -> Iterator[sqlite3.Connection]:
    """The caller's own connection to the file."""
    with closing(sqlite3.connect(path, isolation_level=None, timeout=0.1)) as connection:
        yield connection


def test_a_held_lock_is_told_with_its_holder(file_store: Store, path: Path) -> None:
    """After lock_timeout the caller hears who holds the lock, and nothing is stored later."""
    with held_elsewhere(path) as other:
        with pytest.raises(StoreBusy, match=rf"0.4 s \(lock_timeout\) by pid {other.pid} .*Nothing was stored"):
            put(file_store)
        other.say("go")
        assert other.hear() == "free"
        file_store.run(note("next"))
    assert count(file_store, "treadle_jobs") == 0


def test_a_held_lock_is_told_to_async_callers(file_store: Store, path: Path) -> None:
    """The same on an event loop: StoreBusy, and nothing is stored later."""
    put(file_store)
    with held_elsewhere(path) as other:
        with pytest.raises(StoreBusy, match=rf"by pid {other.pid} "):
            asyncio.run(file_store.ainsert([job()]))
        other.say("go")
        assert other.hear() == "free"
        file_store.run(note("next"))
    assert count(file_store, "treadle_jobs") == 1


def test_a_lock_that_becomes_free_is_taken(file_store: Store, path: Path) -> None:
    """A future without a deadline is answered once the lock is free."""
    with held_elsewhere(path) as other:
        future = file_store.submit(note("waited"))
        assert not future.done()
        other.say("go")
        assert future.result(PATIENCE) == "waited"


def test_a_lock_of_a_dead_process_is_free(file_store: Store, path: Path) -> None:
    """The kernel frees the lock of a killed process, and its half transaction is gone."""
    with held_elsewhere(path) as other:
        future = file_store.submit(note("after"))
        other.kill()
        assert future.result(PATIENCE) == "after"


def test_what_was_given_up_does_not_hold_the_lane(file_store: Store, path: Path) -> None:
    """When every caller gave up, nothing of theirs is stored and the next operation is."""
    with held_elsewhere(path) as other:
        given_up = [file_store.submit(note(str(place))) for place in range(5)]
        cancelled = [future.cancel() for future in given_up]
        other.say("go")
        assert file_store.submit(note("next")).result(PATIENCE) == "next"
    stored = [str(place) for place, gone in enumerate(cancelled) if not gone]
    assert notes(file_store) == [*stored, "next"]


def test_close_answers_what_a_lock_holds_up(file_store: Store, path: Path) -> None:
    """Close gives up what cannot be stored, and tells every caller."""
    with held_elsewhere(path):
        futures = [file_store.submit(note(str(place))) for place in range(1200)]
        file_store.close(timeout=0.3)
        errors = [future.exception(PATIENCE) for future in futures]
    assert {type(error) for error in errors} == {StoreClosed}


def test_reads_go_on_while_the_lock_is_held(file_store: Store, path: Path) -> None:
    """Readers never wait for a writer."""
    ids = put(file_store, 3)
    with held_elsewhere(path):
        assert [get(file_store, number).id for number in ids] == ids


def test_a_full_disk_refuses_clearly_and_recovers(file_store: Store) -> None:
    """SQLITE_FULL is StoreFull, stores nothing of the refused batch, and the store works when there is room."""
    before = put(file_store)
    writer = file_store.engine.connections.writer()
    (pages,) = writer.execute("PRAGMA page_count").fetchone()
    (most,) = writer.execute("PRAGMA max_page_count").fetchone()
    writer.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StoreFull, match="is full"):
        file_store.insert([job(b"x" * 500_000)])
    assert count(file_store, "treadle_jobs") == count(file_store, "treadle_payloads") == len(before)
    writer.execute(f"PRAGMA max_page_count = {most}")
    file_store.insert([job(b"x" * 500_000)])
    assert count(file_store, "treadle_jobs") == 2


def test_a_full_disk_refuses_only_what_does_not_fit(file_store: Store) -> None:
    """In one group the large operation fails and the small ones are stored."""
    put(file_store, 100)
    change(file_store, "DELETE FROM treadle_jobs")
    writer = file_store.engine.connections.writer()
    (pages,) = writer.execute("PRAGMA page_count").fetchone()
    writer.execute(f"PRAGMA max_page_count = {pages}")

    def large(session: Session) -> None:
        session.change("INSERT INTO treadle_meta (name, value) VALUES ('large', hex(zeroblob(1000000)))")

    futures = [file_store.submit(each) for each in (note("a"), large, note("b"))]
    errors = [future.exception(PATIENCE) for future in futures]
    assert [type(error) for error in errors] == [type(None), StoreFull, type(None)]
    assert notes(file_store) == ["a", "b"]


# --- the caller's own transaction -------------------------------------------------------------------


def test_an_own_open_transaction_is_noticed(path: Path, file_store: Store) -> None:
    """Enqueue in a thread that holds the lock itself says so, with the remedy, and stores nothing."""
    patient = Store(f"sqlite:///{path}", StoreOptions(lock_timeout=PATIENCE))
    with closing(sqlite3.connect(path, isolation_level=None)) as own:
        own.execute("BEGIN IMMEDIATE")
        with pytest.raises(OwnTransactionOpen, match=r"using\(connection=conn\)"):
            put(patient)
        own.execute("ROLLBACK")
    assert count(patient, "treadle_jobs") == 0
    patient.close()


def test_an_own_open_transaction_is_noticed_on_a_loop(path: Path, file_store: Store) -> None:
    """The same for callers on an event loop."""
    patient = Store(f"sqlite:///{path}", StoreOptions(lock_timeout=PATIENCE))
    with closing(sqlite3.connect(path, isolation_level=None)) as own:
        own.execute("BEGIN IMMEDIATE")
        with pytest.raises(OwnTransactionOpen, match=r"using\(connection=conn\)"):
            asyncio.run(patient.ainsert([job()]))
        own.execute("ROLLBACK")
    assert count(patient, "treadle_jobs") == 0
    patient.close()


@contextmanager
def in_a_thread(path: Path, *, checked: bool) -> Iterator[sqlite3.Connection]:
    """A connection of another, living thread, which holds the write lock until the block ends."""
    with ThreadPoolExecutor(1) as pool:
        connect = partial(sqlite3.connect, path, isolation_level=None, check_same_thread=checked)
        connection = pool.submit(connect).result(PATIENCE)
        pool.submit(connection.execute, "BEGIN IMMEDIATE").result(PATIENCE)
        try:
            yield connection
        finally:
            pool.submit(connection.close).result(PATIENCE)


@pytest.mark.parametrize("checked", [True, False])
def test_another_threads_transaction_is_not_blamed_on_this_one(path: Path, file_store: Store, checked: bool) -> None:
    """Whoever waits for another thread's transaction is busy, also when that connection may change threads."""
    with in_a_thread(path, checked=checked), pytest.raises(StoreBusy):
        put(file_store)
    assert len(put(file_store)) == 1


def test_an_own_transaction_is_noticed_beside_other_threads(path: Path, file_store: Store) -> None:
    """A connection that sqlite3 keeps for this thread is this thread's, however many others there are."""
    with ThreadPoolExecutor(1) as pool, closing(sqlite3.connect(path, isolation_level=None)) as own:
        pool.submit(note, "x").result(PATIENCE)
        own.execute("BEGIN IMMEDIATE")
        with pytest.raises(OwnTransactionOpen):
            put(file_store)


@pytest.mark.parametrize(("others", "told"), [(0, "OwnTransactionOpen"), (1, "StoreBusy")])
def test_a_shared_connection_is_blamed_on_a_lone_thread_only(path: Path, others: int, told: str) -> None:
    """With check_same_thread=False it is this thread's transaction for certain only while there is no other."""
    with child(SHARED, path, others) as alone:
        assert alone.hear() == told


def test_a_reading_transaction_is_in_nobodys_way(mine: sqlite3.Connection, file_store: Store) -> None:
    """Only a transaction that writes holds the lock."""
    mine.execute("BEGIN")
    mine.execute("SELECT count(*) FROM treadle_jobs").fetchall()
    assert len(put(file_store)) == 1


def test_a_job_shares_the_fate_of_a_commit(mine: sqlite3.Connection, file_store: Store) -> None:
    """Enqueued on the caller's connection it is there after the commit and not before."""
    mine.execute("BEGIN IMMEDIATE")
    (number,) = file_store.insert_in(mine, [job(b"\0[1]", tags=("x",))])
    assert count(file_store, "treadle_jobs") == 0
    mine.execute("COMMIT")
    found = get(file_store, number)
    assert (found.arguments, found.tags) == (b"\0[1]", ("x",))


def test_a_job_shares_the_fate_of_a_rollback(mine: sqlite3.Connection, file_store: Store) -> None:
    """Rolled back with the caller's own rows, and the store goes on."""
    mine.execute("CREATE TABLE orders (id INTEGER)")
    mine.execute("BEGIN")
    mine.execute("INSERT INTO orders VALUES (1)")
    file_store.insert_in(mine, [job(), job()])
    mine.execute("ROLLBACK")
    assert count(file_store, "treadle_jobs") == count(file_store, "orders") == 0
    assert len(put(file_store)) == 1


def test_ids_given_in_a_callers_transaction_are_not_given_again(mine: sqlite3.Connection, file_store: Store) -> None:
    """Committed jobs keep their ids to themselves, from a cold store and from a warm one."""
    mine.execute("BEGIN IMMEDIATE")
    ids = list(file_store.insert_in(mine, [job()]))
    mine.execute("COMMIT")
    ids += put(file_store, 3)
    mine.execute("BEGIN IMMEDIATE")
    ids += file_store.insert_in(mine, [job()] * 100)
    mine.execute("COMMIT")
    ids += put(file_store, 3)
    assert len(set(ids)) == count(file_store, "treadle_jobs") == 107


def test_the_callers_transaction_stays_open(mine: sqlite3.Connection, file_store: Store) -> None:
    """Neither COMMIT nor ROLLBACK is run for the caller."""
    mine.execute("BEGIN IMMEDIATE")
    file_store.insert_in(mine, [job()])
    assert mine.in_transaction
    mine.execute("ROLLBACK")


def test_only_plain_statements_are_run_for_the_caller(mine: sqlite3.Connection, file_store: Store) -> None:
    """No PRAGMA, no transaction control and no savepoint reach the caller's connection."""
    said: list[str] = []
    mine.execute("BEGIN IMMEDIATE")
    mine.set_trace_callback(said.append)
    file_store.insert_in(mine, [job(), job(task="scan", tags=("x",))])
    mine.set_trace_callback(None)
    mine.execute("ROLLBACK")
    verbs = {text.split()[0].upper() for text in said if not text.startswith("--")}
    assert verbs <= {"INSERT", "UPDATE", "SELECT"}


def by_name(cursor: sqlite3.Cursor, row: tuple[object, ...]) -> dict[str, object]:
    """Rows as dictionaries."""
    return {column[0]: value for column, value in zip(cursor.description, row, strict=True)}


@pytest.mark.parametrize("factory", [by_name, sqlite3.Row, lambda cursor, row: None])
def test_the_callers_row_factory_does_not_matter(mine: sqlite3.Connection, file_store: Store, factory: object) -> None:
    """Rows of any kind on the caller's connection, and it is left as it was."""
    file_store.run(lambda s: s.change("INSERT INTO treadle_queues VALUES ('q', 1, 'refuse')"))
    mine.row_factory = factory
    mine.execute("BEGIN IMMEDIATE")
    file_store.insert_in(mine, [job(queue="q")])
    with pytest.raises(QueueFull):
        file_store.insert_in(mine, [job(queue="q")])
    mine.execute("COMMIT")
    assert mine.row_factory is factory


@pytest.mark.parametrize("factory", [bytes, bytearray, lambda text: None])
def test_the_callers_text_factory_does_not_matter(mine: sqlite3.Connection, file_store: Store, factory: object) -> None:
    """Text of any kind on the caller's connection changes nothing, caps hold, and it is left as it was."""
    file_store.run(lambda s: s.change("INSERT INTO treadle_queues VALUES ('q', 1, 'wait')"))
    mine.text_factory = factory
    mine.execute("BEGIN IMMEDIATE")
    file_store.insert_in(mine, [job(queue="q")])
    with pytest.raises(QueueFull) as caught:
        file_store.insert_in(mine, [job(queue="q")])
    mine.execute("COMMIT")
    assert (caught.value.wait, mine.text_factory) == (True, factory)
    assert count(file_store, "treadle_jobs") == 1


def test_without_a_transaction_nothing_is_stored(mine: sqlite3.Connection, file_store: Store) -> None:
    """A connection in autocommit is refused: the job could not share a fate."""
    with pytest.raises(NoTransaction, match="BEGIN IMMEDIATE"):
        file_store.insert_in(mine, [job()])
    assert count(file_store, "treadle_jobs") == 0


@pytest.mark.parametrize("name", ["other.db", ":memory:"])
def test_another_file_is_refused(tmp_path: Path, file_store: Store, name: str) -> None:
    """A connection on another database is refused, and the message names it."""
    place = name if name == ":memory:" else str(tmp_path / name)
    with closing(sqlite3.connect(place, isolation_level=None)) as other:
        other.execute("BEGIN")
        with pytest.raises(StoreUnusable, match=r"private database|other\.db"):
            file_store.insert_in(other, [job()])


@pytest.mark.parametrize("thing", [None, "conn", 5, object()])
def test_what_is_no_connection_is_refused(file_store: Store, thing: object) -> None:
    """The message says what is expected."""
    with pytest.raises(ConfigurationError, match=r"sqlite3\.Connection"):
        file_store.insert_in(thing, [job()])


def test_a_closed_connection_is_refused(mine: sqlite3.Connection, file_store: Store) -> None:
    """A connection the caller closed is told as such."""
    mine.close()
    with pytest.raises(ConfigurationError, match="closed"):
        file_store.insert_in(mine, [job()])


def test_another_threads_connection_is_refused(mine: sqlite3.Connection, file_store: Store) -> None:
    """A connection that sqlite3 keeps for its own thread is told as such."""
    mine.execute("BEGIN IMMEDIATE")
    with ThreadPoolExecutor(1) as pool:
        error = pool.submit(file_store.insert_in, mine, [job()]).exception(PATIENCE)
    assert isinstance(error, ConfigurationError)
    assert "thread" in str(error)


def test_a_transaction_that_began_too_early_is_told(mine: sqlite3.Connection, file_store: Store) -> None:
    """One that read before somebody else wrote cannot write any more; the remedy is named."""
    mine.execute("BEGIN")
    mine.execute("SELECT count(*) FROM treadle_jobs").fetchall()
    put(file_store)
    with pytest.raises(TransactionTooOld, match="BEGIN IMMEDIATE"):
        file_store.insert_in(mine, [job()])
    mine.execute("ROLLBACK")
    assert count(file_store, "treadle_jobs") == 1


def test_a_fresh_transaction_waits_for_the_lock(mine: sqlite3.Connection, file_store: Store, path: Path) -> None:
    """A caller's transaction that has done nothing yet is not too old: another writer is only busy."""
    with held_elsewhere(path):
        mine.execute("BEGIN")
        with pytest.raises(StoreBusy, match="BEGIN IMMEDIATE"):
            file_store.insert_in(mine, [job()])
        mine.execute("ROLLBACK")


def test_a_fresh_transaction_takes_a_lock_that_becomes_free(file_store: Store, path: Path) -> None:
    """A caller's transaction that has done nothing yet waits as long as its connection has patience."""
    with closing(sqlite3.connect(path, isolation_level=None, timeout=PATIENCE)) as patient:
        with held_elsewhere(path) as other:
            patient.execute("BEGIN")
            other.say("go")
            file_store.insert_in(patient, [job()])
        patient.execute("COMMIT")
    assert count(file_store, "treadle_jobs") == 1


# --- losing the ground ------------------------------------------------------------------------------


def test_operations_are_answered_without_the_side_folder(file_store: Store, path: Path) -> None:
    """When locks and bells are deleted under a cold store, every caller is answered and none hangs."""
    shutil.rmtree(f"{path}-treadle")
    errors = [file_store.submit(note(str(place))).exception(3) for place in range(2)]
    assert all(error is None or isinstance(error, StoreError) for error in errors)


def test_a_warm_store_outlives_its_side_folder(file_store: Store, path: Path) -> None:
    """When locks and bells are deleted under a store in use, enqueue still answers."""
    put(file_store)
    shutil.rmtree(f"{path}-treadle")
    assert len(put(file_store)) == 1


def test_the_command_line_shell_is_a_good_neighbour(file_store: Store, path: Path) -> None:
    """A plain sqlite3 shell, where there is one, reads and writes beside an open store."""
    shell = shutil.which("sqlite3")
    if shell is None:
        pytest.skip("there is no sqlite3 shell here")
    put(file_store, 2)
    sql = "UPDATE treadle_jobs SET priority = 5; SELECT count(*) FROM treadle_job_view WHERE priority = 5;"
    done = subprocess.run([shell, os.fspath(path), sql], capture_output=True, text=True, check=True, timeout=PATIENCE)
    assert done.stdout.strip() == "2"
    assert len(put(file_store)) == 1
