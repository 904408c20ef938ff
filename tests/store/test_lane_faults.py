"""The lane with a fault at each of its boundaries: told honestly, never twice, and it goes on."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from pathlib import Path
from typing import Any

import pytest

from store.making import PATIENCE, count, job, note, notes, put
from treadle import defaults
from treadle.errors import OutcomeUnknown, StoreBroken, StoreBusy, StoreError, StoreFull
from treadle.host.failpoints import ALONE, Stall, arm, disarm, raising, recording
from treadle.store import connections
from treadle.store.session import Session
from treadle.store.sqlite import failure, is_damage, translate
from treadle.store.store import Store

pytestmark = pytest.mark.sqlite
UNSTORED = ("before_begin", "after_begin", "before_commit")
STORED = ("after_commit", "before_told", "after_told")


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    """No trap outlives its test."""
    yield
    disarm()


def boom() -> RuntimeError:
    return RuntimeError("boom")


def error(name: str) -> Callable[[str], object]:
    """The action that raises SQLite's error of that name."""
    return raising(lambda: failure(name))


def group(store: Store, *names: str, guarded: bool = True) -> list[Future[str]]:
    """Notes that share one transaction; returns once all are answered."""
    stall, free = Stall(), threading.Event()
    arm(stall, "hold.after_begin")

    def hold(session: Session) -> None:
        free.set()

    first = store.submit(hold)
    assert stall.reached.wait(PATIENCE)
    futures = [store.submit(note(name), guarded=guarded) for name in names]
    stall.release()
    first.result(PATIENCE)
    assert not wait_for(futures, PATIENCE).not_done
    return futures


# One boundary after another ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("boundary", UNSTORED)
def test_alone_an_unknown_error_before_the_commit_stores_nothing(store: Store, boundary: str) -> None:
    """The caller hears the error, no transaction stays open, and the next call works."""
    arm(raising(boom), f"*.{ALONE}{boundary}")
    with pytest.raises(RuntimeError, match="boom"):
        store.run(note("lost"))
    assert store.run(note("next")) == "next"
    assert notes(store) == ["next"]


def test_alone_an_unknown_error_after_the_commit_denies_nothing(store: Store) -> None:
    """What is stored is told to be stored, whatever breaks between the commit and the answer."""
    for boundary in ("after_commit", "before_told"):
        trap = arm(raising(boom), f"*.{ALONE}{boundary}")
        assert store.run(note(boundary)) == boundary
        assert trap.sprung == 1
    assert notes(store) == ["after_commit", "before_told"]


@pytest.mark.parametrize("boundary", UNSTORED)
def test_a_group_hears_an_unknown_error_before_the_commit(store: Store, boundary: str) -> None:
    """Everybody in the group hears it, nothing is stored, and the lane's thread serves the next."""
    arm(raising(boom), f"write.{boundary}")
    assert {type(future.exception()) for future in group(store, "a", "b")} == {RuntimeError}
    assert store.submit(note("next")).result(PATIENCE) == "next"
    assert notes(store) == ["next"]


@pytest.mark.parametrize("boundary", STORED)
def test_a_group_hears_no_error_after_the_commit(store: Store, boundary: str) -> None:
    """Stored is told as stored, and the lane's thread serves the next."""
    trap = arm(raising(boom), f"write.{boundary}")
    assert [future.result() for future in group(store, "a", "b")] == ["a", "b"]
    assert store.submit(note("next")).result(PATIENCE) == "next"
    assert trap.sprung == 1
    assert notes(store) == ["a", "b", "next"]


def test_a_busy_lone_call_goes_through_the_lane(store: Store) -> None:
    """SQLITE_BUSY on the caller's thread is no error: the lane's thread waits for the lock."""
    for boundary in UNSTORED:
        arm(error("SQLITE_BUSY"), f"*.{ALONE}{boundary}")
        with recording() as points:
            assert store.run(note(boundary)) == boundary
        assert f"write.{boundary}" in points
    assert notes(store) == list(UNSTORED)


def test_a_busy_group_waits(store: Store) -> None:
    """A lock that is taken five times in a row delays the group and changes nothing."""
    arm(error("SQLITE_BUSY"), "write.before_begin", times=5)
    assert [future.result() for future in group(store, "a", "b")] == ["a", "b"]


