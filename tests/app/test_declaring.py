from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path

import pytest

from treadle import JobContext, Retry, Treadle, current_job
from treadle.errors import ConfigurationError, DuplicateTask, SignatureMismatch, UnknownTask
from worker.kit import PATIENCE, states


def twice(number: int) -> int:
    """Double a number."""
    return 2 * number


async def atwice(number: int) -> int:
    return 2 * number


class Counter:
    def __init__(self, start: int) -> None:
        self.start = start

    def add(self, number: int) -> int:
        return self.start + number

    async def aadd(self, number: int) -> int:
        return self.start + number


class Adder(Counter):
    def __call__(self, number: int) -> int:
        return self.start + number


class AsyncAdder(Counter):
    async def __call__(self, number: int) -> int:
        return self.start + number


# --- names -------------------------------------------------------------------------------------------


def test_a_task_is_named_after_its_function(app: Treadle) -> None:
    """Without name=, jobs are stored under module and qualified name."""
    assert app.task(twice).name == f"{__name__}.twice"


def test_a_function_in_a_function_has_a_stable_name(app: Treadle) -> None:
    """The marker of local functions is no part of a name."""

    @app.task
    def inner() -> None: ...

    assert inner.name.endswith("test_a_function_in_a_function_has_a_stable_name.inner")


def test_a_name_can_be_chosen(app: Treadle) -> None:
    """What name= says is what the database stores."""
    task = app.task(name="double")(twice)
    assert task.enqueue(1).record().task == "double"


def test_jobs_under_an_alias_run(app: Treadle) -> None:
    """A renamed task still runs the jobs that were stored under its older names."""
    app.task(name="double", aliases=("twice", "dup"))(twice)
    jobs = [app.remote(name).enqueue(number=4) for name in ("twice", "dup", "double")]
    with app.worker():
        assert [job.result(timeout=PATIENCE) for job in jobs] == [8, 8, 8]


def test_two_functions_cannot_share_a_name(app: Treadle) -> None:
    """The second claim on a name is refused, and the message names both functions."""
    app.task(name="double")(twice)
    with pytest.raises(DuplicateTask, match=r"'double'.*twice.*atwice"):
        app.task(name="double")(atwice)


def test_an_alias_cannot_take_a_name_either(app: Treadle) -> None:
    """Aliases and names live in one space."""
    app.task(name="double")(twice)
    with pytest.raises(DuplicateTask, match="'double'"):
        app.task(name="other", aliases=["double"])(atwice)


def test_callables_without_a_name_collide_with_a_clear_error(app: Treadle) -> None:
    """The message about a taken name needs no qualified name of the callables."""
    app.task(name="add")(Adder(1))
    with pytest.raises(DuplicateTask, match="'add'"):
        app.task(name="add")(partial(twice, 3))


def test_a_lambda_needs_a_name(app: Treadle) -> None:
    """A lambda has no name to store jobs under; the message says what to do."""
    with pytest.raises(ConfigurationError, match="pass name="):
        app.task(lambda: None)


def test_a_lambda_with_a_name_is_a_task(app: Treadle) -> None:
    """With name= even a lambda can be stored and run."""
    job = app.task(name="seven")(lambda: 7).enqueue()
    with app.worker():
        assert job.result(timeout=PATIENCE) == 7


@pytest.mark.parametrize("name", ["x" * 201, "new\nline", "nul\0"])
def test_names_are_printable(app: Treadle, name: str) -> None:
    """Names that no log or prompt can show are refused."""
    with pytest.raises(ConfigurationError, match="printable"):
        app.task(name=name)(twice)


# --- options -----------------------------------------------------------------------------------------


def test_unknown_options_are_refused_with_the_list_of_known_ones(app: Treadle) -> None:
    """A misspelt option is no silent default."""
    with pytest.raises(ConfigurationError, match=r"does not know retires; it knows name, .*retry"):
        app.task(retires=3)(twice)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    "option",
    [{"priority": 101}, {"priority": 1.5}, {"queue": ""}, {"timeout": 0}, {"timeout": -1}, {"retry": -1}],
    ids=str,
)
def test_options_out_of_range_are_refused_at_once(app: Treadle, option: dict[str, object]) -> None:
    """What cannot work is refused where it is written, not when a job runs."""
    with pytest.raises(ConfigurationError):
        app.task(**option)(twice)  # type: ignore[call-overload]


