from __future__ import annotations

import asyncio
import threading
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from treadle import HeldClock, JobFilter, JobState, Retry, Treadle
from treadle.errors import ConfigurationError, InvalidPayload, PayloadTooLarge, SignatureMismatch
from worker.kit import PATIENCE, every_job, states


def note(text: str, times: int = 1) -> str:
    return text * times


def other(number: int) -> int:
    return number


@pytest.fixture
def path_apps(path: object) -> Iterator[tuple[Treadle, Treadle]]:
    with Treadle(f"sqlite:///{path}") as first, Treadle(f"sqlite:///{path}") as second:
        yield first, second


# --- one job -----------------------------------------------------------------------------------------


def test_enqueue_returns_a_stored_job(app: Treadle) -> None:
    """When enqueue returns, the job is in the database."""
    job = app.task(note).enqueue("a", times=2)
    record = app.get(job.id)
    assert (record.state, record.arguments) == (JobState.READY, b'{"text":"a","times":2}')


def test_aenqueue_stores_the_same(app: Treadle) -> None:
    """The async verb stores what the sync one does."""
    job = asyncio.run(app.task(note).aenqueue("a", times=2))
    assert job.record().arguments == b'{"text":"a","times":2}'


def test_many_async_enqueues_at_once_each_store_their_own(app: Treadle) -> None:
    """Callers that share a commit still get the id of their own job."""
    task = app.task(other)

    async def main() -> list[int]:
        jobs = await asyncio.gather(*(task.aenqueue(number) for number in range(200)))
        return [job.id for job in jobs]

    ids = asyncio.run(main())
    stored = {job.id: job.arguments for job in every_job(app)}
    assert [stored[id_] for id_ in ids] == [b'{"number":%d}' % number for number in range(200)]


