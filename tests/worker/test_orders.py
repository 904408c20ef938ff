"""What people want of workers, queues and tasks: pause, resume, drain, evict; and workers that stall."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest

from faults.helpers import outsider, process, stop_at_rest
from treadle import AttemptOutcome, HeldClock, JobState, Treadle, WorkerRecord
from treadle.clock import SystemClock
from treadle.errors import ConfigurationError, StoreLost, WorkerNotFound
from treadle.store.ops import claim, pauses
from treadle.store.ops import rescue as rescuing
from treadle.store.ops.claim import ClaimRequest
from worker.isolated import TASKS, heard, say
from worker.kit import PATIENCE, aeventually, aheard, change, eventually, open_app

only_linux = pytest.mark.skipif(sys.platform != "linux", reason="processes as Linux has them")
LOST = 70


class Moved(SystemClock):
    """The machine's clocks, both moved by so many seconds."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> int:
        return super().now() + round(self.seconds * 1_000_000)

    def monotonic(self) -> float:
        return super().monotonic() + self.seconds


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Handlers wait for it; open at the end whatever happens."""
    event = threading.Event()
    yield event
    event.set()


def record_of(app: Treadle, name: str) -> WorkerRecord:
    return next(row for row in app.workers() if row.name == name)


# Pausing a worker ----------------------------------------------------------------------------------------------------


def test_a_paused_worker_starts_nothing(app: Treadle, gate: threading.Event) -> None:
    """What runs goes on, what it had claimed goes back to others at once, and it is shown with who said so."""
    begun = threading.Event()

    @app.task(name="work")
    def work(number: int) -> str:
        if number == 60:
            begun.set()
            gate.wait()
        return worker_of[threading.current_thread().name.startswith("treadle")]

    worker_of = {True: "a worker"}
    jobs = app.enqueue_many(work.job(number) for number in range(300))
    with app.worker(name="paused", concurrency=1) as paused:
        assert begun.wait(PATIENCE)
        app.pause(worker="paused", by="ada")
        eventually(lambda: app.counts()["default"].get(JobState.READY) == 239)
        assert paused.running == 1
        gate.set()
        eventually(lambda: paused.running == 0)
        app.result(jobs[60], timeout=PATIENCE)
        found = record_of(app, "paused")
        assert (found.orders, found.ordered_by, found.alive) == ("pause", "ada", True)
        with app.worker(name="free"):
            app.wait(jobs, PATIENCE)
        assert {one.worker for job in jobs[61:] for one in app.get(job).attempts} == {"free"}
        later = work.enqueue(1)
        app.resume(worker="paused")
        later.result(PATIENCE)
        assert record_of(app, "paused").orders is None


def test_a_paused_worker_does_not_fill_a_slot_that_becomes_free(app: Treadle) -> None:
    """Not even with a job that it had claimed before and has not given back yet."""
    ran: list[int] = []

    async def main() -> None:
        begun, go = asyncio.Event(), asyncio.Event()

        @app.task(name="work")
        async def work(number: int) -> None:
            ran.append(number)
            if number == 200:
                begun.set()
                await go.wait()

        jobs = await app.aenqueue_many(work.job(number) for number in range(400))
        async with app.worker(concurrency=1) as worker:
            await aheard(begun)
            assert worker._crew.buffered > 0
            go.set()
            worker._claimer.pause(True)
            await aeventually(lambda: worker._crew.buffered == 0 and worker.running == 0)
            assert ran == list(range(201))
            worker._claimer.pause(False)
            await app.await_jobs(jobs, PATIENCE)

    asyncio.run(main())


def test_a_pause_of_a_worker_ends_with_it(app: Treadle) -> None:
    """A fresh worker of the same name works; a queue that should rest is paused as a queue."""
    work = app.task(name="work")(lambda: 1)
    with app.worker(name="one"):
        app.pause(worker="one")
    with app.worker(name="one"):
        assert work.enqueue().result(PATIENCE) == 1


def test_orders_name_a_worker_that_is_there(app: Treadle) -> None:
    """Nobody is told to do something in silence."""
    for verb in (partial(app.pause, worker="nobody"), partial(app.drain, "nobody"), partial(app.evict, 77)):
        with pytest.raises(WorkerNotFound, match=r"No .*worker .*is registered"):
            verb()
    for targets in ({}, {"queue": "a", "task": "b"}):
        with pytest.raises(ConfigurationError, match="one of them"):
            app.pause(**targets)  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match="one of them"):
            app.resume(**targets)  # type: ignore[arg-type]


# Draining ------------------------------------------------------------------------------------------------------------


def test_a_worker_that_is_told_to_drain_finishes_and_ends(app: Treadle) -> None:
    """It says why, others keep working, and run() would return."""
    begun, go = asyncio.Event(), asyncio.Event()

    @app.task(name="work")
    async def work() -> str:
        begun.set()
        await go.wait()
        return "done"

    async def main() -> None:
        worker = app.worker(name="old", grace=PATIENCE)
        told: list[str] = []
        worker.on_draining = told.append
        await worker.start()
        job = await work.aenqueue()
        await aheard(begun)
        await app.adrain("old", by="ada")
        await aeventually(lambda: told)
        later = await work.aenqueue()
        assert not job.record().state.ended
        go.set()
        await worker.ended()
        assert (worker.draining, worker.failure) == ("it was told to drain", None)
        assert await job.aresult(0) == "done"
        assert (await app.aget(later.id)).attempts == ()

    asyncio.run(main())
    assert app.workers() == ()


# Evicting ------------------------------------------------------------------------------------------------------------


def test_an_evicted_worker_changes_nothing_any_more(path: Path, gate: threading.Event) -> None:
    """Its job runs elsewhere, its late outcome is refused, and it ends by itself and says why."""
    begun: list[int] = []

    def work() -> int:
        found = len(begun)
        begun.append(found)
        if found == 0:
            gate.wait()
        return found

    with open_app(path) as first, open_app(path) as second:
        job = first.task(name="work")(work).enqueue()
        second.task(name="work")(work)
        with first.worker(name="evicted", grace=0) as worker:
            eventually(lambda: begun)
            assert second.evict("evicted", reason="it hangs", by="ada") == 1
            with second.worker(name="next"):
                assert second.result(job.id, timeout=PATIENCE) == 1
                eventually(lambda: worker.failure is not None)
                gate.set()
            assert isinstance(worker.failure, StoreLost)
            assert "evicted" in str(worker.failure)
        found = second.get(job.id)
        assert [(one.outcome, one.worker, one.message) for one in found.attempts] == [
            (AttemptOutcome.CRASHED, "evicted", "evicted: by ada: it hangs"), (AttemptOutcome.SUCCEEDED, "next", None),
        ]  # fmt: skip
        assert (found.crashes, found.failures, second.result(job.id, timeout=0)) == (1, 0, 1)
        assert second.workers() == ()


def test_an_evicted_worker_looks_after_nothing_any_more(app: Treadle) -> None:
    """Nobody knows its tasks any more: it does not hold and free their jobs in turns until it notices."""
    job = app.task(name="work")(lambda: None).using(queue="elsewhere").enqueue()
    with app.worker(queues=["default"]) as worker:
        (row,) = app.workers()
        app.store.run(partial(rescuing.leave, slot=row.slot, epoch=row.epoch))
        worker._upkeep.look_after_heads()
        assert job.record().state is JobState.READY


@only_linux
def test_003_d_stalled_worker(shop: Treadle, tmp_path: Path, path: Path) -> None:
    """A stopped worker is shown as stalled, keeps its job until it is evicted, and changes nothing when it wakes."""
    clock = Moved()
    job = TASKS["thread"].enqueue("wait", "job")
    with open_app(path, clock=clock) as judge, process("worker.isolated", "first", log=tmp_path / "log") as first:
        heard("job begun")
        stop_at_rest(first, path)
        clock.seconds = 61
        found = record_of(judge, "first")
        assert (found.alive, found.stalled, found.running) == (True, True, 1)
        with judge.worker(name="second", tasks=()), shop.worker(name="third"):
            eventually(lambda: len(judge.workers()) == 3)
            assert judge.get(job.id).state is JobState.RUNNING
            assert judge.evict("first") == 1
            eventually(lambda: judge.get(job.id).attempt == 2)
            say("job go")
            assert judge.result(job.id, timeout=PATIENCE) == "went on"
            before = judge.get(job.id)
            first.send(signal.SIGCONT)
            assert first.finish() == LOST
            assert judge.get(job.id) == before
    assert "was evicted" in (tmp_path / "log").read_text()
    assert [one.outcome for one in before.attempts] == [AttemptOutcome.CRASHED, AttemptOutcome.SUCCEEDED]


@only_linux
@pytest.mark.parametrize("seconds", [1, 60, 400])
def test_003_d_a_restart_under_the_same_name_recovers_its_jobs(
    shop: Treadle, path: Path, tmp_path: Path, seconds: int
) -> None:
    """However long a killed worker was away, its successor takes its job back at once."""
    job = TASKS["thread"].enqueue("wait", "job")
    with process("worker.isolated", "same", log=tmp_path / "log") as first:
        heard("job begun")
        first.kill()
    say("job go")
    clock = Moved()
    clock.seconds = seconds
    with open_app(path, clock=clock) as later:
        later.task(name="thread", retry=0)(lambda what, value: "again")
        with later.worker(name="same"):
            assert later.result(job.id, timeout=PATIENCE) == "again"
        assert (later.get(job.id).crashes, later.get(job.id).attempt) == (1, 2)


@only_linux
def test_003_d_a_job_that_kills_its_process_stops(shop: Treadle, tmp_path: Path) -> None:
    """However often its worker is started again, it dies three times and is held."""
    job = TASKS["thread"].enqueue("die", "SIGKILL")
    for number in range(2):
        with process("worker.isolated", f"w{number}", log=tmp_path / "log") as worker:
            assert worker.finish() == -signal.SIGKILL
    with process("worker.isolated", "last", log=tmp_path / "log") as worker:
        eventually(lambda: job.record().state is JobState.HELD)
        assert worker.popen.poll() is None
    assert (job.record().crashes, job.record().attempt) == (3, 3)


@only_linux
def test_workers_that_stall_are_evicted_where_that_was_asked_for(shop: Treadle, path: Path, tmp_path: Path) -> None:
    """By a worker's own watch, not by the clock on the wall; without the option a stalled worker keeps its job."""
    patient, strict = Moved(), Moved()
    job = TASKS["thread"].enqueue("wait", "job")
    with process("worker.isolated", "first", log=tmp_path / "log") as first:
        heard("job begun")
        with open_app(path, clock=patient) as one, open_app(path, clock=strict) as other:
            for made in (one, other):
                made.task(name="thread", retry=0)(lambda what, value: "elsewhere")
            stop_at_rest(first, path)
            with one.worker(name="patient"):
                look_around(path)
                patient.seconds = 3600
                look_around(path)
                assert one.get(job.id).state is JobState.RUNNING
            with other.worker(name="strict", evict_stalled_after=30):
                look_around(path)
                strict.seconds = 31
                assert other.result(job.id, timeout=PATIENCE) == "elsewhere"
            (lost, *_) = one.get(job.id).attempts
            assert (lost.outcome, lost.worker) == (AttemptOutcome.CRASHED, "first")
            assert str(lost.message).startswith("evicted: no sign of life for 3")
            assert str(lost.message).endswith("seen by strict")
            first.send(signal.SIGCONT)
            assert first.finish() == LOST


