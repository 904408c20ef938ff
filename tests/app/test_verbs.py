"""Each verb, for one job and for all that a filter matches; what is refused is left alone and said in words."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from treadle import (
    Abort,
    AttemptOutcome,
    HeldClock,
    JobFilter,
    JobState,
    Retry,
    Snooze,
    Treadle,
    current_job,
)
from treadle.errors import (
    ConfigurationError,
    JobNotFound,
    JobStateError,
    ResultNotStored,
    SignatureMismatch,
    UndecodablePayload,
)
from treadle.store.ops import claim
from worker.kit import PATIENCE, aeventually, change, eventually, every_job, failing, open_app, run_all, states

Verb = Callable[[Treadle, Any], int]
VERBS: dict[str, Verb] = {
    "cancel": lambda app, which: app.cancel(which, "not wanted"),
    "reschedule": lambda app, which: app.reschedule(which, delay=7200),
    "set_priority": lambda app, which: app.set_priority(which, 50),
    "move": lambda app, which: app.move(which, "slow"),
    "delete": lambda app, which: app.delete(which),
}
TWINS: dict[str, Callable[[Treadle, Any], Any]] = {
    "cancel": lambda app, which: app.acancel(which, "not wanted"),
    "reschedule": lambda app, which: app.areschedule(which, delay=7200),
    "set_priority": lambda app, which: app.aset_priority(which, 50),
    "move": lambda app, which: app.amove(which, "slow"),
    "delete": lambda app, which: app.adelete(which),
}


@dataclass
class Item:
    sku: str
    price: Decimal


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Handlers wait for it; open at the end whatever happens."""
    event = threading.Event()
    yield event
    event.set()


def shown(app: Treadle, job: int) -> object:
    """What a verb has made of a job; None when it is gone."""
    try:
        found = app.get(job)
    except JobNotFound:
        return None
    return (str(found.state), found.reason, found.priority, found.queue)


# One job, many jobs --------------------------------------------------------------------------------------------------

AFTER: dict[str, object] = {
    "cancel": ("cancelled", "not wanted", 0, "default"), "reschedule": ("scheduled", None, 0, "default"),
    "set_priority": ("ready", None, 50, "default"), "move": ("ready", None, 0, "slow"), "delete": None,
}  # fmt: skip


@pytest.mark.parametrize("name", VERBS)
@pytest.mark.parametrize("twin", [False, True])
def test_a_verb_takes_an_id_a_handle_or_a_filter(app: Treadle, name: str, twin: bool) -> None:
    """It says how many were changed; what does not match stays as it is."""
    work = app.task(name="work")(lambda: None)
    bulk = app.enqueue_many(work.using(tags=["bulk"]).job() for _ in range(3))
    by_id, by_handle, other = work.enqueue(), work.enqueue(), work.enqueue()
    found = []
    for which in (by_id.id, by_handle, JobFilter(tag="bulk"), JobFilter(tag="nobody has this")):
        found.append(asyncio.run(TWINS[name](app, which)) if twin else VERBS[name](app, which))
    assert found == [1, 1, 3, 0]
    assert {shown(app, job) for job in (*bulk, by_id.id, by_handle.id)} == {AFTER[name]}
    assert shown(app, other.id) == ("ready", None, 0, "default")
    with pytest.raises(JobNotFound, match="no job 99"):
        VERBS[name](app, 99)


def test_many_jobs_are_changed_in_slices(app: Treadle) -> None:
    """More than one transaction's worth: each is changed once, those that come meanwhile are not meant."""
    work = app.task(name="work")(lambda: None)
    app.enqueue_many(work.job() for _ in range(1234))
    others = app.enqueue_many(work.using(queue="other").job() for _ in range(10))
    assert app.set_priority(JobFilter(queue="default"), 7) == 1234
    assert app.move(JobFilter(task="work", queue="default"), "moved") == 1234
    assert app.cancel(JobFilter(queue="moved")) == 1234
    assert app.cancel(JobFilter(queue="moved")) == 0
    assert app.retry(JobFilter(queue="moved", states=(JobState.CANCELLED,))) == 1234
    assert app.delete(JobFilter(queue="moved")) == 1234
    assert app.count() == len(others)


