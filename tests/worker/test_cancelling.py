"""Jobs that are called off: before they begin, while they run in each of the three ways, and when nobody runs them."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from faults.helpers import process
from treadle import AttemptOutcome, Job, JobFilter, JobRecord, JobState, Retry, Treadle, Worker, current_job
from treadle.errors import JobStateError
from worker.isolated import AT_IMPORT, TASKS, heard, place, say
from worker.kit import PATIENCE, aeventually, eventually

only_linux = pytest.mark.skipif(sys.platform != "linux", reason="processes as Linux has them")
ENDS = (JobState.SUCCEEDED, JobState.CANCELLED)


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Handlers wait for it; open at the end whatever happens."""
    event = threading.Event()
    yield event
    event.set()


def called_off(job: Job[object]) -> JobRecord:
    """The job's record once it is cancelled."""
    eventually(lambda: job.record().state is JobState.CANCELLED)
    return job.record()


# Coroutines ----------------------------------------------------------------------------------------------------------


def test_a_coroutine_is_cancelled_at_once(app: Treadle) -> None:
    """It may clean up; the job is kept as cancelled with the reason, and is not tried again though it might be."""
    begun, cleaned = threading.Event(), []

    @app.task(retry=5)
    async def wait() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned.append(current_job().cancelled)

    job = wait.enqueue()
    with app.worker():
        assert begun.wait(PATIENCE)
        job.cancel("changed my mind")
        record = called_off(job)
    assert (record.reason, record.attempt, record.failures) == ("changed my mind", 1, 0)
    assert [one.outcome for one in record.attempts] == [AttemptOutcome.CANCELLED]
    assert record.attempts[0].message == "changed my mind"
    assert cleaned == [True]


def test_success_counts_although_the_job_was_called_off(app: Treadle) -> None:
    """The work is done: a coroutine that returns when it is cancelled has succeeded, with its result."""
    begun = threading.Event()

    @app.task
    async def save() -> str:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "saved"
        return ""

    job = save.enqueue()
    with app.worker():
        assert begun.wait(PATIENCE)
        job.cancel("not wanted")
        assert job.result(PATIENCE) == "saved"
    record = job.record()
    assert (record.reason, record.cancel_reason) == (None, "not wanted")  # who cancelled can see that it came too late


def test_a_coroutine_that_swallows_its_cancel_is_not_lost(app: Treadle) -> None:
    """It keeps its slot, is asked again after its grace, and a stop of the worker ends all the same: cancelled."""
    begun, asked = threading.Event(), []

    @app.task(grace=0.02)
    async def deaf() -> None:
        begun.set()
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                asked.append(1)

    job = deaf.enqueue()
    with app.worker(concurrency=1, grace=0):
        assert begun.wait(PATIENCE)
        job.cancel("enough")
        eventually(lambda: len(asked) == 2)
        assert job.record().state is JobState.RUNNING
    assert called_off(job).reason == "enough"


@pytest.mark.sqlite
@pytest.mark.parametrize("factory", [None, lambda loop, coroutine, **more: asyncio.Task(coroutine, loop=loop, **more)])
def test_a_cancel_before_the_first_step_costs_no_slot(app: Treadle, factory: object) -> None:
    """A coroutine called off between its start and its first line ends like any other."""
    ran: list[str] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_task_factory(factory)  # type: ignore[arg-type]
        worker = app.worker(concurrency=1)

        @app.task(name="first")
        async def first() -> None:
            second = await asyncio.to_thread(jobs[1].record)
            assert second.lease is not None
            # Runs after this attempt has ended and the next one was started, before that has taken a step.
            loop.call_soon(worker._crew.ask_to_stop, second.lease, "too soon")

        @app.task(name="second")
        async def second() -> None:
            ran.append("second")
            await asyncio.Event().wait()

        quick = app.task(name="quick")(lambda: None)
        await app.aenqueue_many(quick.job() for _ in range(50))
        jobs = [await first.aenqueue(), await second.aenqueue()]
        async with worker, asyncio.timeout(PATIENCE):
            await aeventually(lambda: jobs[1].record().attempts)
            await worker.idle()
            assert (await app.aget(jobs[1].id)).state is JobState.CANCELLED

    asyncio.run(main())


