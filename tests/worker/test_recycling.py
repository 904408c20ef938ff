"""Workers that end: to be replaced, because nothing is left, because something else is done, or by signals."""

from __future__ import annotations

import asyncio
import contextvars
import signal
import sys
import textwrap
import threading
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from host.children import Child, child
from treadle import AttemptOutcome, JobState, Treadle, Worker, current_job
from treadle.errors import ConfigurationError
from worker.isolated import TASKS
from worker.kit import PATIENCE, SOURCE, aeventually, aheard, open_app, states

only_posix = pytest.mark.skipif(sys.platform == "win32", reason="signals")


async def ended(worker: Worker) -> None:
    async with asyncio.timeout(PATIENCE):
        await worker.ended()


# To be replaced ------------------------------------------------------------------------------------------------------


def test_a_worker_ends_after_so_many_jobs(app: Treadle) -> None:
    """What it has begun it finishes; the rest is untouched, and it says why it ends."""
    work = app.task(name="work")(lambda: None)
    app.enqueue_many(work.job() for _ in range(500))
    told: list[str] = []

    async def main() -> int:
        worker = app.worker(concurrency=2, max_jobs=20)
        worker.on_draining = told.append
        async with worker:
            await ended(worker)
        assert worker.failure is None
        return worker._crew.started

    ran = asyncio.run(main())
    counts = app.counts()["default"]
    assert counts == {JobState.SUCCEEDED: ran, JobState.READY: 500 - ran}
    assert 20 <= ran < 500
    assert told == [f"it has run {told[0].split()[3]} attempts (max_jobs)"]
    assert app.workers() == ()


