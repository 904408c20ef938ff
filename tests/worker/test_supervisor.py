"""The supervisor of ``treadle worker --processes``: real processes, real signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from treadle import AttemptOutcome, JobState, Treadle
from worker.kit import PATIENCE, SOURCE, eventually, open_app

SHOP = """
import os, time, pathlib
from treadle import Retry, Treadle
HERE = pathlib.Path(__file__).parent
app = Treadle(f"sqlite:///{HERE}/jobs.db")

@app.task(name="pid")
def pid(number: int) -> int:
    return os.getpid()

@app.task(name="die")
def die() -> None:
    os._exit(9)

@app.task(name="wait", retry=Retry(0))
async def wait(name: str) -> int:
    import asyncio
    (HERE / f"{name} began").touch()
    while not (HERE / name).exists():
        await asyncio.sleep(0.01)
    return os.getpid()

@app.task(name="block")
def block(name: str) -> None:
    (HERE / f"{name} began").touch()
    while not (HERE / name).exists():
        time.sleep(0.01)
"""


class Shop:
    """An app in a folder, seen from outside, and its supervised workers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "shop.py").write_text(SHOP)
        self.app: Treadle = open_app(folder / "jobs.db")
        self.log = folder / "log"
        self.running: list[subprocess.Popen[bytes]] = []

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        """``treadle worker shop:app`` with these words."""
        with self.log.open("ab") as log:
            started = subprocess.Popen(
                [sys.executable, "-m", "treadle", "worker", "shop:app", *words], cwd=self.folder, stderr=log,
                stdout=log, env={**os.environ, "PYTHONPATH": SOURCE},
            )  # fmt: skip
        self.running.append(started)
        return started

    def enqueue(self, task: str, **arguments: object) -> int:
        """Store a job; its id."""
        return self.app.remote(task).enqueue(**arguments).id

    def pids(self) -> set[int]:
        """The processes of the live workers."""
        return {worker.pid for worker in self.app.workers() if worker.alive}

    def began(self, name: str) -> Callable[[], bool]:
        """Whether a waiting job has begun."""
        return (self.folder / f"{name} began").exists


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    """A shop whose processes are gone after the test."""
    made = Shop(tmp_path)
    yield made
    for each in made.running:
        if each.poll() is None:
            each.kill()
        each.wait(PATIENCE)
    eventually(lambda: not made.pids())  # workers see the end of their standard input
    made.app.close()


def test_processes_are_kept_alive(shop: Shop) -> None:
    """One that is killed is started again, its job runs again, and a stop ends all with code 0."""
    supervisor = shop.start("--processes", "2")
    eventually(lambda: len(shop.pids()) == 2)
    first = shop.pids()
    job = shop.enqueue("wait", name="go on")
    eventually(shop.began("go on"))
    eventually(lambda: [worker for worker in shop.app.workers() if worker.running])
    (holder,) = [worker.pid for worker in shop.app.workers() if worker.running]
    os.kill(holder, signal.SIGKILL)
    eventually(lambda: len(shop.pids()) == 2 and shop.pids() != first)
    (shop.folder / "go on").touch()
    assert shop.app.result(job, timeout=PATIENCE) in shop.pids()
    supervisor.send_signal(signal.SIGTERM)
    assert supervisor.wait(PATIENCE) == 0
    assert shop.app.workers() == ()


def test_recycling_loses_no_lease(shop: Shop) -> None:
    """With a fresh process every 20 attempts each of 200 jobs runs exactly once, and nothing is spent."""
    ids = [shop.enqueue("pid", number=number) for number in range(200)]
    shop.start("--processes", "2", "--max-jobs", "20")
    shop.app.wait(ids, timeout=PATIENCE)
    assert len({shop.app.result(number) for number in ids}) >= 4
    attempts = shop.app.settled(size=500)
    assert len(attempts) == 200
    assert {attempt.outcome for attempt in attempts} == {AttemptOutcome.SUCCEEDED}