@pytest.mark.parametrize("seconds", [0, 5, 19.9])
def test_eviction_leaves_time_for_a_few_signs_of_life(app: Treadle, seconds: float) -> None:
    """A limit that a busy disk could break is refused."""
    with pytest.raises(ConfigurationError, match="shorter than 20 s"):
        app.worker(evict_stalled_after=seconds)


@only_linux
def test_leftovers_of_evicted_workers_are_removed(shop: Treadle, path: Path) -> None:
    """The next worker finds files of registrations that are over, and lets those of living ones be."""
    side = Path(f"{path}-treadle")
    with shop.worker(name="stays"):
        with shop.worker(name="evicted") as evicted:
            TASKS["thread"].enqueue("give", 1).result(PATIENCE)
            shop.evict("evicted")
            eventually(lambda: evicted.failure is not None)
        assert len(list(side.glob("roll-*"))) == 2
        with shop.worker(name="next"):
            eventually(lambda: len(list(side.glob("roll-*"))) == 2)
            assert TASKS["thread"].enqueue("give", 2).result(PATIENCE) == 2
            epochs = {str(row.epoch) for row in shop.workers()}
            assert {each.name.removeprefix("roll-") for each in side.glob("roll-*")} == epochs


GHOST = """
INSERT INTO treadle_workers
SELECT 4000, 1000000 + abs(random() % 1000000), 'ghost', host, 1, 1, pid_namespace, boot_id, dev, ino, started_at,
    seen_at, queues, tasks, concurrency, NULL, NULL
FROM treadle_workers LIMIT 1
"""