def test_a_full_disk_is_told_and_passes(store: Store) -> None:
    """SQLITE_FULL at the commit: the group is tried one by one, who fails hears StoreFull, nothing is half stored."""
    arm(error("SQLITE_FULL"), "write.before_commit", times=2)
    outcomes = [future.exception() for future in group(store, "a", "b", "c")]
    assert [type(outcome) for outcome in outcomes] == [StoreFull, type(None), type(None)]
    assert notes(store) == ["b", "c"]


# The disk fails -----------------------------------------------------------------------------------------------------


def test_a_failure_at_the_commit_is_an_unknown_outcome(store: Store) -> None:
    """Enqueue does not say that nothing was stored, names the jobs in question, and is not tried again."""
    put(store)
    arm(error("SQLITE_IOERR_FSYNC"), "insert.*before_commit")
    with recording() as points, pytest.raises(OutcomeUnknown, match="may be stored or not") as caught:
        put(store, 3)
    assert len(caught.value.ids) == 3
    assert [point for point in points if point.endswith("before_commit")] == ["insert.alone.before_commit"]
    assert isinstance(store.damage, StoreBroken)
    put(store)
    assert count(store, "treadle_jobs") == 2


def test_an_async_caller_hears_the_unknown_outcome(store: Store) -> None:
    """The same on an event loop, each caller with its own jobs."""
    put(store)
    arm(error("SQLITE_IOERR_FSYNC"), "insert.before_commit")

    async def both() -> list[object]:
        return await asyncio.gather(store.ainsert([job()]), store.ainsert([job()]), return_exceptions=True)

    first, second = asyncio.run(both())
    assert isinstance(first, OutcomeUnknown)
    assert len(first.ids) == 1
    assert isinstance(second, OutcomeUnknown) == (count(store, "treadle_jobs") == 1)


def test_a_group_is_not_tried_again_after_a_failure_at_the_commit(store: Store) -> None:
    """A blind second try could store twice what the first try had stored."""
    arm(error("SQLITE_IOERR_WRITE"), "write.before_commit")
    with recording() as points:
        outcomes = [future.exception() for future in group(store, "a", "b")]
    assert {type(outcome) for outcome in outcomes} == {OutcomeUnknown}
    assert points.count("write.before_commit") == 1
    assert notes(store) == []


def test_a_failure_before_the_commit_is_known(store: Store) -> None:
    """The disk failed earlier: StoreBroken says that nothing was stored."""
    arm(error("SQLITE_IOERR_READ"), "*after_begin", times=None)
    with pytest.raises(StoreBroken, match="Nothing was stored") as caught:
        store.run(note("lost"))
    assert not isinstance(caught.value, OutcomeUnknown)
    outcomes = [future.exception() for future in [store.submit(note("a")), store.submit(note("b"))]]
    assert {type(outcome) for outcome in outcomes} == {StoreBroken}
    disarm()
    assert notes(store) == []


def test_a_failure_inside_one_operation_fails_its_group(store: Store) -> None:
    """On a disk that fails, not even the neighbours' savepoints are trusted."""

    def broken(session: Session) -> None:
        note("half")(session)
        raise failure("SQLITE_IOERR_READ")

    stall = Stall()
    arm(stall, "write.after_begin")
    first = store.submit(note("first"))
    assert stall.reached.wait(PATIENCE)
    futures: list[Future[object]] = [store.submit(note("a")), store.submit(broken), store.submit(note("b"))]
    stall.release()
    assert first.result(PATIENCE) == "first"
    assert {type(future.exception(PATIENCE)) for future in futures} == {StoreBroken}
    assert notes(store) == ["first"]


def test_a_failure_while_numbers_are_burned_is_no_unknown_job(store: Store) -> None:
    """Job numbers may be burned or not; no job was stored, and that is what enqueue says."""
    arm(error("SQLITE_IOERR_FSYNC"), "burn.*before_commit", times=None)
    for enqueue in (lambda: put(store), lambda: asyncio.run(store.ainsert([job()]))):
        with pytest.raises(StoreBroken, match="no job was stored") as caught:
            enqueue()
        assert not isinstance(caught.value, OutcomeUnknown)
    disarm()
    assert count(store, "treadle_jobs") == 0