def test_a_burst_ends_when_nothing_is_left(shop: Shop) -> None:
    """Scheduled jobs are left for later; nobody is started again."""
    ids = [shop.enqueue("pid", number=number) for number in range(20)]
    later = shop.app.remote("pid")
    shop.app.reschedule(later.enqueue(number=1), delay=3600)
    assert shop.start("--processes", "2", "--burst").wait(PATIENCE) == 0
    assert set(shop.app.wait(ids, timeout=0).values()) == {JobState.SUCCEEDED}
    assert shop.app.counts()["default"][JobState.SCHEDULED] == 1


def test_a_burst_of_one_process(shop: Shop) -> None:
    """Without a supervisor too."""
    job = shop.enqueue("pid", number=1)
    assert shop.start("--burst").wait(PATIENCE) == 0
    assert shop.app.get(job).state is JobState.SUCCEEDED


def test_a_mistake_is_not_repeated_for_ever(shop: Shop) -> None:
    """A worker that refuses its options ends the supervisor with code 2."""
    assert shop.start("--processes", "2", "--tasks", "nobody-knows").wait(PATIENCE) == 2
    assert "nobody-knows" in shop.log.read_text()


def test_a_poisonous_job_is_held_and_the_fleet_lives(shop: Shop) -> None:
    """Its last attempt runs in a child, which dies alone; its neighbours succeed."""
    poison = shop.enqueue("die")
    ids = [shop.enqueue("pid", number=number) for number in range(20)]
    shop.start("--processes", "2")
    eventually(lambda: shop.app.get(poison).state is JobState.HELD)
    assert "crash cap" in str(shop.app.get(poison).reason)
    assert set(shop.app.wait(ids, timeout=PATIENCE).values()) == {JobState.SUCCEEDED}
    eventually(lambda: len(shop.pids()) == 2)  # who died of it has a successor


def test_drain_by_order_brings_another_worker(shop: Shop) -> None:
    """``drain`` lets a worker finish and end; the supervisor starts one in its place at once."""
    shop.start("--processes", "1", "--max-jobs", "100000")
    job = shop.enqueue("wait", name="go on")
    eventually(shop.began("go on"))
    (old,) = shop.app.workers()
    shop.app.drain(old.slot)
    eventually(lambda: len(shop.pids()) == 2)
    (shop.folder / "go on").touch()
    assert shop.app.result(job, timeout=PATIENCE) == old.pid
    eventually(lambda: old.pid not in shop.pids() and len(shop.pids()) == 1)


@pytest.mark.parametrize("words", [(), ("--processes", "2")])
def test_the_second_signal_cancels_and_the_third_ends(shop: Shop, words: tuple[str, ...]) -> None:
    """Promise 7: a stop spends nothing. A job that heeds no signal keeps nobody: its process is ended."""
    started = shop.start("--grace", "600", *words)
    kind = shop.enqueue("wait", name="never")
    stubborn = shop.enqueue("block", name="never ever")
    eventually(shop.began("never"))
    eventually(shop.began("never ever"))
    started.send_signal(signal.SIGTERM)
    eventually(lambda: "drains" in shop.log.read_text())
    started.send_signal(signal.SIGTERM)
    eventually(lambda: shop.app.get(kind).state is JobState.READY)
    assert started.wait(PATIENCE) == 0
    assert [shop.app.get(number).state for number in (kind, stubborn)] == [JobState.READY] * 2
    assert [shop.app.get(number).failures for number in (kind, stubborn)] == [0, 0]
    assert [shop.app.get(number).crashes for number in (kind, stubborn)] == [0, 0]


def test_three_signals_end_at_once(shop: Shop) -> None:
    """Whatever its handlers do; the crash is counted, nothing is lost."""
    started = shop.start("--grace", "600")
    job = shop.enqueue("block", name="never")
    eventually(shop.began("never"))
    for number in range(3):
        started.send_signal(signal.SIGINT)
        if not number:
            eventually(lambda: "drains" in shop.log.read_text())
    assert started.wait(PATIENCE) in (128 + signal.SIGINT, 0)
    assert shop.app.get(job).state in (JobState.RUNNING, JobState.READY)


def test_workers_drain_when_their_supervisor_is_killed(shop: Shop) -> None:
    """They see the end of their standard input: nobody is left behind."""
    supervisor = shop.start("--processes", "2")
    eventually(lambda: len(shop.pids()) == 2)
    supervisor.kill()
    eventually(lambda: shop.app.workers() == ())