def test_of_many_only_those_are_changed_for_which_it_is_legal(app: Treadle, gate: threading.Event) -> None:
    """Running and ended ones are left out of a delete or a retry without a word, and counted out."""
    begun = threading.Event()

    @app.task(name="work", retry=0)
    def work(what: str) -> None:
        if what == "wait":
            begun.set()
            gate.wait()
        if what == "fail":
            raise ValueError

    jobs = {what: work.enqueue(what) for what in ("wait", "fail", "fine")}
    with app.worker():
        assert begun.wait(PATIENCE)
        app.wait([jobs["fail"], jobs["fine"]], PATIENCE)
        everything = JobFilter(task="work")
        assert app.retry(everything) == 1
        app.wait([jobs["fail"]], PATIENCE)
        assert app.reschedule(everything, delay=0) == 0
        assert app.set_priority(everything, 3) == 1
        assert app.move(everything, "slow") == 0
        assert app.delete(everything) == 2
        with pytest.raises(JobStateError, match=r"is running since .* UTC and cannot be deleted; cancel it first"):
            app.delete(jobs["wait"])
        gate.set()
        jobs["wait"].result(PATIENCE)
    assert jobs["wait"].record().priority == 3


def test_filters_narrow_by_everything_they_name(held_app: Treadle, clock: HeldClock) -> None:
    """Queue, task, state, tag, error, and the moments of enqueue and end."""

    def moment(seconds: float) -> datetime:
        return datetime.fromtimestamp(clock.now() / 1_000_000 + seconds, UTC)

    fail = failing(held_app, lambda: KeyError("no"), retry=0)
    other = held_app.task(name="other")(lambda: None)
    first = [fail.using(tags=["a"]).enqueue(), other.using(queue="q", tags=["a", "b"]).enqueue()]
    run_all(held_app)
    clock.advance(seconds=100)
    later = [other.enqueue(), fail.using(queue="q").enqueue()]
    wanted: dict[JobFilter, list[Any]] = {
        JobFilter(): first + later, JobFilter(queue="q"): [first[1], later[1]],
        JobFilter(task="fail"): [first[0], later[1]],
        JobFilter(tag="a"): first, JobFilter(tag="a", queue="q"): [first[1]], JobFilter(error="KeyError"): [first[0]],
        JobFilter(states=(JobState.FAILED, JobState.READY)): [first[0], *later],
        JobFilter(enqueued_after=moment(-50)): later, JobFilter(enqueued_before=moment(-50)): first,
        JobFilter(ended_before=moment(-50)): first, JobFilter(ids=(first[0].id, later[0].id), task="other"): [later[0]],
    }  # fmt: skip
    for which, jobs in wanted.items():
        assert [job.id for job in reversed(held_app.find(which).jobs)] == [job.id for job in jobs], which
        assert held_app.count(which) == len(jobs), which
    assert held_app.set_priority(JobFilter(enqueued_after=moment(-50)), 9) == 2
    assert [job.priority for job in every_job(held_app)] == [0, 0, 9, 9]


# Rescheduling, priorities, queues ------------------------------------------------------------------------------------


def test_a_rescheduled_job_runs_at_its_new_time(held_app: Treadle, clock: HeldClock) -> None:
    """Later by a delay, at a moment, or now; a running worker notices."""
    work = held_app.task(name="work")(lambda: "done")
    with held_app.worker():
        job, sooner = work.using(delay=3600).enqueue(), work.using(delay=3600).enqueue()
        held_app.reschedule(job, delay=timedelta(hours=2))
        held_app.reschedule(sooner, run_at=datetime.fromtimestamp(clock.now() / 1_000_000 - 1, UTC))
        assert sooner.result(PATIENCE) == "done"
        clock.advance(seconds=3601)
        assert work.enqueue().result(PATIENCE) == "done"
        assert job.record().state is JobState.SCHEDULED
        clock.advance(seconds=3600)
        assert job.result(PATIENCE) == "done"
    for given in ({}, {"delay": 1, "run_at": datetime.now(UTC)}):
        with pytest.raises(ConfigurationError, match="one of them"):
            held_app.reschedule(job, **given)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="time zone"):
        held_app.reschedule(job, run_at=datetime(2030, 1, 1))


