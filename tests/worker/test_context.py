from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from treadle import AttemptOutcome, JobContext, JobState, Retry, Treadle, current_job
from treadle.errors import ConfigurationError, InvalidPayload, LeaseLost
from treadle.store.ops import rescue as rescuing
from worker.kit import PATIENCE, eventually, heard, open_app


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Handlers wait for it; open at the end whatever happens."""
    event = threading.Event()
    yield event
    event.set()


def take_away(app: Treadle) -> None:
    """Give every running job to others, as a rescue does."""
    for worker in app.workers():
        app.store.submit(
            partial(rescuing.rescue, epoch=worker.epoch, worker=worker.name, why="the test said so")
        ).result()


# --- progress ----------------------------------------------------------------------------------------


def test_progress_is_seen_while_the_job_runs(app: Treadle, gate: threading.Event) -> None:
    """Fraction and words of a running job can be read by everyone."""

    @app.task
    def work(job: JobContext) -> None:
        job.progress(0.1)
        job.progress(0.4, "page 4")
        gate.wait()

    job = work.enqueue()  # type: ignore[call-arg]
    with app.worker():
        eventually(lambda: job.record().progress is not None)
        progress = job.record().progress
        assert progress is not None
        assert (progress.fraction, progress.message) == (0.4, "page 4")
        gate.set()
        job.result(timeout=PATIENCE)


@pytest.mark.parametrize("odd", [(2.0, "x" * 1000), (-1.0, ""), (float("nan"), ""), (0.5, "\ud800\0")], ids=repr)
def test_odd_progress_harms_nothing(app: Treadle, gate: threading.Event, odd: tuple[float, str]) -> None:
    """Fractions are cut to 0…1, words to 500 characters; nonsense neither fails the job nor stops others' progress."""

    @app.task
    def strange(job: JobContext) -> str:
        job.progress(*odd)
        gate.wait()
        return "done"

    @app.task
    def honest(job: JobContext) -> None:
        job.progress(0.5, "half")
        gate.wait()

    first, second = strange.enqueue(), honest.enqueue()  # type: ignore[call-arg]
    with app.worker():
        eventually(lambda: second.record().progress is not None)
        told = first.record().progress
        gate.set()
        assert first.result(timeout=PATIENCE) == "done"
    assert told is None or (0 <= told.fraction <= 1 and len(told.message) <= 500)


# --- checkpoints -------------------------------------------------------------------------------------


def test_a_later_attempt_finds_the_checkpoint(app: Treadle) -> None:
    """What checkpoint() stored is there for the next attempt; before the first one there is none."""

    @app.task(retry=Retry(2, backoff=0))
    def copy(job: JobContext) -> list[object]:
        found = job.last_checkpoint()
        if found is None:
            job.checkpoint({"page": 1})
            job.checkpoint({"page": 2})
            raise ValueError
        return [found, job.attempt]

    job = copy.enqueue()  # type: ignore[call-arg]
    with app.worker():
        assert job.result(timeout=PATIENCE) == [{"page": 2}, 2]


def test_async_checkpoints(app: Treadle) -> None:
    """The same for coroutines."""

    @app.task(retry=Retry(2, backoff=0))
    async def copy(job: JobContext) -> list[object]:
        found = await job.alast_checkpoint()
        if found is None:
            await job.acheckpoint([1, "a"])
            raise ValueError
        return [found, job.attempt]

    job = copy.enqueue()  # type: ignore[call-arg]
    with app.worker():
        assert job.result(timeout=PATIENCE) == [[1, "a"], 2]


def test_a_checkpoint_is_durable_when_it_returns(path: Path, gate: threading.Event) -> None:
    """Another program reads the checkpoint of a job that still runs."""
    stored = threading.Event()
    with open_app(path) as app, open_app(path) as other:

        @app.task
        def copy(job: JobContext) -> None:
            job.checkpoint(7)
            stored.set()
            gate.wait()

        job = copy.enqueue()  # type: ignore[call-arg]
        with app.worker():
            heard(stored)
            found = other.store.read(lambda session: session.value("SELECT data FROM treadle_checkpoints"))
            assert (found, job.record().state) == (b"7", JobState.RUNNING)
            gate.set()
            job.result(timeout=PATIENCE)


def test_checkpoint_on_the_loop_points_to_its_async_twin(app: Treadle) -> None:
    """The blocking verb in a coroutine would stop every job of the worker; it is refused with the remedy."""

    @app.task(retry=0)
    async def copy(job: JobContext) -> str:
        with pytest.raises(ConfigurationError, match="acheckpoint"):
            job.checkpoint(1)
        with pytest.raises(ConfigurationError, match="alast_checkpoint"):
            job.last_checkpoint()
        return "refused"

    job = copy.enqueue()  # type: ignore[call-arg]
    with app.worker():
        assert job.result(timeout=PATIENCE) == "refused"


def test_a_checkpoint_nobody_can_store_is_refused(app: Treadle) -> None:
    """The handler hears of it, with the path of the value."""

    @app.task(retry=0)
    def copy(job: JobContext) -> str:
        with pytest.raises(InvalidPayload, match=r"\$\.a"):
            job.checkpoint({"a": object()})
        return "refused"

    job = copy.enqueue()  # type: ignore[call-arg]
    with app.worker():
        assert job.result(timeout=PATIENCE) == "refused"


# --- the idempotency key -----------------------------------------------------------------------------


