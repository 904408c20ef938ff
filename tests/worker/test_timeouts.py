"""Timeouts by kind: a coroutine is cancelled, a thread is waited for, a process is killed; all say where they stood."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from treadle import AttemptOutcome, JobRecord, JobState, Retry, Treadle, current_job
from worker.isolated import AT_IMPORT, TASKS, heard
from worker.kit import PATIENCE, aeventually, eventually

MESSAGE = "the attempt took longer than its timeout of {:g} s"
only_linux = pytest.mark.skipif(sys.platform != "linux", reason="processes as Linux has them")


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Handlers wait for it; open at the end whatever happens."""
    event = threading.Event()
    yield event
    event.set()


def check_late(record: JobRecord, timeout: float, *words: str) -> None:
    """The job failed by its timeout, and its history says where it stood."""
    (attempt,) = record.attempts
    assert (record.state, attempt.outcome) == (JobState.FAILED, AttemptOutcome.FAILED)
    assert (attempt.error_type, record.failures, record.crashes) == ("TimeoutError", 1, 0)
    assert (attempt.message or "").startswith(MESSAGE.format(timeout))
    assert attempt.traceback is not None
    for word in words:
        assert word in attempt.traceback, attempt.traceback


# Coroutines ----------------------------------------------------------------------------------------------------------


def test_a_coroutine_is_cancelled_where_it_waits(app: Treadle) -> None:
    """It may clean up; the innermost place it waited at is kept with the attempt."""
    cleaned: list[bool] = []

    async def deeper() -> None:
        await asyncio.Event().wait()  # here it waits

    @app.task(timeout=0.02, retry=0)
    async def wait() -> None:
        try:
            await deeper()
        finally:
            await asyncio.sleep(0)
            cleaned.append(current_job().cancelled)

    job = wait.enqueue()
    with app.worker():
        app.wait([job], PATIENCE)
    check_late(job.record(), 0.02, "in wait", "in deeper", "here it waits")
    assert cleaned == [True]


@pytest.mark.parametrize("raises", [False, True])
def test_what_a_coroutine_makes_of_its_cancel_is_too_late(app: Treadle, raises: bool) -> None:
    """A value returned after the timeout is no success; an error raised then is told beside the timeout."""

    @app.task(timeout=0.02, retry=0)
    async def wait() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if raises:
                raise ValueError("while cleaning up") from None
        return "saved"

    job = wait.enqueue()
    with app.worker():
        app.wait([job], PATIENCE)
    check_late(job.record(), 0.02)
    assert ("; then it raised ValueError: while cleaning up" in str(job.record().attempts[0].message)) == raises
    assert ("Traceback" in str(job.record().attempts[0].traceback)) == raises


def test_a_coroutine_that_cannot_be_cancelled_keeps_its_slot(app: Treadle) -> None:
    """It is asked again after its grace, others run beside it, and its end counts as a timeout."""
    asked: list[int] = []

    @app.task(timeout=0.02, grace=0.02, retry=0)
    async def deaf(go: int) -> None:
        while len(asked) < go:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                asked.append(1)

    other = app.task(name="other")(lambda: 1)

    async def main() -> None:
        async with app.worker(concurrency=2) as worker:
            job = await deaf.aenqueue(2)
            assert await (await other.aenqueue()).aresult(PATIENCE) == 1
            await app.await_jobs([job], PATIENCE)
            assert worker.draining is None
        check_late(await app.aget(job.id), 0.02)

    asyncio.run(main())
    assert asked == [1, 1]


def test_a_retry_rule_may_be_about_timeouts(app: Treadle) -> None:
    """A timeout is a TimeoutError in every respect."""

    @app.task(timeout=0.02, retry=Retry(5, never=(TimeoutError,)))
    async def wait() -> None:
        await asyncio.Event().wait()

    job = wait.enqueue()
    with app.worker():
        app.wait([job], PATIENCE)
    assert job.record().reason == "TimeoutError is never retried"


# Threads -------------------------------------------------------------------------------------------------------------