@pytest.mark.sqlite
@pytest.mark.parametrize(
    ("limit", "words"), [({"max_age": 0.04}, "s old (max_age)"), ({"max_memory": 1000}, "bytes in memory (max_memory)")]
)
def test_a_worker_ends_at_an_age_and_beyond_a_size(
    app: Treadle, limit: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It drains like any worker that is told to: what runs may finish."""
    monkeypatch.setattr("treadle.worker.fitness.LOOK_EVERY", 0.01)
    begun, go = asyncio.Event(), asyncio.Event()

    @app.task(name="work")
    async def work() -> str:
        begun.set()
        await go.wait()
        return "done"

    async def main() -> None:
        job = await work.aenqueue()
        async with app.worker(grace=PATIENCE, **limit) as worker:
            await aheard(begun)
            await aeventually(lambda: worker.draining)
            assert str(worker.draining).endswith(words)
            go.set()
            await ended(worker)
        assert await job.aresult(0) == "done"

    asyncio.run(main())


@pytest.mark.parametrize("option", ["max_jobs", "max_age", "max_memory"])
def test_limits_of_nothing_are_refused(app: Treadle, option: str) -> None:
    """A worker that would end before it began is a mistake."""
    with pytest.raises(ConfigurationError, match=f"{option}=0 must be greater than 0"):
        app.worker(**{option: 0})


@pytest.mark.parametrize("task", ["thread", "loop", pytest.param("act", marks=only_posix)])
def test_a_handler_can_stop_its_worker(shop: Treadle, task: str) -> None:
    """On a thread, on the loop or in a process: its own attempt succeeds, then the worker drains and ends."""
    job = TASKS[task].enqueue("stop_worker")

    async def main() -> None:
        async with shop.worker(concurrency=1) as worker:
            await ended(worker)
            assert worker.draining == f"job {job.id}: leaks"

    asyncio.run(main())
    assert job.result(0) == "stopped it"


# When it is done -----------------------------------------------------------------------------------------------------


def test_a_burst_ends_when_nothing_is_left_to_do_now(app: Treadle) -> None:
    """Jobs that jobs enqueue are done too, retries without delay as well; what is scheduled for later is left."""

    @app.task(name="tree", retry=0)
    def tree(depth: int) -> None:
        if depth:
            app.enqueue_many(tree.job(depth - 1) for _ in range(2))

    tree.enqueue(5)
    later = tree.using(delay=3600).enqueue(0)
    app.worker().run(burst=True)
    assert app.counts()["default"] == {JobState.SUCCEEDED: 63, JobState.SCHEDULED: 1}
    later.cancel()
    app.worker().run(burst=True)


def test_a_burst_leaves_what_is_paused(app: Treadle) -> None:
    """It does not wait for somebody to resume a queue or a task."""
    one, two = (app.task(name=name)(lambda: None) for name in ("one", "two"))
    app.pause(queue="slow")
    app.pause(task="two")
    jobs = [one.using(queue="slow").enqueue(), two.enqueue(), one.enqueue()]
    app.worker().run(burst=True)
    assert [str(job.record().state) for job in jobs] == ["ready", "blocked", "succeeded"]


def test_a_worker_works_until_something_is_done(app: Treadle) -> None:
    """run_until drains when what it waits for is there; running jobs finish first."""
    begun, go, stop = asyncio.Event(), asyncio.Event(), asyncio.Event()

    @app.task(name="work")
    async def work() -> str:
        begun.set()
        await go.wait()
        return "done"

    async def main() -> None:
        job = await work.aenqueue()
        worker = app.worker(grace=PATIENCE)
        running = asyncio.ensure_future(worker.run_until(stop.wait()))
        await aheard(begun)
        stop.set()
        await aeventually(lambda: worker._halting)
        assert not running.done()
        go.set()
        await running
        assert await job.aresult(0) == "done"

    asyncio.run(main())
    assert app.workers() == ()


def test_what_run_until_waits_for_may_fail(app: Treadle) -> None:
    """Its error is raised once the worker has drained; nobody has to wonder why the program ended."""

    async def trouble() -> None:
        raise ZeroDivisionError("the program's own")

    with pytest.raises(ZeroDivisionError, match="the program's own"):
        asyncio.run(app.worker().run_until(trouble()))
    assert app.workers() == ()


def test_a_cancelled_run_until_stops_its_worker(app: Treadle) -> None:
    """No worker goes on behind the back of a program that has given it up; the jobs go back unspent."""
    begun = asyncio.Event()

    @app.task(name="work")
    async def work() -> None:
        begun.set()
        await asyncio.Event().wait()

    async def main() -> None:
        job = await work.aenqueue()
        running = asyncio.ensure_future(app.worker(grace=0).run_until(asyncio.Event().wait()))
        await aheard(begun)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        record = await app.aget(job.id)
        assert (record.state, record.failures) == (JobState.READY, 0)

    asyncio.run(main())
    assert app.workers() == ()


def test_a_worker_that_ends_by_itself_ends_run_until(app: Treadle) -> None:
    """What the program waits for is cancelled, and nothing is raised: the worker ended in good order."""
    app.task(name="last")(lambda: current_job().stop_worker("enough")).enqueue()
    cancelled: list[bool] = []

    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    async def main() -> None:
        async with asyncio.timeout(PATIENCE):
            await app.worker().run_until(wait())
        await aeventually(lambda: cancelled)

    asyncio.run(main())


# Grace ---------------------------------------------------------------------------------------------------------------


def test_a_task_may_have_less_grace_than_its_worker(app: Treadle) -> None:
    """At a stop it is asked after its own grace, others have that of the worker; what it did not finish goes back."""
    begun, go = [], asyncio.Event()

    async def work(name: str) -> str:
        begun.append(name)
        try:
            await asyncio.wait_for(go.wait(), PATIENCE)
        except asyncio.CancelledError:
            go.set()
            raise
        return name

    impatient = app.task(name="impatient", grace=0.01)(work)
    patient = app.task(name="patient")(work)

    async def main() -> None:
        async with app.worker(grace=PATIENCE):
            jobs.extend([await impatient.aenqueue("impatient"), await patient.aenqueue("patient")])
            await aeventually(lambda: len(begun) == 2)

    jobs: list[Any] = []
    asyncio.run(main())
    first, second = (job.record() for job in jobs)
    assert (first.state, [one.outcome for one in first.attempts]) == (JobState.READY, [AttemptOutcome.RELEASED])
    assert second.state is JobState.SUCCEEDED


def test_context_variables_of_one_job_are_not_seen_by_the_next(app: Treadle) -> None:
    """On the loop and on threads: a handler starts with what the worker was started with."""
    tenant = contextvars.ContextVar("tenant", default="nobody")
    seen: list[str] = []

    async def anote(name: str) -> None:
        seen.append(tenant.get())
        tenant.set(name)

    def note(name: str) -> None:
        seen.append(tenant.get())
        tenant.set(name)

    async def main() -> None:
        tenant.set("the program")
        jobs = [task.job(str(number)) for number in range(40) for task in tasks]
        await app.aenqueue_many(jobs)
        async with app.worker(concurrency=2) as worker:
            tenant.set("later")
            await worker.idle()

    tasks = [app.task(name="anote")(anote), app.task(name="note")(note)]
    asyncio.run(main())
    assert set(seen) == {"the program", "nobody"}, "threads begin with nothing, coroutines with the worker's"


# Signals -------------------------------------------------------------------------------------------------------------

PROGRAM = """
    import asyncio, threading
    sys.path.insert(0, {source!r})
    from treadle import Treadle
    lock = threading.Lock()
    def say(text):
        with lock:
            sys.stdout.write(text + "\\n")
            sys.stdout.flush()
    app = Treadle("sqlite:///" + sys.argv[1])
    @app.task(name="deaf")
    async def deaf() -> None:
        say("deaf begun")
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                say("deaf asked")
    @app.task(name="stuck")
    def stuck() -> None:
        say("stuck begun")
        threading.Event().wait()
    @app.task(name="frozen")
    async def frozen() -> None:
        say("frozen begun")
        threading.Event().wait()
    app.worker(grace={grace}, concurrency=2).run()
    app.close()
    say("over")
"""


def program(path: Path, grace: float) -> AbstractContextManager[Child]:
    return child(textwrap.dedent(PROGRAM).format(source=SOURCE, grace=grace), path)


def line(other: Child) -> str:
    """Its next line; several may have come at once."""
    assert other.process.stdout is not None
    return other.process.stdout.readline().decode().strip()


@only_posix
@pytest.mark.parametrize("name", ["deaf", "stuck"])
def test_no_handler_keeps_a_process_from_ending(path: Path, name: str) -> None:
    """A coroutine that swallows every cancel, a thread that never returns: SIGTERM and the grace end the process."""
    with open_app(path) as app, program(path, grace=0) as other:
        job = app.remote(name).enqueue()
        assert line(other) == f"{name} begun"
        other.process.send_signal(signal.SIGTERM)
        said = [line(other)]
        while said[-1] != "over":
            said.append(line(other))
        assert other.process.wait(PATIENCE) == 0
        record = job.record()
        assert (record.state, record.failures, record.crashes) == (JobState.READY, 0, 0)
        assert app.workers() == ()


@only_posix
def test_a_third_signal_ends_a_process_whose_loop_stands_still(path: Path) -> None:
    """A handler that blocks the event loop for ever: the drain cannot begin, the third SIGTERM is the end."""
    with open_app(path) as app, program(path, grace=600) as other:
        job = app.remote("frozen").enqueue()
        assert line(other) == "frozen begun"
        while other.process.poll() is None:  # signals that come together are one: so many that three are heard
            other.process.send_signal(signal.SIGTERM)
            threading.Event().wait(0.01)
        assert other.process.wait(PATIENCE) == 128 + signal.SIGTERM
        app.task(name="frozen")(lambda: "thawed")
        with app.worker():
            assert app.result(job.id, timeout=PATIENCE) == "thawed"


# Scenario ------------------------------------------------------------------------------------------------------------


@only_posix
def test_promise_7_deploys_spend_nothing(path: Path) -> None:
    """SIGTERM drains; what could not finish and what had not begun is ready again, and nothing of it is spent."""
    with open_app(path) as app, program(path, grace=0) as other:
        jobs = [app.remote(name).enqueue() for name in ("stuck", "deaf", "stuck", "deaf")]
        assert sorted([line(other), line(other)]) == ["deaf begun", "stuck begun"]
        other.process.send_signal(signal.SIGTERM)
        assert other.process.wait(PATIENCE) == 0
        for job in jobs:
            record = job.record()
            assert (record.state, record.failures, record.crashes) == (JobState.READY, 0, 0)
            assert [one.outcome for one in record.attempts] == [AttemptOutcome.RELEASED] * record.attempt
        assert [job.record().attempt for job in jobs] == [1, 1, 0, 0]
        assert states(app) == ["ready"] * 4