def test_order_follows_priorities_of_today(app: Treadle) -> None:
    """A priority given later counts, in whichever queue the job was moved to."""
    ran: list[int] = []

    @app.task(name="work")
    async def work(number: int) -> None:
        ran.append(number)

    jobs = [work.enqueue(number) for number in range(4)]
    app.set_priority(jobs[2], 10)
    app.move(jobs[3], "other")
    app.set_priority(jobs[3], 100)
    app.move(jobs[3], "default")

    async def main() -> None:
        async with app.worker(concurrency=1) as worker:
            await worker.idle()

    asyncio.run(main())
    assert ran == [3, 2, 0, 1]
    for priority in (101, -101, True):
        with pytest.raises(ConfigurationError, match="whole number from -100 to 100"):
            app.set_priority(jobs[0], priority)
    with pytest.raises(ConfigurationError, match="printable"):
        app.move(jobs[0], "a\nb")


def test_who_waits_for_a_deleted_job_is_told(app: Treadle) -> None:
    """A result that can never come is not waited for."""
    job = app.task(name="work")(lambda: None).using(delay=3600).enqueue()

    async def main() -> None:
        waiting = asyncio.ensure_future(job.aresult(PATIENCE))
        await asyncio.sleep(0)
        await app.adelete(job)
        with pytest.raises(JobNotFound):
            await waiting

    asyncio.run(main())


# Retry ---------------------------------------------------------------------------------------------------------------


def test_a_retry_may_have_other_arguments(app: Treadle) -> None:
    """They are checked like those of an enqueue; refused ones change nothing."""

    @app.task(name="add", retry=0)
    def add(item: Item, count: int = 1) -> Decimal:
        if item.sku == "bad":
            raise ValueError("no such item")
        return item.price * count

    job = add.enqueue(Item("bad", Decimal("1.50")))
    with app.worker():
        app.wait([job], PATIENCE)
        before = job.record()
        for wrong in ({"item": Item("a", Decimal(1)), "size": 3}, {"count": 2}):
            with pytest.raises(SignatureMismatch):
                job.retry(arguments=wrong)
        assert job.record() == before
        with pytest.raises(ConfigurationError, match="one job"):
            app.retry(JobFilter(), arguments={"count": 2})
        with pytest.raises(JobNotFound):
            app.retry(99, arguments={"count": 2})
        job.retry(arguments={"item": Item("good", Decimal("1.50")), "count": 4})
        assert job.result(PATIENCE) == Decimal("6.00")
    assert [one.outcome for one in job.record().attempts] == [AttemptOutcome.FAILED, AttemptOutcome.SUCCEEDED]


@pytest.mark.parametrize("how", ["undecodable", "missing", "other codec"])
def test_held_arguments_are_repaired_by_a_retry(file_app: Treadle, path: Path, how: str) -> None:
    """Whatever is wrong with what is stored, other arguments take its place."""
    double = file_app.task(name="double", codec="msgpack")(lambda number: number * 2)
    job = double.enqueue(1)
    change(path, {
        "undecodable": "UPDATE treadle_payloads SET data = x'c1'",
        "missing": "DELETE FROM treadle_payloads",
        "other codec": "UPDATE treadle_payloads SET codec = 'of-another-program'",
    }[how])  # fmt: skip
    with file_app.worker():
        eventually(lambda: job.record().state is JobState.HELD)
        job.retry(arguments={"number": 21})
        assert job.result(PATIENCE) == 42


def test_a_client_without_the_code_may_retry_with_arguments(path: Path) -> None:
    """It knows only names: the worker checks them when it runs the job."""
    with open_app(path) as worker_app, open_app(path) as client:
        worker_app.task(name="double", retry=0)(lambda number: number * 2)
        job = client.remote("double").enqueue(number="x" * 3)
        client.cancel(job)
        client.retry(job, arguments={"number": 4})
        with worker_app.worker():
            assert client.result(job.id, timeout=PATIENCE) == 8


