"""Faults around the store: foreign locks, crowds, forks, full disks, lost files, jumping clocks, copies."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from faults.chaos_app import JumpingClock
from faults.helpers import eventually, outsider, process
from faults.stage import LOST, Stage, build
from treadle import AttemptOutcome, HeldClock, JobFilter, JobState
from treadle.clock import SystemClock
from treadle.errors import BackupNotAdopted, OwnTransactionOpen, StoreBusy, StoreFull, StoreLost
from treadle.store.ops import meta

HOLDER = """
import sqlite3, sys
c = sqlite3.connect(sys.argv[1], isolation_level=None)
c.execute("BEGIN IMMEDIATE")
print("held", flush=True)
sys.stdin.readline()
c.execute("ROLLBACK")
"""


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    """An app on a fresh file."""
    made = build(tmp_path)
    yield made
    made.app.close()


# Locked from outside -----------------------------------------------------------------------------------------------


class Holder:
    """Another process that holds the write lock until told to let go."""

    def __init__(self, path: Path) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self.popen.stdout is not None
        assert self.popen.stdout.readline() == b"held\n"

    def let_go(self) -> None:
        """End the holder."""
        self.popen.communicate(b"\n")


def test_enqueue_waits_then_names_the_holder(tmp_path: Path) -> None:
    """While another process holds the write lock enqueue waits, then StoreBusy names that process."""
    stage = build(tmp_path, lock_timeout=0.5)
    stage.quick.enqueue(number=1)
    holder = Holder(stage.app.store.path)
    with pytest.raises(StoreBusy, match=f"pid {holder.popen.pid} .*Nothing was stored"):
        stage.quick.enqueue(number=2)
    holder.let_go()
    stage.quick.enqueue(number=3)
    assert sum(stage.app.counts()["default"].values()) == 2
    stage.app.close()


def test_enqueue_goes_on_when_the_lock_is_free(stage: Stage) -> None:
    """An enqueue that waits for a foreign lock is stored once the lock is free."""
    stage.quick.enqueue(number=1)
    holder = Holder(stage.app.store.path)
    told: list[int] = []
    waiting = threading.Thread(target=lambda: told.append(stage.quick.enqueue(number=2).id))
    waiting.start()
    waiting.join(0.4)  # longer than the look for one's own transaction; whether it is over by then does not matter
    holder.let_go()
    waiting.join(60)
    assert stage.app.get(told[0]).state is JobState.READY


def test_workers_wait_for_a_foreign_lock(stage: Stage, tmp_path: Path) -> None:
    """A database locked from outside ends no worker: the outcome is stored when the lock is free, once."""
    with stage.app.worker() as worker:
        job = stage.wait.enqueue(name="go on")
        eventually(lambda: stage.starts(job.id), "the job runs")
        holder = Holder(stage.app.store.path)
        (tmp_path / "go on").touch()
        eventually(lambda: worker.running == 0, "the handler has ended while the lock is held")
        assert job.record().state is JobState.RUNNING
        holder.let_go()
        assert job.result(60) == os.getpid()
    assert len(stage.starts(job.id)) == 1


def test_own_transaction_is_named(stage: Stage) -> None:
    """A plain enqueue inside one's own open transaction is told so instead of waiting for itself."""
    stage.quick.enqueue(number=1)
    with outsider(stage.app.store.path) as connection:
        connection.execute("BEGIN IMMEDIATE")
        with pytest.raises(OwnTransactionOpen, match="connection="):
            stage.quick.enqueue(number=2)
        stage.quick.using(connection=connection).enqueue(number=3)
        connection.execute("COMMIT")
    assert sum(stage.app.counts()["default"].values()) == 2


# Crowds ------------------------------------------------------------------------------------------------------------


def test_crowd_of_producers_beside_workers(stage: Stage, tmp_path: Path) -> None:
    """16 threads in each of 2 processes enqueue while workers drain: no error reaches anyone, each job runs once."""
    threads, each = 16, 20
    with (
        process("faults.stage", "worker", tmp_path, "first", log=tmp_path / "log"),
        process("faults.stage", "worker", tmp_path, "second", log=tmp_path / "log"),
    ):
        logs = [tmp_path / "one", tmp_path / "two"]
        with (
            process("faults.stage", "enqueue", tmp_path, threads, each, log=logs[0]) as one,
            process("faults.stage", "enqueue", tmp_path, threads, each, log=logs[1]) as two,
        ):
            assert [one.finish(), two.finish()] == [0, 0], [log.read_text() for log in logs]
        wanted = {JobState.SUCCEEDED: 2 * threads * each}
        eventually(lambda: stage.app.counts().get("default") == wanted, "everything is drained")
    assert set(Counter(start["job"] for start in stage.starts()).values()) == {1}


