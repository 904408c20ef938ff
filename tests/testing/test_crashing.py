"""Crash injection: real processes, real kills, and messages that say where."""

from __future__ import annotations

import asyncio
import linecache
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from testing import till
from treadle import JobContext, JobState, NewJob, Treadle, current_job
from treadle.errors import ConfigurationError
from treadle.testing import (
    CrashRun,
    assert_enqueued,
    assert_idempotent,
    assert_survives_crashes,
    private_store,
    refute_enqueued,
)
from treadle.testing.fuse import in_words

local = Treadle("memory://")


@local.task(name="here")
def here(folder: str) -> None:
    (Path(folder) / "done").touch()


@pytest.fixture(autouse=True)
def _no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test touches the app's own store."""
    monkeypatch.chdir(tmp_path)
    yield
    assert list(tmp_path.glob("till.db*")) == []


def charged_once(run: CrashRun) -> None:
    """The check of a task that must not charge twice."""
    assert (run.folder / "charges").read_text() == "ada\n"


def without_numbers(text: str) -> str:
    """Text without the numbers of lines."""
    return re.sub(r"line \d+", "line #", text)


def charge(folder: Path) -> NewJob:
    return till.charge.job(str(folder), "ada")


def test_a_careless_task_is_caught() -> None:
    """The message says after which kills the check failed, what ran then, and after which it held."""
    with pytest.raises(AssertionError) as caught:
        assert_survives_crashes(till.app, charge, charged_once)
    told = without_numbers(str(caught.value)).splitlines()
    assert told[0] == "charge does not survive every crash: the check failed after 4 of 9 kills."
    assert "Cut before line # of charge(): receipt.enqueue(name)" in told
    assert "  then: attempt 1 crashed, attempt 2 succeeded; the job is succeeded" in told
    assert any(line.startswith("  check: AssertionError: assert 'ada\\nada\\n'") for line in told)
    safe = told[told.index("It passed after these:") :]
    assert safe[1:3] == [
        "  after its claim, before it began",
        "  before line # of charge(): with (Path(folder) / \"charges\").open(\"a\") as file:",
    ]  # fmt: skip
    assert safe[-1] == "  after its outcome was stored"
    assert isinstance(caught.value.__cause__, AssertionError)


def test_a_careful_task_passes() -> None:
    """Every place was killed at, a loop's lines twice, and each time the job came to its end."""

    def check(run: CrashRun) -> None:
        assert (run.folder / str(run.job.id)).read_text() == "ada"
        assert_enqueued(till.app, till.receipt, count=1)
        assert run.job.state is JobState.SUCCEEDED

    runs = assert_survives_crashes(till.app, lambda folder: till.careful.job(str(folder), "ada"), check)
    points = [run.point for run in runs]
    assert points[:2] == ["", "after its claim, before it began"]
    assert sum("for _ in range(5)" in point for point in points) == 2
    assert {"before the commit of its checkpoint", "after it had ended, before its outcome was stored"} < set(points)
    whole, claimed, *cut, settled = runs
    assert [len(run.job.attempts) for run in (whole, claimed, settled)] == [1, 1, 1]  # before it began costs nothing
    assert {tuple(one.outcome for one in run.job.attempts) for run in cut} == {("crashed", "succeeded")}
    assert len({run.folder for run in runs}) == len(runs)


def test_lines_of_other_functions_count() -> None:
    """A helper's lines are places when it is named; without lines only commits are."""

    def check(run: CrashRun) -> bool:
        return run.job.state is JobState.SUCCEEDED

    def job(folder: Path) -> NewJob:
        return till.careful.job(str(folder), "ada")

    with_helper = [run.point for run in assert_survives_crashes(till.app, job, check, also=[till.write])]
    assert sum("of write()" in point for point in with_helper) == 6
    without = [run.point for run in assert_survives_crashes(till.app, job, check, lines=False)]
    assert without == [
        "", "after its claim, before it began", "before the commit of its checkpoint",
        "after the commit of its checkpoint", "after it had ended, before its outcome was stored",
        "after its outcome was stored",
    ]  # fmt: skip


