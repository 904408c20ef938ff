from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path

from treadle import Backoff, HeldClock, JobState, Retry, Treadle, current_job
from treadle.host import failpoints
from treadle.model.sanitise import class_name
from worker.kit import PATIENCE, aheard, every_job, failing, open_app, run_all

ENTRIES = (30, 120, 480, 1800, 7200)


class Mismatch(Exception):
    pass


# --- when --------------------------------------------------------------------------------------------


def test_every_entry_of_a_backoff_list_is_reached(held_app: Treadle, clock: HeldClock) -> None:
    """Retry(5) with five delays runs six times, each delay exactly once, then the job is failed."""
    job = failing(held_app, ValueError, retry=Retry(5, backoff=ENTRIES, jitter=0)).enqueue()

    async def main() -> None:
        async with held_app.worker() as worker:
            await worker.idle()
            for number, entry in enumerate(ENTRIES, start=1):
                record = job.record()
                assert (record.state, record.failures, record.attempt) == (JobState.SCHEDULED, number, number)
                assert record.due_at - record.attempts[-1].finished_at == timedelta(seconds=entry)
                clock.advance(seconds=entry)
                await worker.idle()

    asyncio.run(main())
    record = job.record()
    assert (record.state, record.failures, record.attempt) == (JobState.FAILED, 6, 6)
    assert record.reason == "all 5 retries are spent"


def test_a_retry_does_not_run_before_its_time(held_app: Treadle, clock: HeldClock) -> None:
    """One microsecond before the delay is over nothing runs."""
    job = failing(held_app, ValueError, retry=Retry(1, backoff=30, jitter=0)).enqueue()
    run_all(held_app)
    clock.advance(seconds=29.999999)
    run_all(held_app)
    assert job.record().attempt == 1
    clock.advance(seconds=0.000001)
    run_all(held_app)
    assert job.record().attempt == 2


def test_a_sleeping_worker_wakes_at_the_due_time(app: Treadle) -> None:
    """A worker that waits runs a retry when it is due, without anybody ringing."""

    @app.task(retry=Retry(3, backoff=0.05, jitter=0))
    def third_time() -> int:
        if current_job().attempt < 3:
            raise ValueError
        return current_job().attempt

    job = third_time.enqueue()
    with app.worker():
        assert job.result(timeout=PATIENCE) == 3


def test_retries_survive_a_restart(path: Path, clock: HeldClock) -> None:
    """Count and due time of a retry are in the file: a new process goes on where the old one stopped."""
    for attempt in (1, 2, 3):
        with open_app(path, clock=clock) as app:
            task = failing(app, ValueError, retry=Retry(2, backoff=(60, 600), jitter=0))
            if attempt == 1:
                task.enqueue()
            run_all(app)
            assert every_job(app)[0].attempt == attempt
        with open_app(path, clock=clock) as app:
            failing(app, ValueError, retry=Retry(2, backoff=(60, 600), jitter=0))
            run_all(app)
            assert every_job(app)[0].attempt == attempt
            clock.advance(seconds=(60, 600, 0)[attempt - 1])
    with open_app(path) as app:
        assert every_job(app)[0].state == JobState.FAILED


def test_a_formula_grows_to_its_cap(held_app: Treadle, clock: HeldClock) -> None:
    """An exponential backoff with jitter 0 gives base, base, three times as much, and so on to the cap."""
    policy = Retry(4, backoff=Backoff(base=10, factor=3), cap=60, jitter=0)
    job = failing(held_app, ValueError, retry=policy).enqueue()
    for entry in (10, 30, 60, 60):
        run_all(held_app)
        record = job.record()
        assert record.due_at - record.attempts[-1].finished_at == timedelta(seconds=entry)
        clock.advance(seconds=entry)


def test_no_retries_is_one_attempt(held_app: Treadle) -> None:
    """retry=0 fails at the first error."""
    job = failing(held_app, ValueError, retry=0).enqueue()
    run_all(held_app)
    assert (job.record().state, job.record().attempt) == (JobState.FAILED, 1)


# --- which errors ------------------------------------------------------------------------------------


def test_never_ends_the_job_at_once(held_app: Treadle) -> None:
    """An error that cannot get better is not retried, nor are its subclasses."""
    job = failing(held_app, FileNotFoundError, retry=Retry(5, never=(OSError,))).enqueue()
    run_all(held_app)
    assert (job.record().state, job.record().reason) == (JobState.FAILED, "OSError is never retried")


def test_immediate_retries_have_a_count_of_their_own(held_app: Treadle) -> None:
    """immediately= retries without delay and without spending a retry, as often as it says."""
    job = failing(held_app, Mismatch, retry=Retry(1, backoff=60, immediately={Mismatch: 2})).enqueue()
    run_all(held_app)
    record = job.record()
    assert (record.state, record.attempt, record.failures) == (JobState.SCHEDULED, 3, 1)


def test_the_immediate_count_survives_a_restart(path: Path, clock: HeldClock) -> None:
    """A new process does not grant the immediate retries again."""
    policy = Retry(3, backoff=60, jitter=0, immediately={Mismatch: 1})
    attempts = []
    for _ in range(3):
        with open_app(path, clock=clock) as app:
            task = failing(app, Mismatch, retry=policy)
            if not attempts:
                task.enqueue()
            run_all(app)
            attempts.append(every_job(app)[0].attempt)
            clock.advance(seconds=60)
    assert attempts == [2, 3, 4]


def test_immediate_retries_are_counted_by_class(held_app: Treadle) -> None:
    """Each class has its own count, stored under its full name."""
    errors = iter([Mismatch(), KeyError(), Mismatch(), KeyError(), KeyError()])
    policy = Retry(0, immediately={Mismatch: 2, KeyError: 2})
    job = failing(held_app, lambda: next(errors), retry=policy).enqueue()
    run_all(held_app)
    record = job.record()
    assert (record.state, record.attempt) == (JobState.FAILED, 5)
    assert record.attempts[0].error_type == class_name(Mismatch)


def test_idle_sees_a_retry_whose_bell_was_not_heard(app: Treadle) -> None:
    """While an attempt runs idle() is asked; the attempt fails and is ready again: idle() waits for that one too."""
    policy = Retry(0, immediately={Mismatch: 1})
    begun, go = asyncio.Event(), asyncio.Event()

    @app.task(retry=policy)
    async def fail() -> None:
        begun.set()
        await go.wait()
        raise Mismatch

    async def main() -> None:
        job = await fail.aenqueue()
        async with app.worker() as worker:
            await aheard(begun)
            idle = asyncio.ensure_future(worker.idle())
            await asyncio.sleep(0)
            failpoints.arm(failpoints.raising(lambda: OSError("no bell")), "apply.after_commit")
            go.set()
            await idle
            assert (await app.aget(job.id)).state is JobState.FAILED

    try:
        asyncio.run(main())
    finally:
        failpoints.disarm()
