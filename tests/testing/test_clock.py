"""The held clock: how it is moved, and that everything that is stored follows it."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta

import pytest

from treadle import HeldClock, Keep, Retention, Retry, Treadle, current_job
from treadle.errors import JobNotFound
from treadle.testing import run_pending
from worker.kit import failing, states

MOMENT = datetime(2030, 1, 2, 3, 4, 5, 6, tzinfo=UTC)


def test_it_is_moved_by_durations_and_to_moments() -> None:
    """Durations of every unit add up, a negative one goes back, a moment is taken as it is."""
    clock = HeldClock(MOMENT)
    clock.advance(timedelta(days=1), hours=2, minutes=3, seconds=4.5)
    assert clock.moment == MOMENT + timedelta(days=1, hours=2, minutes=3, seconds=4.5)
    clock.advance(days=-1)
    assert clock.moment == MOMENT + timedelta(hours=2, minutes=3, seconds=4.5)
    clock.move_to(MOMENT)
    assert (clock.moment, clock.now() % 1_000_000) == (MOMENT, 6)
    assert repr(clock) == "<HeldClock 2030-01-02 03:04:05.000006+00:00>"


def test_it_refuses_a_moment_without_a_time_zone() -> None:
    """A naive datetime could be any of 26 moments."""
    with pytest.raises(ValueError, match="time zone"):
        HeldClock().move_to(datetime(2030, 1, 1))


def test_delays_follow(held_app: Treadle, clock: HeldClock) -> None:
    """A delayed job runs when the clock has come there, and not a microsecond before."""
    task = held_app.task(name="work")(lambda: "done")
    task.using(delay=60).enqueue()
    clock.advance(seconds=59.999999)
    assert run_pending(held_app) == []
    clock.advance(seconds=0.000001)
    assert [ran.result for ran in run_pending(held_app)] == ["done"]


def test_backoff_follows(held_app: Treadle, clock: HeldClock) -> None:
    """A failed job is tried again when its backoff has passed by the clock."""
    failing(held_app, lambda: ValueError("no"), retry=Retry(2, backoff=(60, 3600), jitter=0)).enqueue()
    assert [ran.attempt for ran in run_pending(held_app)] == [1]
    clock.advance(seconds=59)
    assert run_pending(held_app) == []
    clock.advance(seconds=1)
    assert [ran.attempt for ran in run_pending(held_app)] == [2]
    clock.advance(hours=1)
    assert [str(ran.state) for ran in run_pending(held_app)] == ["failed"]


def test_expiry_follows(held_app: Treadle, clock: HeldClock) -> None:
    """A job that was not started in time is called off by the clock."""
    held_app.task(name="work")(lambda: None).using(expires=60).enqueue()
    clock.advance(seconds=60)
    assert run_pending(held_app) == []
    assert states(held_app) == ["cancelled"]


@pytest.mark.parametrize("target", [{"queue": "default"}, {"task": "work"}])
def test_the_end_of_a_pause_follows(held_app: Treadle, clock: HeldClock, target: dict[str, str]) -> None:
    """A pause ends by the clock, and what had waited behind it runs in the next run."""
    held_app.task(name="work")(lambda: None).enqueue()
    held_app.pause(**target, until=clock.moment + timedelta(hours=1))  # type: ignore[arg-type]
    assert run_pending(held_app) == []
    clock.advance(hours=1)
    assert [ran.task for ran in run_pending(held_app)] == ["work"]


def test_retention_follows(held_app: Treadle, clock: HeldClock) -> None:
    """A run prunes by the clock when it is told how long jobs are kept, and nothing when it is not."""
    job = held_app.task(name="work")(lambda: None).enqueue()
    run_pending(held_app)
    clock.advance(days=1000)
    run_pending(held_app)
    assert job.record().id == job.id
    run_pending(held_app, retention=Retention(succeeded=Keep(age=timedelta(days=1))))
    with pytest.raises(JobNotFound):
        job.record()


def test_what_is_written_follows(held_app: Treadle, clock: HeldClock) -> None:
    """Every moment that the database keeps of a job is the clock's."""

    @held_app.task(name="work")
    def work() -> None:
        clock.advance(seconds=5)
        current_job().progress(0.5)
        current_job().log("half", logging.INFO)

    began = clock.moment
    job = work.enqueue()
    clock.advance(seconds=1)
    run_pending(held_app)
    record, (line,) = job.record(), held_app.logs(job)
    assert (record.enqueued_at, record.finished_at) == (began, began + timedelta(seconds=6))
    assert record.attempts[0].started_at == began + timedelta(seconds=1)
    assert line.logged_at == began + timedelta(seconds=6)
