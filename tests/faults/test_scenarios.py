"""Acceptance scenarios end to end: the real command, real processes, ledgers on disk, the history judged at the end."""

from __future__ import annotations

import json
import re
import signal
import statistics
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from faces.commands import as_json, run, treadle
from faults.helpers import PATIENCE, Process, eventually, stop_at_rest
from faults.shop import Shop
from treadle import AttemptOutcome, Job, JobState
from treadle.clock import processor_time

DAY = 86_400


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    """A folder whose history is judged when the test is over."""
    made = Shop(tmp_path)
    yield made
    found = made.judge()
    assert [line for line in found.splitlines()[:-1] if line != made.forgiven] == [], found


@contextmanager
def working(shop: Shop, *words: object) -> Iterator[Process]:
    """``treadle worker`` for the length of a block; ended by SIGTERM where the block has not ended it."""
    worker = shop.worker(*words)
    try:
        yield worker
        if worker.popen.poll() is None:
            worker.send(signal.SIGTERM)
            assert worker.finish() == 0, shop.log.read_text()
    finally:
        worker.close()


def state(shop: Shop, job: Job[Any]) -> Callable[[JobState], bool]:
    return lambda wanted: shop.app.get(job.id).state is wanted


def test_scenario_001_a_benchmark(tmp_path: Path) -> None:
    """A small run of the command: every figure is there, nothing ran twice; the full size is ``treadle bench``."""
    done = treadle("bench", "--jobs", "1000", "--every", "700us", "--processes", "4", "--idle", "500ms", "--json",
                   "--store", "new.db", cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["concurrency"], found["processes"]) == (50, 4)
    assert (found["done"], found["duplicates"], found["missing"]) == (1000, 0, 0)
    assert found["jobs_per_second"] > 0
    assert found["idle_cpu_percent"] >= 0
    assert set(found["pickup_ms"]) == {"min", "median", "p95", "p99", "max"}


def test_scenario_001_b_clock_and_cancel(shop: Shop, tmp_path: Path) -> None:
    """By the command: a job due tomorrow waits for tomorrow; a running one stops when it is called off."""
    tomorrow, running = shop.enqueue("mail", delay=DAY), shop.enqueue("endless")
    with working(shop):
        shop.started(running)
        assert shop.enqueue("mail").result(PATIENCE)
        shown = as_json("jobs", "show", tomorrow.id, folder=tmp_path)
        assert (shown["state"], shown["attempt"]) == ("scheduled", 0)
        assert run("jobs", "cancel", running.id, "--reason", "changed my mind", "--yes", folder=tmp_path)[0] == 0
        eventually(lambda: state(shop, running)(JobState.CANCELLED), "the running job stops")
        (tmp_path / "shift").write_text(str(DAY + 1))
        assert tomorrow.result(PATIENCE)
    shown = as_json("jobs", "show", running.id, folder=tmp_path)
    assert shown["reason"] == "changed my mind"
    assert [one["outcome"] for one in shown["attempts"]] == ["cancelled"]


def test_scenario_001_c_dead_letter(shop: Shop, tmp_path: Path) -> None:
    """By the command: the dead letter has every attempt with its traceback; requeued after the fix both succeed."""
    jobs = [shop.enqueue(f"fragile_{retries}") for retries in (0, 3)]
    with working(shop):
        for job in jobs:
            eventually(lambda one=job: state(shop, one)(JobState.FAILED), "it is given up")  # type: ignore[misc]
        for job, attempts in zip(jobs, (1, 4), strict=True):
            shown = as_json("jobs", "show", job.id, folder=tmp_path)["attempts"]
            assert [one["message"] for one in shown] == [f"attempt {number + 1}" for number in range(attempts)]
            assert all("raise LookupError" in one["traceback"] for one in shown)
        found = as_json("jobs", "list", "--state", "failed", folder=tmp_path)["jobs"]
        assert {one["id"] for one in found} == {job.id for job in jobs}
        (tmp_path / "mended").touch()
        words = ("jobs", "retry", "--state", "failed", "--yes")
        assert as_json(*words, folder=tmp_path)["changed"] == 2
        assert [job.result(PATIENCE) for job in jobs] == ["mended"] * 2


def test_scenario_001_c_a_stop_loses_nothing(shop: Shop) -> None:
    """SIGTERM with a cooperative and a stuck job: the process ends, the stuck one is queued again, and runs again."""
    cooperative, stuck = shop.enqueue("hold_sync"), shop.enqueue("stuck")
    with working(shop, "--grace", "0.2") as worker:
        for job in (cooperative, stuck):
            shop.started(job)
        worker.send(signal.SIGTERM)
        assert worker.finish() == 0, shop.log.read_text()
        shop.gone(worker)
    assert cooperative.result(0) == "asked to stop"
    found = stuck.record()
    assert (found.state, found.failures, found.crashes) == (JobState.READY, 0, 0)
    assert shop.drain() == 0, shop.log.read_text()
    assert stuck.result(0) == "went on"


def test_scenario_003_d_stalled_worker(shop: Shop, tmp_path: Path) -> None:
    """By the command: the job of a stopped worker is given to another; what the first says when it wakes is refused."""
    job = shop.enqueue("hold_async")
    with working(shop) as first:
        shop.started(job)
        stop_at_rest(first, shop.app.store.path)
        shop.gone(first)  # it does nothing more: the first thing it learns is that it was evicted
        assert run("workers", "evict", f"w{first.pid}", "--yes", folder=tmp_path)[0] == 0
        with working(shop):
            shop.started(job, 2)
            shop.go()
            assert job.result(PATIENCE) == "went on"
            before = job.record()
            first.send(signal.SIGCONT)
            assert first.finish() == 70
        assert job.record() == before
    assert [one.outcome for one in before.attempts] == [AttemptOutcome.CRASHED, AttemptOutcome.SUCCEEDED]
    shop.forgiven = f"overlap: job {job.id}: lease 2 started while lease 1 ran"  # that is what an eviction is


def test_scenario_003_f_idle_cost_and_latency(shop: Shop, tmp_path: Path) -> None:
    """After an idle hour jobs of another process start within half a second; waiting costs less than 1 % of a core."""
    with working(shop) as worker:
        assert shop.enqueue("mail").result(PATIENCE)
        (tmp_path / "shift").write_text("3600")
        waits = []
        for _ in range(3):
            eventually(lambda: idle_share(worker.pid, 2) < 0.01, "a worker that waits costs less than 1 % of a core")
            asked = datetime.now(UTC)
            job = shop.enqueue("mail")
            job.result(PATIENCE)
            (one,) = job.record().attempts
            assert one.started_at is not None
            waits.append((one.started_at - asked - timedelta(hours=1)).total_seconds())
    assert statistics.median(waits) < 0.5, waits


def idle_share(pid: int, seconds: float) -> float:
    """The share of a core that a process uses for so long."""
    before = processor_time(pid)
    threading.Event().wait(seconds)
    after = processor_time(pid)
    assert before is not None
    assert after is not None
    return (after - before) / seconds / 1_000_000_000


def test_scenario_000_c_operator_sql() -> None:
    """Its four parts are tests of their own; none of them may be lost."""
    text = (Path(__file__).parents[1] / "faces/test_cli_and_sql.py").read_text(encoding="utf-8")
    assert len(re.findall(r"^def test_scenario_000_c_", text, re.MULTILINE)) == 4
