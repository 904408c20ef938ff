from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

import postgres
from host.children import Child, child
from treadle import JobState, Treadle, current_job, defaults, results
from treadle.errors import ConfigurationError
from treadle.host import failpoints
from treadle.worker.claimer import UNSTORED_MOST
from worker.kit import PATIENCE, aeventually, aheard, change, eventually, heard, open_app, states


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Handlers wait for it; open at the end whatever happens."""
    event = threading.Event()
    yield event
    event.set()


class Peak:
    """Counts how many handlers run at the same time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.now = self.most = 0

    def __enter__(self) -> None:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self.now -= 1


# --- how many ----------------------------------------------------------------------------------------


def test_threads_never_exceed_the_slots(app: Treadle) -> None:
    """With concurrency=3 three plain functions run at once, never four."""
    peak, full = Peak(), threading.Barrier(3)

    @app.task
    def work() -> None:
        with peak:
            full.wait(PATIENCE)

    jobs = app.enqueue_many(work.job() for _ in range(30))
    with app.worker(concurrency=3):
        app.wait(jobs, timeout=PATIENCE)
    assert peak.most == 3
    assert states(app) == ["succeeded"] * 30


def test_coroutines_never_exceed_the_slots(app: Treadle) -> None:
    """The same for coroutines."""
    peak = Peak()

    @app.task
    async def work() -> None:
        with peak:
            for _ in range(3):
                await asyncio.sleep(0)

    jobs = app.enqueue_many(work.job() for _ in range(300))
    with app.worker(concurrency=4):
        app.wait(jobs, timeout=PATIENCE)
    assert peak.most == 4


def test_a_slow_job_strands_nothing(path: Path, gate: threading.Event) -> None:
    """What a worker claimed ahead and cannot run goes to a worker that is free, unspent."""
    begun = threading.Event()

    def work(number: int) -> None:
        if number == 60:
            begun.set()
            gate.wait()

    with open_app(path) as busy, open_app(path) as free:
        task = busy.task(name="work")(work)
        free.task(name="work")(work)
        # Quick jobs first, so that the worker's pace makes it claim ahead; then one that never ends.
        jobs = busy.enqueue_many(task.job(number) for number in range(400))
        slow = jobs[60]
        with busy.worker(concurrency=1):
            heard(begun)
            with free.worker(concurrency=1):
                rest = [job for job in jobs if job != slow]
                assert set(free.wait(rest, timeout=PATIENCE).values()) == {JobState.SUCCEEDED}
            assert busy.get(slow).state == JobState.RUNNING
            gate.set()
            busy.wait([slow], timeout=PATIENCE)
        assert all(busy.get(job).failures == busy.get(job).crashes == 0 for job in jobs)
        assert all(len(busy.get(job).attempts) == 1 for job in jobs)