def test_retry_gives_the_whole_budget_again(held_app: Treadle, clock: HeldClock) -> None:
    """Retries, immediate retries, crashes and backoff start anew, by filter too; an old expiry is forgotten."""
    policy = Retry(2, backoff=(10, 1000), jitter=0, immediately={KeyError: 1})
    fail = failing(held_app, lambda: KeyError("no"), retry=policy)
    jobs = [fail.using(expires=5000).enqueue() for _ in range(2)]

    def exhaust() -> None:
        for seconds in (0, 10, 1000):
            clock.advance(seconds=seconds)
            run_all(held_app)

    exhaust()
    assert states(held_app) == ["failed"] * 2
    clock.advance(seconds=10_000)
    assert held_app.retry(JobFilter(error="KeyError", states=(JobState.FAILED,))) == 2
    assert {(job.record().failures, job.record().expires_at) for job in jobs} == {(0, None)}
    exhaust()
    assert states(held_app) == ["failed"] * 2
    assert [len(job.record().attempts) for job in jobs] == [8, 8]


# Unschedule ----------------------------------------------------------------------------------------------------------


def test_unschedule_returns_typed_arguments(app: Treadle) -> None:
    """What was enqueued comes back as the function would get it, and nothing of the job is kept."""

    @app.task(name="order")
    def order(item: Item, *numbers: int, at: datetime, **more: str) -> None: ...

    at = datetime(2030, 1, 2, tzinfo=UTC)
    job = order.using(delay=60).enqueue(Item("a", Decimal("1.5")), 1, 2, at=at, note="€")
    found = order.unschedule(job)
    assert found.args == (Item("a", Decimal("1.5")), 1, 2)
    assert found.kwargs == {"at": at, "note": "€"}
    assert order(*found.args, **found.kwargs) is None
    assert app.count() == 0
    with pytest.raises(JobNotFound):
        order.unschedule(job)


def test_unschedule_refuses_and_keeps_what_is_not_its_own(file_app: Treadle, path: Path, gate: threading.Event) -> None:
    """The wrong task, a job that has begun, arguments that cannot be read: the row stays as it is."""
    begun = threading.Event()

    def wait(number: int) -> None:
        begun.set()
        gate.wait()

    work, other = file_app.task(name="work")(wait), file_app.task(name="other")(lambda: None)
    job, broken = work.using(delay=60).enqueue(1), work.using(delay=60).enqueue(2)
    running = work.enqueue(3)
    change(path, "UPDATE treadle_payloads SET data = CAST('{\"number\": oops' AS BLOB) WHERE job_id = ?", broken.id)
    with file_app.worker():
        assert begun.wait(PATIENCE)
        refused: list[tuple[Any, Any, type[Exception], str]] = [
            (other, job, JobStateError, "is a job of 'work', not of 'other'"),
            (work, running, JobStateError, "is running"),
            (work, broken, UndecodablePayload, "not readable as json"),
        ]
        for task, which, error, words in refused:
            before = which.record()
            with pytest.raises(error, match=words):
                task.unschedule(which)
            assert which.record() == before
        gate.set()
        running.result(PATIENCE)
    with pytest.raises(JobStateError, match="is succeeded"):
        work.unschedule(running)
    assert asyncio.run(work.aunschedule(job.id)).kwargs == {"number": 1}


def test_unschedule_takes_a_job_exactly_once(app: Treadle) -> None:
    """Of many who want it one gets the arguments; a worker that starts it meanwhile is one of the many."""
    ran: list[int] = []
    got: list[object] = []

    @app.task(name="work")
    async def work(number: int) -> None:
        ran.append(number)

    async def take(job: int) -> None:
        with suppress(JobNotFound, JobStateError):
            got.append((await work.aunschedule(job)).kwargs["number"])

    async def main() -> None:
        async with app.worker() as worker:
            for start in range(0, 100, 10):
                jobs = await app.aenqueue_many(work.job(number) for number in range(start, start + 10))
                await asyncio.gather(*(take(job) for job in jobs for _ in range(3)))
            await worker.idle()

    asyncio.run(main())
    assert sorted([*ran, *got]) == list(range(100))  # type: ignore[list-item]


