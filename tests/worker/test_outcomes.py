from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from treadle import Abort, AttemptOutcome, HeldClock, JobState, Retry, RetryAfter, Snooze, Treadle, current_job
from worker.kit import PATIENCE, aheard, every_job, failing, run_all


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")

    __repr__ = __str__


# --- what a handler may raise ------------------------------------------------------------------------


def test_the_dead_letter_keeps_every_traceback(held_app: Treadle, clock: HeldClock) -> None:
    """A failed job is kept with the error, message and traceback of each attempt, oldest first."""
    numbers = iter(range(3))
    job = failing(
        held_app, lambda: ValueError(f"try {next(numbers)}"), retry=Retry(2, backoff=1, jitter=0)
    ).enqueue()
    for _ in range(3):
        run_all(held_app)
        clock.advance(seconds=1)
    record = job.record()
    assert record.state == JobState.FAILED
    assert [attempt.message for attempt in record.attempts] == ["try 0", "try 1", "try 2"]
    for attempt in record.attempts:
        assert (attempt.outcome, attempt.error_type) == (AttemptOutcome.FAILED, "ValueError")
        assert attempt.traceback is not None
        assert "raise error()" in attempt.traceback
        assert f"ValueError: {attempt.message}" in attempt.traceback


@pytest.mark.parametrize("is_async", [True, False])
@pytest.mark.parametrize(
    "error",
    [Unspeakable, SystemExit, KeyboardInterrupt, GeneratorExit, StopIteration, RecursionError, MemoryError,
     asyncio.CancelledError, lambda: ValueError("\ud800\0"), lambda: ValueError("x" * 1_000_000),
     lambda: BaseExceptionGroup("two", [SystemExit(1), ValueError()])],
)  # fmt: skip
def test_whatever_a_handler_raises_fails_its_attempt_only(
    held_app: Treadle, error: Callable[[], BaseException], is_async: bool
) -> None:
    """Errors that cannot be printed, are huge, or would end a program: the attempt fails, the worker lives."""

    def fail() -> None:
        raise error()

    async def afail() -> None:
        raise error()

    bad = held_app.task(name="bad", retry=0)(afail if is_async else fail).enqueue()  # type: ignore[call-overload]
    good = held_app.task(name="good")(lambda: 1)

    async def main() -> int:
        async with held_app.worker() as worker:
            await worker.idle()
            job = await good.aenqueue()
            found = await job.aresult(timeout=PATIENCE)
            assert worker.failure is None
            return found

    assert asyncio.run(main()) == 1
    record = bad.record()
    assert record.state == JobState.FAILED
    assert record.attempts[0].traceback is not None
    assert len(record.attempts[0].traceback) < 40_000


@pytest.mark.parametrize("is_async", [True, False])
@pytest.mark.parametrize(
    "error",
    [lambda: Snooze("soon"), lambda: Snooze(float("nan")), lambda: Snooze(timedelta.max),  # type: ignore[arg-type]
     lambda: RetryAfter(None), lambda: RetryAfter(float("inf")),  # type: ignore[arg-type]
     lambda: RetryAfter(1, 5), lambda: RetryAfter(timedelta.max)],  # type: ignore[arg-type]
    ids=["text", "NaN", "endless", "None", "infinite", "message", "endless retry"],
)  # fmt: skip
def test_a_delay_nobody_can_use_strands_nothing(
    held_app: Treadle, error: Callable[[], Exception], is_async: bool
) -> None:
    """Snooze and RetryAfter with nonsense end the attempt like any error: the slot is free, the worker lives."""

    def fail() -> None:
        raise error()

    async def afail() -> None:
        raise error()

    bad = held_app.task(name="bad", retry=0)(afail if is_async else fail).enqueue()  # type: ignore[call-overload]
    good = held_app.task(name="good")(lambda: 1)

    async def main() -> int:
        async with held_app.worker(concurrency=1, grace=0):
            return await (await good.aenqueue()).aresult(timeout=3)

    try:
        assert asyncio.run(main()) == 1
    finally:
        assert bad.record().state in (JobState.FAILED, JobState.HELD, JobState.SCHEDULED)


def test_snooze_spends_no_retry(held_app: Treadle, clock: HeldClock) -> None:
    """A snoozed job runs again after its delay, as often as it likes, with all its retries left."""

    @held_app.task(retry=0)
    def wait() -> str:
        if current_job().attempt < 4:
            raise Snooze(timedelta(minutes=1))
        return "at last"

    job = wait.enqueue()
    for number in (1, 2, 3):
        run_all(held_app)
        record = job.record()
        assert (record.state, record.failures, record.attempt) == (JobState.SCHEDULED, 0, number)
        assert record.attempts[-1].outcome == AttemptOutcome.SNOOZED
        assert record.due_at - record.attempts[-1].finished_at == timedelta(minutes=1)
        clock.advance(seconds=60)
    run_all(held_app)
    assert job.result(timeout=PATIENCE) == "at last"


def test_retry_after_chooses_the_delay_and_spends_a_retry(held_app: Treadle, clock: HeldClock) -> None:
    """RetryAfter overrides the backoff, counts as a failure, and ends with the retries."""
    job = failing(held_app, lambda: RetryAfter(17, "busy"), retry=Retry(1, backoff=600)).enqueue()
    run_all(held_app)
    record = job.record()
    assert (record.state, record.failures) == (JobState.SCHEDULED, 1)
    assert record.due_at - record.attempts[-1].finished_at == timedelta(seconds=17)
    assert record.attempts[-1].message == "busy"
    clock.advance(seconds=17)
    run_all(held_app)
    assert job.record().state == JobState.FAILED