def test_no_ring_is_lost(app: Treadle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers and waiters are woken, not lucky: with the slow polls switched off nothing is left lying."""
    monkeypatch.setattr(defaults, "POLL", timedelta(hours=1))
    monkeypatch.setattr(results, "LOOK_EVERY", 3600.0)
    task = app.task(name="echo")(lambda number: number)
    with app.worker(concurrency=2):
        for number in range(300):
            assert task.enqueue(number).result(timeout=PATIENCE) == number


def test_no_ring_is_lost_beside_other_producers(app: Treadle, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same with eight threads that enqueue while the worker claims and settles."""
    monkeypatch.setattr(defaults, "POLL", timedelta(hours=1))
    monkeypatch.setattr(results, "LOOK_EVERY", 3600.0)
    task = app.task(name="echo")(lambda number: number)
    found: list[int] = []

    def produce() -> None:
        found.extend(task.enqueue(number).result(timeout=PATIENCE) for number in range(40))

    threads = [threading.Thread(target=produce) for _ in range(8)]
    with app.worker(concurrency=2):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(found) == sorted(list(range(40)) * 8)


@pytest.mark.parametrize("concurrency", [0, -1])
def test_a_worker_has_a_slot(app: Treadle, concurrency: int) -> None:
    """A worker without slots would do nothing for ever."""
    with pytest.raises(ConfigurationError, match="concurrency"):
        app.worker(concurrency=concurrency)


# --- which queues ------------------------------------------------------------------------------------


def recorder(app: Treadle) -> tuple[Any, list[str]]:
    """A task that writes down which queues its jobs came from."""
    ran: list[str] = []

    @app.task(name="record")
    def record() -> None:
        ran.append(current_job().queue)

    return record, ran


def test_queues_in_strict_order(app: Treadle) -> None:
    """With a list of queues, the first is emptied before the second is looked at."""
    record, ran = recorder(app)
    jobs = [record.using(queue=queue).enqueue() for queue in ("low", "high") * 20]
    with app.worker(queues=("high", "low"), concurrency=1):
        app.wait(jobs, timeout=PATIENCE)
    assert ran == ["high"] * 20 + ["low"] * 20


def test_a_worker_leaves_other_queues_alone(app: Treadle) -> None:
    """Queues that are not named are not touched."""
    record, _ = recorder(app)
    jobs = [record.using(queue=queue).enqueue() for queue in ("a", "b", "c")]

    async def main() -> None:
        async with app.worker(queues=("a", "b")) as worker:
            await worker.idle()

    asyncio.run(main())
    assert [job.record().state for job in jobs] == ["succeeded", "succeeded", "ready"]


def test_weighted_queues_prefer_the_heavy_one_and_starve_nobody(app: Treadle) -> None:
    """With weights, the heavier queue comes first in proportion, and the light one is emptied too."""
    record, ran = recorder(app)
    jobs = [record.using(queue=queue).enqueue() for queue in ("light", "heavy") * 10]
    with app.worker(queues={"light": 1, "heavy": 10**12}, concurrency=1):
        app.wait(jobs, timeout=PATIENCE)
    assert ran == ["heavy"] * 10 + ["light"] * 10


def test_without_names_every_queue_is_worked(app: Treadle) -> None:
    """A worker without queues= takes queues nobody told it about, also new ones."""
    record, ran = recorder(app)
    with app.worker():
        for queue in ("one", "two", "Ümlaut ✓"):
            record.using(queue=queue).enqueue().result(timeout=PATIENCE)
    assert ran == ["one", "two", "Ümlaut ✓"]


@pytest.mark.parametrize("queues", ["mail", {"a": 0}, {"a": -1}, (), {}], ids=repr)
def test_queues_nobody_could_work_are_refused(app: Treadle, queues: Any) -> None:
    """A text, a weight of nothing, or no queue at all is a mistake, said when the worker is made."""
    with pytest.raises(ConfigurationError, match="queues"):
        app.worker(queues=queues)


# --- which tasks -------------------------------------------------------------------------------------


def test_only_known_tasks_are_claimed(path: Path) -> None:
    """In a mixed fleet each worker takes the jobs it has code for, past those it has not."""
    with open_app(path) as old, open_app(path) as new:
        old_task = old.task(name="old")(lambda: "old")
        new_task = new.task(name="new")(lambda: "new")
        with old.worker(), new.worker():
            jobs = [task.enqueue() for task in (new_task, old_task) * 50]
            assert [job.result(timeout=PATIENCE) for job in jobs] == ["new", "old"] * 50
        assert {job.record().attempt for job in jobs} == {1}


def test_tasks_nobody_knows_wait_and_spend_nothing(path: Path) -> None:
    """A job whose task no worker knows is held with the reason, and runs when a worker comes that knows it."""
    with open_app(path) as client, open_app(path) as server:
        job = client.remote("later").enqueue()
        client.task(name="other")(lambda: None)
        with client.worker():
            eventually(lambda: job.record().state == JobState.HELD)
        assert job.record().reason == "unknown task: no live worker knows 'later'; it runs once one registers"
        server.task(name="later")(lambda: 5)
        with server.worker():
            assert job.result(timeout=PATIENCE) == 5
        assert (job.record().attempt, job.record().failures) == (1, 0)


def test_a_worker_may_run_some_tasks_only(app: Treadle) -> None:
    """tasks= chooses, aliases included; the others stay for other workers."""
    one = app.task(name="one", aliases=["uno"])(lambda: 1)
    two = app.task(name="two")(lambda: 2)
    jobs = [one.enqueue(), two.enqueue(), app.remote("uno").enqueue()]
    with app.worker(tasks=("two",)), app.worker(tasks=("one",), concurrency=1) as second:
        assert [job.result(timeout=PATIENCE) for job in jobs] == [1, 2, 1]
        found = {worker.name: worker.tasks for worker in app.workers()}
    assert found[second.name] == ("one", "uno")


# --- several workers ---------------------------------------------------------------------------------


def test_several_workers_of_one_app_share_the_work(app: Treadle) -> None:
    """Workers side by side run every job once."""
    ran: list[int] = []
    task = app.task(name="note")(lambda number: ran.append(number))  # noqa: PLW0108 - append has no annotations

    async def main() -> None:
        async with app.worker(name="a"), app.worker(name="b"), app.worker(name="b"):
            jobs = await app.aenqueue_many(task.job(number) for number in range(500))
            await app.await_jobs(jobs, timeout=PATIENCE)
            assert [worker.name for worker in app.workers()] == ["a", "b", "b"]

    asyncio.run(main())
    assert sorted(ran) == list(range(500))
    assert app.workers() == ()


def test_two_apps_in_one_process_and_one_is_closed(path: Path) -> None:
    """Closing one app leaves the other, its worker and the file as they are."""
    with open_app(path) as first:
        second = open_app(path)
        tasks = [made.task(name="echo")(lambda number: number) for made in (first, second)]
        with first.worker():
            with second.worker():
                assert [task.enqueue(1).result(timeout=PATIENCE) for task in tasks] == [1, 1]
            second.close()
            assert tasks[0].enqueue(2).result(timeout=PATIENCE) == 2


# --- suspects ----------------------------------------------------------------------------------------


def test_jobs_that_crashed_twice_run_alone(file_app: Treadle, path: Path) -> None:
    """While a suspect runs, nothing else does; suspects and neighbours all get done."""
    peak, alone = Peak(), Peak()

    @file_app.task
    async def work(suspect: bool) -> None:
        with peak:
            for _ in range(5):
                assert not (suspect and peak.now > 1)
                await asyncio.sleep(0)
            if suspect:
                with alone:
                    assert current_job().crashes == 2

    jobs = file_app.enqueue_many(work.job(number % 5 == 0) for number in range(20))
    change(path, "UPDATE treadle_jobs SET crashes = 2 WHERE (id - ?) % 5 = 0", jobs[0])
    with file_app.worker(concurrency=4):
        found = file_app.wait(jobs, timeout=PATIENCE)
    assert set(found.values()) == {JobState.SUCCEEDED}
    assert alone.most == 1
    assert peak.most > 1


# --- trouble from outside ----------------------------------------------------------------------------


def test_a_locked_database_is_waited_for(file_app: Treadle, path: Path) -> None:
    """While another program holds the write lock nothing is lost, and the worker goes on when it is free."""
    begun, go = asyncio.Event(), asyncio.Event()
    code = """
        import sqlite3
        hear()
        connection = sqlite3.connect(sys.argv[1], isolation_level=None)
        connection.execute("BEGIN IMMEDIATE")
        say("locked")
        hear()
        connection.execute("ROLLBACK")
        hear()
    """

    @file_app.task
    async def work() -> int:
        begun.set()
        await go.wait()
        return 1

    async def main(thief: Child) -> None:
        async with file_app.worker() as worker:
            job = await work.aenqueue()
            await aheard(begun)
            thief.say("lock")
            assert await asyncio.to_thread(thief.hear) == "locked"
            go.set()
            waiting = asyncio.ensure_future(work.aenqueue())
            await asyncio.wait([waiting], timeout=0.3)
            assert not waiting.done()
            assert job.record().state == JobState.RUNNING
            thief.say("let go")
            second = await waiting
            assert await second.aresult(timeout=PATIENCE) == await job.aresult(timeout=PATIENCE) == 1
            assert worker.failure is None

    with child(code, path) as thief:
        asyncio.run(main(thief))


def test_outcomes_that_cannot_be_stored_end_the_claiming() -> None:
    """A store that gives jobs and takes no outcomes is not emptied into the memory of a worker."""

    def refuse(point: str) -> None:
        raise psycopg.errors.LockNotAvailable(point)

    with postgres.database() as url, Treadle(url) as app:
        work = app.task(name="work")(_nothing)

        async def main() -> int:
            await app.aenqueue_many(work.job() for _ in range(20_000))
            failpoints.arm(refuse, "apply.before_commit", times=None)
            async with app.worker() as worker:
                await aeventually(lambda: worker._crew.unstored > UNSTORED_MOST and not worker._crew.buffered)
                taken = worker._crew.started
                failpoints.disarm()
                await worker.idle()
                assert worker._crew.started == 20_000
            return taken

        assert asyncio.run(main()) < 8_000
        assert app.counts()["default"] == {JobState.SUCCEEDED: 20_000}


async def _nothing() -> None:
    """A task that is done at once."""
