"""Claiming by hand: leased jobs for programs that bring their own loop."""

from __future__ import annotations

import asyncio
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from treadle import AttemptOutcome, JobState, Retry, Treadle
from treadle.errors import ConfigurationError, JobStateError, LeaseLost, StoreLost
from worker.kit import PATIENCE, eventually, open_app


def mail(app: Treadle, **policy: Any) -> Any:
    """A task to claim."""

    @app.task(name="mail", **policy)
    def send(to: str, when: date | None = None) -> str:
        raise AssertionError("nobody calls it here")

    return send


def test_a_claimed_job_is_completed_by_hand(app: Treadle) -> None:
    """Its arguments are typed, its result is what result() gives."""
    job = mail(app).enqueue("ada", date(2030, 1, 2))
    (leased,) = app.claim()
    assert leased.arguments.kwargs == {"to": "ada", "when": date(2030, 1, 2)}
    assert (leased.task, leased.job.id, leased.job.attempt) == ("mail", job.id, 1)
    assert job.record().state is JobState.RUNNING
    leased.complete("sent")
    assert job.result(PATIENCE) == "sent"
    assert app.claim(10) == []


def test_every_way_to_end(app: Treadle) -> None:
    """fail, snooze, abort and release are what a handler's outcomes are."""
    task = mail(app, retry=Retry(1, backoff=60))
    jobs = [task.enqueue(str(number)) for number in range(4)]
    failed, snoozed, aborted, released = app.claim(10)
    failed.fail(ValueError("no"))
    snoozed.snooze(30)
    aborted.abort("never")
    released.release()
    records = [job.record() for job in jobs]
    assert [record.state for record in records] == [
        JobState.SCHEDULED, JobState.SCHEDULED, JobState.FAILED, JobState.READY,
    ]  # fmt: skip
    assert [record.failures for record in records] == [1, 0, 1, 0]
    assert [[one.outcome for one in record.attempts] for record in records] == [
        [AttemptOutcome.FAILED], [AttemptOutcome.SNOOZED], [AttemptOutcome.ABORTED], [],
    ]  # fmt: skip


def test_an_attempt_ends_once(app: Treadle) -> None:
    """The second word is refused; the first stands."""
    mail(app).enqueue("ada")
    (leased,) = app.claim()
    leased.complete("sent")
    with pytest.raises(JobStateError, match="ended before"):
        leased.fail(ValueError("no"))


def test_what_belongs_to_another_attempt_is_refused(app: Treadle) -> None:
    """After an eviction nothing counts that is said about the old lease."""
    job = mail(app).enqueue("ada")
    (leased,) = app.claim()
    (me,) = app.workers()
    assert app.evict(me.slot) == 1
    for verb in (leased.extend, lambda: leased.complete("sent")):
        with pytest.raises((LeaseLost, StoreLost)):  # the second once this process has noticed it
            verb()
    assert job.record().state is JobState.READY


def test_extend_tells_of_a_wish_to_cancel(app: Treadle) -> None:
    """False means: stop soon. A failure then is the end of the job."""
    job = mail(app).enqueue("ada")
    (leased,) = app.claim()
    assert leased.extend()
    job.cancel("not wanted")
    assert not leased.extend()
    assert leased.job.cancelled
    leased.fail(RuntimeError("stopped"))
    assert (job.record().state, job.record().reason) == (JobState.CANCELLED, "not wanted")


def test_jobs_of_unknown_tasks_can_be_claimed_by_name(app: Treadle) -> None:
    """Their arguments come as plain data."""
    app.remote("elsewhere").enqueue(n=1)
    assert app.claim() == []
    (leased,) = app.claim(tasks=["elsewhere"])
    assert leased.arguments.kwargs == {"n": 1}
    leased.complete({"ok": True})
    assert app.result(leased.job.id) == {"ok": True}


def test_unreadable_jobs_are_held_and_not_handed_out(app: Treadle) -> None:
    """As in a worker."""
    bad = mail(app).enqueue_encoded(b'{"to": 1}')
    good = mail_again(app).enqueue("ada")
    assert [leased.job.id for leased in app.claim(10)] == [good.id]
    assert bad.record().state is JobState.HELD
    assert "undecodable" in str(bad.record().reason)


def mail_again(app: Treadle) -> Any:
    """Another task."""

    @app.task(name="again")
    def again(to: str) -> None: ...

    return again


def test_what_a_handler_can_do_works_by_hand(app: Treadle) -> None:
    """Progress, logs, checkpoints and follow-up jobs."""
    task = mail(app)
    job = task.enqueue("ada")
    (leased,) = app.claim()
    leased.job.progress(0.5, "half")
    leased.job.log("a word")
    leased.job.checkpoint({"at": 1})
    leased.job.on_success(task.job("bob"))
    assert leased.job.last_checkpoint() == {"at": 1}
    eventually(lambda: job.record().progress is not None and app.logs(job))
    leased.complete()
    (follow,) = app.claim()
    assert follow.arguments.kwargs == {"to": "bob"}
    with pytest.raises(ConfigurationError, match="claimed by hand"):
        follow.job.stop_worker()


def test_the_twins_do_the_same(app: Treadle) -> None:
    """From async code."""
    task = mail(app, retry=Retry(0))
    jobs = [task.enqueue(str(number)) for number in range(5)]

    async def work() -> None:
        done, failed, snoozed, aborted, released = await app.aclaim(10)
        assert await done.aextend()
        await done.acomplete("x")
        await failed.afail(ValueError("no"))
        await snoozed.asnooze(5)
        await aborted.aabort("never")
        await released.arelease()

    asyncio.run(work())
    assert [job.record().state for job in jobs] == [
        JobState.SUCCEEDED, JobState.FAILED, JobState.SCHEDULED, JobState.FAILED, JobState.READY,
    ]  # fmt: skip


def test_closing_gives_back_what_was_not_ended(path: Path) -> None:
    """The attempt had begun, so it counts as a crash; the job runs again at once."""
    app = open_app(path)
    job = mail(app).enqueue("ada")
    app.claim()
    app.close()
    with open_app(path) as again:
        record = again.get(job.id)
    assert (record.state, record.crashes) == (JobState.READY, 1)


def test_the_size_of_a_claim_is_checked(app: Treadle) -> None:
    """1 to 1000."""
    for most in (0, 1001):
        with pytest.raises(ConfigurationError, match="1 to 1000"):
            app.claim(most)