def test_two_apps_and_two_workers_in_one_process(tmp_path: Path) -> None:
    """Closing one of two apps on one file leaves the other's worker, locks and commits alone."""
    first, second = build(tmp_path), build(tmp_path)
    with second.app.worker(name="stays") as stays:
        with first.app.worker(name="leaves"):
            ids = list(first.app.enqueue_many(first.quick.job(number=number) for number in range(100)))
            second.app.wait(ids, timeout=60)
        first.app.close()
        ids += second.app.enqueue_many(second.quick.job(number=number) for number in range(100))
        states = second.app.wait(ids, timeout=60)
        assert set(states.values()) == {JobState.SUCCEEDED}
        assert [worker.name for worker in second.app.workers() if worker.alive] == ["stays"]
        assert stays.failure is None
    assert len(states) == 200
    assert set(Counter(start["job"] for start in second.starts()).values()) == {1}
    second.app.close()


def test_mixed_fleet_claims_only_what_it_knows(stage: Stage, tmp_path: Path) -> None:
    """1000 jobs of a new task beside an old worker: each is claimed once, by the new worker, and none is spent."""
    remote = stage.app.remote("added")
    ids = stage.app.enqueue_many(remote.job(number=number) for number in range(1000))
    with (
        process("faults.stage", "worker", tmp_path, "old", log=tmp_path / "log"),
        process("faults.stage", "worker", tmp_path, "new", "new", log=tmp_path / "log"),
    ):
        states = stage.app.wait(ids, timeout=60)
    assert set(states.values()) == {JobState.SUCCEEDED}
    with outsider(stage.app.store.path) as connection:
        rows = connection.execute(
            "SELECT DISTINCT j.attempt, j.failures, a.attempt, a.worker FROM treadle_jobs j "
            "JOIN treadle_attempts a ON a.job_id = j.id WHERE j.task = 'added'"
        ).fetchall()
    assert rows == [(1, 0, 1, "new")]


# Forks -------------------------------------------------------------------------------------------------------------


def test_fork_with_an_open_app(stage: Stage, tmp_path: Path) -> None:
    """After a fork parent and child both enqueue through the app they had open; nothing is lost or given twice."""
    with process("faults.stage", "fork", tmp_path, log=tmp_path / "log") as forking:
        assert forking.finish() == 0, (tmp_path / "log").read_text()
    with outsider(stage.app.store.path) as connection:
        rows = connection.execute("SELECT data FROM treadle_payloads").fetchall()
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    numbers = sorted(int(row[0].split(b":")[1].rstrip(b"}")) for row in rows)
    assert numbers == [*range(5), *range(100, 120), *range(200, 220)]


def test_pool_of_forks_inside_a_handler(stage: Stage, tmp_path: Path) -> None:
    """A multiprocessing.Pool made by fork inside a handler works, and the worker goes on in good health."""
    with process("faults.stage", "worker", tmp_path, "first", log=tmp_path / "log") as worker:
        jobs = [stage.pool.enqueue(numbers=list(range(number))) for number in range(8)]
        results = [job.result(90) for job in jobs]
        assert stage.quick.enqueue(number=5).result(60) == 5
        assert worker.popen.poll() is None
    assert results == [[2 * one for one in range(number)] for number in range(8)]
    assert all(job.record().attempt == 1 for job in jobs)


# No room -----------------------------------------------------------------------------------------------------------


def test_size_budget_refuses_and_resumes(tmp_path: Path) -> None:
    """Beyond max_size enqueue is refused, nothing acknowledged is lost, workers still settle what is there."""
    stage = build(tmp_path, max_size=400_000)
    accepted, refused = fill(stage)
    assert "max_size" in refused
    assert accepted
    with stage.app.worker():
        states = stage.app.wait(accepted, timeout=60)
    assert set(states.values()) == {JobState.SUCCEEDED}
    assert len(states) == len(accepted)
    stage.app.close()
    larger = build(tmp_path, max_size=100_000_000)
    larger.quick.enqueue(number=1)
    larger.app.close()


def test_full_disk_loses_nothing_and_work_resumes(stage: Stage) -> None:
    """When the file cannot grow, enqueue says StoreFull and stores nothing; with room again it goes on."""
    stage.quick.enqueue(number=0)
    limit_pages(stage, 60)
    accepted, refused = fill(stage)
    assert "full" in refused
    before = sum(stage.app.counts()["default"].values())
    assert before == len(accepted) + 1
    limit_pages(stage, 1_000_000)
    job = stage.quick.enqueue(number=1)
    with stage.app.worker():
        states = stage.app.wait([*accepted, job], timeout=60)
    assert set(states.values()) == {JobState.SUCCEEDED}
    assert len(states) == len(accepted) + 1


