"""Fail points where a file is made, upgraded, copied or adopted; and who must not wait for a stalled process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest

import treadle
from faults.helpers import PATIENCE, eventually, outsider, process
from faults.stage import LOST, build
from treadle import JobState, Treadle, defaults
from treadle.errors import OutcomeUnknown, StoreBroken, StoreFull
from treadle.host.failpoints import Stall, arm, disarm, raising
from treadle.store.adoption import adopt
from treadle.store.ops import meta
from treadle.store.sqlite import failure

PATHS = os.pathsep.join((str(Path(treadle.__file__).parents[1]), str(Path(__file__).parents[1])))
VICTIM = """
import sys
from pathlib import Path
from faults.stage import build
from treadle.host import failpoints
from treadle.store.adoption import adopt
folder, point, what = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
failpoints.arm(failpoints.kill_self, point)
stage = build(folder)
stage.app.counts()
if what == "backup":
    stage.app.backup(folder / "copy.db")
elif what == "adopt":
    adopt(stage.app.store)
"""


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    """No trap outlives its test."""
    yield
    disarm()


def killed_at(folder: Path, point: str, what: str = "") -> None:
    """A process that is killed at *point* while it opens the store of *folder*, or does *what* with it."""
    ended = subprocess.run(
        [sys.executable, "-c", VICTIM, str(folder), point, what], env={"PYTHONPATH": PATHS}, timeout=PATIENCE,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == -9, ended.stderr


@pytest.mark.parametrize("boundary", ["before_begin", "after_begin", "before_commit", "after_commit"])
def test_killed_while_the_tables_are_made(tmp_path: Path, boundary: str) -> None:
    """The next process finds no tables or all of them, and works."""
    killed_at(tmp_path, f"migrate.{boundary}")
    with outsider(tmp_path / "jobs.db") as connection:
        tables = connection.execute("SELECT count(*) FROM sqlite_master WHERE name GLOB 'treadle_*'").fetchone()[0]
        assert (tables > 0) == (boundary == "after_commit")
    stage = build(tmp_path)
    with stage.app.worker():
        assert stage.quick.enqueue(number=7).result(PATIENCE) == 7
    stage.app.close()


@pytest.mark.parametrize(
    ("name", "error"), [("SQLITE_FULL", StoreFull), ("SQLITE_IOERR_FSYNC", OutcomeUnknown)]
)
def test_the_disk_fails_while_the_tables_are_made(tmp_path: Path, name: str, error: type[Exception]) -> None:
    """Opening says what happened; with a healthy disk it works."""
    arm(raising(lambda: failure(name)), "migrate.before_commit")
    app = Treadle(f"sqlite:///{tmp_path / 'jobs.db'}")
    with pytest.raises(error):
        app.counts()
    assert app.counts() == {}
    app.close()


@pytest.mark.parametrize("boundary", ["before_begin", "after_begin", "before_commit", "after_commit"])
def test_killed_while_a_backup_is_marked(tmp_path: Path, boundary: str) -> None:
    """There is no backup under its name until it is complete and marked; the next one succeeds."""
    stage = build(tmp_path)
    stage.quick.enqueue(number=1)
    killed_at(tmp_path, f"backup.{boundary}", "backup")
    assert not (tmp_path / "copy.db").exists()
    stage.app.backup(tmp_path / "copy.db")
    stage.app.close()
    copy = Treadle(f"sqlite:///{tmp_path / 'copy.db'}")
    assert copy.store.read(meta.backup_mark) is not None
    copy.close()


@pytest.mark.parametrize("boundary", ["before_begin", "after_begin", "before_commit", "after_commit", "before_told"])
def test_killed_while_a_copy_is_adopted(tmp_path: Path, boundary: str) -> None:
    """The copy is adopted or it is not; asking again completes it."""
    stage = build(tmp_path)
    job = stage.quick.enqueue(number=5)
    (tmp_path / "copy").mkdir()
    stage.app.backup(tmp_path / "copy/jobs.db")
    stage.app.close()
    killed_at(tmp_path / "copy", f"adopt.alone.{boundary}", "adopt")
    copy = build(tmp_path / "copy")
    adopted = copy.app.store.read(meta.backup_mark) is None
    assert adopted == (boundary in ("after_commit", "before_told"))
    assert (adopt(copy.app.store) is None) == adopted
    with copy.app.worker():
        copy.app.wait([job.id], timeout=PATIENCE)
    assert copy.app.get(job.id).state is JobState.SUCCEEDED
    copy.app.close()


def test_nobody_waits_for_who_stalls_after_its_commit(tmp_path: Path) -> None:
    """While an enqueue stands still between its commit and its answer, others write."""
    slow, other = build(tmp_path), build(tmp_path)
    slow.quick.enqueue(number=0)
    stall = Stall()
    arm(stall, "insert.*before_told")
    with outsider(tmp_path / "jobs.db") as connection, other.app.worker():
        with ThreadPoolExecutor(1) as pool:
            enqueued = pool.submit(lambda: slow.quick.enqueue(number=1))
            assert stall.reached.wait(PATIENCE)
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
            assert other.quick.enqueue(number=2).result(PATIENCE) == 2
            stall.release()
            assert enqueued.result(PATIENCE).result(PATIENCE) == 1
    slow.app.close()
    other.app.close()


def test_a_worker_ends_with_70_when_the_disk_fails(tmp_path: Path) -> None:
    """A real worker process whose commit fails stops with exit code 70; the next one looks at the file and goes on."""
    stage = build(tmp_path)
    job = stage.wait.enqueue(name="go on")
    with process("faults.stage", "broken", tmp_path, "claim.before_commit", log=tmp_path / "log") as worker:
        assert worker.finish() == LOST, (tmp_path / "log").read_text()
    assert OutcomeUnknown.__name__ in (tmp_path / "log").read_text()
    assert (stage.app.store.side / "suspect").exists()
    (tmp_path / "go on").touch()
    with process("faults.stage", "worker", tmp_path, "next", log=tmp_path / "log") as worker:
        eventually(lambda: job.record().state is JobState.SUCCEEDED, "the next worker runs the job")
    assert not (stage.app.store.side / "suspect").exists()
    assert (job.record().attempt, job.record().crashes) == (1, 0)
    stage.app.close()


def test_a_worker_ends_when_anything_else_finds_the_disk_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An enqueue in the worker's own process meets the failure: the worker hears of it at its next beat and stops."""
    monkeypatch.setattr(defaults, "BEAT", timedelta(seconds=0.1))
    stage = build(tmp_path)
    with stage.app.worker() as worker:
        arm(raising(lambda: failure("SQLITE_IOERR_WRITE")), "insert.*before_commit")
        with pytest.raises(OutcomeUnknown):
            stage.quick.enqueue(number=1)
        eventually(lambda: worker.failure is not None, "the worker notices")
    assert isinstance(worker.failure, StoreBroken)
    stage.app.close()