# Expiry --------------------------------------------------------------------------------------------------------------


def test_a_job_that_is_not_started_in_time_expires(held_app: Treadle, clock: HeldClock) -> None:
    """By seconds, by timedelta or at a moment; the reason says so, and who waits for the result is told."""
    work = held_app.task(name="work")(lambda: "done")
    at = datetime.fromtimestamp(clock.now() / 1_000_000 + 60, UTC)
    jobs = [work.using(expires=expires).enqueue() for expires in (60, timedelta(seconds=60), at)]
    jobs.append(work.using(delay=3600, expires=60).enqueue())
    lasting = work.using(expires=3600).enqueue()
    assert {job.record().expires_at for job in jobs} == {at}
    clock.advance(seconds=60)
    with held_app.worker():
        assert lasting.result(PATIENCE) == "done"
        held_app.wait(jobs, PATIENCE)
    for job in jobs:
        record = job.record()
        assert record.state is JobState.CANCELLED
        assert str(record.reason).startswith("expired: ")
        assert record.attempts == ()


def test_expiry_holds_for_retries_and_not_for_what_runs(held_app: Treadle, clock: HeldClock) -> None:
    """A retry that comes too late is called off; an attempt that has begun in time may take as long as it likes."""
    fail = failing(held_app, ValueError, retry=Retry(5, backoff=30, jitter=0))
    begun, go = asyncio.Event(), asyncio.Event()

    @held_app.task(name="slow")
    async def slow() -> str:
        begun.set()
        await go.wait()
        return "done"

    job, running = fail.using(expires=45).enqueue(), slow.using(expires=45).enqueue()

    async def main() -> None:
        async with held_app.worker():
            await aeventually(lambda: begun.is_set() and job.record().failures == 1)
            clock.advance(seconds=30)
            await aeventually(lambda: job.record().failures == 2)
            clock.advance(seconds=30)
            await aeventually(lambda: job.record().state is JobState.CANCELLED)
            go.set()
            assert await running.aresult(PATIENCE) == "done"

    asyncio.run(main())
    assert job.record().attempt == 2
    assert [one.outcome for one in job.record().attempts] == [AttemptOutcome.FAILED] * 2


def test_thousands_expire_in_slices(held_app: Treadle, clock: HeldClock) -> None:
    """No transaction calls off more than 500, and one round of upkeep calls off all, in a paused queue as well."""
    work = held_app.task(name="work")(lambda: None)
    held_app.enqueue_many(work.using(expires=10, queue="paused").job() for _ in range(3000))
    held_app.pause(queue="paused")
    clock.advance(seconds=11)
    assert held_app.store.run(claim.expire) == 500
    assert held_app.count(JobFilter(states=(JobState.CANCELLED,))) == 500
    with held_app.worker():
        eventually(lambda: held_app.counts()["paused"] == {JobState.CANCELLED: 3000})


# Results -------------------------------------------------------------------------------------------------------------


def test_a_result_that_cannot_be_stored_does_not_undo_the_work(app: Treadle) -> None:
    """The job has succeeded; who asks for the result hears why it is not there, and how large it was."""

    @app.task(name="work", result_cap=1000)
    def work(what: str) -> object:
        return {"large": "x" * 2000, "odd": object(), "fine": "x" * 900}[what]

    jobs = {what: work.enqueue(what) for what in ("large", "odd", "fine")}
    with app.worker():
        app.wait(list(jobs.values()), PATIENCE)
    assert states(app) == ["succeeded"] * 3
    assert jobs["fine"].result(0) == "x" * 900
    with pytest.raises(ResultNotStored) as large:
        jobs["large"].result(0)
    assert large.value.size == 2002
    with pytest.raises(ResultNotStored) as odd:
        jobs["odd"].result(0)
    assert odd.value.size is None
    with pytest.raises(JobStateError):
        jobs["odd"].retry()


