"""run_pending and drain: the real worker, until nothing is left to do."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from treadle import Abort, HeldClock, JobFilter, JobState, Retry, Snooze, Treadle, current_job
from treadle.errors import ConfigurationError, JobFailed
from treadle.testing import adrain, all_enqueued, arun_pending, drain, run_pending
from worker.kit import failing, open_app, states


class Database:
    """What a handler may want."""


def test_what_is_due_runs_in_order(app: Treadle) -> None:
    """Higher priority first, then the earlier one; each attempt is told, in that order."""

    @app.task(name="work")
    def work(name: str) -> str:
        return name

    for name, priority in (("low", -5), ("first", 0), ("second", 0), ("high", 5)):
        work.using(priority=priority).enqueue(name)
    assert [ran.result for ran in run_pending(app)] == ["high", "first", "second", "low"]
    assert run_pending(app) == []


def test_the_order_stays_strict_while_jobs_enqueue(app: Treadle) -> None:
    """Nothing is claimed ahead: an urgent follow-up comes before what was ready when its parent ran."""

    @app.task(name="work")
    def work(name: str) -> str:
        if name.startswith("parent"):
            work.using(priority=9).enqueue(f"urgent after {name}")
        return name

    for number in range(5):
        work.enqueue(f"parent {number}")
    wanted = [name for n in range(5) for name in (f"parent {n}", f"urgent after parent {n}")]
    assert [ran.result for ran in run_pending(app)] == wanted


def test_an_attempt_is_told(held_app: Treadle) -> None:
    """A value says which attempt of which job ran, what it came to and where the job stands now."""
    job = failing(held_app, lambda: ValueError("no"), retry=1).enqueue()
    (ran,) = run_pending(held_app)
    assert (ran.id, ran.task, ran.attempt, ran.outcome, ran.state) == (job.id, "fail", 1, "failed", "scheduled")
    assert (ran.result, repr(ran.error), ran.message) == (None, "ValueError('no')", "no")
    assert str(ran) == "job 1 fail, attempt 1 failed: no"


def test_what_follows_runs_too(app: Treadle) -> None:
    """Jobs that a handler enqueues, and those its success enqueues, belong to the run."""

    @app.task(name="last")
    def last() -> None: ...

    @app.task(name="middle")
    async def middle() -> None:
        current_job().on_success(last.job())

    @app.task(name="first")
    def first() -> None:
        middle.enqueue()

    first.enqueue()
    assert [ran.task for ran in run_pending(app)] == ["first", "middle", "last"]


def test_only_one_queue_runs(app: Treadle) -> None:
    """Jobs of other queues are left as they are."""
    task = app.task(name="work")(lambda: None)
    task.using(queue="mail").enqueue()
    task.enqueue()
    assert [ran.id for ran in run_pending(app, queue="mail")] == [1]
    assert states(app) == ["succeeded", "ready"]


@pytest.mark.parametrize("by_name", [True, False])
def test_only_one_task_runs(app: Treadle, by_name: bool) -> None:
    """Jobs of the app's other tasks are left as they are: nobody holds them as unknown."""
    wanted, other = app.task(name="wanted")(lambda: None), app.task(name="other")(lambda: None)
    other.enqueue()
    wanted.enqueue()
    assert [ran.task for ran in run_pending(app, task="wanted" if by_name else wanted)] == ["wanted"]
    assert states(app) == ["ready", "succeeded"]
    assert app.workers() == ()


def test_a_job_nobody_knows_is_held(app: Treadle) -> None:
    """As in production: the job of a task that no program here has is held with the reason."""
    app.remote("far").enqueue(x=1)
    assert run_pending(app) == []
    (job,) = all_enqueued(app, "far", state=JobState.HELD)
    assert job.record.reason is not None
    assert job.record.reason.startswith("unknown task")


def test_concurrency_lets_jobs_meet(app: Treadle) -> None:
    """With two slots two handlers can wait for each other."""
    both = threading.Barrier(2, timeout=30)

    @app.task(name="meet")
    def meet() -> None:
        both.wait()

    meet.enqueue()
    meet.enqueue()
    assert [ran.outcome for ran in run_pending(app, concurrency=2)] == ["succeeded", "succeeded"]


def test_nothing_is_raised_unless_asked(held_app: Treadle) -> None:
    """A failing handler fails its job, and the test goes on."""
    failing(held_app, lambda: ValueError("no")).enqueue()
    assert [ran.outcome for ran in run_pending(held_app)] == ["failed"]


