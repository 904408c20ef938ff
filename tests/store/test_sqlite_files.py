"""What is written to the disk: the log stays small, large arguments are written once."""

from __future__ import annotations

import os
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from store.making import PATIENCE, apply, change, count, failure, job, put, success, take
from treadle.clock import HeldClock
from treadle.errors import ConfigurationError
from treadle.host.process import spawn_python
from treadle.store.adoption import adopt
from treadle.store.backup import backup
from treadle.store.ops import meta
from treadle.store.options import StoreOptions
from treadle.store.store import Store
from treadle.store.watch import FileWatch

PRODUCER = """
import sys
from treadle.model.job import NewJob, Options
from treadle.store.options import StoreOptions
from treadle.store.store import Store
store = Store("sqlite:///" + sys.argv[1], StoreOptions(durability="off"))
options = Options(task="mail")
for place in range(int(sys.argv[2])):
    store.insert([NewJob(options, b"{}")])
print(__import__("os").stat(sys.argv[1] + "-wal").st_size)
store.close()
"""


def log_size(store: Store) -> int:
    """Bytes of the write-ahead log."""
    return os.stat(f"{store.path}-wal").st_size


def test_the_log_of_a_lonely_producer_stays_small(path: Path) -> None:
    """20,000 single enqueues by a process without any worker leave a log below 16 MB."""
    with spawn_python(["-c", PRODUCER, str(path), "20000"], stdout=subprocess.PIPE) as process:
        said, _ = process.communicate(timeout=PATIENCE * 2)
    assert process.returncode == 0
    assert int(said) < 16_000_000
    store = Store(f"sqlite:///{path}")
    assert count(store, "treadle_jobs") == 20_000
    store.close()


def test_the_log_stays_small_over_many_large_batches(file_store: Store) -> None:
    """Rows in bulk are checkpointed as well."""
    for _ in range(40):
        put(file_store, 1000)
    assert log_size(file_store) < 16_000_000


def test_a_checkpoint_never_outruns_a_reader(file_store: Store, path: Path) -> None:
    """While a foreign reader keeps its snapshot the store goes on, and afterwards the log is reused."""
    put(file_store, 10)
    with closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM treadle_jobs").fetchone() == (10,)
        for _ in range(10):
            put(file_store, 1000)
        assert reader.execute("SELECT count(*) FROM treadle_jobs").fetchone() == (10,)
        reader.execute("COMMIT")
    before = log_size(file_store)
    for _ in range(10):
        put(file_store, 1000)
    assert log_size(file_store) < before + 8_000_000
    assert count(file_store, "treadle_jobs") == 20_010


@pytest.mark.parametrize("outcome", [success, failure])
def test_large_arguments_are_written_once(file_store: Store, outcome: object) -> None:
    """Claiming and settling a job of 900 kB writes less than 200 kB."""
    file_store.insert([job(b"x" * 900_000)])
    file_store.engine.connections.checkpoint()
    before = log_size(file_store)
    with closing(sqlite3.connect(file_store.path)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM treadle_jobs").fetchone()
        (claimed,) = take(file_store)
        apply(file_store, outcome(claimed))  # type: ignore[operator]
        assert log_size(file_store) - before < 200_000


def test_a_copy_holds_everything_and_is_marked(file_store: Store, tmp_path: Path) -> None:
    """A backup made beside a running store has its jobs and says that it is a copy."""
    put(file_store, 100)
    copy = backup(file_store, tmp_path / "copy.db")
    store = Store(f"sqlite:///{copy}")
    assert count(store, "treadle_jobs") == 100
    assert store.read(meta.backup_mark) is not None
    assert file_store.read(meta.backup_mark) is None
    store.close()


def test_a_copy_never_overwrites(file_store: Store, tmp_path: Path) -> None:
    """An existing file is left alone."""
    (tmp_path / "copy.db").write_text("mine")
    with pytest.raises(ConfigurationError, match="exists"):
        backup(file_store, tmp_path / "copy.db")
    assert (tmp_path / "copy.db").read_text() == "mine"


def test_a_copy_is_one_private_file(file_store: Store, tmp_path: Path) -> None:
    """No log and no half file lie beside it."""
    (tmp_path / "to").mkdir()
    copy = backup(file_store, tmp_path / "to" / "copy.db")
    assert [each.name for each in copy.parent.iterdir()] == ["copy.db"]
    assert copy.stat().st_mode & 0o777 == 0o600


def test_an_adopted_copy_gives_back_what_ran(file_store: Store, tmp_path: Path) -> None:
    """After adopting the copy, what ran when it was made can be claimed."""
    put(file_store, 2)
    take(file_store, 1)
    store = Store(f"sqlite:///{backup(file_store, tmp_path / 'copy.db')}")
    assert adopt(store) == 1
    assert adopt(store) is None
    assert len(take(store)) == 2
    store.close()


def test_a_watch_that_was_closed_is_in_doubt(file_store: Store, path: Path) -> None:
    """Its next connection counts from anew, so whatever it finds may be new."""
    watch = FileWatch(file_store.engine.facts)
    for _ in range(2):
        assert watch.changed()
        assert not watch.changed()
        watch.close()


def test_a_watch_sees_every_commit_of_others(file_store: Store, path: Path) -> None:
    """True at the first look, then exactly when something was committed since."""
    watch = FileWatch(file_store.engine.facts)
    assert watch.changed()
    assert not watch.changed()
    put(file_store)
    assert watch.changed()
    assert not watch.changed()
    with closing(sqlite3.connect(path)) as other:
        other.execute("UPDATE treadle_jobs SET priority = 1")
        assert not watch.changed()
        other.commit()
    assert watch.changed()
    watch.close()


def test_deleted_room_is_used_again(file_store: Store, clock: HeldClock) -> None:
    """A store that is filled and emptied again and again does not grow for ever."""
    sizes = []
    for _ in range(6):
        file_store.insert([job(b"x" * 1000)] * 1000)
        change(file_store, "DELETE FROM treadle_jobs")
        file_store.engine.connections.checkpoint()
        sizes.append(file_store.path.stat().st_size)
    assert sizes[-1] < sizes[1] * 1.5


@pytest.mark.parametrize("durability", ["full", "normal", "off"])
def test_every_durability_stores(path: Path, durability: str) -> None:
    """The choice changes how often the disk is synced, not what is stored."""
    store = Store(f"sqlite:///{path}", StoreOptions(durability=durability))
    put(store, 5)
    store.close()
    store = Store(f"sqlite:///{path}", StoreOptions(durability=durability))
    assert count(store, "treadle_jobs") == 5
    store.close()