# Threads -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("finishes", [True, False])
def test_a_thread_is_asked_to_stop(app: Treadle, finishes: bool) -> None:
    """What it returns then has succeeded; an error is in the history, and no reason to try again."""
    begun = threading.Event()

    @app.task(retry=Retry(5, backoff=0))
    def look() -> str:
        begun.set()
        eventually(lambda: current_job().cancelled)
        if finishes:
            return "half of it"
        raise ValueError("not finished")

    job = look.enqueue()
    with app.worker():
        assert begun.wait(PATIENCE)
        job.cancel("changed my mind")
        eventually(lambda: job.record().state.ended)
    record = job.record()
    assert record.attempt == 1
    if finishes:
        assert job.result(0) == "half of it"
        return
    assert (record.state, record.reason, record.failures) == (JobState.CANCELLED, "changed my mind", 1)
    assert [(one.outcome, one.message) for one in record.attempts] == [(AttemptOutcome.FAILED, "not finished")]


def test_a_thread_that_does_not_look_keeps_its_slot(app: Treadle, gate: threading.Event) -> None:
    """Until it returns the job is shown as running, with the reason it was asked to stop for."""
    begun = threading.Event()

    @app.task(grace=0)
    def deaf() -> None:
        begun.set()
        gate.wait()
        raise ValueError

    job = deaf.enqueue()
    with app.worker(concurrency=1) as worker:
        assert begun.wait(PATIENCE)
        job.cancel("first")
        job.cancel("second")
        eventually(lambda: job.record().cancel_reason is not None)
        assert (job.record().state, job.record().cancel_reason, worker.running) == (JobState.RUNNING, "first", 1)
        gate.set()
        assert called_off(job).reason == "first"


# Processes -----------------------------------------------------------------------------------------------------------


@only_linux
def test_a_process_is_asked_to_stop(shop: Treadle) -> None:
    """A plain function sees .cancelled, a coroutine gets CancelledError; the child lives on for the next job."""
    with shop.worker(concurrency=1):
        jobs = []
        for task, what in (("act", "wait"), ("act", "give_up"), ("aact", "wait")):
            jobs.append(TASKS[task].enqueue(what, f"{task} {what}"))
            child = heard(f"{task} {what} begun")
            jobs[-1].cancel("enough")
            eventually(lambda: jobs[-1].record().state.ended)
        assert TASKS["act"].enqueue("pid").result(PATIENCE) == int(child)
    looked, raised, coroutine = (job.record() for job in jobs)
    assert looked.state is JobState.SUCCEEDED
    assert (raised.state, raised.attempts[0].message) == (JobState.CANCELLED, "not finished")
    assert (coroutine.state, coroutine.attempts[0].outcome) == (JobState.CANCELLED, AttemptOutcome.CANCELLED)
    assert coroutine.reason == "enough"


@only_linux
@pytest.mark.parametrize("what", ["ignore", "grind"])
def test_a_process_that_does_not_stop_is_killed(shop: Treadle, what: str) -> None:
    """After the task's grace, whatever it does; that is no crash, and its slot is free."""
    with shop.worker(concurrency=1):
        job = TASKS["impatient"].enqueue(what, "job")
        child = int(heard("job begun"))
        job.cancel("enough")
        record = called_off(job)
        assert TASKS["act"].enqueue("pid").result(PATIENCE) != child
    assert (record.reason, record.crashes, record.failures) == ("enough", 0, 0)
    assert [one.outcome for one in record.attempts] == [AttemptOutcome.CANCELLED]


