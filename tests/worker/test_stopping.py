from __future__ import annotations

import asyncio
import signal
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import pytest

from host.children import Child, child
from treadle import AttemptOutcome, JobState, Treadle, current_job
from treadle.errors import ConfigurationError, StoreClosed
from worker.kit import PATIENCE, SOURCE, aeventually, aheard, eventually, heard, open_app, states


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Handlers wait for it; open at the end whatever happens."""
    event = threading.Event()
    yield event
    event.set()


# --- draining ----------------------------------------------------------------------------------------


def test_what_runs_may_finish_within_the_grace(app: Treadle) -> None:
    """stop() waits for running jobs and stores their outcome."""
    begun, go = asyncio.Event(), asyncio.Event()

    @app.task
    async def work() -> str:
        nonlocal begins
        begins += 1
        begun.set()
        await go.wait()
        return "finished"

    async def main() -> None:
        worker = app.worker(grace=PATIENCE)
        await worker.start()
        await work.aenqueue()
        await aheard(begun)
        stopping = asyncio.ensure_future(worker.stop())
        await asyncio.sleep(0)
        late = await work.aenqueue()
        go.set()
        await stopping
        assert begins == 1
        assert (await app.aget(late.id)).attempts == ()  # a claim under way may have taken it, and given it back

    begins = 0
    asyncio.run(main())
    assert states(app) == ["succeeded", "ready"]


def test_what_runs_beyond_the_grace_is_returned_unspent(app: Treadle) -> None:
    """A coroutine that does not end in time is cancelled; the job is ready again with all its retries."""
    begun, seen = asyncio.Event(), []

    @app.task
    async def work() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            seen.append(current_job().cancelled)

    async def main() -> int:
        async with app.worker(grace=0):
            job = await work.aenqueue()
            await aheard(begun)
        return job.id

    record = app.get(asyncio.run(main()))
    assert (record.state, record.attempt, record.failures, record.crashes) == (JobState.READY, 1, 0, 0)
    assert [one.outcome for one in record.attempts] == [AttemptOutcome.RELEASED]
    assert seen == [True]


def test_an_answer_to_the_cancel_counts(app: Treadle) -> None:
    """A coroutine that returns when it is cancelled has succeeded."""
    begun = asyncio.Event()

    @app.task
    async def work() -> str:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "saved what there was"
        return ""

    async def main() -> str:
        async with app.worker(grace=0):
            job = await work.aenqueue()
            await aheard(begun)
        return await job.aresult(timeout=0)

    assert asyncio.run(main()) == "saved what there was"


def test_a_thread_that_looks_can_stop_early(app: Treadle) -> None:
    """A plain function sees .cancelled after the grace and can return by itself."""
    begun = threading.Event()

    @app.task
    def work() -> str:
        begun.set()
        eventually(lambda: current_job().cancelled)
        return "stopped early"

    job = work.enqueue()
    with app.worker(grace=0):
        heard(begun)
    assert job.result(timeout=0) == "stopped early"


def test_a_stuck_thread_is_given_back(app: Treadle, gate: threading.Event) -> None:
    """A thread that does not return loses its lease: the job is ready again, and its late outcome changes nothing."""
    begun, over = threading.Event(), threading.Event()

    @app.task
    def work() -> str:
        if current_job().attempt > 1:
            return "second"
        begun.set()
        gate.wait()
        over.set()
        return "first"

    job = work.enqueue()
    with app.worker(grace=0):
        heard(begun)
    record = job.record()
    assert (record.state, record.failures, record.crashes) == (JobState.READY, 0, 0)
    assert [one.outcome for one in record.attempts] == [AttemptOutcome.RELEASED]
    gate.set()
    heard(over)
    with app.worker():
        assert job.result(timeout=PATIENCE) == "second"


def test_claimed_jobs_that_never_began_leave_no_trace(app: Treadle, gate: threading.Event) -> None:
    """Leases in the buffer are returned at a stop: no history, nothing spent, and nothing runs any more."""
    begun = threading.Event()

    @app.task
    def work(number: int) -> None:
        if number == 60:
            begun.set()
            gate.wait()

    jobs = app.enqueue_many(work.job(number) for number in range(400))
    with app.worker(concurrency=1, grace=0):
        heard(begun)
    records = [app.get(job) for job in jobs]
    assert {record.state for record in records[:60]} == {JobState.SUCCEEDED}
    assert {record.state for record in records[60:]} == {JobState.READY}
    assert [attempt.outcome for record in records[60:] for attempt in record.attempts] == [AttemptOutcome.RELEASED]
    assert {(record.failures, record.crashes) for record in records} == {(0, 0)}


def test_stopping_twice_is_stopping_once(app: Treadle) -> None:
    """stop() can be called again, also at the same time, and before the start."""

    async def main() -> None:
        worker = app.worker()
        await worker.stop()
        await worker.start()
        await asyncio.gather(worker.stop(), worker.stop())
        await worker.stop()
        await worker.ended()

    asyncio.run(main())
    assert app.workers() == ()


def test_a_worker_starts_once(app: Treadle) -> None:
    """A stopped worker is not started again; the message says what to do."""

    async def main() -> None:
        worker = app.worker()
        async with worker:
            pass
        with pytest.raises(ConfigurationError, match="make a new one"):
            await worker.start()

    asyncio.run(main())


def test_an_error_in_the_block_stops_the_worker(app: Treadle) -> None:
    """The worker is stopped however its block is left."""

    async def main() -> None:
        async with app.worker():
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        asyncio.run(main())
    with pytest.raises(ZeroDivisionError), app.worker():
        raise ZeroDivisionError
    assert app.workers() == ()


def test_a_start_that_fails_leaves_nothing_behind(app: Treadle) -> None:
    """A worker that cannot start can be stopped, and others can start."""
    app.task(name="echo")(lambda number: number)

    async def main() -> None:
        worker = app.worker(tasks=("nobody",))
        with pytest.raises(ConfigurationError):
            await worker.start()
        await worker.stop()

    asyncio.run(main())
    assert app.workers() == ()


# --- the app is closed -------------------------------------------------------------------------------


def test_a_worker_whose_app_is_closed_ends(path: Path) -> None:
    """Closing the store ends its workers by themselves: they say why, and the job goes to the next worker."""
    with open_app(path) as app, open_app(path) as other, ExitStack() as stack:
        begun = threading.Event()

        async def work() -> int:
            begun.set()
            if current_job().attempt == 1:
                await asyncio.Event().wait()
            return current_job().attempt

        job = app.task(name="work")(work).enqueue()
        other.task(name="work")(work)
        worker = stack.enter_context(app.worker())
        heard(begun)
        app.close()
        eventually(lambda: worker.failure is not None)
        assert isinstance(worker.failure, StoreClosed)
        stack.close()
        with other.worker():
            assert other.result(job.id, timeout=PATIENCE) == 2


def test_an_async_worker_whose_app_is_closed_ends(path: Path) -> None:
    """The same inside an event loop: ended() returns."""

    async def main() -> None:
        app = open_app(path)
        app.task(name="echo")(lambda number: number)
        async with app.worker() as worker, asyncio.timeout(PATIENCE):
            app.close()
            await worker.ended()
        assert isinstance(worker.failure, StoreClosed)

    asyncio.run(main())


def test_run_raises_why_it_ended(path: Path) -> None:
    """worker.run() of a store that is closed meanwhile raises the reason."""
    app = open_app(path)
    begun = threading.Event()
    app.task(name="begin")(begun.set).enqueue()
    found: list[BaseException] = []

    def run() -> None:
        try:
            app.worker().run()
        except StoreClosed as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    heard(begun)
    app.close()
    thread.join(PATIENCE)
    assert len(found) == 1


def test_the_thread_of_a_handler_may_outlive_its_loop(app: Treadle, gate: threading.Event) -> None:
    """A stuck thread that returns after its worker and loop are gone raises nothing anywhere."""
    begun = threading.Event()

    @app.task
    def work() -> None:
        begun.set()
        gate.wait()

    async def main() -> None:
        async with app.worker(grace=0):
            await work.aenqueue()
            await aeventually(begun.is_set)

    asyncio.run(main())
    stuck = [thread for thread in threading.enumerate() if thread.name.startswith("treadle-job")]
    gate.set()
    for thread in stuck:
        thread.join(PATIENCE)
    assert stuck


# --- signals -----------------------------------------------------------------------------------------

PROGRAM = """
    import asyncio, logging, os, threading
    sys.path.insert(0, {source!r})
    from treadle import Treadle
    lock = threading.Lock()
    def say(text):
        with lock:
            sys.stdout.write(text + "\\n")
            sys.stdout.flush()
    go = threading.Event()
    threading.Thread(target=lambda: os.read(0, 1) and go.set(), daemon=True).start()
    class Drains(logging.Handler):
        def emit(self, record):
            if "drains:" in record.getMessage():
                say("drains")
    logging.getLogger("treadle").addHandler(Drains())
    logging.getLogger("treadle").setLevel(logging.INFO)
    app = Treadle("sqlite:///" + sys.argv[1])
    @app.task(name="slow")
    async def slow() -> str:
        say("slow begun")
        await asyncio.to_thread(go.wait)
        return "slow done"
    @app.task(name="endless")
    async def endless() -> None:
        say("endless begun")
        try:
            await asyncio.Event().wait()
        finally:
            say("endless cancelled")
    @app.task(name="stuck")
    def stuck() -> None:
        say("stuck begun")
        threading.Event().wait()
    app.worker(grace=600, concurrency=2).run()
    app.close()
    say("over")
