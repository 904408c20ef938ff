"""Compacting in place: small afterwards, and sound whatever comes between."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

from store.making import PATIENCE, change, job, put
from treadle.clock import HeldClock
from treadle.errors import StoreBusy, StoreFull
from treadle.store import health
from treadle.store.compaction import compact
from treadle.store.ops import find
from treadle.store.options import StoreOptions
from treadle.store.store import Store
from treadle.store.verify import verify

COMPACT = """
import sys
from treadle.store.compaction import compact
from treadle.store.store import Store
compact(Store("sqlite:///" + sys.argv[1]))
"""


def fill(store: Store, jobs: int = 500, left: int = 5) -> None:
    """Store jobs of 4 kB and delete all but the first few."""
    ids = store.insert([job(bytes(4000))] * jobs)
    change(store, f"DELETE FROM treadle_jobs WHERE id > {ids[left - 1]}")


def sound(store: Store) -> bool:
    """True when every check holds."""
    return all(verdict.sound for verdict in verify(store))


def test_nothing_unused_is_left(file_store: Store) -> None:
    """No page is unused afterwards, the log is short, and the file is sound and says when it was compacted."""
    fill(file_store)
    before = file_store.read(health.space)
    done = compact(file_store)
    after = file_store.read(health.space)
    assert before.unused > 1_000_000
    assert after.unused == 0
    assert done.before > 2_000_000 > done.after == health.bytes_of(file_store.path)
    assert health.wal_bytes(file_store.path) < 50_000
    assert (done.complete, sound(file_store)) == (True, True)
    assert put(file_store) > [500]


def test_without_room_nothing_is_begun(path: Path, clock: HeldClock) -> None:
    """The message says how much is needed and how much there is."""
    store = Store(f"sqlite:///{path}", StoreOptions(durability="normal", min_free=0), clock)
    fill(store)
    store.close()
    store = Store(f"sqlite:///{path}", StoreOptions(durability="normal", min_free=1 << 60), clock)
    before = health.bytes_of(path)
    with pytest.raises(StoreFull, match=r"needs .* free bytes"):
        compact(store)
    assert health.bytes_of(path) == before
    store.close()


def test_a_reader_keeps_the_file_from_shrinking(file_store: Store) -> None:
    """With a read transaction open it is not complete, which is told; nothing is lost, and the next time it is."""
    fill(file_store)
    with closing(sqlite3.connect(file_store.path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM treadle_jobs").fetchone() == (5,)
        assert compact(file_store).complete is False
        assert reader.execute("SELECT count(*) FROM treadle_jobs").fetchone() == (5,)
        reader.execute("COMMIT")
    assert compact(file_store).complete is True
    assert sound(file_store)


def test_a_writer_makes_it_wait_and_then_give_up(file_store: Store) -> None:
    """While somebody else is writing nothing is changed; after lock_timeout it says so."""
    fill(file_store)
    with closing(sqlite3.connect(file_store.path, isolation_level=None)) as writer:
        writer.execute("PRAGMA wal_autocheckpoint = 0")
        writer.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreBusy):
            compact(file_store)
        writer.execute("ROLLBACK")
    assert file_store.read(health.space).unused > 0


def test_writers_beside_it_lose_nothing(path: Path) -> None:
    """A producer that goes on all the while finds every job it stored."""
    store = Store(f"sqlite:///{path}", StoreOptions(durability="normal"))
    fill(store)
    stored: list[int] = []
    enough, stop = threading.Event(), threading.Event()

    def produce() -> None:
        while not stop.is_set():
            stored.extend(put(store))
            if len(stored) >= 20:
                enough.set()

    thread = threading.Thread(target=produce)
    thread.start()
    try:
        assert enough.wait(PATIENCE)
        for _ in range(5):
            compact(store)
    finally:
        stop.set()
        thread.join(PATIENCE)
    assert len(store.read(lambda session: find.states(session, stored))) == len(stored)
    assert sound(store)
    store.close()


def test_a_kill_in_the_middle_leaves_a_sound_file(path: Path) -> None:
    """SIGKILL while the new pages are written: the jobs are there, every check holds, and it can be done again."""
    store = Store(f"sqlite:///{path}", StoreOptions(durability="normal"))
    store.insert([job(bytes(4000))] * 4000)
    change(store, "DELETE FROM treadle_jobs WHERE id % 2")
    before = health.bytes_of(path)
    process = subprocess.Popen([sys.executable, "-c", COMPACT, str(path)])
    pause = threading.Event()
    while health.bytes_of(path) <= before and process.poll() is None:
        pause.wait(0.001)
    process.kill()
    process.wait(PATIENCE)
    assert store.read(lambda session: session.value("SELECT count(*) FROM treadle_jobs")) == 2000
    assert sound(store)
    assert compact(store).complete
    assert store.read(lambda session: session.value("SELECT count(*) FROM treadle_jobs")) == 2000
    store.close()