def test_the_handlers_own_error_is_raised(held_app: Treadle) -> None:
    """raise_errors raises the object the handler raised, with its frames, once everything has run."""
    error = KeyError("its own")

    @held_app.task(name="fail")
    def fail() -> None:
        raise error

    fail.enqueue()
    fail.enqueue()
    with pytest.raises(KeyError) as caught:
        run_pending(held_app, raise_errors=True)
    assert caught.value is error
    assert any(entry.name == "fail" for entry in caught.traceback)
    assert caught.value.__notes__ == [
        "raised by job 1 fail, attempt 1 failed: 'its own'", "and then: job 2 fail, attempt 1 failed: 'its own'"
    ]  # fmt: skip
    assert states(held_app) == ["scheduled", "scheduled"]


def test_an_error_of_a_resource_is_raised(app: Treadle) -> None:
    """What goes wrong around a handler is told as what goes wrong in it."""

    @app.resource
    def database() -> Database:
        raise ConnectionError("no database")

    @app.task(name="work")
    async def work(database: Database) -> None: ...

    work.enqueue()
    with pytest.raises(ConnectionError, match="no database"):
        run_pending(app, raise_errors=True)


def test_errors_without_an_object_are_raised_in_words(app: Treadle) -> None:
    """A job whose arguments cannot be read is held; raise_errors says so."""
    app.task(name="work")(lambda number: number).enqueue_encoded(b"{broken")
    with pytest.raises(JobFailed, match="undecodable"):
        run_pending(app, raise_errors=True)


@pytest.mark.parametrize(("error", "outcome"), [(Snooze(60), "snoozed"), (Abort("enough"), "aborted")])
def test_outcomes_that_are_exceptions(held_app: Treadle, error: Exception, outcome: str) -> None:
    """A snooze is nothing wrong; an abort is, and it is raised as it was."""
    failing(held_app, lambda: error).enqueue()
    if outcome == "aborted":
        with pytest.raises(Abort, match="enough"):
            run_pending(held_app, raise_errors=True)
    else:
        assert [ran.error for ran in run_pending(held_app, raise_errors=True)] == [None]
    assert str(held_app.get(1).attempts[0].outcome) == outcome


def test_isolated_tasks_run_here(app: Treadle) -> None:
    """A task with a process of its own runs in the test's process, where its fakes are."""
    seen: list[int] = []
    app.task(name="work", isolation="process", memory=100_000_000)(lambda: seen.append(1)).enqueue()
    assert [ran.outcome for ran in run_pending(app)] == ["succeeded"]
    assert seen == [1]


def test_async_code_runs_it_on_its_loop(app: Treadle) -> None:
    """arun_pending runs coroutines on the loop of the test, which may await what they set."""

    async def main() -> tuple[list[str], bool]:
        event, loops = asyncio.Event(), []

        @app.task(name="work")
        async def work() -> None:
            loops.append(asyncio.get_running_loop())
            event.set()

        await work.aenqueue()
        ran = await arun_pending(app)
        await event.wait()
        return [one.task for one in ran], loops == [asyncio.get_running_loop()]

    assert asyncio.run(main()) == (["work"], True)


def test_the_plain_verbs_refuse_a_loop(held_app: Treadle) -> None:
    """On an event loop they would block it; the message names the twin."""

    async def main() -> None:
        with pytest.raises(ConfigurationError, match="await arun_pending"):
            run_pending(held_app)
        with pytest.raises(ConfigurationError, match="await adrain"):
            drain(held_app)

    asyncio.run(main())