def test_worker_waits_while_the_disk_is_full(stage: Stage, tmp_path: Path) -> None:
    """A worker that cannot store outcomes or claims for lack of room goes on by itself when there is room."""
    with stage.app.worker() as worker:
        job = stage.wait.enqueue(name="go on")
        eventually(lambda: stage.starts(job.id), "the job runs")
        limit_pages(stage, 60)
        accepted, _ = fill(stage)
        (tmp_path / "go on").touch()
        eventually(lambda: worker.running == 0, "the handler has ended")
        limit_pages(stage, 1_000_000)
        states = stage.app.wait([*accepted, job], timeout=60)
        assert worker.failure is None
    assert set(states.values()) == {JobState.SUCCEEDED}
    assert set(Counter(start["job"] for start in stage.starts()).values()) == {1}


def limit_pages(stage: Stage, more: int) -> int:
    """Let the database grow by *more* pages at most, as a full disk would."""

    def limit(session: object) -> int:
        connection = session.connection  # type: ignore[attr-defined]
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        return int(connection.execute(f"PRAGMA max_page_count = {pages + more}").fetchone()[0])

    return stage.app.store.submit(limit).result()


def fill(stage: Stage) -> tuple[list[int], str]:
    """Enqueue until refused; the accepted ids and the refusal."""
    accepted: list[int] = []
    try:
        while len(accepted) < 100_000:
            accepted += stage.app.enqueue_many(stage.quick.job(number=number) for number in range(50))
    except StoreFull as error:
        return accepted, str(error)
    raise AssertionError("the limit was never reached")


# The file goes away --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["deleted", "replaced", "moved"])
def test_worker_stops_when_its_file_is_lost(tmp_path: Path, how: str) -> None:
    """A worker whose database was deleted, replaced or moved away stops with StoreLost, exit code 70."""
    stage = build(tmp_path)
    assert stage.quick.enqueue(number=1)
    path = stage.app.store.path
    with process("faults.stage", "worker", tmp_path, "first", log=tmp_path / "log") as worker:
        eventually(lambda: stage.app.counts()["default"] == {JobState.SUCCEEDED: 1}, "the worker works")
        stage.app.close()
        if how == "replaced":
            shutil.copy(path, tmp_path / "copy")
            os.replace(tmp_path / "copy", path)
        elif how == "moved":
            path.rename(tmp_path / "elsewhere.db")
        else:
            path.unlink()
        assert worker.finish() == LOST, (tmp_path / "log").read_text()
    assert "StoreLost" in (tmp_path / "log").read_text()


def test_enqueue_refuses_a_lost_file(stage: Stage) -> None:
    """Enqueue into a deleted database says StoreLost instead of writing where nobody reads."""
    stage.quick.enqueue(number=1)
    stage.app.store.path.unlink()
    with pytest.raises(StoreLost, match="deleted or replaced"):
        stage.quick.enqueue(number=2)


def test_backup_is_refused_until_adopted(stage: Stage, tmp_path: Path) -> None:
    """No worker touches a backup copy before it is adopted; then its jobs run, those it shows as running too.

    Those are charged with no crash.
    """
    with stage.app.worker():
        running = stage.wait.enqueue(name="go on")
        eventually(lambda: stage.starts(running.id), "the job runs")
        later = stage.quick.using(delay=3600).enqueue(number=2)
        (tmp_path / "copy").mkdir()
        stage.app.backup(tmp_path / "copy/jobs.db")
        (tmp_path / "go on").touch()
        running.result(60)
    copy = build(tmp_path / "copy")
    with pytest.raises(BackupNotAdopted, match="adopt"), copy.app.worker():
        pass
    assert copy.app.get(running.id).state is JobState.RUNNING
    assert copy.app.get(later.id).state is JobState.SCHEDULED
    assert copy.app.store.run(meta.adopt) == 1
    (tmp_path / "copy/go on").touch()
    with copy.app.worker():
        copy.app.wait([running.id], timeout=60)
    found = copy.app.get(running.id)
    assert ([attempt.outcome for attempt in found.attempts], found.crashes) == ([AttemptOutcome.SUCCEEDED], 0)
    copy.app.close()


# Clocks ------------------------------------------------------------------------------------------------------------