def look_around(path: Path) -> None:
    """Wait until the only worker that is awake has looked after every other one: the last of them is a ghost."""
    change(path, GHOST)
    with outsider(path) as connection:
        eventually(lambda: not connection.execute("SELECT 1 FROM treadle_workers WHERE slot = 4000").fetchall())


# Pausing queues and tasks --------------------------------------------------------------------------------------------


def test_a_pause_outlives_every_process(path: Path) -> None:
    """Queue or task: nobody starts jobs of it after a restart either, until it is resumed; who and why is kept."""
    ran: list[str] = []

    def note(text: str) -> None:
        ran.append(text)

    def declare(made: Treadle) -> None:
        for name in ("mail", "scan"):
            made.task(name=name)(note)

    with open_app(path) as first:
        declare(first)
        first.pause(queue="slow", reason="the provider is down", by="ada")
        first.pause(task="scan", reason="paper jam", by="bob")
    with open_app(path) as second:
        declare(second)
        tasks = {name: second.remote(name) for name in ("mail", "scan")}
        slow = second.remote("mail", queue="slow").enqueue(text="in the slow queue")
        scan = tasks["scan"].enqueue(text="a scan")
        with second.worker():
            second.result(tasks["mail"].enqueue(text="a mail").id, timeout=PATIENCE)
            eventually(lambda: scan.record().state is JobState.BLOCKED)
            assert ran == ["a mail"]
            assert scan.record().reason == "task paused by bob: paper jam"
            assert slow.record().state is JobState.READY
            found = [(one.kind, one.name, one.paused_by, one.reason, one.until) for one in second.pauses()]
            assert found == [
                ("queue", "slow", "ada", "the provider is down", None), ("task", "scan", "bob", "paper jam", None),
            ]  # fmt: skip
            assert second.resume(queue="slow")
            assert second.resume(task="scan")
            second.wait([slow, scan], PATIENCE)
        assert not second.resume(queue="slow")
        assert second.pauses() == ()
    assert sorted(ran) == ["a mail", "a scan", "in the slow queue"]


