"""treadle bench: real processes, figures from the history, and no job run twice."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from faces.commands import interrupt, start, treadle, until
from treadle import Treadle
from treadle.bench.figures import spread, work_out
from treadle.bench.produce import produce
from treadle.clock import SystemClock, processor_time
from treadle.host.process import own_identity
from treadle.store.ops import sequences
from treadle.store.ops.runs import Run


def test_every_job_runs_once(tmp_path: Path) -> None:
    """Two processes, a few hundred jobs at a rate: everything is done once, and the figures fit one another.

    Settings that are meant for workers of one's own do not get in the way.
    """
    done = treadle(
        "bench", "--jobs", "300", "--every", "1ms", "--concurrency", "5", "--processes", "2", "--idle", "100ms",
        "--store", "new.db", "--json", cwd=tmp_path, TREADLE_PROCESSES="3", TREADLE_QUEUES="others",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["done"], found["duplicates"], found["missing"], found["good"]) == (300, 0, 0, True)
    for name in ("pickup_ms", "enqueue_ms"):
        values = [found[name][part] for part in ("min", "median", "p95", "p99", "max")]
        assert values == sorted(values)
        assert values[0] > 0
    assert found["jobs_per_second"] == pytest.approx(300 / found["seconds"])
    assert 0 <= found["idle_cpu_percent"] < 100
    with Treadle(f"sqlite:///{tmp_path}/new.db") as app:
        assert app.counts() == {"bench": {"succeeded": 300}}
        assert {attempt.attempt for job in app.find(size=300).jobs for attempt in app.get(job.id).attempts} >= {1}
        assert app.workers() == ()
        assert app.store.run(partial(sequences.burn, name="epoch", count=1))[0] == 1 + 2  # two workers came and went


def test_figures_for_people(tmp_path: Path) -> None:
    """Without --json it is a short table; the temporary file is gone afterwards, and nothing lies around."""
    done = treadle(
        "bench", "--jobs", "20", "--every", "0", "--processes", "1", "--idle", "0", cwd=tmp_path, TMPDIR=str(tmp_path),
        TREADLE_DURABILITY="normal",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for word in ("20 of 20 done", "pickup", "median", "p95", "throughput", "duplicates", "normal"):
        assert word in done.stdout
    assert "idle CPU" not in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_only_a_new_file_is_taken(tmp_path: Path) -> None:
    """A database that exists is refused and left alone: its jobs are somebody's."""
    with Treadle(f"sqlite:///{tmp_path}/jobs.db") as app:
        app.remote("mine").enqueue()
    done = treadle("bench", "--store", "jobs.db", cwd=tmp_path)
    assert (done.returncode, "exists" in done.stderr) == (2, True)
    with Treadle(f"sqlite:///{tmp_path}/jobs.db") as app:
        assert app.counts() == {"default": {"ready": 1}}
    for words in (("--jobs", "0"), ("--every", "5"), ("--processes", "0"), ("--concurrency", "x")):
        assert treadle("bench", *words, cwd=tmp_path).returncode == 2


@contextmanager
def running(folder: Path) -> Iterator[tuple[subprocess.Popen[str], Treadle]]:
    """A long benchmark with one worker process in which jobs have begun to end, and a look at its store."""
    words = ("bench", "--jobs", "100000", "--every", "1ms", "--processes", "1", "--store", "new.db")
    process, database = start(*words, cwd=folder), folder / "new.db"
    try:
        until(lambda: database.exists() and database.stat().st_size > 0, "the database")
        with Treadle(f"sqlite:///{database}") as app:
            until(lambda: "succeeded" in app.counts().get("bench", {}), "the first job's end")
            yield process, app
            until(lambda: not any(worker.alive for worker in app.workers()), "the end of the workers")
    finally:
        process.kill()
        process.communicate(timeout=60)


def test_ctrl_c_stops_the_workers(tmp_path: Path) -> None:
    """An interrupted benchmark ends with 130 and leaves no worker behind."""
    with running(tmp_path) as (process, _):
        assert interrupt(process) == 130
        told, _ = process.communicate(timeout=60)
    assert "Traceback" not in told


def test_a_worker_that_dies_ends_the_run(tmp_path: Path) -> None:
    """A benchmark with fewer workers than it says would measure something else: it ends with 1 and says why."""
    with running(tmp_path) as (process, app):
        (worker,) = app.workers()
        os.kill(worker.pid, signal.SIGKILL)
        told, _ = process.communicate(timeout=60)
    assert (process.returncode, "A worker ended by itself" in told) == (1, True)


def test_duplicates_and_missing_jobs_are_seen() -> None:
    """A job with two begun attempts is a duplicate, one without a success is missing: either is no good."""
    runs = [Run(1, 1, 1000, 3000, 4000), Run(2, 2, 2000, 6000, 9000), Run(3, 1, 1000, 9000, 11_000)]
    found = work_out(runs, jobs=3, succeeded=2, claims=4, enqueues=[0.001], producing=0.002, idle=None)
    assert (found.duplicates, found.missing, found.given_back, found.good) == (1, 1, 1, False)
    assert found.pickup_ms is not None
    assert (found.pickup_ms.min, found.pickup_ms.max) == (2, 4)
    assert found.seconds == 0.01
    fine = work_out(runs[:2], jobs=2, succeeded=2, claims=2, enqueues=[0.001], producing=0.002, idle=0.1)
    assert fine.good


def test_percentiles_are_nearest_ranks() -> None:
    """Of a hundred values the 95th is the p95; of one value everything is that one."""
    found = spread([float(number) for number in range(100, 0, -1)])
    assert (found.min, found.median, found.p95, found.p99, found.max) == (1, 50.5, 95, 99, 100)
    assert set(vars_of(spread([7.0]))) == {7.0}


def vars_of(found: object) -> list[float]:
    """The values of a frozen record."""
    return [getattr(found, name) for name in ("min", "median", "p95", "p99", "max")]


def test_the_producer_keeps_its_order_and_number() -> None:
    """Every number is stored once, and each enqueue was measured."""
    with Treadle("memory://") as app:

        async def nothing(number: int) -> None: ...

        task = app.task(name="nothing")(nothing)
        produced = asyncio.run(produce(task, 200, 0.0001, SystemClock()))
        assert len(produced.enqueues) == 200
        assert produced.seconds >= 199 * 0.0001
        assert len({job.arguments for job in app.find(size=500).jobs}) == 200


def test_processor_time_of_a_process() -> None:
    """It grows while a process works, and of one that is not there it is not known."""
    pid = own_identity().pid
    before = processor_time(pid)
    sum(range(1_000_000))
    after = processor_time(pid)
    assert before is not None
    assert after is not None
    assert after > before
    assert processor_time(2**22 + 1) is None