class Shifted(SystemClock):
    """The machine's clock, with the wall clock moved by so many seconds."""

    def __init__(self) -> None:
        self.seconds = 0

    def now(self) -> int:
        return super().now() + self.seconds * 1_000_000


@pytest.mark.parametrize("jump", [7200, -7200])
def test_clock_jump_loses_and_rescues_nothing(tmp_path: Path, jump: int) -> None:
    """The wall clock jumps by two hours under a running job: it is not rescued, and new jobs run at once."""
    clock = Shifted()
    stage, other = build(tmp_path, clock=clock), build(tmp_path, clock=clock)
    with stage.app.worker(name="first"):
        job = stage.wait.enqueue(name="go on")
        eventually(lambda: stage.starts(job.id), "the job runs")
        clock.seconds = jump
        with other.app.worker(name="second"):
            assert other.quick.enqueue(number=1).result(60) == 1
            assert len([one for one in other.app.workers() if one.alive]) == 2
            (tmp_path / "go on").touch()
            assert job.result(60) == os.getpid()
    assert [attempt.outcome for attempt in job.record().attempts] == [AttemptOutcome.SUCCEEDED]
    other.app.close()
    stage.app.close()


def test_clock_set_back_delays_but_never_drops_a_retry(tmp_path: Path) -> None:
    """A job scheduled before the clock was set back waits for its time and then runs, exactly once."""
    clock = HeldClock()
    stage = build(tmp_path, clock=clock)
    later = stage.quick.using(delay=60).enqueue(number=1)
    clock.advance(seconds=-7200)
    with stage.app.worker():
        now = stage.quick.enqueue(number=2)
        assert now.result(60) == 2
        assert later.record().state is JobState.SCHEDULED
        clock.advance(seconds=7200 + 61)
        assert later.result(60) == 1
    assert len(stage.starts(later.id)) == 1
    stage.app.close()


def test_clocks_of_workers_disagree(tmp_path: Path) -> None:
    """Workers whose clocks jump each second by two hours drain everything once, and rescue nobody alive."""
    stage, other = build(tmp_path, clock=JumpingClock(1)), build(tmp_path, clock=JumpingClock(2))
    with stage.app.worker(), other.app.worker():
        ids = stage.app.enqueue_many(stage.quick.job(number=number) for number in range(300))
        states = other.app.wait(ids, timeout=60)
    assert set(states.values()) == {JobState.SUCCEEDED}
    assert not stage.app.find(JobFilter(states=(JobState.RUNNING, JobState.HELD))).jobs
    assert set(Counter(start["job"] for start in stage.starts()).values()) == {1}
    stage.app.close()
    other.app.close()


@pytest.mark.parametrize("hours", [0, 1, -2])
def test_restart_under_the_same_name_recovers_at_once(tmp_path: Path, hours: int) -> None:
    """A worker that starts again after kill -9 takes its own jobs back while it registers, whatever the clock says."""
    clock = Shifted()
    stage = build(tmp_path, clock=clock)
    job = stage.wait.enqueue(name="go on")
    with process("faults.stage", "worker", tmp_path, "mine", log=tmp_path / "log") as first:
        eventually(lambda: stage.starts(job.id), "the job runs")
        first.kill()
    clock.seconds = hours * 3600
    (tmp_path / "go on").touch()
    with stage.app.worker(name="mine"):
        assert job.result(60) == os.getpid()
    outcomes = [attempt.outcome for attempt in job.record().attempts]
    assert outcomes == [AttemptOutcome.CRASHED, AttemptOutcome.SUCCEEDED]
    stage.app.close()


def test_two_live_workers_may_share_a_name(stage: Stage) -> None:
    """Two workers of one name live side by side; neither takes the other for its former self."""
    with stage.app.worker(name="twin"), stage.app.worker(name="twin"):
        ids = stage.app.enqueue_many(stage.quick.job(number=number) for number in range(200))
        states = stage.app.wait(ids, timeout=60)
        assert [worker.name for worker in stage.app.workers() if worker.alive] == ["twin", "twin"]
    assert set(states.values()) == {JobState.SUCCEEDED}
    assert set(Counter(start["job"] for start in stage.starts()).values()) == {1}


def test_large_arguments_run(stage: Stage) -> None:
    """Arguments near the cap, too large to come with the claim, reach their handler."""

    @stage.app.task(name="weigh")
    async def weigh(text: str) -> int:
        return len(text)

    with stage.app.worker():
        assert [weigh.enqueue(text="x" * size).result(60) for size in (65_000, 70_000, 900_000)] == [
            65_000, 70_000, 900_000,
        ]  # fmt: skip