def test_threads_enqueue_together(app: Treadle) -> None:
    """An app can be used from any thread."""
    task = app.task(other)
    threads = [threading.Thread(target=lambda: [task.enqueue(1) for _ in range(20)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({job.id for job in every_job(app)}) == 160


def test_arguments_are_checked_at_enqueue(app: Treadle) -> None:
    """Arguments that do not fit the function are refused where the mistake is, and nothing is stored."""
    task = app.task(note)
    for bad in (task.enqueue, lambda: task.enqueue(5), lambda: task.enqueue("a", time=1)):  # type: ignore
        with pytest.raises(SignatureMismatch, match=r"note\(\)"):
            bad()
    assert states(app) == []


def test_enqueue_on_an_event_loop_warns_once(app: Treadle) -> None:
    """The sync verb on a loop works, and says once, at the caller's line, what is better."""
    task = app.task(other)

    async def main() -> None:
        task.enqueue(1)
        task.enqueue(2)

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        asyncio.run(main())
    assert [str(one.message) for one in seen] == [
        "enqueue() blocks the event loop until the disk has synced; use 'await aenqueue(...)'."
    ]
    assert seen[0].filename == __file__
    assert len(states(app)) == 2


def test_enqueue_many_on_an_event_loop_warns_at_the_callers_line(app: Treadle) -> None:
    """The warning about enqueue_many points at the line that called it."""
    task = app.task(other)

    async def main() -> None:
        app.enqueue_many([task.job(1)])

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        asyncio.run(main())
    assert [one.filename for one in seen] == [__file__]


def test_enqueue_off_the_loop_does_not_warn(app: Treadle) -> None:
    """A thread may block, also one started by async code."""
    task = app.task(other)

    async def main() -> None:
        await asyncio.to_thread(task.enqueue, 1)

    asyncio.run(main())
    assert states(app) == ["ready"]


def test_a_job_handle_names_its_job(app: Treadle) -> None:
    """Handles of one job are equal and say which job they mean."""
    job = app.task(name="other")(other).enqueue(1)
    assert repr(job) == f"<Job {job.id} other>"
    assert len({job, job}) == 1


# --- options -----------------------------------------------------------------------------------------


def test_a_delay_is_counted_from_the_enqueue(held_app: Treadle, clock: HeldClock) -> None:
    """A delayed job is scheduled, and due when its delay is over."""
    bound = held_app.task(other).using(delay=timedelta(minutes=5))
    clock.advance(seconds=100)
    record = bound.enqueue(1).record()
    assert (record.state, record.due_at - record.enqueued_at) == (JobState.SCHEDULED, timedelta(minutes=5))


def test_run_at_is_the_due_time(app: Treadle) -> None:
    """A job for a moment is due at that moment, and next_due() tells."""
    moment = datetime(2100, 1, 1, 12, tzinfo=UTC)
    record = app.task(other).using(run_at=moment).enqueue(1).record()
    assert (record.state, record.due_at, app.next_due()) == (JobState.SCHEDULED, moment, moment)


def test_a_moment_that_has_passed_is_now(app: Treadle) -> None:
    """A job for a moment in the past is ready at once."""
    record = app.task(other).using(run_at=datetime(2000, 1, 1, tzinfo=UTC)).enqueue(1).record()
    assert record.state == JobState.READY


def test_a_naive_moment_is_refused(app: Treadle) -> None:
    """A datetime without time zone could mean anything."""
    with pytest.raises(ConfigurationError, match="time zone"):
        app.task(other).using(run_at=datetime(2100, 1, 1))


def test_delay_and_run_at_exclude_each_other(app: Treadle) -> None:
    """Two answers to one question are refused."""
    with pytest.raises(ConfigurationError, match="not both"):
        app.task(other).using(delay=1, run_at=datetime(2100, 1, 1, tzinfo=UTC))


@pytest.mark.parametrize("delay", [float("nan"), float("inf"), timedelta.max], ids=str)
def test_delays_without_an_end_are_refused(app: Treadle, delay: float) -> None:
    """A delay that is no storable time is refused with Treadle's own error."""
    with pytest.raises(ConfigurationError):
        app.task(other).using(delay=delay).enqueue(1)


@pytest.mark.parametrize("priority", [-101, 101, 1.0, True, "5"], ids=repr)
def test_priorities_have_a_range(app: Treadle, priority: int) -> None:
    """Priorities are whole numbers from -100 to 100."""
    with pytest.raises(ConfigurationError, match="from -100 to 100"):
        app.task(other).using(priority=priority)


def test_using_sets_what_is_stored(app: Treadle) -> None:
    """Queue, priority, tags and meta of one job, and none of it for the next."""
    task = app.task(other)
    record = task.using(queue="slow", priority=-100, tags=("red", "blue"), meta={"tenant": 7}).enqueue(1).record()
    assert (record.queue, record.priority, record.tags) == ("slow", -100, ("blue", "red"))
    assert record.meta == {"tenant": 7}
    plain = task.enqueue(1).record()
    assert (plain.queue, plain.priority, plain.tags, plain.meta) == ("default", 0, (), {})


def test_jobs_are_found_by_tag(app: Treadle) -> None:
    """A tag finds the jobs that carry it."""
    task = app.task(other)
    job = task.using(tags=["red"]).enqueue(1)
    task.enqueue(2)
    assert [found.id for found in app.find(JobFilter(tag="red")).jobs] == [job.id]


def test_a_tag_said_twice_is_one_tag(app: Treadle) -> None:
    """Tags are a set; saying one twice is no error."""
    assert app.task(other).using(tags=("red", "red")).enqueue(1).record().tags == ("red",)


def test_one_text_is_not_a_list_of_tags(app: Treadle) -> None:
    """tags="red" is a mistake, not the tags r, e and d."""
    with pytest.raises(ConfigurationError, match="tags"):
        app.task(other).using(tags="red")


def test_meta_that_cannot_be_stored_is_refused(app: Treadle) -> None:
    """Meta is JSON; the message has the path of the value."""
    with pytest.raises(InvalidPayload, match="now"):
        app.task(other).using(meta={"now": object()})


def test_a_retry_of_its_own_keeps_the_tasks_rules(held_app: Treadle) -> None:
    """A job may bring counts and delays; which errors are never retried is the task's to say."""

    @held_app.task(retry=Retry(5, never=(ValueError,)))
    def fail(kind: str) -> None:
        raise {"value": ValueError, "key": KeyError}[kind]

    bound = fail.using(retry=Retry(1, backoff=7, jitter=0))
    once, never = bound.enqueue("key"), bound.enqueue("value")

    async def main() -> None:
        async with held_app.worker() as worker:
            await worker.idle()

    asyncio.run(main())
    assert once.record().due_at - once.record().attempts[0].finished_at == timedelta(seconds=7)
    assert never.record().state == JobState.FAILED


def test_a_retry_of_its_own_may_be_a_number(app: Treadle) -> None:
    """using(retry=3) means what @app.task(retry=3) means; nonsense is refused."""
    task = app.task(other)
    assert task.using(retry=3).job(1) == task.using(retry=Retry(3)).job(1)
    assert task.using(retry=0).job(1) != task.job(1)
    with pytest.raises(ConfigurationError):
        task.using(retry=-1)


def test_higher_priority_runs_first_and_equals_run_in_order(app: Treadle) -> None:
    """Order is priority, then due time, then id."""
    ran: list[int] = []

    @app.task
    def run(number: int) -> None:
        ran.append(number)

    jobs = [run.using(priority=priority).enqueue(number) for number, priority in enumerate((0, -100, 100, 0, 100))]
    with app.worker(concurrency=1):
        app.wait(jobs, timeout=PATIENCE)
    assert ran == [2, 4, 0, 3, 1]


# --- without the code --------------------------------------------------------------------------------


def test_a_client_without_code_enqueues_by_name(path_apps: tuple[Treadle, Treadle]) -> None:
    """A program that only knows the name stores jobs that the program with the code runs."""
    client, server = path_apps
    server.task(name="note")(note)
    job = client.remote("note").enqueue(text="a", times=3)
    later = asyncio.run(client.remote("note").aenqueue(text="b"))
    with server.worker():
        assert (job.result(timeout=PATIENCE), later.result(timeout=PATIENCE)) == ("aaa", "b")


def test_a_remote_job_can_go_with_others(app: Treadle) -> None:
    """Jobs by name fit into enqueue_many, on the queue that was named."""
    ids = app.enqueue_many([app.remote("far", queue="away").job(x=1), app.task(other).job(2)])
    assert [app.get(id_).queue for id_ in ids] == ["away", "default"]


def test_encoded_arguments_are_stored_as_they_are(app: Treadle) -> None:
    """Bytes that are encoded already are not touched."""
    task = app.task(note)
    job = task.enqueue_encoded(b'{ "text": "a" }')
    assert job.record().arguments == b'{ "text": "a" }'
    with app.worker():
        assert job.result(timeout=PATIENCE) == "a"


def test_encoded_arguments_have_the_same_cap(app: Treadle) -> None:
    """The cap on arguments has no back door."""
    with pytest.raises(PayloadTooLarge, match="note"):
        app.task(note).enqueue_encoded(b'"' + b"x" * app.payload_cap + b'"')


def test_encoded_arguments_nobody_can_read_hold_the_job(app: Treadle) -> None:
    """What cannot be decoded is held with the reason, and spends nothing."""
    job = app.task(note).enqueue_encoded(b"{broken")

    async def main() -> None:
        async with app.worker() as worker:
            await worker.idle()

    asyncio.run(main())
    record = job.record()
    assert (record.state, record.failures) == (JobState.HELD, 0)
    assert record.reason is not None
    assert record.reason.startswith("undecodable")
