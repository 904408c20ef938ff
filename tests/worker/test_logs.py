"""Lines of jobs: kept with the attempt that said them, under a cap, from wherever they come, and for as long as it."""

from __future__ import annotations

import asyncio
import io
import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from faults.helpers import process
from treadle import HeldClock, JobState, LogRecord, Retry, Treadle, current_job, defaults
from treadle.worker.capture import capture_logging, capture_output
from worker.isolated import TASKS, heard
from worker.kit import PATIENCE, eventually, open_app, run_all

only_linux = pytest.mark.skipif(sys.platform != "linux", reason="processes as Linux has them")
shop_log = logging.getLogger("shop")


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Handlers wait for it; open at the end whatever happens."""
    event = threading.Event()
    yield event
    event.set()


@contextmanager
def captured() -> Iterator[tuple[io.StringIO, io.StringIO]]:
    """Everything is captured, as in ``treadle worker``; what reached the streams is given."""
    streams, before = (io.StringIO(), io.StringIO()), (sys.stdout, sys.stderr)
    sys.stdout, sys.stderr = streams
    try:
        with capture_logging(), capture_output():
            yield streams
    finally:
        sys.stdout, sys.stderr = before


def texts(lines: tuple[LogRecord, ...]) -> list[str]:
    return [line.text for line in lines]


def size(lines: tuple[LogRecord, ...]) -> int:
    return sum(len(line.text.encode()) for line in lines)


# What is kept --------------------------------------------------------------------------------------------------------


def test_lines_are_kept_in_order_with_level_and_source(app: Treadle) -> None:
    """job.log needs nothing to be set up; each line knows its job, its attempt and its moment."""

    @app.task(name="work", retry=Retry(1, backoff=0))
    def work() -> None:
        current_job().log("one")
        current_job().log("two\nand three", logging.ERROR)
        if current_job().attempt == 1:
            raise ValueError

    job = work.enqueue()
    with app.worker():
        app.wait([job], PATIENCE)
    lines = app.logs(job)
    assert [(line.source, line.level, line.text) for line in lines] == [
        ("job", 20, "one"), ("job", 40, "two\nand three"),
    ] * 2  # fmt: skip
    assert [line.lease for line in lines] == [one.lease for one in job.record().attempts for _ in range(2)]
    assert {line.job_id for line in lines} == {job.id}
    assert all(line.logged_at.utcoffset() is not None for line in lines)


def test_a_running_job_shows_its_lines(app: Treadle, gate: threading.Event) -> None:
    """They are written while it runs; a reader follows by the place of the last line it has seen."""

    @app.task(name="work")
    def work() -> None:
        current_job().log("begun")
        gate.wait()
        current_job().log("over")

    job = work.enqueue()
    with app.worker():
        eventually(lambda: texts(app.logs(job)) == ["begun"])
        assert job.record().state is JobState.RUNNING
        after = app.logs(job)[-1].seq
        gate.set()
        job.result(PATIENCE)
    assert texts(app.logs(job, after=after)) == ["over"]
    assert app.logs(job, after=app.logs(job)[-1].seq) == ()


def test_lines_are_read_in_pages(app: Treadle) -> None:
    """Of one job or of all, oldest first, at most 1000 a call."""

    @app.task(name="work")
    def work(count: int) -> None:
        for number in range(count):
            current_job().log(str(number))

    jobs = [work.enqueue(300) for _ in range(4)]
    run_all(app)
    assert texts(app.logs(jobs[2], size=7)) == list("0123456")
    first = app.logs(size=5000)
    rest = app.logs(after=first[-1].seq)
    assert (len(first), len(rest)) == (1000, 200)
    assert [line.seq for line in first + rest] == sorted({line.seq for line in first + rest})
    assert asyncio.run(app.alogs(jobs[2], size=2)) == app.logs(jobs[2], size=2)


def test_lines_outlive_the_process_and_go_with_their_job(path: Path, clock: HeldClock) -> None:
    """They are there after a restart, and pruned with the job."""
    with open_app(path, clock=clock) as first:
        job = first.task(name="work")(lambda: current_job().log("kept")).enqueue()
        run_all(first)
    with open_app(path, clock=clock) as second:
        assert texts(second.logs(job.id)) == ["kept"]
        clock.advance(seconds=8 * 86_400)
        with second.worker():
            eventually(lambda: second.counts().get("default") is None)
        assert second.logs() == ()


def test_what_a_crashed_worker_had_heard_is_kept(shop: Treadle, tmp_path: Path) -> None:
    """Lines of an attempt that died with its process tell how far it had come."""
    job = TASKS["thread"].enqueue("log_and_wait", "job")
    with process("worker.isolated", "doomed", log=tmp_path / "log") as worker:
        heard("job begun")
        eventually(lambda: shop.logs(job))
        worker.kill()
    assert texts(shop.logs(job)) == ["so far"]


def test_lines_of_an_attempt_that_lost_its_job_are_dropped(path: Path, gate: threading.Event) -> None:
    """What an evicted worker's handler still says is not mixed with the lines of the attempt that counts."""
    begun: list[int] = []

    def work() -> None:
        begun.append(1)
        if len(begun) == 1:
            current_job().log("first")
            gate.wait()
            current_job().log("too late")
        else:
            current_job().log("second")

    with open_app(path) as first, open_app(path) as second:
        job = first.task(name="work")(work).enqueue()
        second.task(name="work")(work)
        with first.worker(name="evicted", grace=0) as worker:
            eventually(lambda: first.logs(job.id))
            second.evict("evicted")
            with second.worker():
                second.wait([job.id], PATIENCE)
            gate.set()
            eventually(lambda: worker.failure is not None)
        assert texts(second.logs(job.id)) == ["first", "second"]


