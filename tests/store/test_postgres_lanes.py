"""The lanes of PostgreSQL with their connection lost at every boundary: nothing lost, nothing twice, nothing denied."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

import postgres
from store.making import PATIENCE, PLACES, SHORT, note, notes, put, request, state
from treadle.errors import StoreBusy, StoreClosed, StoreError, StoreUnreachable
from treadle.host.failpoints import Stall, arm, disarm, recording
from treadle.model.job import JobState
from treadle.store.ops.claim import claim
from treadle.store.options import StoreOptions
from treadle.store.session import Session
from treadle.store.store import Store
from worker.kit import eventually

OURS = "datname = current_database() AND pid <> pg_backend_pid()"
KILL = f"SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE {OURS}"
COUNT = f"SELECT count(*) FROM pg_stat_activity WHERE {OURS}"


@pytest.fixture
def server() -> Iterator[str]:
    """A database on PostgreSQL."""
    with postgres.database() as made:
        yield made


@pytest.fixture
def store(server: str) -> Iterator[Store]:
    """A store on it."""
    opened = Store(server, StoreOptions(durability="off", connections=4))
    yield opened
    disarm()
    opened.close()


@pytest.fixture
def admin(server: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection of somebody who may end others."""
    with psycopg.connect(server, autocommit=True) as connection:
        yield connection


def killing(admin: psycopg.Connection[Any]) -> Callable[[str], object]:
    """An action that ends every connection of the store; returns when they are gone."""
    return lambda _: admin.execute(KILL).fetchall()


def connected(admin: psycopg.Connection[Any]) -> int:
    """How many connections there are to the database, this one left out."""
    found = admin.execute(COUNT).fetchone()
    return found[0] if found else 0


# Lost at a boundary ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("boundary", ["before_begin", "after_begin", "before_commit", "after_commit", "after_told"])
@pytest.mark.parametrize("alone", [True, False], ids=["alone", "lane"])
def test_a_connection_lost_at_a_boundary_stores_once(
    store: Store, admin: psycopg.Connection[Any], boundary: str, alone: bool
) -> None:
    """Wherever the connection is lost, the caller gets an answer and the work is there exactly once."""
    store.run(note("before"))
    trap = arm(killing(admin), f"write.*{boundary}")
    assert store.run(note("once")) == "once" if alone else store.submit(note("once")).result(PATIENCE) == "once"
    assert trap.sprung == 1
    assert store.run(note("after")) == "after"
    assert notes(store) == ["before", "once", "after"]


@pytest.mark.parametrize("told", [True, False], ids=["committed", "not committed"])
def test_a_commit_without_an_answer_is_looked_up(
    store: Store, admin: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch, told: bool
) -> None:
    """The connection is lost around the COMMIT itself: the row of its mark says whether it happened."""
    real, cut = psycopg.Connection.execute, threading.Event()

    def execute(self: Any, query: Any, *given: Any, **more: Any) -> Any:
        ending = isinstance(query, str) and "RETURNING 1" in query and "COMMIT" in query
        if not ending or cut.is_set():
            return real(self, query, *given, **more)
        cut.set()
        if told:
            real(self, query, *given, **more)  # it was committed; its answer is what is lost
        admin.execute(KILL).fetchall()
        return real(self, "SELECT 1")

    monkeypatch.setattr(psycopg.Connection, "execute", execute)
    with recording() as points:
        assert store.run(note("once")) == "once"
    assert cut.is_set()
    assert notes(store) == ["once"]
    assert len([point for point in points if point.endswith("before_begin")]) == (1 if told else 2)


def test_a_mark_that_was_taken_away_fences_the_commit(store: Store, admin: psycopg.Connection[Any]) -> None:
    """Who takes a connection's mark away knows that it never commits; its work is run again, once."""
    store.run(note("before"))
    trap = arm(lambda _: admin.execute("DELETE FROM treadle.treadle_commits"), "write.*before_commit")
    assert store.run(note("once")) == "once"
    assert trap.seen == 2
    assert notes(store) == ["before", "once"]