def test_a_thread_keeps_its_slot_until_it_returns(app: Treadle, gate: threading.Event) -> None:
    """Nothing can stop it: it sees .cancelled, no retry starts meanwhile, and its late return is a timeout."""
    seen = threading.Event()

    @app.task(timeout=0.02, retry=0, grace=0)
    def stubborn() -> str:
        eventually(lambda: current_job().cancelled)
        seen.set()
        gate.wait()  # here it stands
        return "late"

    other = app.task(name="other")(lambda: 1)

    async def main() -> Any:
        async with app.worker(concurrency=3) as worker:
            job = await stubborn.aenqueue()
            await aeventually(seen.is_set)
            assert await (await other.aenqueue()).aresult(PATIENCE) == 1
            assert (worker.running, worker.draining) == (1, None)
            assert (await app.aget(job.id)).state is JobState.RUNNING
            gate.set()
            await app.await_jobs([job], PATIENCE)
            return job

    check_late(asyncio.run(main()).record(), 0.02, "in stubborn", "eventually")


def test_a_worker_that_lost_half_of_its_slots_ends(app: Treadle, gate: threading.Event) -> None:
    """Stuck threads are given up as timeouts: their jobs are tried again elsewhere, and the worker says why it ends."""

    @app.task(timeout=0.02, grace=0, retry=Retry(1, backoff=0))
    def stuck() -> int:
        if current_job().attempt == 1:
            gate.wait()
        return current_job().attempt

    told: list[str] = []
    jobs = [stuck.enqueue() for _ in range(2)]

    async def main() -> None:
        worker = app.worker(concurrency=4, grace=0)
        worker.on_draining = told.append
        async with worker, asyncio.timeout(PATIENCE):
            await worker.ended()
        assert worker.draining == "2 of its 4 slots are held by threads that ran beyond their timeouts"
        assert worker.failure is None

    asyncio.run(main())
    assert len(told) == 1
    for job in jobs:
        assert [one.error_type for one in job.record().attempts] == ["TimeoutError"]
        assert job.record().failures == 1
    with app.worker():
        assert [job.result(PATIENCE) for job in jobs] == [2, 2]
    gate.set()


# Processes -----------------------------------------------------------------------------------------------------------


@only_linux
@pytest.mark.parametrize(
    ("what", "words"),
    [("ignore", ("in heard", "in ignore")), ("grind", ("in grind",))],
    ids=["waiting", "in C code"],
)
def test_a_process_is_killed_and_tells_where_it_stood(shop: Treadle, what: str, words: tuple[str, ...]) -> None:
    """Also one that never gives the interpreter away; its slot is free at once, and what it used is known."""
    with shop.worker(concurrency=1):
        TASKS["act"].enqueue("give", 1).result(PATIENCE)
        job = TASKS["brief"].enqueue(what, "job")
        child = int(heard("job begun"))
        shop.wait([job], PATIENCE)
        assert TASKS["act"].enqueue("pid").result(PATIENCE) != child
    check_late(job.record(), 0.4, *words)
    usage = job.record().attempts[0].usage
    assert usage is not None
    assert usage.exit_code == -9
    assert usage.peak_rss is not None
    assert usage.cpu is not None


@only_linux
def test_a_process_that_is_late_has_not_succeeded(shop: Treadle) -> None:
    """Whatever it still says between its timeout and its death is too late."""
    with shop.worker(concurrency=1):
        TASKS["act"].enqueue("give", 1).result(PATIENCE)
        jobs = [TASKS["brief"].enqueue("tarry", 0.4 + place / 40) for place in range(4)]
        shop.wait(jobs, PATIENCE)
    for job in jobs:
        check_late(job.record(), 0.4)


@only_linux
def test_a_stopped_process_is_killed_without_a_word(shop: Treadle) -> None:
    """One that can say nothing any more is not waited for."""
    with shop.worker(concurrency=1):
        job = TASKS["brief"].enqueue("freeze", "never")
        shop.wait([job], PATIENCE)
    check_late(job.record(), 0.4, "could not be had")


@only_linux
def test_the_import_of_an_app_is_under_the_timeout(shop: Treadle, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that hangs before any handler begins is killed too, and says where."""
    monkeypatch.setenv(AT_IMPORT, "hang")
    with shop.worker(concurrency=1):
        job = TASKS["brief"].enqueue("give", 1)
        shop.wait([job], PATIENCE)
        monkeypatch.delenv(AT_IMPORT)
        assert TASKS["act"].enqueue("give", 2).result(PATIENCE) == 2
    check_late(job.record(), 0.4)