@pytest.mark.parametrize("value", [Snooze(3600), Abort("gone")], ids=["snooze", "abort"])
@pytest.mark.parametrize("is_async", [False, True])
def test_outcomes_may_be_returned(app: Treadle, value: Exception, is_async: bool) -> None:
    """Returning one is raising it."""

    async def arun() -> object:
        return value

    job = app.task(name="work", retry=0)(arun if is_async else lambda: value).enqueue()  # type: ignore[arg-type]
    run_all(app)
    wanted = {"Snooze": (JobState.SCHEDULED, None), "Abort": (JobState.FAILED, "aborted: gone")}
    assert (job.record().state, job.record().reason) == wanted[type(value).__name__]


# Scenarios -----------------------------------------------------------------------------------------------------------


def test_001_b_clock_and_cancel(held_app: Treadle, clock: HeldClock) -> None:
    """A job due tomorrow waits, then runs; unscheduled, its payload comes back once; a cancelled running job stops."""
    begun = threading.Event()

    @held_app.task(name="mail")
    def mail(to: str, copies: int = 1) -> str:
        return f"{copies} to {to}"

    @held_app.task(name="endless", grace=5)
    async def endless() -> None:
        begun.set()
        await asyncio.Event().wait()

    tomorrow = timedelta(days=1)
    job, taken = (mail.using(delay=tomorrow).enqueue(to, copies=2) for to in ("ada", "bob"))
    with held_app.worker():
        assert mail.enqueue("now").result(PATIENCE) == "1 to now"
        assert (job.record().state, job.record().attempt) == (JobState.SCHEDULED, 0)
        assert held_app.next_due() == job.record().due_at
        with pytest.raises(JobStateError, match="not of 'endless'"):
            endless.unschedule(taken)
        assert taken.record().state is JobState.SCHEDULED
        assert mail.unschedule(taken).kwargs == {"to": "bob", "copies": 2}
        with pytest.raises(JobNotFound):
            mail.unschedule(taken)
        clock.advance(seconds=tomorrow.total_seconds() - 1)
        assert job.record().attempt == 0
        clock.advance(seconds=1)
        assert job.result(PATIENCE) == "2 to ada"
        running = endless.enqueue()
        assert begun.wait(PATIENCE)
        running.cancel("changed my mind")
        held_app.wait([running], PATIENCE)
    assert (running.record().state, running.record().reason) == (JobState.CANCELLED, "changed my mind")


def test_001_c_dead_letter(held_app: Treadle, clock: HeldClock, gate: threading.Event) -> None:
    """Every attempt and traceback is kept; requeued after the fix the jobs succeed; a stop gives a stuck one back."""
    broken = [True]

    def work() -> str:
        if broken:
            raise ValueError(f"attempt {current_job().attempt}")
        return "mended"

    jobs = [
        held_app.task(name=f"retries{retries}", retry=Retry(retries, backoff=1, jitter=0))(work).enqueue()
        for retries in (0, 3)
    ]
    for _ in range(4):
        run_all(held_app)
        clock.advance(seconds=1)
    dead = held_app.find(JobFilter(states=(JobState.FAILED,))).jobs
    assert {job.id for job in dead} == {job.id for job in jobs}
    for job, attempts in zip(jobs, (1, 4), strict=True):
        found = job.record().attempts
        assert [one.message for one in found] == [f"attempt {number}" for number in range(1, attempts + 1)]
        assert all("raise ValueError" in str(one.traceback) for one in found)
    broken.clear()
    assert held_app.retry(JobFilter(error="ValueError", states=(JobState.FAILED,))) == 2
    begun: list[str] = []

    def stop(name: str) -> str:
        begun.append(name)
        if name == "stuck":
            gate.wait()
        eventually(lambda: current_job().cancelled)
        return "stopped in time"

    task = held_app.task(name="stop")(stop)
    cooperative, stuck = task.enqueue("cooperative"), task.enqueue("stuck")
    with held_app.worker(grace=0):
        assert [job.result(PATIENCE) for job in jobs] == ["mended"] * 2
        eventually(lambda: len(begun) == 2)
    assert cooperative.result(0) == "stopped in time"
    assert (stuck.record().state, stuck.record().failures) == (JobState.READY, 0)