# The cap -------------------------------------------------------------------------------------------------------------


def test_of_much_the_beginning_and_the_end_are_kept(app: Treadle) -> None:
    """64 kB an attempt, with a line between them that says how many are missing; the next attempt has its own."""

    @app.task(name="work", retry=Retry(1, backoff=0))
    def work() -> None:
        for number in range(3000):
            current_job().log(f"{number:4} {'.' * 95}")
        if current_job().attempt == 1:
            raise ValueError

    job = work.enqueue()
    run_all(app)
    lines = app.logs(job, size=1000)
    leases = sorted({line.lease for line in lines})
    assert len(leases) == 2
    for lease in leases:
        of_one = tuple(line for line in lines if line.lease == lease)
        assert size(of_one) <= defaults.LOG_CAP
        missing = [line.text for line in of_one if "left out" in line.text]
        assert missing == [f"… {3001 - len(of_one)} lines left out: more than 64000 bytes of log"]
        assert (of_one[0].text[:5], of_one[-1].text[:5]) == ("   0 ", "2999 ")


def test_one_endless_line_is_cut(app: Treadle) -> None:
    """A line of a megabyte keeps its beginning, and says how much is missing."""
    job = app.task(name="work")(lambda: current_job().log("x" * 1_000_000)).enqueue()
    run_all(app)
    (line,) = app.logs(job)
    assert size((line,)) <= defaults.LOG_CAP // 4
    assert line.text.endswith("bytes cut]")


def test_text_that_no_database_holds_is_made_storable(app: Treadle) -> None:
    """NUL and lone surrogates are replaced; the job and its other lines are as ever."""

    @app.task(name="work")
    def work() -> str:
        current_job().log("a\0b\ud800c")
        current_job().log("fine")
        return "done"

    job = work.enqueue()
    with app.worker():
        assert job.result(PATIENCE) == "done"
    assert texts(app.logs(job)) == ["a\ufffdb\ufffdc", "fine"]


# Logging and printing ------------------------------------------------------------------------------------------------


def test_what_handlers_log_and_print_goes_to_their_own_job(app: Treadle) -> None:
    """Side by side on threads and on the loop; what is said outside a job is only printed."""
    turn = threading.Barrier(2)
    meet = asyncio.Event()

    @app.task(name="plain")
    def plain(name: str) -> None:
        for number in range(3):
            turn.wait(PATIENCE)
            print(name, number)
            shop_log.warning("%s logs %s", name, number)

    @app.task(name="coroutine")
    async def coroutine(name: str) -> None:
        print(name, "begins")
        meet.set()
        await asyncio.sleep(0)
        print(name, "complains", file=sys.stderr)

    jobs: list[Any] = [plain.enqueue("a"), plain.enqueue("b"), coroutine.enqueue("c"), coroutine.enqueue("d")]
    with captured() as (out, err):
        print("outside")
        shop_log.error("outside")
        with app.worker():
            app.wait(jobs, PATIENCE)
    for job, name in zip(jobs[:2], "ab", strict=True):
        assert sorted(texts(app.logs(job))) == sorted(
            [f"{name} {number}" for number in range(3)] + [f"{name} logs {number}" for number in range(3)]
        )
        assert {line.source for line in app.logs(job)} == {"stdout", "shop"}
    for job, name in zip(jobs[2:], "cd", strict=True):
        found = [(line.source, line.level, line.text) for line in app.logs(job)]
        assert found == [("stdout", 20, f"{name} begins"), ("stderr", 30, f"{name} complains")]
    assert out.getvalue().startswith("outside\n")
    assert out.getvalue().count("begins") == 2, "it is printed as before"
    assert err.getvalue().count("complains") == 2


def test_a_line_without_an_end_is_kept_at_the_end(app: Treadle) -> None:
    """Pieces of one line are one line, also the last one of all."""

    @app.task(name="work")
    def work() -> None:
        for piece in ("one ", "line\ntwo", " pieces"):
            sys.stdout.write(piece)

    job = work.enqueue()
    with captured():
        run_all(app)
    assert texts(app.logs(job)) == ["one line", "two pieces"]


