"""treadle jobs: finding jobs, and changing named ones or all that match, with every safeguard."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from faces.commands import as_json, environment, interrupt, run, start, typed, until
from treadle import HeldClock, JobState, Retry, Treadle
from treadle.cli.options import duration_of

NOW = datetime.now(UTC)


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Treadle]:
    """A store in jobs.db with two ready jobs of queue mail, a scheduled one, and a failed one of another task."""
    with Treadle(f"sqlite:///{tmp_path}/jobs.db") as made:

        @made.task(name="fail", queue="slow", retry=Retry(0))
        def fail() -> None:
            raise LookupError("gone")

        @made.task(name="send", queue="mail")
        def send(to: str) -> None: ...

        with made.worker():
            made.wait([fail.enqueue()], timeout=30)
        send.enqueue("ada")
        send.enqueue("bob")
        send.using(delay=3600, tags=("vip",)).enqueue("eve")
        yield made


def states(app: Treadle) -> dict[int, JobState]:
    """The state of every job."""
    return {job.id: job.state for job in app.find(size=500).jobs}


# Which jobs -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ((), 4), (("--queue", "mail"), 3), (("--task", "fail"), 1), (("--state", "ready"), 2),
        (("--state", "ready", "--state", "failed"), 3), (("--tag", "vip"), 1), (("--error", "LookupError"), 1),
        (("--error", "ValueError"), 0), (("--enqueued-after", "1h"), 4), (("--enqueued-before", "1h"), 0),
        (("--started-before", "0"), 1), (("--ended-after", "1h"), 1), (("--ended-before", "1h"), 0),
        (("--enqueued-after", "2000-01-01"), 4), (("--enqueued-before", "2000-01-01T00:00:00+02:00"), 0),
        (("--queue", "mail", "--state", "failed"), 0),
    ],
)  # fmt: skip
def test_every_filter_narrows(app: Treadle, tmp_path: Path, words: tuple[str, ...], wanted: int) -> None:
    """list, count and a dry run mean the same jobs by the same options."""
    assert len(as_json("jobs", "list", *words, folder=tmp_path)["jobs"]) == wanted
    counted = as_json("jobs", "count", *words, folder=tmp_path)
    assert counted["jobs"] == wanted
    assert sum(row["jobs"] for row in counted["by"]) == wanted
    dry = as_json("jobs", "priority", "--to", "1", *(words or ("--all",)), "--dry-run", folder=tmp_path)
    assert dry["matched"] + dry["others"] == wanted
    assert app.counts()["mail"] == {JobState.READY: 2, JobState.SCHEDULED: 1}


def test_what_runs_for_long_is_found_with_its_worker(tmp_path: Path) -> None:
    """--state running --started-before 5m finds jobs that have been running for longer, and says where."""
    clock = HeldClock(NOW - timedelta(minutes=10))
    with Treadle(f"sqlite:///{tmp_path}/jobs.db", clock=clock) as app:
        begun, done = threading.Event(), threading.Event()

        @app.task(name="nap")
        def nap() -> None:
            begun.set()
            done.wait(30)

        with app.worker(name="anna"):
            job = nap.enqueue()
            assert begun.wait(30)
            words = ("jobs", "list", "--state", "running", "--started-before")
            assert [(one["id"], one["worker"]) for one in as_json(*words, "5m", folder=tmp_path)["jobs"]] == [
                (job.id, "anna")
            ]
            assert as_json(*words, "20m", folder=tmp_path)["jobs"] == []
            assert "on anna since" in run(*words, "5m", folder=tmp_path)[1]
            done.set()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("700us", 0.0007), ("1.5s", 1.5), ("1h30m", 5400), ("2min", 120), ("1w", 604_800), ("0", 0), ("10ms", 0.01)],
)
def test_durations(text: str, seconds: float) -> None:
    """A number with its unit, or several of them."""
    assert duration_of(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "7", "h", "1 h", "-1h", "1y", "1h!", "infd", "1e9d"])
def test_what_is_no_duration(text: str) -> None:
    """A number without its unit could mean anything, so it means nothing."""
    assert duration_of(text) is None


@pytest.mark.parametrize(
    "words",
    [
        ("list", "--enqueued-after", "yesterday"), ("list", "--enqueued-after", "99999999999d"),
        ("list", "--state", "lost"), ("list", "--before", "0"), ("count", "7"), ("show", "x"), ("show", "0"),
        ("show", str(1 << 63)), ("retry",), ("cancel", "1", "--queue", "mail"), ("delete", "--all", "1"),
        ("delete", "--all", "--queue", "mail"), ("retry", "--all", "--arguments", "{}"),
        ("retry", "1", "2", "--arguments", "{}"),
        ("retry", "1", "--arguments", "[1]"), ("retry", "1", "--arguments", "{"), ("priority", "1"),
        ("priority", "1", "--to", "101"), ("move", "1"), ("move", "1", "--to", "a\x07"), ("reschedule", "1"),
        ("reschedule", "1", "--in", "5"), ("reschedule", "1", "--at", "2h"),
        ("reschedule", "1", "--in", "1h", "--at", "2030-01-01"), ("reschedule", "1", "--in", "9999999d"),
        ("reschedule", "1", "--at", "0001-01-01T00:00+23:00"), ("list", "--enqueued-after", "9999999d"),
    ],
)  # fmt: skip
def test_wrong_usage_changes_nothing(app: Treadle, tmp_path: Path, words: tuple[str, ...]) -> None:
    """What cannot be meant ends with exit code 2; above all, nothing given never means everything."""
    before = states(app)
    code, text = run("jobs", *words, folder=tmp_path)
    assert code == 2, text
    assert states(app) == before


# Named jobs -------------------------------------------------------------------------------------


def test_named_jobs_are_changed_one_by_one(app: Treadle, tmp_path: Path) -> None:
    """Each is told what became of it; one that cannot be changed does not stop the others; the exit code is 1 then."""
    failed, first, second, later = sorted(states(app))
    code, text = run("jobs", "cancel", first, 999, failed, second, "--reason", "no need", folder=tmp_path)
    assert code == 1
    assert f"job {first} is cancelled" in text
    assert "no job 999" in text
    assert f"Job {failed} is failed and cannot be cancelled" in text
    assert (app.get(second).state, app.get(second).reason) == (JobState.CANCELLED, "no need")
    assert run("jobs", "retry", first, second, failed, folder=tmp_path)[0] == 0
    assert app.get(failed).state is JobState.READY
    assert run("jobs", "priority", first, later, "--to", "-7", folder=tmp_path)[0] == 0
    assert [app.get(one).priority for one in (first, later, second)] == [-7, -7, 0]
    assert run("jobs", "move", first, "--to", "slow", folder=tmp_path) == (0, f"job {first} is in queue slow\n")
    code, text = run("jobs", "reschedule", second, "--in", "2h", folder=tmp_path)
    assert (code, app.get(second).state) == (0, JobState.SCHEDULED)
    run("jobs", "reschedule", later, "--at", "2031-02-03T04:05", folder=tmp_path)
    assert app.get(later).due_at == datetime(2031, 2, 3, 4, 5, tzinfo=UTC)
    assert run("jobs", "delete", first, folder=tmp_path) == (0, f"job {first} is deleted\n")
    assert first not in states(app)


def test_a_cancelled_job_says_who_did_it(app: Treadle, tmp_path: Path) -> None:
    """Without --reason the account and the host are kept."""
    ready = next(number for number, state in states(app).items() if state is JobState.READY)
    run("jobs", "cancel", ready, folder=tmp_path)
    reason = app.get(ready).reason or ""
    assert reason.startswith("cancelled by ")
    assert "@" in reason


def test_a_job_is_retried_with_other_arguments(app: Treadle, tmp_path: Path) -> None:
    """--arguments replaces what the next attempt gets."""
    failed = min(states(app))
    code, _ = run("jobs", "retry", failed, "--arguments", '{"to": "\u00e9ve"}', folder=tmp_path)
    assert code == 0
    assert as_json("jobs", "show", failed, folder=tmp_path)["arguments"] == {"to": "éve"}


def test_results_for_scripts(app: Treadle, tmp_path: Path) -> None:
    """With --json a verb says what was changed and what was refused, and why."""
    failed, first, *_ = sorted(states(app))
    found = as_json("jobs", "cancel", first, failed, 999, folder=tmp_path)
    assert (found["verb"], found["changed"], found["ids"]) == ("cancel", 1, [first])
    assert [one["id"] for one in found["refused"]] == [failed, 999]
    dry = as_json("jobs", "retry", first, failed, "--dry-run", folder=tmp_path)
    assert (dry["matched"], dry["changed"], dry["dry_run"]) == (2, 0, True)
    done = as_json("jobs", "retry", "--state", "failed", "--yes", folder=tmp_path)
    assert done == {
        "verb": "retry", "dry_run": False, "matched": 1, "others": 0,
        "by": [{"task": "fail", "state": "failed", "jobs": 1}], "changed": 1,
    }  # fmt: skip


# All that match ---------------------------------------------------------------------------------


def test_a_dry_run_counts_and_stops(app: Treadle, tmp_path: Path) -> None:
    """The exact count by state and task is shown, what stays is told, and nothing is changed."""
    before = states(app)
    code, text = run("jobs", "cancel", "--all", "--dry-run", folder=tmp_path)
    assert code == 0
    lines = [line.split() for line in text.splitlines()]
    assert ["scheduled", "send", "1"] in lines
    assert ["ready", "send", "2"] in lines
    assert "3 jobs would be cancelled" in text
    assert "1 other job in another state" in text
    assert states(app) == before
    assert "would be cancelled" in run("jobs", "cancel", 2, "--dry-run", folder=tmp_path)[1]
    assert states(app) == before


def test_without_a_terminal_a_filter_needs_yes(app: Treadle, tmp_path: Path) -> None:
    """A script that forgot --yes is refused with exit code 2, and nothing is changed; with it, it is done."""
    before = states(app)
    code, text = run("jobs", "delete", "--queue", "mail", folder=tmp_path)
    assert code == 2
    assert "pass --yes" in text
    assert states(app) == before
    code, text = run("jobs", "delete", "--queue", "mail", "--yes", folder=tmp_path)
    assert (code, "3 jobs were deleted" in text) == (0, True)
    assert len(states(app)) == 1


@pytest.mark.parametrize(("answer", "code", "left"), [("y\n", 0, 1), ("n\n", 1, 4), ("\n", 1, 4), ("\x04", 1, 4)])
def test_on_a_terminal_it_asks(app: Treadle, tmp_path: Path, answer: str, code: int, left: int) -> None:
    """Only a yes goes on; anything else changes nothing. The question has the count."""
    done = typed(answer, "jobs", "delete", "--queue", "mail", "--store", "jobs.db", cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert "Delete 3 jobs, history included? [y/N]" in done.stderr
    assert len(states(app)) == left


def test_ctrl_c_at_the_question_changes_nothing(app: Treadle, tmp_path: Path) -> None:
    """It ends with 130 and without a word."""
    terminal, inside = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "treadle", "jobs", "delete", "--all", "--store", "jobs.db"], cwd=tmp_path,
        env=environment(), stdin=inside, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stderr is not None
        told = b""
        while b"[y/N]" not in told:
            told += os.read(process.stderr.fileno(), 1000)
        assert interrupt(process) == 130
        assert process.stderr.read() == b""
    os.close(terminal)
    os.close(inside)
    assert len(states(app)) == 4


def test_nobody_is_asked_about_nothing(app: Treadle, tmp_path: Path) -> None:
    """When no job matches there is no question, and all is well."""
    code, text = run("jobs", "retry", "--queue", "none", folder=tmp_path)
    assert (code, "No job that matches can be made ready again" in text) == (0, True)
    code, text = run("jobs", "retry", "--state", "ready", folder=tmp_path)
    assert (code, "2 other jobs" in text) == (0, True)
    assert app.counts()["mail"][JobState.READY] == 2


def test_jobs_that_come_after_the_count_are_not_touched(tmp_path: Path) -> None:
    """What is enqueued while a person reads the question is no part of what was counted."""
    clock = HeldClock(datetime(2100, 1, 1, tzinfo=UTC))
    url = f"sqlite:///{tmp_path}/jobs.db"
    with Treadle(url) as app, Treadle(url, clock=clock) as ahead:
        now = app.remote("send").enqueue()
        later = ahead.remote("send").enqueue()  # of a moment that has not come when the count is made
        found = as_json("jobs", "cancel", "--task", "send", "--yes", folder=tmp_path)
        assert (found["matched"], found["changed"]) == (1, 1)
        assert (app.get(now.id).state, app.get(later.id).state) == (JobState.CANCELLED, JobState.READY)


def test_every_verb_works_by_filter(app: Treadle, tmp_path: Path) -> None:
    """Each verb changes exactly the matching jobs for which it is legal."""
    for words, changed in (
        (("priority", "--to", "9", "--queue", "mail"), 3), (("move", "--to", "post", "--task", "send"), 3),
        (("reschedule", "--in", "1h", "--queue", "post"), 3), (("reschedule", "--in", "0", "--queue", "post"), 3),
        (("cancel", "--queue", "post", "--reason", "r"), 3), (("retry", "--state", "cancelled"), 3),
        (("retry", "--error", "LookupError"), 1), (("delete", "--all"), 4),
    ):  # fmt: skip
        assert as_json("jobs", *words, "--yes", folder=tmp_path)["changed"] == changed, words
    assert states(app) == {}


# Looking ----------------------------------------------------------------------------------------


def test_a_running_job_is_asked_to_stop(tmp_path: Path) -> None:
    """Who cancels a running job is told so, and show has who wants it to stop."""
    with Treadle(f"sqlite:///{tmp_path}/jobs.db") as app:
        begun, done = threading.Event(), threading.Event()

        @app.task(name="nap")
        def nap() -> None:
            begun.set()
            done.wait(30)

        with app.worker():
            job = nap.using(expires=3600).enqueue()
            assert begun.wait(30)
            assert "runs and was asked to stop" in run("jobs", "cancel", job.id, "--reason", "why", folder=tmp_path)[1]
            _, text = run("jobs", "show", job.id, folder=tmp_path)
            assert "asked to stop  why" in text
            assert "expires at" in text
            assert "asked to stop: why" in run("jobs", "list", folder=tmp_path)[1]
            done.set()
            app.wait([job], timeout=30)


SOLO = """
import os, sys
from treadle import Treadle
app = Treadle()

@app.task(name="solo", isolation="process", retry=0)
def solo() -> None:
    print("last words")
    sys.stdout.flush()
    os.abort()
"""


def test_what_a_process_used_is_shown(tmp_path: Path) -> None:
    """An attempt in a process of its own is shown with its peak memory, exit signal and last lines."""
    (tmp_path / "solo.py").write_text(SOLO)
    with Treadle(f"sqlite:///{tmp_path}/jobs.db") as app:
        job = app.remote("solo").enqueue()
        process = start("worker", "solo:app", "--store", "jobs.db", cwd=tmp_path)
        try:
            until(lambda: app.get(job.id).state is JobState.HELD, "the crash cap")
        finally:
            process.terminate()
            process.communicate(timeout=60)
    _, text = run("jobs", "show", job.id, folder=tmp_path)
    assert "its process ended with signal 6" in text
    assert "peak memory" in text
    assert "stdout: last words" in text
    found = as_json("jobs", "show", job.id, folder=tmp_path)
    assert found["attempts"][0]["usage"]["exit_code"] == -6
    assert {line["text"] for line in found["logs"]} == {"last words"}
