"""Middleware around the call: both forms, both kinds of handlers, in order, and what each may change."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Generator
from typing import Any

import pytest

from treadle import Abort, Call, JobState, Retry, Snooze, Treadle, current_job
from treadle.errors import ConfigurationError, JobFailed
from worker.kit import PATIENCE, eventually, run_all

Proceed = Callable[[], Awaitable[object]]


@pytest.fixture(params=["def", "async def"])
def double(request: pytest.FixtureRequest, app: Treadle) -> Callable[[], Any]:
    """Declares a task that doubles its number, as a plain or as a coroutine function."""

    def declare(**policy: Any) -> Any:
        @app.task(name="double", **policy)
        def plain(number: int) -> int:
            return number * 2

        return plain

    def declare_async(**policy: Any) -> Any:
        @app.task(name="double", **policy)
        async def coroutine(number: int) -> int:
            await asyncio.sleep(0)
            return number * 2

        return coroutine

    return declare if request.param == "def" else declare_async


def result(app: Treadle, job: Any) -> Any:
    """A job's result, by a worker of its own."""
    with app.worker():
        return job.result(PATIENCE)


def test_a_generator_surrounds_every_handler(app: Treadle, double: Any) -> None:
    """What stands before its yield happens before, what stands after it after; nothing returned changes nothing."""
    seen: list[object] = []

    @app.middleware
    def watch(call: Call) -> Generator[None, object, None]:
        seen.append((call.job.task, call.kwargs))
        found = yield
        seen.append(found)

    assert result(app, double().enqueue(4)) == 8
    assert seen == [("double", {"number": 4}), 8]


def test_a_coroutine_surrounds_every_handler(app: Treadle, double: Any) -> None:
    """It runs on the worker's loop and says itself when to go on."""

    @app.middleware
    async def shift(call: Call, proceed: Proceed) -> object:
        await asyncio.sleep(0)
        found = await proceed()
        assert isinstance(found, int)
        return found + 1

    assert result(app, double().enqueue(4)) == 9


def test_the_first_declared_is_outermost(app: Treadle, double: Any) -> None:
    """Layers of both forms nest in the order they were declared."""
    seen: list[str] = []

    def layer(name: str) -> None:
        @app.middleware
        def generator(call: Call) -> Generator[None, object, None]:
            seen.append(f"{name} in")
            yield
            seen.append(f"{name} out")

    layer("a")

    @app.middleware
    async def b(call: Call, proceed: Proceed) -> object:
        seen.append("b in")
        try:
            return await proceed()
        finally:
            seen.append("b out")

    layer("c")
    result(app, double().enqueue(1))
    assert seen == ["a in", "b in", "c in", "c out", "b out", "a out"]


def test_arguments_and_results_can_be_mapped(app: Treadle, double: Any) -> None:
    """A layer changes what the handler gets and what is stored."""

    @app.middleware(tasks=["double"])
    def map_both(call: Call) -> Generator[None, Any, object]:
        call.kwargs["number"] = int(str(call.kwargs["number"])) + 10
        found = yield
        return found + 100

    assert result(app, double().enqueue(1)) == 122


def test_layers_of_other_tasks_stay_away(app: Treadle, double: Any) -> None:
    """tasks= names those that are meant."""

    @app.middleware(tasks=["other"])
    def refuse(call: Call) -> Generator[None, object, None]:
        raise AssertionError("not for this task")
        yield

    assert result(app, double().enqueue(1)) == 2


def test_a_filter_decides_before_the_handler(app: Treadle, double: Any) -> None:
    """What it raises counts as the handler's own word."""

    @app.middleware
    def weed(call: Call) -> Generator[None, object, None]:
        if call.kwargs["number"] == 13:
            raise Abort("unlucky")
        if call.job.attempt == 1:
            raise Snooze(0)
        yield

    task = double(retry=Retry(0))
    bad, good = task.enqueue(13), task.enqueue(2)
    assert result(app, good) == 4
    assert (bad.record().state, bad.record().reason) == (JobState.FAILED, "aborted: unlucky")
    assert good.record().attempt == 2