def test_an_error_that_is_logged_has_its_traceback(app: Treadle) -> None:
    """logging.exception keeps what one reads in a file."""

    @app.task(name="work")
    def work() -> None:
        try:
            raise ValueError("no such page")
        except ValueError:
            shop_log.exception("it failed")

    job = work.enqueue()
    with captured():
        run_all(app)
    (line,) = app.logs(job)
    assert line.text.startswith("it failed\nTraceback")
    assert line.text.endswith("ValueError: no such page")


def test_many_threads_may_log_at_once(app: Treadle) -> None:
    """Progress and lines of many threads are written while others come: nothing is lost, no worker ends."""

    @app.task(name="work")
    def work(count: int) -> None:
        for number in range(count):
            current_job().log(str(number))
            current_job().progress(number / count)

    async def main() -> None:
        async with app.worker(concurrency=8) as worker:
            jobs = await app.aenqueue_many(work.job(200) for _ in range(16))
            writing = [worker._settler.serve_notes() for _ in range(4)]
            tasks = [asyncio.ensure_future(one) for one in writing]
            await app.await_jobs(jobs, PATIENCE)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert worker.failure is None
        for job in jobs:
            assert texts(app.logs(job)) == [str(number) for number in range(200)]

    asyncio.run(main())


# Processes -----------------------------------------------------------------------------------------------------------


@only_linux
def test_everything_that_a_process_says_is_kept(shop: Treadle, capfd: pytest.CaptureFixture[str]) -> None:
    """Logging, print, bytes that are no text, programs it runs, job.log; and it is printed by the worker too."""
    with shop.worker(concurrency=1):
        job = TASKS["act"].enqueue("talk")
        job.result(PATIENCE)
    found = {(line.source, line.level, line.text) for line in shop.logs(job)}
    assert found == {
        ("shop", 30, "logged"), ("stdout", 20, "printed"), ("stderr", 30, "complained"),
        ("stdout", 20, "raw \ufffd\ufffd bytes"), ("stdout", 20, "by a program"), ("job", 40, "told"),
        ("stdout", 20, "without an end"), ("stderr", 30, "from a thread"),
    }  # fmt: skip
    assert "raw \ufffd\ufffd bytes" in capfd.readouterr().out


@only_linux
def test_letters_are_whole_however_their_bytes_come(shop: Treadle) -> None:
    """A letter of three bytes that falls between two reads is one letter."""
    with shop.worker(concurrency=1):
        job = TASKS["act"].enqueue("letters", "1 € is 1 €")
        job.result(PATIENCE)
    assert texts(shop.logs(job)) == ["1 € is 1 €"]


@only_linux
def test_ten_megabytes_without_a_line_end_hurt_nobody(shop: Treadle) -> None:
    """The worker keeps up and keeps little of it."""
    with shop.worker(concurrency=1):
        job = TASKS["act"].enqueue("shout", 10_000_000)
        job.result(PATIENCE)
        assert TASKS["act"].enqueue("give", 1).result(PATIENCE) == 1
    assert 0 < size(shop.logs(job, size=1000)) <= defaults.LOG_CAP


@only_linux
def test_printing_and_logging_of_a_process_share_one_cap(shop: Treadle) -> None:
    """64 kB of an attempt are 64 kB, whichever way its lines came; beginning and end are there."""
    with shop.worker(concurrency=1):
        job = TASKS["act"].enqueue("lines", 2000)
        job.result(PATIENCE)
    lines = shop.logs(job, size=1000)
    assert size(lines) <= defaults.LOG_CAP
    assert {line.source for line in lines} <= {"stdout", "job"}
    assert {line.text.split(" .")[0] for line in lines} & {"log 0", "print 0"}
    assert any("left out" in line.text for line in lines)


@only_linux
def test_what_a_process_says_reaches_no_other_job(shop: Treadle) -> None:
    """Its output is printed by the worker's loop, where another handler may have run just before."""
    with captured(), shop.worker(concurrency=2):
        TASKS["act"].enqueue("give", 1).result(PATIENCE)
        for _ in range(5):
            jobs = [TASKS[task].enqueue(what) for task, what in (("loop", "give"), ("act", "talk"), ("loop", "give"))]
            shop.wait(jobs, PATIENCE)
            assert [len(shop.logs(job)) > 0 for job in jobs] == [False, True, False]


@only_linux
def test_lines_before_a_crash_are_kept(shop: Treadle) -> None:
    """A process that dies has said what it said; also what it printed last."""
    with shop.worker(concurrency=1):
        job = TASKS["fragile"].enqueue("talk_and_die")
        eventually(lambda: job.record().state is JobState.HELD)
    assert {"printed", "told"} <= set(texts(shop.logs(job)))