"""


def program(path: Path) -> AbstractContextManager[Child]:
    return child(textwrap.dedent(PROGRAM).format(source=SOURCE), path)


def line(other: Child) -> str:
    """Its next line; several may have come at once."""
    assert other.process.stdout is not None
    return other.process.stdout.readline().decode().strip()


pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals")


def test_sigterm_drains_and_exits_cleanly(path: Path) -> None:
    """SIGTERM: running jobs finish, waiting ones stay, the process exits with 0 and nothing is lost."""
    with open_app(path) as app, program(path) as other:
        jobs = [app.remote("slow").enqueue() for _ in range(2)]
        assert [line(other), line(other)] == ["slow begun"] * 2
        later = app.remote("slow").enqueue()
        other.process.send_signal(signal.SIGTERM)
        assert "drains" in line(other)
        other.say("go")
        assert line(other) == "over"
        assert other.process.wait(PATIENCE) == 0
        assert [job.result(timeout=0) for job in jobs] == ["slow done"] * 2
        record = later.record()
        assert (record.state, record.failures, record.attempts) == (JobState.READY, 0, ())
        assert app.workers() == ()


def test_a_second_sigterm_cancels_at_once(path: Path) -> None:
    """The second signal cuts the grace short: what runs is cancelled and returned unspent, exit code 0."""
    with open_app(path) as app, program(path) as other:
        jobs = [app.remote(name).enqueue() for name in ("endless", "stuck")]
        assert sorted([line(other), line(other)]) == ["endless begun", "stuck begun"]
        other.process.send_signal(signal.SIGTERM)
        assert "drains" in line(other)
        other.process.send_signal(signal.SIGTERM)
        assert [line(other), line(other)] == ["endless cancelled", "over"]
        assert other.process.wait(PATIENCE) == 0
        for job in jobs:
            record = job.record()
            assert (record.state, record.attempt, record.failures, record.crashes) == (JobState.READY, 1, 0, 0)


def test_ctrl_c_is_like_sigterm(path: Path) -> None:
    """SIGINT drains too."""
    with open_app(path) as app, program(path) as other:
        job = app.remote("slow").enqueue()
        assert line(other) == "slow begun"
        other.process.send_signal(signal.SIGINT)
        assert "drains" in line(other)
        other.say("go")
        assert line(other) == "over"
        assert other.process.wait(PATIENCE) == 0
        assert job.result(timeout=0) == "slow done"
