"""Events in process, and the stream of settled attempts."""

from __future__ import annotations

import asyncio
import itertools
import threading
from typing import Any

import pytest

from treadle import AttemptOutcome, Event, JobContext, Retry, Snooze, Treadle
from treadle.errors import ConfigurationError
from treadle.worker.events import KINDS
from worker.kit import PATIENCE, eventually, heard, run_all


def listen(app: Treadle, *kinds: str) -> list[Event]:
    """Collect events of these kinds, or of all."""
    seen: list[Event] = []
    app.on(*(kinds or KINDS))(seen.append)
    return seen


def kinds(seen: list[Event]) -> list[str]:
    """What happened, in order."""
    return [event.kind for event in seen]


def test_the_life_of_a_job_is_told(app: Treadle) -> None:
    """From enqueue to success, with the worker's own events around it."""
    seen = listen(app)
    job = app.task(name="work", queue="q")(lambda: 1).enqueue()
    run_all(app)
    assert kinds(seen)[:3] == ["enqueued", "worker_started", "started"]
    assert {"succeeded", "worker_idle"} <= set(kinds(seen))
    assert kinds(seen)[-1] == "worker_stopped"
    of_job = [event for event in seen if event.job_id == job.id]
    assert {(event.task, event.queue) for event in of_job} == {("work", "q")}
    done = next(event for event in seen if event.kind == "succeeded")
    assert (done.attempt, done.state, done.worker) == (1, "succeeded", job.record().attempts[0].worker)
    assert done.seconds is not None


@pytest.mark.parametrize(
    ("does", "expected"),
    [
        (lambda job: 1 / 0, ["retried", "failed"]),
        (lambda job: (_ for _ in ()).throw(Snooze(0)) if job.attempt == 1 else None, ["snoozed", "succeeded"]),
    ],
)
def test_outcomes_have_events_of_their_own(app: Treadle, does: Any, expected: list[str]) -> None:
    """A retry, the end of retries, a snooze."""
    seen = listen(app, "retried", "failed", "snoozed", "succeeded", "held", "cancelled")

    @app.task(name="work", retry=Retry(1, backoff=0))
    def work(job: JobContext) -> None:
        does(job)

    job = work.enqueue()  # type: ignore[call-arg]
    with app.worker():
        app.wait([job], PATIENCE)
    assert kinds(seen) == expected
    assert all(event.error_type == "ZeroDivisionError" for event in seen if event.kind in ("retried", "failed"))


def test_events_come_after_the_commit(app: Treadle) -> None:
    """Whoever is told of an outcome finds it in the database."""
    states: list[str] = []

    @app.on("succeeded")
    def look(event: Event) -> None:
        assert event.job_id is not None
        states.append(app.get(event.job_id).state)

    app.task(name="work")(lambda: 1).enqueue()
    run_all(app)
    assert states == ["succeeded"]


def test_a_coroutine_may_subscribe(app: Treadle) -> None:
    """It runs on the worker's loop, and the worker waits for it before it ends."""
    seen: list[str] = []

    @app.on("succeeded")
    async def tell(event: Event) -> None:
        await asyncio.sleep(0.01)
        seen.append(event.kind)

    app.task(name="work")(lambda: 1).enqueue()
    run_all(app)
    assert seen == ["succeeded"]


def test_a_failing_subscriber_harms_nobody(app: Treadle, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged; the others are told, and the job has succeeded."""
    app.on("started")(lambda event: 1 / 0)
    seen = listen(app, "started", "succeeded")
    job = app.task(name="work")(lambda: 1).enqueue()
    run_all(app)
    assert kinds(seen) == ["started", "succeeded"]
    assert job.record().state == "succeeded"
    assert "A subscriber of started failed" in caplog.text


def test_an_event_can_stop_the_worker(app: Treadle) -> None:
    """As SIGTERM would: what runs is finished."""
    ended = threading.Event()
    app.on("worker_stopped")(lambda event: ended.set())
    app.on("succeeded")(lambda event: event.stop_worker("enough"))
    task = app.task(name="work")(lambda: 1)
    with app.worker() as worker:
        task.enqueue()
        heard(ended)
    assert worker.draining == "enough"
    assert worker.failure is None


def test_bulk_enqueues_are_told_one_by_one(app: Treadle) -> None:
    """Each job has its event; one in a caller's own transaction has none, because it may be rolled back."""
    seen = listen(app, "enqueued")
    task = app.task(name="work")(lambda: 1)
    ids = app.enqueue_many(task.job() for _ in range(3))
    asyncio.run(task.aenqueue())
    assert [event.job_id for event in seen][:3] == list(ids)
    assert len(seen) == 4


def test_unknown_events_are_refused(app: Treadle) -> None:
    """With those there are."""
    with pytest.raises(ConfigurationError, match="no events 'finished'; there are enqueued, started"):
        app.on("finished")(print)

    async def later(event: Event) -> None: ...

    with pytest.raises(ConfigurationError, match="make it a `def`"):
        app.on("enqueued")(later)


# --- the stream ---------------------------------------------------------------------------------------


def test_settled_attempts_come_in_commit_order(app: Treadle) -> None:
    """A reader that keeps its place sees each attempt once, over pages, with its task and outcome."""

    @app.task(name="work", retry=Retry(1, backoff=0))
    def work(number: int) -> None:
        if number % 3 == 0:
            raise ValueError("no")

    app.enqueue_many(work.job(number) for number in range(30))
    with app.worker():
        eventually(lambda: sum(state.ended for state in [job.state for job in app.find(size=500).jobs]) == 30)
    seen, place = [], 0
    while page := app.settled(place, size=7):
        seen += page
        place = page[-1].seq
    assert [attempt.seq for attempt in seen] == sorted(attempt.seq for attempt in seen)
    assert len(seen) == 40
    assert {attempt.task for attempt in seen} == {"work"}
    assert sum(attempt.outcome is AttemptOutcome.FAILED for attempt in seen) == 20


def test_the_stream_waits_for_what_comes(app: Treadle) -> None:
    """It ends by itself never; each new attempt arrives, in plain and in async code."""
    task = app.task(name="work")(lambda: 1)
    first = task.enqueue()
    with app.worker():
        first.result(PATIENCE)
        stream = app.stream()
        earlier = next(stream)
        assert earlier.job_id == first.id
        later = threading.Timer(0.05, task.enqueue)
        later.start()
        second = next(stream)
        assert second.job_id == first.id + 1 or second.seq > 1
        assert [one.seq for one in itertools.islice(app.stream(), 2)] == [earlier.seq, second.seq]

        async def two() -> list[int]:
            return [one.job_id async for one in _first(app.astream(), 2)]

        assert asyncio.run(two())[0] == first.id


async def _first(source: Any, most: int) -> Any:
    async for one in source:
        yield one
        most -= 1
        if not most:
            return