def test_a_layer_may_answer_instead_of_the_handler(app: Treadle, double: Any) -> None:
    """Returning before the yield skips the handler, as a cache does."""

    @app.middleware
    def cached(call: Call) -> Generator[None, object, object]:
        if call.kwargs["number"] == 4:
            return 400
        return (yield)

    task = double()
    jobs = [task.enqueue(4), task.enqueue(5)]
    with app.worker():
        assert [job.result(PATIENCE) for job in jobs] == [400, 10]


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_errors_pass_through_the_layers(app: Treadle, kind: str) -> None:
    """A layer sees the handler's error, may replace it, and may answer instead of it."""

    @app.middleware
    def catch(call: Call) -> Generator[None, object, object]:
        try:
            return (yield)
        except KeyError as error:
            return f"instead of {error!r}"
        except ValueError as error:
            raise RuntimeError("told otherwise") from error

    def fail(which: str) -> str:
        raise {"key": KeyError("k"), "value": ValueError("v")}[which]

    async def afail(which: str) -> str:
        return fail(which)

    task = app.task(name="fail", retry=Retry(0))(afail if kind == "async def" else fail)
    good, bad = task.enqueue("key"), task.enqueue("value")
    with app.worker():
        assert good.result(PATIENCE) == "instead of KeyError('k')"
        with pytest.raises(JobFailed, match="told otherwise"):
            bad.result(PATIENCE)
    (attempt,) = bad.record().attempts
    assert attempt.error_type == "RuntimeError"
    assert "ValueError: v" in str(attempt.traceback)


def test_a_layer_that_yields_twice_fails_the_attempt(app: Treadle, double: Any) -> None:
    """The mistake is named, and the job does not hang."""

    @app.middleware
    def twice(call: Call) -> Generator[None, object, None]:
        yield
        yield

    job = double(retry=Retry(0)).enqueue(1)
    with app.worker(), pytest.raises(JobFailed, match=r"twice\(\) yields twice"):
        job.result(PATIENCE)


def test_the_running_job_is_known_in_every_layer(app: Treadle, double: Any) -> None:
    """current_job() works in layers as in handlers, also where a thread is called from the loop."""
    seen: list[object] = []

    @app.middleware
    async def outer(call: Call, proceed: Proceed) -> object:
        seen.append(current_job() is call.job)
        return await proceed()

    @app.middleware
    def inner(call: Call) -> Generator[None, object, None]:
        seen.append(current_job() is call.job)
        yield

    result(app, double().enqueue(1))
    assert seen == [True, True]


def test_a_plain_handler_inside_a_coroutine_keeps_its_slot(app: Treadle) -> None:
    """Called off, it is waited for: nothing else takes its slot while its thread runs, and its success counts."""
    started, go_on, ran = threading.Event(), threading.Event(), []

    @app.middleware(tasks=["slow"])
    async def outer(call: Call, proceed: Proceed) -> object:
        return await proceed()

    @app.task(name="slow")
    def slow() -> str:
        started.set()
        assert go_on.wait(PATIENCE)
        return "done"

    @app.task(name="next")
    def following() -> None:
        ran.append(go_on.is_set())

    first = slow.enqueue()
    with app.worker(concurrency=1):
        assert started.wait(PATIENCE)
        second = following.enqueue()
        first.cancel()
        eventually(lambda: first.record().cancel_reason is not None)
        go_on.set()
        assert first.result(PATIENCE) == "done"
        second.result(PATIENCE)
    assert ran == [True]


@pytest.mark.parametrize("given", [lambda call: None, print, 7])
def test_what_cannot_surround_a_call_is_refused(app: Treadle, given: Any) -> None:
    """At declaration, with both forms that can."""
    with pytest.raises((ConfigurationError, AttributeError, TypeError)):
        app.middleware(given)


def test_without_middleware_the_runner_calls_directly(app: Treadle, double: Any) -> None:
    """Layers for other tasks cost nothing here; the worker still works."""
    app.middleware(tasks=["other"])(lambda_generator)
    double().enqueue(1)
    run_all(app)
    assert app.counts() == {"default": {JobState.SUCCEEDED: 1}}


def lambda_generator(call: Call) -> Generator[None, object, None]:
    """A layer that does nothing."""
    yield