def test_the_idempotency_key_is_the_jobs_own(tmp_path: Path) -> None:
    """Every attempt of a job has the same key; no other job has it, in this database or another."""
    seen: dict[tuple[str, int], set[str]] = {}
    for name in ("a.db", "b.db"):
        with open_app(tmp_path / name) as app:

            @app.task(retry=Retry(2, backoff=0))
            def call(name: str) -> None:
                job = current_job()
                seen.setdefault((name, job.id), set()).add(job.idempotency_key)
                if job.attempt < 3:
                    raise ValueError

            jobs = [call.enqueue(name) for _ in range(3)]
            with app.worker():
                app.wait(jobs, timeout=PATIENCE)
    assert [len(keys) for keys in seen.values()] == [1] * 6
    assert len(set.union(*seen.values())) == 6


# --- the lease ---------------------------------------------------------------------------------------


def test_an_attempt_that_lost_its_lease_writes_nothing(app: Treadle, gate: threading.Event) -> None:
    """After a rescue the old attempt's checkpoint raises LeaseLost and its outcome is refused."""
    begun, errors = threading.Event(), []

    @app.task
    def work(job: JobContext) -> str:
        if job.attempt > 1:
            return f"attempt {job.attempt}"
        job.checkpoint("mine")
        begun.set()
        gate.wait()
        try:
            job.checkpoint("too late")
        except LeaseLost as error:
            errors.append(error)
        return "stale"

    job = work.enqueue()  # type: ignore[call-arg]
    with app.worker():
        heard(begun)
        take_away(app)
        assert job.result(timeout=PATIENCE) == "attempt 2"
        gate.set()
        eventually(lambda: errors)
    record = job.record()
    assert job.result(timeout=0) == "attempt 2"
    assert (record.attempt, record.failures, record.crashes) == (2, 0, 1)
    assert [one.outcome for one in record.attempts] == [AttemptOutcome.CRASHED, AttemptOutcome.SUCCEEDED]
    assert app.store.read(lambda session: session.value("SELECT data FROM treadle_checkpoints")) == b'"mine"'


def test_on_success_of_a_lost_lease_enqueues_nothing(app: Treadle, gate: threading.Event) -> None:
    """A stale success is no success: what it wanted to enqueue does not exist."""
    after = app.task(name="after")(lambda attempt: attempt)
    begun, over = threading.Event(), threading.Event()

    @app.task
    def work(job: JobContext) -> None:
        job.on_success(after.job(job.attempt))
        if job.attempt == 1:
            begun.set()
            gate.wait()
            over.set()

    job = work.enqueue()  # type: ignore[call-arg]
    with app.worker():
        heard(begun)
        take_away(app)
        job.result(timeout=PATIENCE)
        gate.set()
        heard(over)
    found = [one.arguments for one in app.find().jobs if one.task == "after"]
    assert found == [b'{"attempt":2}']


def test_a_lost_lease_is_told_to_the_handler(app: Treadle) -> None:
    """An async handler that works on in vain hears LeaseLost at its next checkpoint, and the worker lives."""
    begun = threading.Event()

    @app.task
    async def work(job: JobContext) -> int:
        if job.attempt == 1:
            begun.set()
            while True:
                await job.acheckpoint("still here")
                await asyncio.sleep(0)
        return job.attempt

    job = work.enqueue()  # type: ignore[call-arg]
    with app.worker():
        heard(begun)
        take_away(app)
        assert job.result(timeout=PATIENCE) == 2


def test_a_progress_of_a_lost_lease_cancels(app: Treadle) -> None:
    """A thread that only reports progress sees cancelled once its job was given to another attempt."""
    begun, told = threading.Event(), threading.Event()

    @app.task
    def work(job: JobContext) -> int:
        if job.attempt == 1:
            begun.set()
            eventually(lambda: job.progress(0.5) or job.cancelled)  # type: ignore[func-returns-value]
            told.set()
        return job.attempt

    job = work.enqueue()  # type: ignore[call-arg]
    with app.worker():
        heard(begun)
        take_away(app)
        heard(told)
        assert job.result(timeout=PATIENCE) == 2


@pytest.mark.parametrize("is_async", [True, False])
def test_a_refused_checkpoint_cancels(app: Treadle, *, is_async: bool) -> None:
    """A handler that goes on after LeaseLost sees cancelled, so that its loops end."""
    begun, seen = threading.Event(), []

    async def aloop(job: JobContext) -> None:
        while True:
            await job.acheckpoint("still here")

    def loop(job: JobContext) -> None:
        while True:
            job.checkpoint("still here")

    async def awork(job: JobContext) -> None:
        begun.set()
        if job.attempt == 1:
            with pytest.raises(LeaseLost):
                await aloop(job)
            seen.append(job.cancelled)

    def work(job: JobContext) -> None:
        begun.set()
        if job.attempt == 1:
            with pytest.raises(LeaseLost):
                loop(job)
            seen.append(job.cancelled)

    app.task(name="work")(awork if is_async else work)  # type: ignore[operator]
    job = app.remote("work").enqueue()
    with app.worker():
        heard(begun)
        take_away(app)
        job.result(timeout=PATIENCE)
        eventually(lambda: seen)
    assert seen == [True]


def test_on_success_takes_jobs_only(app: Treadle) -> None:
    """What is no job is refused in the handler, not when the outcome is stored."""

    @app.task(retry=0)
    def work(job: JobContext) -> None:
        job.on_success("mail.send")  # type: ignore[arg-type]

    job = work.enqueue()  # type: ignore[call-arg]
    with app.worker():
        app.wait([job], timeout=PATIENCE)
    assert job.record().attempts[0].message == "on_success() takes jobs made by task.job(...), not 'mail.send'."