def test_a_commit_that_still_travels_is_fenced(store: Store, admin: psycopg.Connection[Any]) -> None:
    """While one transaction is about to commit, its mark is taken away: the late COMMIT stores nothing."""
    stall, runs = Stall(), list[int]()
    arm(stall, "fenced.*before_commit")

    def fenced(session: Session) -> int:
        runs.append(session.change("INSERT INTO treadle_meta (name, value) VALUES ('fenced', 'x')"))
        return len(runs)

    answer = store.submit(fenced)
    assert stall.reached.wait(PATIENCE)
    admin.execute("DELETE FROM treadle.treadle_commits")
    stall.release()
    assert answer.result(PATIENCE) == 2
    found = admin.execute("SELECT count(*) FROM treadle.treadle_meta WHERE name = 'fenced'").fetchone()
    assert found == (1,)


def test_a_group_whose_connection_is_lost_is_stored_once(store: Store, admin: psycopg.Connection[Any]) -> None:
    """Many works in lanes, the connections killed under them again and again: each is there once."""
    arm(killing(admin), "write.before_commit", times=5)
    futures = [store.submit(note(f"n{number}")) for number in range(60)]
    assert [future.result(PATIENCE) for future in futures] == [f"n{number}" for number in range(60)]
    assert sorted(notes(store)) == sorted(f"n{number}" for number in range(60))


def test_a_read_whose_connection_is_lost_is_read_again(store: Store, admin: psycopg.Connection[Any]) -> None:
    """A read on dead connections is answered by a new one."""
    (number,) = put(store)
    store.submit_read(lambda session: session.value("SELECT 1")).result(PATIENCE)
    admin.execute(KILL).fetchall()
    assert state(store, number) is JobState.READY


# What an operation does to its transaction -------------------------------------------------------------------------


def test_a_hidden_failure_stores_nothing(store: Store) -> None:
    """An operation that catches the database's error cannot commit by ROLLBACK: its caller hears of it."""

    def hiding(session: Session) -> str:
        session.change("INSERT INTO treadle_meta (name, value) VALUES ('hidden', 'x')")
        with pytest.raises(psycopg.Error):
            session.change("INSERT INTO treadle_meta (name, value) VALUES ('hidden', 'y')")
        return "stored"

    with pytest.raises(StoreError, match="was not committed"):
        store.run(hiding)
    assert store.read(lambda session: session.value("SELECT 1 FROM treadle_meta WHERE name = 'hidden'")) is None
    assert store.run(note("next")) == "next"


@pytest.mark.parametrize("ending", ["COMMIT", "ROLLBACK"])
def test_an_operation_that_ends_its_transaction_is_told_so(store: Store, ending: str) -> None:
    """A COMMIT or ROLLBACK inside an operation is an error of it, and the lane goes on."""

    def ends(session: Session) -> None:
        session.rows("SELECT 1")
        session.connection.execute(ending)

    with pytest.raises(StoreError, match="IDLE"):
        store.run(ends)
    assert store.run(note("next")) == "next"


# Unreachable, closed, leaking, forked ------------------------------------------------------------------------------


@contextmanager
def own_server() -> Iterator[postgres.Server]:
    """A server that may be stopped."""
    made = postgres.Server(postgres.needed(), postgres.SAFE)
    try:
        yield made
    finally:
        if not (made.folder / "data" / "postmaster.pid").exists():
            made.start()
        made.remove()


def test_a_server_that_is_down_is_unreachable_until_it_is_back() -> None:
    """Down for longer than lock_timeout: StoreUnreachable and nothing stored; up again, the same store works."""
    with own_server() as server:
        store = Store(server.url(), StoreOptions(lock_timeout=SHORT))
        store.run(note("before"))
        server.stop()
        with pytest.raises(StoreUnreachable):
            store.run(note("lost"))
        with pytest.raises(StoreUnreachable):
            store.wait(store.submit(note("lost")))
        with pytest.raises(StoreUnreachable):
            store.read(lambda session: session.value("SELECT 1"))
        server.start()
        assert store.run(note("after")) == "after"
        assert notes(store) == ["before", "after"]
        store.close()


def test_what_waits_for_a_server_hears_of_the_close() -> None:
    """Closing while nobody answers ends every wait, with an error that says so."""
    with own_server() as server:
        store = Store(server.url(), StoreOptions(lock_timeout=PATIENCE))
        server.stop()
        waiting = store.submit(note("lost"))
        store.close(timeout=0.1)
        with pytest.raises((StoreClosed, StoreUnreachable)):
            waiting.result(PATIENCE)
        for verb in (store.run, store.submit):
            with pytest.raises(StoreClosed):
                verb(note("late"))