def test_a_checkpoint_that_fails_is_damage(file_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The enqueue before it is stored and told so; the failure is remembered for workers."""
    monkeypatch.setattr(defaults, "CHECKPOINT_FRAMES", 1)
    arm(error("SQLITE_IOERR_FSYNC"), "wal_checkpoint.after_begin")
    assert len(put(file_store)) == 1
    assert isinstance(file_store.damage, StoreBroken)


@pytest.mark.parametrize("name", ["SQLITE_BUSY", "SQLITE_FULL"])
def test_a_checkpoint_that_cannot_be_made_is_no_damage(
    file_store: Store, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """It is made later."""
    monkeypatch.setattr(defaults, "CHECKPOINT_FRAMES", 1)
    trap = arm(error(name), "wal_checkpoint.before_begin")
    assert len(put(file_store)) == 1
    assert trap.sprung == 1
    assert file_store.damage is None
    with recording() as points:
        put(file_store)
    assert "wal_checkpoint.after_begin" in points


def test_a_checkpoint_without_a_gate_denies_nothing(file_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder of locks is gone when a checkpoint is due: what was stored just before is told as stored."""
    monkeypatch.setattr(defaults, "CHECKPOINT_FRAMES", 1)
    side = file_store.side

    def remove(_: str) -> None:
        side.rename(side.with_name("elsewhere"))
        file_store.engine.connections._gate.close()

    put(file_store)
    arm(remove, "insert.alone.before_told")
    assert len(put(file_store)) == 1
    side.with_name("elsewhere").rename(side)
    assert count(file_store, "treadle_jobs") == 2


def test_half_an_opening_is_closed_again(file_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second of the lane's connections cannot be opened: told, remembered, and both are opened next time."""
    real, made = connections.connect, []

    def second_fails(*words: Any, **more: Any) -> sqlite3.Connection:
        made.append(words)
        if len(made) == 2:
            raise failure("SQLITE_IOERR_READ")
        return real(*words, **more)

    monkeypatch.setattr(connections, "connect", second_fails)
    monkeypatch.setattr(defaults, "CHECKPOINT_FRAMES", 1)
    with pytest.raises(StoreBroken):
        put(file_store)
    assert isinstance(file_store.damage, StoreBroken)
    with recording() as points:
        assert len(put(file_store)) == 1
    assert "wal_checkpoint.after_begin" in points


# After the failure ----------------------------------------------------------------------------------------------------


def test_the_next_worker_looks_first(file_store: Store, path: Path) -> None:
    """A failure leaves a mark; a file that is whole clears it, in this process and for others."""
    put(file_store)
    arm(error("SQLITE_IOERR_FSYNC"), "insert.*before_commit")
    with pytest.raises(OutcomeUnknown):
        put(file_store)
    mark = file_store.side / "suspect"
    assert mark.exists()
    file_store.engine.check_after_damage()
    assert not mark.exists()
    assert file_store.damage is None


def test_after_a_failure_the_log_is_copied_first(file_store: Store, path: Path) -> None:
    """Recovery may have found what only memory has: the next to open the file checkpoints before it commits."""
    put(file_store)
    arm(error("SQLITE_IOERR_FSYNC"), "insert.*before_commit")
    with pytest.raises(OutcomeUnknown):
        put(file_store)
    disarm()
    store = Store(f"sqlite:///{path}")
    with recording() as points:
        put(store, 2)
        put(store, 2)
    store.close()
    assert points[:2] == ["wal_checkpoint.before_begin", "wal_checkpoint.after_begin"]
    assert points.count("wal_checkpoint.before_begin") == 1


def test_a_corrupt_file_is_refused_after_a_failure(file_store: Store, path: Path) -> None:
    """What the quick check finds is told, and the mark stays."""
    put(file_store, 500)
    file_store.close()
    content = bytearray(path.read_bytes())
    content[5 * 4096 : 12 * 4096] = bytes(7 * 4096)
    path.write_bytes(content)
    store = Store(f"sqlite:///{path}")
    try:
        (store.side / "suspect").touch()
        with pytest.raises(StoreBroken, match=r"corrupt|malformed"):
            store.engine.check_after_damage()
        assert (store.side / "suspect").exists()
    finally:
        store.close()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("SQLITE_IOERR_WRITE", StoreBroken), ("SQLITE_IOERR_FSYNC", StoreBroken), ("SQLITE_CORRUPT", StoreBroken),
        ("SQLITE_NOTADB", StoreBroken), ("SQLITE_IOERR_SHMSIZE", StoreFull), ("SQLITE_FULL", StoreFull),
        ("SQLITE_BUSY", StoreBusy), ("SQLITE_IOERR_NOMEM", StoreError),
    ],
)  # fmt: skip
def test_what_is_damage(name: str, kind: type[StoreError], path: Path) -> None:
    """No room and no memory are not the disk's failures, although SQLite calls them I/O errors."""
    made: sqlite3.Error = failure(name)
    assert type(translate(made, path)) is kind
    assert is_damage(made) == (kind is StoreBroken)
