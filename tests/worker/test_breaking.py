"""What a worker does when a part of it meets an error that nobody expected."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import ItemsView, Iterator, Mapping
from pathlib import Path

import pytest

from treadle import JobContext, JobState, NewJob, Treadle, Worker
from treadle.errors import StoreClosed, TreadleError
from treadle.host import failpoints
from worker.kit import PATIENCE, aheard, change, eventually, heard, open_app


class Breaking(Mapping[str, int]):
    """Weights of queues that can be checked but not used."""

    def __getitem__(self, name: str) -> int:
        return 1

    def __iter__(self) -> Iterator[str]:
        return iter(("default",))

    def __len__(self) -> int:
        return 1

    def items(self) -> ItemsView[str, int]:
        raise ZeroDivisionError("the weights are gone")


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Handlers wait for it; open at the end whatever happens."""
    event = threading.Event()
    yield event
    event.set()


def check_broken(worker: Worker, kind: type[Exception], caplog: pytest.LogCaptureFixture) -> None:
    """The worker ended by itself, says why, and the log has the traceback."""
    assert isinstance(worker.failure, TreadleError)
    assert isinstance(worker.failure.__cause__, kind)
    broke = [record for record in caplog.records if record.exc_info and isinstance(record.exc_info[1], kind)]
    assert [record.levelno for record in broke] == [logging.CRITICAL]


def test_a_claimer_that_breaks_ends_the_worker(app: Treadle, caplog: pytest.LogCaptureFixture) -> None:
    """A worker that cannot claim any more does not look alive for ever: it ends and tells the error."""

    async def main() -> Worker:
        async with app.worker(queues=Breaking()) as worker, asyncio.timeout(PATIENCE):
            await worker.ended()
        return worker

    check_broken(asyncio.run(main()), ZeroDivisionError, caplog)


def test_run_raises_what_broke(app: Treadle) -> None:
    """worker.run() raises, with the cause, so that a supervisor sees a failed process."""
    with pytest.raises(TreadleError, match="the weights are gone") as caught:
        app.worker(queues=Breaking()).run()
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


@pytest.mark.sqlite
def test_notes_that_break_end_the_worker(app: Treadle, caplog: pytest.LogCaptureFixture) -> None:
    """The same for the part that writes progress: the job that ran goes to the next worker."""
    begun = asyncio.Event()

    @app.task
    async def work(job: JobContext) -> int:
        if job.attempt == 1:
            begun.set()
            await asyncio.Event().wait()
        return job.attempt

    async def main() -> Worker:
        async with app.worker() as worker, asyncio.timeout(PATIENCE):
            await work.aenqueue()  # type: ignore[call-arg]
            await aheard(begun)
            worker._settler.note(1, 10**400, "no database holds that number")
            await worker.ended()
        return worker

    check_broken(asyncio.run(main()), OverflowError, caplog)
    with app.worker():
        assert app.result(1, timeout=PATIENCE) == 2


@pytest.mark.sqlite
@pytest.mark.parametrize("point", ["release.before_commit", "leave.before_commit"])
def test_a_stop_that_breaks_ends_all_the_same(app: Treadle, caplog: pytest.LogCaptureFixture, point: str) -> None:
    """Whatever breaks while a worker stops, its seat is free after it: the next worker runs what it had taken."""
    begun = asyncio.Event()

    @app.task
    async def work(number: int) -> int:
        if number == 60 and not again:
            begun.set()
            await asyncio.sleep(PATIENCE)
        return number

    def breaking(name: str) -> None:
        raise ZeroDivisionError(name)

    async def main() -> tuple[Worker, list[int]]:
        worker = app.worker(concurrency=1, grace=0)
        await worker.start()
        jobs = await app.aenqueue_many(work.job(number) for number in range(400))
        await aheard(begun)
        failpoints.arm(breaking, point, times=None)
        try:
            await worker.stop()
        finally:
            failpoints.disarm()
        return worker, jobs

    again = False
    worker, jobs = asyncio.run(main())
    check_broken(worker, ZeroDivisionError, caplog)
    again = True
    with app.worker(concurrency=1):
        assert set(app.wait(jobs, timeout=PATIENCE).values()) == {JobState.SUCCEEDED}


def test_an_outcome_nobody_can_store_harms_no_other(app: Treadle) -> None:
    """An outcome that breaks the statement it is stored with holds its own job; neighbours and worker live."""

    @app.task
    async def work(number: int, job: JobContext) -> int:
        if number == 5:
            job.on_success(NewJob(None, b""))  # type: ignore[arg-type]
        return number

    async def main() -> None:
        async with app.worker() as worker:
            jobs = await app.aenqueue_many(work.job(number) for number in range(10))  # type: ignore[call-arg]
            await worker.idle()
            assert worker.failure is None
            found = [await app.aget(job) for job in jobs]
        assert [job.state for job in found[:5] + found[6:]] == [JobState.SUCCEEDED] * 9
        assert found[5].state == JobState.HELD
        assert found[5].reason is not None
        assert found[5].reason.startswith("outcome not stored")

    asyncio.run(main())


def test_leases_that_cannot_be_returned_are_not_forgotten(path: Path, gate: threading.Event) -> None:
    """Claimed jobs go back to other workers as soon as the database lets them, however often it refused."""
    begun = threading.Event()

    def work(number: int) -> None:
        if number == 60:
            begun.set()
            gate.wait()

    with open_app(path) as first, open_app(path) as second:
        task = first.task(name="work")(work)
        jobs = first.enqueue_many(task.job(number) for number in range(400))
        second.task(name="work")(lambda number: None)
        first.counts()
        change(
            path,
            "CREATE TRIGGER refuse BEFORE UPDATE ON treadle_jobs WHEN OLD.state = 5 AND NEW.state = 3 "
            "BEGIN SELECT RAISE(ABORT, 'not now'); END",
        )
        refused: list[str] = []

        class Refused(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                if "not now" in record.getMessage():
                    refused.append(record.getMessage())

        handler = Refused()
        logging.getLogger("treadle.worker").addHandler(handler)
        with first.worker(concurrency=1, grace=0):
            heard(begun)
            eventually(lambda: len(refused) >= 2)
            logging.getLogger("treadle.worker").removeHandler(handler)
            change(path, "DROP TRIGGER refuse")
            others = [job for place, job in enumerate(jobs) if place != 60]
            with second.worker():
                assert set(first.wait(others, timeout=PATIENCE).values()) == {JobState.SUCCEEDED}
            gate.set()


@pytest.mark.parametrize("round_", range(5))
def test_leaving_the_block_of_a_worker_that_ended_never_hangs(path: Path, round_: int) -> None:
    """However close the end of the block comes to the worker's own end, the block is left."""
    with open_app(path) as app:
        app.task(name="work")(lambda: None)
        with app.worker() as worker:
            app.close()
            if round_ % 2:
                eventually(lambda: worker.failure is not None)
        assert worker.failure is None or isinstance(worker.failure, StoreClosed)
