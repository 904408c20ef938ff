"""Inline mode and perform: one job here and now, by the engine's own parts."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Generator, Iterator
from contextvars import ContextVar

import pytest

from treadle import Abort, Event, HeldClock, JobContext, JobFilter, JobState, Retry, Snooze, Treadle, current_job
from treadle.errors import ConfigurationError, JobFailed
from treadle.testing import aperform, assert_enqueued, inline, perform, run_pending
from treadle.worker.extensions import Call
from worker.kit import failing, states

VARIABLE: ContextVar[str] = ContextVar("variable", default="outside")


class Database:
    """What a handler may want."""

    def __init__(self) -> None:
        self.closed = False


# inline ----------------------------------------------------------------------------------------------------------


def test_a_job_has_ended_when_its_enqueue_returns(app: Treadle) -> None:
    """Stored, claimed, run and settled: its result and its history are there."""

    @app.task(name="add")
    def add(a: int, b: int) -> int:
        return a + b

    with inline(app):
        job = add.enqueue(2, b=3)
    assert job.result(timeout=0) == 5
    (attempt,) = job.record().attempts
    assert (attempt.outcome, attempt.attempt) == ("succeeded", 1)


def test_it_ends_with_its_context(app: Treadle) -> None:
    """Afterwards jobs are stored and wait, also when the block was left by an error; no worker is left."""
    task = app.task(name="work")(lambda: 0)
    with pytest.raises(ZeroDivisionError), inline(app):
        1 // task.enqueue().result(0)
    task.enqueue()
    assert states(app) == ["succeeded", "ready"]
    assert app.workers() == ()


def test_older_jobs_are_left_alone(app: Treadle) -> None:
    """Exactly the job that is enqueued runs."""
    task = app.task(name="work")(lambda: None)
    task.enqueue()
    with inline(app):
        task.enqueue()
    assert states(app) == ["ready", "succeeded"]


def test_a_plain_handler_runs_on_the_calling_thread(app: Treadle) -> None:
    """It sees what is bound to the thread, such as an open transaction; what it sets in its context stays inside."""
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE sent (name TEXT)")

    @app.task(name="send")
    def send(name: str) -> int:
        connection.execute("INSERT INTO sent VALUES (?)", (name,))
        VARIABLE.set("inside")
        return threading.get_ident()

    with inline(app):
        assert send.enqueue("ada").result(0) == threading.get_ident()
    assert connection.execute("SELECT name FROM sent").fetchall() == [("ada",)]
    assert VARIABLE.get() == "outside"
    with pytest.raises(ConfigurationError, match="outside a running job"):
        current_job()
    connection.close()


def test_a_coroutine_runs_on_the_running_loop(app: Treadle) -> None:
    """With aenqueue a handler shares the loop of the test; what it sets in its context stays inside."""
    loops = []

    @app.task(name="work")
    async def work() -> str:
        VARIABLE.set("inside")
        await asyncio.sleep(0)
        loops.append(asyncio.get_running_loop())
        return "done"

    async def main() -> None:
        with inline(app):
            job = await work.aenqueue()
        assert await job.aresult(0) == "done"
        assert (loops, VARIABLE.get()) == ([asyncio.get_running_loop()], "outside")

    asyncio.run(main())


def test_each_kind_of_handler_runs_from_each_kind_of_code(app: Treadle) -> None:
    """Plain and async handlers run inline from enqueue, aenqueue, and enqueue on a loop."""

    @app.task(name="plain")
    def plain() -> str:
        return "plain"

    @app.task(name="coroutine")
    async def coroutine() -> str:
        return "coroutine"

    async def main() -> list[str]:
        found = [await (await plain.aenqueue()).aresult(0), await (await coroutine.aenqueue()).aresult(0)]
        with pytest.warns(RuntimeWarning, match="blocks the event loop"):
            jobs = [plain.enqueue(), coroutine.enqueue()]
        return found + [job.result(0) for job in jobs]

    with inline(app):
        assert [plain.enqueue().result(0), coroutine.enqueue().result(0)] == ["plain", "coroutine"]
        assert asyncio.run(main()) == ["plain", "coroutine"] * 2


def test_many_are_stored_before_the_first_runs(app: Treadle) -> None:
    """enqueue_many and its twin store everything, then run each in order."""
    counts: list[int] = []

    @app.task(name="count")
    def count(number: int) -> None:
        counts.append(app.count())

    async def main() -> None:
        await app.aenqueue_many(count.job(number) for number in range(2))

    with inline(app):
        app.enqueue_many(count.job(number) for number in range(3))
        asyncio.run(main())
    assert counts == [3, 3, 3, 5, 5]


def test_what_a_handler_enqueues_runs_inside_of_it(app: Treadle) -> None:
    """Nested enqueues have ended when they return; on_success jobs run after their parent."""
    order: list[str] = []

    @app.task(name="leaf")
    async def leaf(name: str) -> None:
        order.append(name)

    @app.task(name="inner")
    async def inner() -> None:
        await leaf.aenqueue("nested")
        order.append("inner")

    @app.task(name="outer")
    def outer() -> None:
        current_job().on_success(leaf.job("after"))
        inner.enqueue()
        order.append("outer")

    with inline(app):
        outer.enqueue()
    assert order == ["nested", "inner", "outer", "after"]
    assert set(states(app)) == {"succeeded"}


def test_nested_enqueues_may_run_beside_each_other(app: Treadle) -> None:
    """A handler that gathers many enqueues is no deeper than one that awaits them in turn."""
    ran: list[int] = []

    @app.task(name="leaf")
    async def leaf(number: int) -> None:
        await asyncio.sleep(0)
        ran.append(number)

    @app.task(name="fan")
    async def fan() -> None:
        await asyncio.gather(*(leaf.aenqueue(number) for number in range(50)))

    with inline(app):
        fan.enqueue()
    assert sorted(ran) == list(range(50))


def test_what_others_store_beside_a_job_is_theirs_to_run(app: Treadle) -> None:
    """A job that an enqueue beside this one has stored, and is about to run, is not taken for one that follows."""
    order: list[str] = []

    @app.task(name="leaf")
    def leaf(name: str) -> None:
        order.append(name)

    @app.task(name="outer")
    def outer() -> None:
        current_job().on_success(leaf.job("follows"))
        app.store.insert((leaf.job("of another"),))  # as an enqueue does before it runs its job

    with inline(app):
        outer.enqueue()
    assert order == ["follows"]
    assert sorted(states(app)) == ["ready", "succeeded", "succeeded"]


def test_the_error_of_a_job_that_failed_for_good_is_raised(app: Treadle) -> None:
    """After every retry, at once: the object the handler raised, and the job is failed with its whole history."""
    error = ValueError("no")
    task = failing(app, lambda: error, retry=2)
    with inline(app), pytest.raises(ValueError, match="no") as caught:
        task.enqueue()
    assert caught.value is error
    record = app.get(1)
    assert (record.state, record.failures, len(record.attempts)) == (JobState.FAILED, 3, 3)


def test_retries_follow_without_their_pauses(held_app: Treadle, clock: HeldClock) -> None:
    """A handler that succeeds at its third attempt makes no noise, and no time passes."""
    began = clock.now()

    @held_app.task(name="flaky", retry=Retry(5, backoff=(60, 3600)))
    def flaky(job: JobContext) -> int:
        if job.attempt == 1:
            raise ValueError
        if job.attempt == 2:
            raise Snooze(3600)
        return job.failures

    with inline(held_app):
        assert flaky.enqueue().result(0) == 1
    assert clock.now() == began


def test_an_error_inside_an_error_surfaces_at_the_test(app: Treadle) -> None:
    """A handler does not see that a job it enqueued has failed, as in production; the test does, the first first."""
    bad = failing(app, lambda: ValueError("inner"), retry=0)
    went_on: list[bool] = []

    @app.task(name="outer", retry=0)
    def outer() -> None:
        bad.enqueue()
        went_on.append(True)
        raise KeyError("outer")

    with inline(app), pytest.raises(ValueError, match="inner") as caught:
        outer.enqueue()
    assert went_on == [True]
    assert caught.value.__notes__[1] == "and then: job 1 outer, attempt 1 failed: 'outer'"


def test_a_held_job_is_told_in_words(app: Treadle) -> None:
    """Arguments that cannot be read have no exception of a handler; JobFailed says what it is."""
    task = app.task(name="work")(lambda number: number)
    with inline(app), pytest.raises(JobFailed, match="held: undecodable"):
        task.enqueue_encoded(b"{broken")


def test_a_cancelled_job_is_no_error(app: Treadle) -> None:
    """A job that was called off while it ran ends, and nothing is raised."""

    @app.task(name="work")
    def work() -> None:
        app.cancel(current_job().id)
        raise ValueError("never mind")

    with inline(app):
        work.enqueue()
    assert states(app) == ["cancelled"]


def test_an_abort_is_raised(app: Treadle) -> None:
    """Abort fails a job for good, so it is what the enqueue raises."""
    task = failing(app, lambda: Abort("enough"))
    with inline(app), pytest.raises(Abort, match="enough"):
        task.enqueue()


@pytest.mark.sqlite
def test_a_delay_is_kept(held_app: Treadle, clock: HeldClock) -> None:
    """A job for later is stored and waits; so is one that only other programs know, and one in a transaction."""
    task = held_app.task(name="work")(lambda: None)
    connection = sqlite3.connect(held_app.store.path, isolation_level=None)
    with inline(held_app):
        task.using(delay=60).enqueue()
        held_app.remote("far").enqueue()
        connection.execute("BEGIN IMMEDIATE")
        task.using(connection=connection).enqueue()
        connection.execute("COMMIT")
    connection.close()
    assert sorted(states(held_app)) == ["ready", "ready", "scheduled"]


def test_jobs_without_end_are_noticed(app: Treadle) -> None:
    """A job that enqueues itself inside itself is stopped at a depth, and every handler is told nothing."""

    @app.task(name="again")
    def again() -> None:
        again.enqueue()

    with inline(app), pytest.raises(AssertionError, match=r"more than 20 deep: (again > ){5}again"):
        again.enqueue()
    assert states(app) == ["succeeded"] * 20 + ["ready"]


def test_a_snooze_without_end_is_noticed(app: Treadle) -> None:
    """A job that snoozes for ever is stopped, and named."""
    task = failing(app, lambda: Snooze(60))
    with inline(app), pytest.raises(AssertionError, match=r"no end after 1000 attempts; .* job 1 fail"):
        task.enqueue()


def test_ctrl_c_ends_the_test(app: Treadle) -> None:
    """What is no error of a handler but the end of the program goes through, after its attempt is settled."""
    task = failing(app, KeyboardInterrupt)
    with inline(app), pytest.raises(KeyboardInterrupt):
        task.enqueue()
    assert len(app.get(1).attempts) == 1


def test_subscribers_hear_of_it(app: Treadle) -> None:
    """Events come as from a worker, to plain and async subscribers."""
    heard: list[str] = []

    @app.on("started", "succeeded", "failed", "retried")
    def listen(event: Event) -> None:
        heard.append(f"{event.kind} {event.attempt}")

    @app.on("failed")
    async def alert(event: Event) -> None:
        await asyncio.sleep(0)
        heard.append("alert")

    task = failing(app, lambda: ValueError("no"), retry=1)
    with inline(app), pytest.raises(ValueError, match="no"):
        task.enqueue()
    with inline(app), pytest.raises(ValueError, match="no"):
        asyncio.run(task.aenqueue())
    assert heard == ["started 1", "retried 1", "started 2", "failed 2", "alert"] * 2


def test_resources_and_middleware_are_there(app: Treadle) -> None:
    """Plain and async resources are made for each job and cleaned up after it; middleware surrounds the call."""
    made: list[Database] = []
    around: list[str] = []

    @app.resource
    def database() -> Iterator[Database]:
        made.append(Database())
        yield made[-1]
        made[-1].closed = True

    @app.resource(scope="job")
    async def text(database: Database, job: JobContext) -> AsyncIterator[str]:
        yield f"{job.id} {database.closed}"

    @app.middleware
    def layer(call: Call) -> Generator[None, object, None]:
        around.append("before")
        yield
        around.append("after")

    @app.task(name="plain")
    def plain(database: Database) -> bool:
        return database.closed

    @app.task(name="coroutine")
    async def coroutine(text: str) -> str:
        return text

    with inline(app):
        assert plain.enqueue().result(0) is False
        assert coroutine.enqueue().result(0) == "2 False"
    assert [one.closed for one in made] == [True, True]
    assert around == ["before", "after"] * 2


def test_it_survives_a_change_of_the_store(app: Treadle) -> None:
    """The app may get another store meanwhile; jobs run where they are stored."""
    task = app.task(name="work")(lambda: None)
    with inline(app):
        task.enqueue()
        with app.elsewhere("memory://"):
            task.enqueue()
            assert states(app) == ["succeeded"]
        task.enqueue()
    assert states(app) == ["succeeded", "succeeded"]


# perform ---------------------------------------------------------------------------------------------------------


def test_one_job_is_performed(app: Treadle) -> None:
    """Exactly this one runs once; what it enqueues is stored and does not run."""
    other = app.task(name="other")(lambda: None)
    other.enqueue()

    @app.task(name="work")
    def work(number: int) -> int:
        other.enqueue()
        current_job().on_success(other.job())
        return number * 2

    ran = perform(app, work.job(21))
    assert (ran.outcome, ran.result, ran.error, ran.state) == ("succeeded", 42, None, "succeeded")
    assert_enqueued(app, other, count=3)
    assert app.workers() == ()


def test_an_attempt_can_be_made_up(held_app: Treadle) -> None:
    """The handler sees the number it is given; by default every attempt before has failed."""

    @held_app.task(name="work", retry=Retry(3))
    def work(job: JobContext) -> tuple[int, int]:
        return job.attempt, job.failures

    assert perform(held_app, work.job()).result == (1, 0)
    assert perform(held_app, work.job(), attempt=4).result == (4, 3)
    assert perform(held_app, work.job(), attempt=4, failures=1).result == (4, 1)
    with pytest.raises(ConfigurationError, match="attempt=0"):
        perform(held_app, work.job(), attempt=0)


def test_the_last_attempt_fails_for_good(held_app: Treadle) -> None:
    """The retry rules are those of the attempt that is made up."""
    task = failing(held_app, lambda: ValueError("no"), retry=2)
    assert [perform(held_app, task.job(), attempt=n).state for n in (1, 2, 3)] == ["scheduled", "scheduled", "failed"]


def test_counted_immediate_retries_are_judged(held_app: Treadle) -> None:
    """An immediate retry is granted as often as the rule says."""
    task = failing(held_app, lambda: ValueError("no"), retry=Retry(1, immediately={ValueError: 1}))
    assert perform(held_app, task.job()).state == "ready"


def test_its_error_is_kept_or_raised(held_app: Treadle) -> None:
    """The outcome carries the handler's own error; raise_errors raises it."""
    error = ValueError("no")
    task = failing(held_app, lambda: error)
    assert perform(held_app, task.job()).error is error
    with pytest.raises(ValueError, match="no"):
        perform(held_app, task.job(), raise_errors=True)