def test_a_transaction_of_ones_own_holds() -> None:
    """An effect and an enqueue that share a transaction are both there, once, wherever it was killed."""

    def check(run: CrashRun) -> None:
        assert_enqueued(till.app, till.receipt, count=1)

    runs = assert_survives_crashes(till.app, lambda folder: till.own.job(str(folder)), check)
    assert "after an enqueue in your own transaction, before your commit" in [run.point for run in runs]


def test_unknown_outcomes_stay_held() -> None:
    """A task that must not be repeated is not: the check sees a job that is held, and at most one effect."""

    def check(run: CrashRun) -> None:
        effects = (run.folder / "charges").read_text() if (run.folder / "charges").exists() else ""
        assert effects in ("", "once\n")
        assert run.job.state is (JobState.SUCCEEDED if len(run.job.attempts) == 0 else run.job.state)

    runs = assert_survives_crashes(till.app, lambda folder: till.parked.job(str(folder)), check)
    assert {run.job.state for run in runs} == {JobState.SUCCEEDED, JobState.HELD}


def test_a_job_that_fails_then_is_shown_to_the_check() -> None:
    """A handler that cannot run twice fails its job; the check decides whether that is wrong."""
    with pytest.raises(AssertionError, match="attempt 1 crashed, attempt 2 failed; the job is failed") as caught:
        assert_survives_crashes(
            till.app, lambda folder: till.fragile.job(str(folder)), lambda run: run.job.state is JobState.SUCCEEDED
        )
    assert "check: AssertionError: the check returned False" in str(caught.value)


