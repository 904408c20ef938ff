from __future__ import annotations

import asyncio
import sqlite3
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from host.children import child
from treadle import Job, JobState, Treadle
from treadle.errors import JobFailed, JobNotFound, ResultError, ResultNotStored, ResultTimeout, TreadleError
from worker.kit import PATIENCE, SOURCE, aeventually, eventually, open_app


def double(number: int) -> int:
    return 2 * number


async def adouble(number: int) -> int:
    return 2 * number


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Handlers wait for it; open at the end whatever happens."""
    event = threading.Event()
    yield event
    event.set()


@pytest.mark.parametrize("function", [double, adouble])
def test_the_result_is_what_the_handler_returned(app: Treadle, function: object) -> None:
    """result() of sync and async tasks, from sync code."""
    job = app.task(function).enqueue(4)  # type: ignore[call-overload]
    with app.worker():
        assert job.result(timeout=PATIENCE) == 8
        assert job.result() == 8


@pytest.mark.parametrize("function", [double, adouble])
def test_the_result_from_async_code(app: Treadle, function: object) -> None:
    """aresult() beside a worker on the same loop."""
    task = app.task(function)  # type: ignore[call-overload]

    async def main() -> list[int]:
        async with app.worker():
            jobs = [await task.aenqueue(number) for number in range(50)]
            return await asyncio.gather(*(job.aresult(timeout=PATIENCE) for job in jobs))

    assert asyncio.run(main()) == [2 * number for number in range(50)]


def test_none_is_a_result(app: Treadle) -> None:
    """A handler that returns nothing has the result None."""
    job = app.task(name="nothing")(lambda: None).enqueue()
    with app.worker():
        assert job.result(timeout=PATIENCE) is None
    assert job.record().state == JobState.SUCCEEDED


def test_a_timeout_leaves_the_job_alone(app: Treadle, gate: threading.Event) -> None:
    """result() gives up after its timeout; the job goes on and its result can be had later."""

    @app.task
    def slow() -> int:
        gate.wait()
        return 1

    job = slow.enqueue()
    with app.worker():
        with pytest.raises(ResultTimeout, match="it goes on") as caught:
            job.result(timeout=0.01)
        assert isinstance(caught.value, TimeoutError)
        gate.set()
        assert job.result(timeout=PATIENCE) == 1


def test_a_timeout_of_nothing_just_looks(app: Treadle) -> None:
    """timeout=0 answers at once: the result if it is there."""
    job = app.task(double).enqueue(1)
    with pytest.raises(ResultTimeout):
        job.result(timeout=0)
    with pytest.raises(ResultTimeout):
        asyncio.run(job.aresult(timeout=0))
    with app.worker():
        job.result(timeout=PATIENCE)
    assert job.result(timeout=0) == 2


def test_a_failed_job_says_why(app: Treadle) -> None:
    """result() of a job that ended without success has state and error in its message."""

    @app.task(retry=0)
    def fail() -> None:
        raise ValueError("the disk is made of cheese")

    job = fail.enqueue()
    with app.worker():
        with pytest.raises(JobFailed, match=rf"Job {job.id} failed.*cheese"):
            job.result(timeout=PATIENCE)
        with pytest.raises(JobFailed, match="cheese"):
            asyncio.run(job.aresult(timeout=PATIENCE))


def test_a_result_too_large_does_not_undo_the_work(app: Treadle) -> None:
    """The job is succeeded; result() says that the result was not stored, why, and its size."""
    job = app.task(name="big", result_cap=100)(lambda: "x" * 200).enqueue()
    with app.worker(), pytest.raises(ResultNotStored, match="more than the cap of 100") as caught:
        job.result(timeout=PATIENCE)
    assert job.record().state == JobState.SUCCEEDED
    assert caught.value.size == 202
    assert str(caught.value).count("not stored") == 1


@pytest.mark.parametrize("value", [object(), float("nan"), {"a": "\ud800"}], ids=["object", "NaN", "surrogate"])
def test_a_result_nobody_can_encode_does_not_undo_the_work(app: Treadle, value: object) -> None:
    """The same for a result that no codec carries; nothing is repeated."""
    job = app.task(name="odd")(lambda: value).enqueue()
    with app.worker(), pytest.raises(ResultNotStored, match=r"\$") as caught:
        job.result(timeout=PATIENCE)
    assert (job.record().state, job.record().attempt) == (JobState.SUCCEEDED, 1)
    assert caught.value.size is None


def test_an_unknown_job_is_said_to_be_unknown(app: Treadle) -> None:
    """Every question about an id that was never given raises JobNotFound with the id."""
    for verb in (lambda: app.get(12345), lambda: app.result(12345), lambda: Job(12345, "x", app).result()):
        with pytest.raises(JobNotFound, match="12345"):
            verb()
    for averb in (app.aget, app.aresult):
        with pytest.raises(JobNotFound, match="12345"):
            asyncio.run(averb(12345))


def test_an_impossible_id_is_unknown_too(app: Treadle) -> None:
    """A number no database can hold is no reason for another error."""
    with pytest.raises(JobNotFound):
        app.get(2**70)


def test_wait_tells_how_each_job_ended(app: Treadle) -> None:
    """wait() takes handles and ids, and returns when the last one ended."""

    @app.task(retry=0)
    def fail() -> None:
        raise ValueError

    good, bad = app.task(double).enqueue(1), fail.enqueue()
    with app.worker():
        found = app.wait([good, bad.id], timeout=PATIENCE)
    assert found == {good.id: JobState.SUCCEEDED, bad.id: JobState.FAILED}


def test_wait_of_nothing_is_over(app: Treadle) -> None:
    """No jobs have all ended; ids that do not exist are left out."""
    assert app.wait([], timeout=PATIENCE) == {}
    assert app.wait([12345], timeout=PATIENCE) == {}


def test_wait_gives_up_in_time(app: Treadle) -> None:
    """wait() raises when not every job ended in time."""
    job = app.task(double).enqueue(1)
    with pytest.raises(ResultTimeout):
        app.wait([job], timeout=0.01)
    with pytest.raises(ResultTimeout):
        asyncio.run(app.await_jobs([job], timeout=0.01))


def test_await_waits_on_the_loop(app: Treadle) -> None:
    """await_jobs() lets a worker on the same loop do the work it waits for."""
    task = app.task(adouble)

    async def main() -> dict[int, JobState]:
        async with app.worker():
            jobs = [await task.aenqueue(number) for number in range(20)]
            return await app.await_jobs(jobs, timeout=PATIENCE)

    assert set(asyncio.run(main()).values()) == {JobState.SUCCEEDED}


def test_one_job_has_many_waiters(app: Treadle, gate: threading.Event) -> None:
    """Everyone who waits for a job hears of its end, in threads and on loops."""

    @app.task
    def slow() -> str:
        gate.wait()
        return "done"

    job = slow.enqueue()
    heard: list[str] = []
    threads = [threading.Thread(target=lambda: heard.append(job.result(timeout=PATIENCE))) for _ in range(5)]

    async def main() -> list[str]:
        waiting = asyncio.gather(*(job.aresult(timeout=PATIENCE) for _ in range(5)))
        await aeventually(lambda: job.record().state == JobState.RUNNING)
        gate.set()
        return await waiting

    with app.worker():
        for thread in threads:
            thread.start()
        assert asyncio.run(main()) == ["done"] * 5
        for thread in threads:
            thread.join()
    assert heard == ["done"] * 5


def test_results_cross_from_one_app_to_another(path: Path) -> None:
    """Two apps in one process on one file: one enqueues and waits, the other works."""
    with open_app(path) as client, open_app(path) as server:
        server.task(name="double")(double)
        job = client.task(name="double")(double).enqueue(21)
        with server.worker():
            assert job.result(timeout=PATIENCE) == 42


def test_results_cross_processes(path: Path) -> None:
    """A worker in another process wakes whoever waits for the result here, typed as declared."""
    code = f"""
        sys.path.insert(0, {SOURCE!r})
        from treadle import Treadle
        app = Treadle({f"sqlite:///{path}"!r})
        @app.task(name="double")
        async def double(number: int) -> int:
            return 2 * number
        with app.worker():
            say("ready")
            hear()
        app.close()
        say("over")
    """
    with open_app(path) as app, child(textwrap.dedent(code)) as other:
        assert other.hear() == "ready"
        task = app.task(name="double")(double)
        assert [task.enqueue(number).result(timeout=PATIENCE) for number in range(20)] == [2 * n for n in range(20)]
        other.say("stop")
        assert other.hear() == "over"


def test_a_result_is_there_after_a_restart(path: Path) -> None:
    """Results are in the file: a later process reads them by id alone."""
    with open_app(path) as app:
        job = app.task(double).enqueue(2)
        with app.worker():
            job.result(timeout=PATIENCE)
    with open_app(path) as later:
        assert later.result(job.id) == 4


@pytest.mark.sqlite
def test_waiting_ends_when_the_app_is_closed(app: Treadle) -> None:
    """Somebody who waits without limit hears of the close; it is no eternal sleep."""
    job = app.task(double).enqueue(1)
    found: list[BaseException] = []

    def wait() -> None:
        try:
            job.result()
        except (TreadleError, OSError) as error:
            found.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    eventually(lambda: any((app.store.engine.connections.waiters_path().parent).iterdir()))
    app.close()
    thread.join(PATIENCE)
    assert [isinstance(one, TreadleError) for one in found] == [True]


def test_a_corrupt_result_is_a_treadle_error(file_app: Treadle, path: Path) -> None:
    """A result damaged in the file raises Treadle's own error, which names the codec."""
    job = file_app.task(double).enqueue(1)
    with file_app.worker():
        job.result(timeout=PATIENCE)
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("UPDATE treadle_results SET data = x'ff'")
    connection.close()
    with pytest.raises(TreadleError, match="json"):
        job.result()


def test_result_errors_share_a_root() -> None:
    """One except clause catches whatever keeps a result away."""
    assert all(issubclass(kind, ResultError) for kind in (JobFailed, ResultTimeout, ResultNotStored))