def test_an_unknown_codec_is_refused(app: Treadle) -> None:
    """The message names the codecs that are known."""
    with pytest.raises(ConfigurationError, match="known are: bytes, json, msgpack"):
        app.task(codec="pickle")(twice)


def test_options_of_the_task_are_the_options_of_its_jobs(app: Treadle) -> None:
    """Queue and priority are said once, with the task."""
    record = app.task(queue="mail", priority=7)(twice).enqueue(1).record()
    assert (record.queue, record.priority) == ("mail", 7)


def test_retry_may_be_a_number(app: Treadle) -> None:
    """A number of retries is short for the default policy with that number."""
    assert app.task(retry=3)(twice).definition.retry == Retry(3)


# --- what can be a task ------------------------------------------------------------------------------


def test_functions_stay_callable(app: Treadle) -> None:
    """A task called as a function is the function: nothing is stored."""
    assert app.task(twice)(4) == 8
    assert asyncio.run(app.task(atwice)(4)) == 8
    assert states(app) == []


def test_a_task_looks_like_its_function(app: Treadle) -> None:
    """Help and introspection see the function."""
    task = app.task(twice)
    assert (task.__name__, task.__doc__) == ("twice", "Double a number.")


def test_a_plain_function_runs_in_a_thread(app: Treadle) -> None:
    """A def handler never runs on the event loop, so it may block."""

    @app.task
    def where() -> str:
        return threading.current_thread().name

    job = where.enqueue()
    with app.worker():
        assert job.result(timeout=PATIENCE).startswith("treadle-job")


def test_an_async_function_runs_on_the_loop(app: Treadle) -> None:
    """An async def handler shares the worker's loop."""

    @app.task
    async def where() -> str:
        assert asyncio.get_running_loop().is_running()
        return threading.current_thread().name

    job = where.enqueue()
    with app.worker():
        assert job.result(timeout=PATIENCE) == "treadle-worker"


@pytest.mark.parametrize("callable_", [Counter(10).add, Counter(10).aadd], ids=["method", "async method"])
def test_bound_methods_are_tasks(app: Treadle, callable_: object) -> None:
    """A bound method runs on its object."""
    job = app.task(callable_).enqueue(5)  # type: ignore[call-overload]
    with app.worker():
        assert job.result(timeout=PATIENCE) == 15


@pytest.mark.parametrize(
    "callable_", [Adder(10), AsyncAdder(10), partial(twice, 7), partial(atwice, 7)],
    ids=["object", "async object", "partial", "async partial"],
)  # fmt: skip
def test_callables_with_a_name_are_tasks(app: Treadle, callable_: object) -> None:
    """Any callable runs, and an async one is awaited, once it has a name."""
    task = app.task(name="call")(callable_)  # type: ignore[operator]
    job = task.enqueue() if isinstance(callable_, partial) else task.enqueue(4)
    with app.worker():
        assert job.result(timeout=PATIENCE) == 14


def test_callables_without_a_name_are_refused(app: Treadle) -> None:
    """An object has no name of its own; the message says what to do."""
    with pytest.raises(ConfigurationError, match="pass name="):
        app.task(Adder(1))


def test_a_coroutine_returned_by_a_plain_function_is_not_dropped(app: Treadle) -> None:
    """A def that returns a coroutine, as some decorators make, is awaited or fails; it never succeeds unrun."""
    ran = threading.Event()

    async def work() -> int:
        ran.set()
        return 1

    @app.task(retry=0)
    def wrapped():  # type: ignore[no-untyped-def]
        return work()

    job = wrapped.enqueue()
    with app.worker():
        app.wait([job], timeout=PATIENCE)
    assert ran.is_set() or job.record().state == "failed"


def test_generators_are_refused(app: Treadle) -> None:
    """Calling a generator function runs nothing, so a job of it would succeed without work."""

    def generator() -> Iterator[int]:
        yield 1

    async def agenerator() -> AsyncIterator[int]:
        yield 1

    for function in (generator, agenerator):
        with pytest.raises(ConfigurationError, match="generator"):
            app.task(function)