@only_linux
def test_a_job_called_off_while_its_process_starts_does_not_begin(
    shop: Treadle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wish comes while the child imports the app: the handler never runs, and the child takes the next job."""
    monkeypatch.setenv(AT_IMPORT, "hang")
    with shop.worker(concurrency=2):
        job, probe = TASKS["act"].enqueue("wait", "job"), TASKS["loop"].enqueue("wait", "probe")
        child = int(heard("importing"))
        heard("probe begun")
        # Both wishes are carried out in one go: when the probe hears its own, the other one was told too.
        assert shop.cancel(JobFilter(ids=(job.id, probe.id)), "enough") == 2
        heard("probe stopped")
        say("import go")
        assert called_off(job).reason == "enough"
        assert TASKS["act"].enqueue("pid").result(PATIENCE) == child
    assert not place("job begun").exists()


# Not begun, and nobody there -----------------------------------------------------------------------------------------


def test_a_job_claimed_ahead_does_not_begin(
    app: Treadle, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker had taken it beyond its slots: called off, it is cancelled at once and its handler never runs."""
    monkeypatch.setattr("treadle.worker.claimer.RETURN_AFTER", 3600)  # it is not given back before
    begun, ran = threading.Event(), []

    @app.task
    def work(number: int) -> None:
        ran.append(number)
        if number == 200:
            begun.set()
            gate.wait()

    # Quick ones before, so that the worker has learned to claim ahead.
    jobs = app.enqueue_many(work.job(number) for number in range(400))
    with app.worker(concurrency=1):
        assert begun.wait(PATIENCE)
        assert app.cancel(JobFilter(ids=tuple(jobs[201:])), "all the rest") == 199
        eventually(lambda: {app.get(job).state for job in jobs[201:]} == {JobState.CANCELLED})
        gate.set()
        app.wait(jobs, PATIENCE)
    assert ran == list(range(201))
    assert {app.get(job).attempts for job in jobs[201:]} == {()}


@only_linux
def test_a_job_called_off_while_its_worker_is_dead_is_not_run_again(shop: Treadle, tmp_path: Path) -> None:
    """Nobody hears the wish; the rescue grants it."""
    job = TASKS["thread"].enqueue("ignore", "job")
    with process("worker.isolated", "dead", log=tmp_path / "log") as worker:
        heard("job begun")
        worker.send(signal.SIGKILL)
        worker.finish()
    job.cancel("enough")
    assert job.record().state is JobState.RUNNING
    with shop.worker():
        record = called_off(job)
    assert (record.reason, record.attempt) == ("enough", 1)
    assert [one.outcome for one in record.attempts] == [AttemptOutcome.CRASHED]


def test_cancel_and_success_race_to_one_end(app: Treadle) -> None:
    """A cancel that comes just when the handler returns: succeeded or cancelled, with one attempt, never stuck."""

    @app.task(retry=5)
    async def brief(turns: int) -> int:
        for _ in range(turns):
            await asyncio.sleep(0)
        return turns

    async def one(number: int) -> Job[int]:
        job = await brief.aenqueue(number % 23)
        for _ in range(number % 17):
            await asyncio.sleep(0.0005)
        with suppress(JobStateError):
            await job.acancel()
        return job

    async def main() -> list[Job[int]]:
        async with app.worker(concurrency=8) as worker, asyncio.timeout(PATIENCE):
            jobs = await asyncio.gather(*map(one, range(300)))
            await app.await_jobs(jobs)
            await worker.idle()
            assert worker.running == 0
            return list(jobs)

    ends = {state: 0 for state in ENDS}
    for job in asyncio.run(main()):
        record = job.record()
        ends[record.state] += 1
        assert len(record.attempts) <= 1
        if record.state is JobState.SUCCEEDED:
            assert [each.outcome for each in record.attempts] == [AttemptOutcome.SUCCEEDED]
    assert ends[JobState.CANCELLED] + ends[JobState.SUCCEEDED] == 300


def test_many_running_jobs_are_called_off_by_filter(app: Treadle) -> None:
    """One call, every kind of job it matches; others go on."""
    begun: list[int] = []
    go = asyncio.Event()

    @app.task
    async def wait(number: int) -> None:
        begun.append(number)
        await go.wait()

    async def main(worker: Worker) -> None:
        async with worker:
            for number in range(6):
                await wait.using(tags=["odd" if number % 2 else "even"]).aenqueue(number)
            await wait.using(delay=60, tags=["odd"]).aenqueue(7)
            await aeventually(lambda: len(begun) == 6)
            assert await app.acancel(JobFilter(tag="odd"), "odd ones") == 4
            await aeventually(lambda: worker.running == 3)
            go.set()
            await worker.idle()

    asyncio.run(main(app.worker()))
    counts = app.counts()["default"]
    assert counts == {JobState.SUCCEEDED: 3, JobState.CANCELLED: 4}