def test_what_runs_goes_on_through_a_pause(app: Treadle) -> None:
    """Only starts are held back: a running job of the paused task ends as ever, and its retry waits."""
    begun, go = asyncio.Event(), asyncio.Event()

    @app.task(name="work", retry=1)
    async def work() -> str:
        begun.set()
        await go.wait()
        return "done"

    async def main() -> None:
        async with app.worker():
            job = await work.aenqueue()
            await aheard(begun)
            await app.apause(task="work", until=None)
            await app.apause(queue="default")
            go.set()
            assert await job.aresult(PATIENCE) == "done"
            later = await work.aenqueue()
            assert [one.name for one in await app.apauses()] == ["default", "work"]
            await app.aresume(queue="default")
            await app.aresume(task="work")
            assert await later.aresult(PATIENCE) == "done"

    asyncio.run(main())


def test_a_pause_ends_by_itself(held_app: Treadle, clock: HeldClock) -> None:
    """With until= jobs start again at that moment, and the pause is forgotten."""
    work = held_app.task(name="work")(lambda: 1)
    until = datetime.fromtimestamp(clock.now() / 1_000_000, UTC) + timedelta(seconds=60)
    held_app.pause(queue="default", until=until)
    job = work.enqueue()
    with held_app.worker():
        clock.advance(seconds=59)
        assert job.record().state is JobState.READY
        clock.advance(seconds=2)
        assert job.result(PATIENCE) == 1


@pytest.mark.sqlite
def test_a_paused_task_does_not_stand_in_the_way_of_others(app: Treadle) -> None:
    """20,000 of its jobs are parked, a claim of another task reads none of them, and a resume frees all."""
    bulky, other = app.task(name="bulky")(lambda: None), app.task(name="other")(lambda: 1)
    count = 20_000
    app.enqueue_many(bulky.using(priority=10).job() for _ in range(count))
    app.pause(task="bulky", reason="too many")
    knows_both = {"tasks": ("bulky", "other"), "queues": ["elsewhere"]}
    with app.worker(**knows_both):
        eventually(lambda: app.counts()["default"] == {JobState.BLOCKED: count})
        assert steps_of_a_claim(app) < 5_000
        job = other.enqueue()
        with app.worker(tasks=("other",)):
            assert job.result(PATIENCE) == 1
    assert app.resume(task="bulky")
    with app.worker(**knows_both):
        eventually(lambda: app.counts()["default"].get(JobState.READY) == count)
        assert steps_of_a_claim(app) > 20_000, "the measure measures"
    assert app.store.read(pauses.every) == ()


def test_a_pause_of_a_task_is_one_of_its_aliases_too(app: Treadle) -> None:
    """Whichever of its names is given: jobs stored under older ones wait as well, and go on with it."""
    app.task(name="new", aliases=("old", "older"))(lambda: 1)
    app.pause(task="old", by="ada")
    assert [(one.name, one.paused_by) for one in app.pauses()] == [("new", "ada"), ("old", "ada"), ("older", "ada")]
    jobs = [app.remote(name).enqueue() for name in ("new", "old", "older")]
    with app.worker():
        eventually(lambda: app.counts()["default"] == {JobState.BLOCKED: 3})
        assert app.resume(task="new")
        assert [job.result(PATIENCE) for job in jobs] == [1, 1, 1]
    assert not app.resume(task="new")


def steps_of_a_claim(app: Treadle) -> int:
    """How many steps SQLite's machine takes to claim for the task "other"; nothing of it is kept."""
    steps = [0]

    def count() -> int:
        steps[0] += 100
        return 0

    def measure(session: object) -> None:
        connection = session.connection  # type: ignore[attr-defined]
        connection.set_progress_handler(count, 100)
        try:
            claim.claim(session, ClaimRequest(("default",), '["other"]', 10, 10_000))  # type: ignore[arg-type]
        finally:
            connection.set_progress_handler(None, 0)

    app.store.run(measure)
    return steps[0]