def test_no_connection_leaks(server: str, admin: psycopg.Connection[Any]) -> None:
    """A hundred works through killed connections use no more than allowed, and closing leaves none, nor a mark."""
    store = Store(server, StoreOptions(durability="off", connections=4))
    for number in range(100):
        if number % 20 == 10:
            admin.execute(KILL).fetchall()
        store.run(note(str(number)))
        assert connected(admin) <= 4
    with pytest.raises(ZeroDivisionError):
        store.run(lambda _: 1 // 0)
    store.close()
    eventually(lambda: connected(admin) == 0)
    left = admin.execute("SELECT count(*) FROM treadle.treadle_commits").fetchone()
    assert left is not None
    assert left[0] <= 5  # one for each connection that was killed: nobody could take it away


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_opens_connections_of_its_own(store: Store) -> None:
    """A child stores on its own connections, and its end does not disturb those of its parent."""
    put(store, 3)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if put(store, 2) and store.submit(note("child")).result(PATIENCE) == "child" else 2
        finally:
            os._exit(code)  # with no clean-up, as multiprocessing does
    assert os.waitpid(child, 0)[1] == 0
    next(PLACES)  # the child has taken that one
    with recording() as points:
        assert store.run(note("parent")) == "parent"
    assert len([point for point in points if point.endswith("before_begin")]) == 1  # its connection is as it was
    assert sorted(notes(store)) == ["child", "parent"]
    assert len(set(put(store, 3))) == 3


def test_the_marks_of_dead_connections_go(store: Store, admin: psycopg.Connection[Any]) -> None:
    """A mark that nobody has used for a month is taken away by the next connection that makes one."""
    old = "INSERT INTO treadle.treadle_commits (mark, number, made_at) VALUES ('old', 7, 1)"
    admin.execute(old)
    admin.execute(KILL).fetchall()
    store.run(note("next"))
    assert admin.execute("SELECT count(*) FROM treadle.treadle_commits WHERE mark = 'old'").fetchone() == (0,)


def busy(session: Session) -> None:
    """An operation that the store refuses for now, as taking numbers while it is being filled."""
    raise StoreBusy("not now")


def test_an_operation_that_is_refused_for_now_fails_alone(server: str) -> None:
    """Its neighbours in the group are stored: only a server that cannot be reached concerns all of them."""
    store, stall = Store(server, StoreOptions(durability="off", connections=2)), Stall()  # one lane
    arm(stall, "write.after_begin", times=1)
    first = store.submit(note("first"))
    assert stall.reached.wait(PATIENCE)
    before, refused, after = store.submit(note("before")), store.submit(busy), store.submit(note("after"))
    stall.release()
    assert [one.result(PATIENCE) for one in (first, before, after)] == ["first", "before", "after"]
    assert type(refused.exception(PATIENCE)) is StoreBusy
    assert notes(store) == ["first", "before", "after"]
    disarm()
    store.close()


def test_a_store_whose_connections_are_all_in_use_is_busy_and_not_away(server: str) -> None:
    """Who finds no free connection for lock_timeout is told so, and what to do."""
    store, stall = Store(server, StoreOptions(durability="off", connections=1, lock_timeout=SHORT)), Stall()
    arm(stall, "write.after_begin", times=1)
    first = store.submit(note("first"))
    assert stall.reached.wait(PATIENCE)
    with pytest.raises(StoreBusy, match="more connections") as caught:
        store.read(lambda session: session.value("SELECT 1"))
    assert type(caught.value) is StoreBusy
    stall.release()
    assert first.result(PATIENCE) == "first"
    disarm()
    store.close()


def test_no_plan_is_kept(store: Store) -> None:
    """A plan made while a table was empty would read all of it later: each run is planned for what is there then."""
    look = (
        "SELECT sum(generic_plans)::int, sum(custom_plans)::int FROM pg_prepared_statements WHERE statement <> 'COMMIT'"
    )

    def claimed(session: Session) -> Any:
        claim(session, request(1))
        return session.row(look)

    for _ in range(20):
        put(store)
        generic, custom = store.run(claimed)
        store.read(lambda session: session.value("SELECT count(*) FROM treadle_jobs WHERE id = ?", (1,)))
    assert (generic, custom > 40) == (0, True)
    generic, custom = store.read(lambda session: session.row(look))
    assert (generic, custom > 10) == (0, True)