def test_the_current_loop_of_a_thread_stays(app: Treadle) -> None:
    """A loop that was set for the thread, as some plugins do, is still set afterwards."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        run_pending(app)
        assert asyncio.get_event_loop_policy().get_event_loop() is loop
    finally:
        asyncio.set_event_loop(None)
        loop.close()


def test_a_run_without_end_is_noticed(app: Treadle) -> None:
    """A job that enqueues itself for ever fails the test, and the message says which task it is."""

    @app.task(name="again")
    def again() -> None:
        again.enqueue()

    again.enqueue()
    with pytest.raises(AssertionError, match=r"after 20 attempts .*task again ran 21 times.* succeeded"):
        run_pending(app, limit=20)


def test_a_handler_that_does_not_return_is_named(app: Treadle) -> None:
    """Past the timeout the message names the job that still runs."""
    go_on = threading.Event()
    app.task(name="stuck")(lambda: go_on.wait(30)).enqueue()
    with pytest.raises(AssertionError, match=r"after 2 s .*job 1 stuck"):
        run_pending(app, timeout=2)
    go_on.set()


# drain -----------------------------------------------------------------------------------------------------------


def test_drain_goes_through_time(held_app: Treadle, clock: HeldClock) -> None:
    """Retries and delays pass without waiting: each moment comes in its turn."""
    moments: list[float] = []
    began = clock.now()

    @held_app.task(name="flaky", retry=Retry(3, backoff=(60, 3600, 86_400), jitter=0))
    def flaky() -> str:
        moments.append((clock.now() - began) / 1_000_000)
        if current_job().attempt < 4:
            raise ValueError("not yet")
        return "at last"

    held_app.task(name="later")(lambda: moments.append(-1)).using(delay=timedelta(minutes=30)).enqueue()
    flaky.enqueue()
    ran = drain(held_app)
    assert moments == [0, 60, -1, 3660, 90_060]
    assert [str(one.outcome) for one in ran] == ["failed", "failed", "succeeded", "failed", "succeeded"]
    assert ran[-1].result == "at last"
    assert (clock.now() - began) / 1_000_000 == 90_060


def test_drain_waits_for_pauses(held_app: Treadle, clock: HeldClock) -> None:
    """It moves the clock to the end of a pause behind which jobs wait, and to no other."""
    began = clock.moment
    held_app.task(name="work")(lambda: None).enqueue()
    held_app.pause(task="work", until=began + timedelta(hours=1))
    held_app.pause(queue="empty", until=began + timedelta(hours=5))
    assert [ran.task for ran in drain(held_app)] == ["work"]
    assert clock.moment == began + timedelta(hours=1)


def test_drain_leaves_what_is_paused_without_end(held_app: Treadle) -> None:
    """A pause that no clock ends is no reason to wait for ever."""
    held_app.task(name="work")(lambda: None).enqueue()
    held_app.pause(queue="default")
    assert drain(held_app) == []
    assert held_app.count(JobFilter(queue="default")) == 1


@pytest.mark.parametrize("until", [3600, timedelta(hours=1), "moment"])
def test_drain_stops_at_a_moment(held_app: Treadle, clock: HeldClock, until: float | timedelta | str) -> None:
    """What is due by then runs, what is later waits, and the clock stands exactly there."""
    began = clock.moment

    @held_app.task(name="tick")
    def tick() -> None:
        tick.using(delay=1000).enqueue()

    tick.enqueue()
    assert len(drain(held_app, until=began + timedelta(hours=1) if isinstance(until, str) else until)) == 4
    assert clock.moment == began + timedelta(hours=1)


def test_a_drain_without_end_is_noticed(held_app: Treadle) -> None:
    """A job that snoozes for ever fails the test; the message names it and the way out."""
    failing(held_app, lambda: Snooze(60)).enqueue()
    with pytest.raises(AssertionError, match=r"after 5 moves .*job 1 fail ran 6 times, .* snoozed\. Pass until="):
        drain(held_app, moves=5)


def test_drain_raises_the_handlers_error(held_app: Treadle) -> None:
    """After everything has run, the first error is raised."""
    failing(held_app, lambda: ValueError("no"), retry=2).enqueue()
    with pytest.raises(ValueError, match="no"):
        drain(held_app, raise_errors=True)
    assert states(held_app) == ["failed"]


def test_drain_wants_a_held_clock(app: Treadle) -> None:
    """The real clock cannot be moved; the message says what to do."""
    with pytest.raises(ConfigurationError, match="HeldClock"):
        drain(app)


def test_adrain_is_its_twin(held_app: Treadle) -> None:
    """Async code drains on its own loop."""
    failing(held_app, lambda: ValueError("no"), retry=2).enqueue()
    assert [ran.attempt for ran in asyncio.run(adrain(held_app))] == [1, 2, 3]


@pytest.fixture
def on_file(path: Path, clock: HeldClock) -> Iterator[Treadle]:
    """A held app on a real file."""
    with open_app(path, clock=clock) as made:
        yield made


def test_it_works_on_files_too(on_file: Treadle) -> None:
    """Nothing of it is special to memory://."""
    failing(on_file, lambda: ValueError("no"), retry=1).enqueue()
    assert [ran.outcome for ran in drain(on_file)] == ["failed", "failed"]
