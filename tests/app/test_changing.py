from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from treadle import AttemptOutcome, JobState, Retry, Treadle
from treadle.errors import JobNotFound, JobStateError
from worker.kit import PATIENCE


def test_a_dead_letter_runs_again_after_the_fault_is_fixed(app: Treadle) -> None:
    """retry() makes a failed job ready with its whole budget; the history of its failures stays."""
    broken = [True]

    @app.task(name="mend", retry=Retry(1, backoff=0))
    def mend() -> str:
        if broken:
            raise ValueError("still broken")
        return "mended"

    job = mend.enqueue()
    with app.worker():
        app.wait([job], PATIENCE)
        dead = job.record()
        assert (dead.state, dead.failures) == (JobState.FAILED, 2)
        broken.clear()
        job.retry()
        assert job.result(PATIENCE) == "mended"
    record = job.record()
    assert (record.failures, record.reason) == (0, None)
    assert [one.outcome for one in record.attempts] == [AttemptOutcome.FAILED] * 2 + [AttemptOutcome.SUCCEEDED]


def test_a_retried_job_has_its_whole_budget(app: Treadle) -> None:
    """After retry() a job that goes on failing is tried as often as a new one, immediate retries included."""

    @app.task(name="fail", retry=Retry(1, backoff=0, immediately={KeyError: 1}))
    def fail() -> None:
        raise KeyError("no")

    job = fail.enqueue()
    with app.worker():
        app.wait([job], PATIENCE)
        first = len(job.record().attempts)
        job.retry()
        app.wait([job], PATIENCE)
        assert len(job.record().attempts) == 2 * first == 6


def test_a_cancelled_job_does_not_run_until_it_is_retried(app: Treadle) -> None:
    """cancel() keeps the job with its reason; no worker takes it, and retry() brings it back."""
    ran: list[int] = []

    @app.task(name="note")
    def note(number: int) -> None:
        ran.append(number)

    job, later = note.enqueue(1), note.using(delay=timedelta(days=1)).enqueue(2)
    job.cancel("not wanted")
    later.cancel()
    assert (job.record().state, job.record().reason) == (JobState.CANCELLED, "not wanted")
    with app.worker():
        note.enqueue(3).result(PATIENCE)
        assert ran == [3]
        job.retry()
        job.result(PATIENCE)
    assert ran == [3, 1]
    assert later.record().state is JobState.CANCELLED


def test_verbs_refuse_jobs_in_other_states(app: Treadle) -> None:
    """A ready job cannot be retried, an ended one cannot be cancelled, an unknown one is said to be unknown."""
    job = app.task(name="work")(lambda: None).enqueue()
    with pytest.raises(JobStateError, match="is ready and cannot be retried"):
        job.retry()
    with app.worker():
        job.result(PATIENCE)
    with pytest.raises(JobStateError, match="is succeeded and cannot be cancelled"):
        job.cancel()
    for verb in (app.retry, app.cancel):
        with pytest.raises(JobNotFound, match="no job 99"):
            verb(99)


def test_verbs_from_async_code(app: Treadle) -> None:
    """The twins do what the plain verbs do."""
    job = app.task(name="work")(lambda: None).enqueue()

    async def both() -> list[JobState]:
        await job.acancel()
        called_off = (await app.aget(job.id)).state
        await job.aretry()
        return [called_off, (await app.aget(job.id)).state]

    assert asyncio.run(both()) == [JobState.CANCELLED, JobState.READY]