def test_abort_fails_at_once_with_its_reason(held_app: Treadle) -> None:
    """Abort spends no retries and keeps what the handler said."""
    job = failing(held_app, lambda: Abort("no such customer"), retry=9).enqueue()
    run_all(held_app)
    record = job.record()
    assert (record.state, record.attempt, record.reason) == (JobState.FAILED, 1, "aborted: no such customer")
    assert record.attempts[0].outcome == AttemptOutcome.ABORTED


def test_an_async_timeout_is_a_failure(app: Treadle) -> None:
    """A coroutine that takes longer than its timeout is cancelled and counts as failed."""
    cancelled = []

    @app.task(timeout=0.01, retry=0)
    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    job = forever.enqueue()
    with app.worker():
        app.wait([job], timeout=PATIENCE)
    record = job.record()
    assert (record.state, record.attempts[0].error_type) == (JobState.FAILED, "TimeoutError")
    assert record.attempts[0].message == "the attempt took longer than its timeout of 0.01 s"
    assert cancelled == [True]


def test_a_timeout_of_the_handlers_own_is_its_own(app: Treadle) -> None:
    """A TimeoutError raised inside keeps its message."""

    @app.task(timeout=60, retry=0)
    async def inner() -> None:
        raise TimeoutError("the printer did not answer")

    job = inner.enqueue()
    with app.worker():
        app.wait([job], timeout=PATIENCE)
    assert job.record().attempts[0].message == "the printer did not answer"


# --- jobs that enqueue jobs --------------------------------------------------------------------------


def test_on_success_jobs_come_with_the_success_only(held_app: Treadle, clock: HeldClock) -> None:
    """Jobs given to on_success are stored once, by the attempt that succeeds, not by those that fail."""
    after = held_app.task(name="after")(lambda number: number)

    @held_app.task(retry=Retry(2, backoff=1, jitter=0))
    def first() -> None:
        job = current_job()
        job.on_success(after.job(job.attempt), after.using(queue="slow").job(-job.attempt))
        if job.attempt < 3:
            raise ValueError

    first.enqueue()
    for expected in (1, 1, 3):
        run_all(held_app)
        assert len(every_job(held_app)) == expected
        clock.advance(seconds=1)
    _, second, third = every_job(held_app)
    assert [(job.state, job.queue, job.arguments) for job in (second, third)] == [
        (JobState.SUCCEEDED, "default", b'{"number":3}'), (JobState.SUCCEEDED, "slow", b'{"number":-3}'),
    ]  # fmt: skip


def test_on_success_works_with_a_result_and_without(held_app: Treadle) -> None:
    """What the handler returns has nothing to do with what follows."""
    after = held_app.task(name="after")(lambda: None)

    @held_app.task
    async def first(value: Any) -> Any:
        current_job().on_success(after.job())
        return {"none": None, "odd": object()}.get(str(value), value)

    for value in (1, "none", "odd"):
        first.enqueue(value)
    run_all(held_app)
    assert [job.state for job in every_job(held_app)] == [JobState.SUCCEEDED] * 6


def test_a_snoozed_attempt_enqueues_nothing(held_app: Treadle) -> None:
    """Only success is success."""
    after = held_app.task(name="after")(lambda: None)

    @held_app.task
    def first() -> None:
        current_job().on_success(after.job())
        raise Snooze(60)

    first.enqueue()
    run_all(held_app)
    assert len(every_job(held_app)) == 1


def test_a_plain_enqueue_in_a_handler_commits_at_once(held_app: Treadle) -> None:
    """Enqueue in a handler is as durable as anywhere: the job stays though the handler fails."""
    after = held_app.task(name="after")(lambda: None)

    @held_app.task(retry=0)
    def first() -> None:
        after.enqueue()
        raise ValueError

    @held_app.task(retry=0)
    async def afirst() -> None:
        await after.aenqueue()
        raise ValueError

    jobs = [first.enqueue(), afirst.enqueue()]
    run_all(held_app)
    assert [job.record().state for job in jobs] == [JobState.FAILED] * 2
    assert len(every_job(held_app)) == 4


def test_async_handlers_do_not_wait_for_each_other(app: Treadle) -> None:
    """A job may wait for another one that it enqueued, as long as a slot is free."""

    @app.task
    async def inner() -> int:
        return 1

    @app.task
    async def outer() -> int:
        return 1 + await (await inner.aenqueue()).aresult(timeout=PATIENCE)

    job = outer.enqueue()
    with app.worker(concurrency=2):
        assert job.result(timeout=PATIENCE) == 2


def test_a_lost_cancel_is_no_success(app: Treadle) -> None:
    """A handler that cancels itself fails; it does not count as stopped by the worker."""
    begun = asyncio.Event()

    @app.task(retry=0)
    async def suicidal() -> None:
        begun.set()
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)

    async def main() -> None:
        async with app.worker() as worker:
            job = await suicidal.aenqueue()
            await aheard(begun)
            await worker.idle()
            assert (await app.aget(job.id)).state == JobState.FAILED

    asyncio.run(main())