def test_a_check_that_never_holds_is_told_first() -> None:
    """When the check fails without any kill, its own error is raised and nothing is killed."""
    with pytest.raises(ZeroDivisionError) as caught:
        assert_survives_crashes(till.app, charge, lambda run: 1 // 0)
    assert caught.value.__notes__ == ["The check failed although nothing was killed."]


def test_too_many_places_are_refused() -> None:
    """A job with more places than the limit fails the test at once, with the way out."""
    with pytest.raises(AssertionError, match="There are 9 places to kill at, more than limit=5; or pass lines=False"):
        assert_survives_crashes(till.app, charge, charged_once, limit=5)


def test_a_delayed_job_runs_at_once() -> None:
    """A delay is no reason for the process to end with nothing done."""
    runs = assert_survives_crashes(
        till.app, till.receipt.using(delay=3600).job("ada"), lambda run: run.job.state is JobState.SUCCEEDED
    )
    assert len(runs) > 3


def test_the_module_of_a_test_may_have_the_app() -> None:
    """An app and a task at the top of the test's own module are found by its file."""
    runs = assert_survives_crashes(
        local, lambda folder: here.job(str(folder)), lambda run: (run.folder / "done").exists()
    )
    assert 'before line # of here(): (Path(folder) / "done").touch()' in [without_numbers(run.point) for run in runs]


def test_an_app_inside_a_function_cannot_be_killed(app: Treadle) -> None:
    """Another process could not import it; the message says where to make it."""
    task = app.task(name="work")(lambda: None)
    with pytest.raises(ConfigurationError, match="top of a module"):
        assert_survives_crashes(app, task.job(), lambda run: True)


def test_another_end_is_told_with_what_was_printed() -> None:
    """A process that ends by itself is no kill of ours: the message has its exit code and its output."""
    with pytest.raises(AssertionError, match=r"ended with code 3, and not by our kill:\s+on the way out"):
        assert_survives_crashes(till.app, till.ends_badly.job(), lambda run: True)


def test_a_stuck_job_is_told() -> None:
    """A job that takes longer than the timeout is named."""
    with pytest.raises(AssertionError, match=r"Still running after 3 s .*job 1 stuck"):
        assert_survives_crashes(till.app, till.stuck.job(), lambda run: True, timeout=3)


def test_what_a_job_has_started_ends_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program started by a handler does not outlive its kill, nor one of the run that nobody killed."""
    monkeypatch.setenv(till.TESTER, str(os.getpid()))

    def check(run: CrashRun) -> None:
        assert [one for one in map(command, Path("/proc").iterdir()) if f"sleep {till.LEFT}" in one] == []

    assert_survives_crashes(till.app, lambda folder: till.leaves_something.job(str(folder)), check)


def command(process: Path) -> str:
    """The command line of a process, empty for what is none or is gone."""
    try:
        return (process / "cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def test_it_works_from_async_code_and_in_a_private_store() -> None:
    """The store the app had meanwhile is left alone."""

    async def main() -> int:
        return len(assert_survives_crashes(till.app, charge, lambda run: True, lines=False))

    with private_store(till.app):
        till.receipt.enqueue("mine")
        assert asyncio.run(main()) == 6
        assert_enqueued(till.app, till.receipt, count=1)


# assert_idempotent -----------------------------------------------------------------------------------------------


def test_a_second_run_is_noticed(app: Treadle) -> None:
    """A task that does its work twice fails the check; fakes in memory count."""
    sent: list[str] = []
    send = app.task(name="send")(lambda to: sent.append(to) or None)
    with pytest.raises(AssertionError) as caught:
        assert_idempotent(app, send.job("ada"), lambda run: sent == ["ada"])
    assert str(caught.value).splitlines() == [
        "send is not idempotent: the check failed.",
        "",
        "Cut after the first attempt had ended (succeeded), before its outcome was stored",
        "  then: attempt 1 crashed, attempt 2 succeeded; the job is succeeded",
        "  check: AssertionError: the check returned False",
    ]


def test_the_second_run_is_the_same_job(app: Treadle) -> None:
    """It has the same id and the same idempotency key, and a crash behind it."""
    seen: list[tuple[str, int, int]] = []

    @app.task(name="pay")
    async def pay(job: JobContext) -> None:
        seen.append((job.idempotency_key, job.attempt, job.crashes))

    run = assert_idempotent(app, pay.job(), lambda run: len({key for key, _, _ in seen}) == 1)
    assert [(attempt, crashes) for _, attempt, crashes in seen] == [(1, 0), (2, 1)]
    assert run.job.state is JobState.SUCCEEDED


def test_it_runs_twice_from_async_code_too(app: Treadle) -> None:
    """On an event loop a handler of either kind runs beside it."""
    ran: list[str] = []

    @app.task(name="coroutine")
    async def coroutine() -> None:
        ran.append("coroutine")

    @app.task(name="plain")
    def plain() -> None:
        ran.append("plain")

    async def main() -> None:
        for task in (coroutine, plain):
            assert_idempotent(app, task.job(), lambda run: run.job.state is JobState.SUCCEEDED)

    asyncio.run(main())
    assert ran == ["coroutine"] * 2 + ["plain"] * 2


def test_follow_ups_are_checked(app: Treadle) -> None:
    """What only an accepted success enqueues is there once; a plain enqueue would be there twice."""
    other = app.task(name="other")(lambda: None)

    @app.task(name="work")
    def work() -> None:
        current_job().on_success(other.job())

    def check(run: CrashRun) -> None:
        assert_enqueued(app, other, count=1)

    assert_idempotent(app, work.job(), check)
    refute_enqueued(app, other)


def test_a_task_that_holds_is_not_repeated() -> None:
    """on_crash="hold" parks the job after its first attempt."""
    run = assert_idempotent(
        till.app, lambda folder: till.parked.job(str(folder)),
        lambda run: (run.folder / "charges").read_text() == "once\n",
    )  # fmt: skip
    assert run.job.state is JobState.HELD


# Words -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("claimed", "after its claim, before it began"),
        ("enqueue_many.after_commit", "after the commit of its enqueue many"),
        ("insert.before_own", "before an enqueue in your own transaction"),
        (f"{__file__}:1:2:work", f"before line 1 of work(), the second time: {linecache.getline(__file__, 1).strip()}"),
    ],
)
def test_places_are_told_in_words(place: str, words: str) -> None:
    """Every kind of place reads as a sentence."""
    assert in_words(place) == words


def test_this_module_is_found_by_its_file() -> None:
    """The test above of an app in a test module would prove little if that module could be imported by name."""
    assert Path(sys.modules[__name__].__file__ or "").name == "test_crashing.py"