def test_a_task_can_be_registered_in_a_second_app(app: Treadle, file_app: Treadle) -> None:
    """A task given to another app is that app's: its jobs are stored there."""
    first = app.task(twice)
    second = file_app.task(name="second")(first)
    second.enqueue(1)
    assert (states(app), states(file_app)) == ([], ["ready"])


def test_parameters_that_cannot_be_stored_are_refused_when_declared(app: Treadle) -> None:
    """A connection or a lock cannot be an argument; the message names the parameter."""

    def bad(lock: threading.Event) -> None: ...

    with pytest.raises(ConfigurationError, match="'lock'"):
        app.task(bad)


def test_declaring_opens_nothing(path: Path) -> None:
    """A module full of tasks can be imported anywhere: no file is made."""
    app = Treadle(f"sqlite:///{path}")
    app.task(twice)
    app.queue("mail", max_length=3)
    app.close()
    assert not path.exists()


# --- context -----------------------------------------------------------------------------------------


def test_the_context_is_injected_by_annotation(app: Treadle) -> None:
    """A parameter annotated JobContext is filled in by the worker and is no argument of the job."""

    @app.task
    def who(number: int, job: JobContext) -> list[object]:
        return [number, job.id, job.attempt, job.queue, job.task]

    @app.task
    async def awho(job: JobContext) -> int:
        return job.id

    first, second = who.enqueue(5), awho.enqueue()  # type: ignore[call-arg]
    with app.worker():
        assert first.result(timeout=PATIENCE) == [5, first.id, 1, "default", who.name]
        assert second.result(timeout=PATIENCE) == second.id


def test_the_context_cannot_be_enqueued(app: Treadle) -> None:
    """Nobody passes a context by hand."""

    @app.task
    def who(job: JobContext) -> None: ...

    with pytest.raises(SignatureMismatch, match="'job'"):
        who.enqueue(job=None)  # type: ignore[arg-type]


def test_current_job_is_the_running_one(app: Treadle) -> None:
    """Code below the handler finds its job, in threads, coroutines and threads of coroutines."""

    @app.task
    def plain() -> int:
        return current_job().id

    @app.task
    async def async_() -> list[int]:
        await asyncio.sleep(0)
        return [current_job().id, await asyncio.to_thread(lambda: current_job().id)]

    first, second = plain.enqueue(), async_.enqueue()
    with app.worker():
        assert first.result(timeout=PATIENCE) == first.id
        assert second.result(timeout=PATIENCE) == [second.id, second.id]


def test_current_job_outside_a_job_is_refused() -> None:
    """There is no job outside of one, and the message says so."""
    with pytest.raises(ConfigurationError, match="outside a running job"):
        current_job()


def test_a_worker_for_an_unknown_task_is_refused(app: Treadle) -> None:
    """tasks= names tasks that exist; the message lists them."""
    app.task(name="double")(twice)
    with pytest.raises(UnknownTask, match=r"'tripple'.*Known: double"), app.worker(tasks=("tripple",)):
        pass


def test_an_objects_attributes_stay_its_own(app: Treadle) -> None:
    """A callable object may have any attributes: they neither replace the task's nor appear on it."""
    adder = Adder(10)
    adder._options = adder._host = None  # type: ignore[attr-defined]
    task = app.task(name="add")(adder)
    job = task.enqueue(5)
    with app.worker():
        assert job.result(timeout=PATIENCE) == 15
    assert not hasattr(task, "start")


def test_arguments_of_any_callable_are_checked(app: Treadle) -> None:
    """The annotations of an object's __call__ and of what a partial calls are those of the task."""
    for number, callable_ in enumerate((Adder(1), partial(twice))):
        with pytest.raises(SignatureMismatch, match=r"(Adder|twice)\(\) does not accept"):
            app.task(name=f"task {number}")(callable_).enqueue("x")  # type: ignore[arg-type]


def test_generators_are_refused_in_any_wrapping(app: Treadle) -> None:
    """A partial of a generator function and an object whose __call__ is one run nothing either."""

    class Generator:
        def __call__(self) -> Iterator[int]:
            yield 1

    for callable_ in (Generator(), partial(Generator())):
        with pytest.raises(ConfigurationError, match="generator"):
            app.task(name="call")(callable_)