def test_a_delay_is_ignored(held_app: Treadle) -> None:
    """What is asked for now runs now."""
    task = held_app.task(name="work")(lambda: "done")
    assert perform(held_app, task.using(delay=60, queue="mail").job()).result == "done"


def test_aperform_is_its_twin(app: Treadle) -> None:
    """From async code a coroutine runs on the running loop, a plain handler on a thread."""

    @app.task(name="coroutine")
    async def coroutine() -> bool:
        return asyncio.get_running_loop() is loops[0]

    @app.task(name="plain")
    def plain() -> bool:
        return threading.current_thread() is threading.main_thread()

    loops: list[asyncio.AbstractEventLoop] = []

    async def main() -> list[object]:
        loops.append(asyncio.get_running_loop())
        found = [(await aperform(app, task.job())).result for task in (coroutine, plain)]
        with pytest.raises(ValueError, match="no"):
            await aperform(app, failing(app, lambda: ValueError("no")).job(), raise_errors=True)
        return found

    assert asyncio.run(main()) == [True, False]


def test_what_is_left_runs_with_a_worker(held_app: Treadle) -> None:
    """A performed job that is to be retried is an ordinary scheduled job."""
    task = failing(held_app, lambda: ValueError("no"), retry=Retry(1, backoff=(0,), jitter=0))
    perform(held_app, task.job())
    assert [ran.attempt for ran in run_pending(held_app)] == [2]
    assert held_app.count(JobFilter(states=(JobState.FAILED,))) == 1
