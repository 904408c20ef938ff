"""treadle move while everybody works: producers and workers switch over, nothing is lost, nothing runs twice."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import postgres
from faces.commands import environment, run, start, treadle, until
from treadle import JobFilter, JobState, Treadle

PEOPLE = """
import itertools, os, signal, sys, threading
from pathlib import Path
from treadle import Treadle
from treadle.errors import StoreBusy, StoreMoved

here, role, name, *urls = sys.argv[1:]
here, pause, app = Path(here), threading.Event(), None


def note(what: str, text: str) -> None:
    # One write each, so that lines of several processes do not mix.
    descriptor = os.open(here / what, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(descriptor, (text + "\\n").encode())
    os.close(descriptor)


def opened(url: str) -> tuple[Treadle, object]:
    app = Treadle(url, durability="normal")

    @app.task(name="count", queue="counting")
    async def count(number: str) -> None:
        note("ran", number)

    return app, count


def produce(count, numbers) -> None:
    while not (here / "stop").exists():
        number = f"{name}-{next(numbers)}"
        while True:
            try:
                job = count.enqueue(number)
                break
            except StoreBusy:
                pause.wait(0.05)
        note("accepted", f"{job.id} {number}")
        pause.wait(0.002)


numbers = itertools.count()
for url in urls:
    while not (here / "stop").exists():
        app, count = opened(url)
        try:
            if role == "produce":
                produce(count, numbers)
            else:
                app.worker(name=name, concurrency=4).run()
                # It was told to drain; if that is because of the move, it hears of it when it starts again.
        except StoreMoved as error:
            note("moved", f"{role} {error}")
            break
        except StoreBusy:
            pause.wait(0.05)
        finally:
            app.close()
"""


@contextmanager
def people(folder: Path, *urls: str) -> Iterator[list[subprocess.Popen[str]]]:
    """Two producers and two workers that begin on the first store and go on to the next when it has moved."""
    (folder / "people.py").write_text(PEOPLE)
    who = [("produce", "p1"), ("produce", "p2"), ("work", "w1"), ("work", "w2")]
    processes = [
        subprocess.Popen(
            [sys.executable, "people.py", str(folder), role, name, *urls], cwd=folder, env=environment(),
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )
        for role, name in who
    ]  # fmt: skip
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def lines(folder: Path, what: str) -> list[str]:
    """What the processes have noted."""
    path = folder / what
    return path.read_text().splitlines() if path.exists() else []


def goes_on(folder: Path, url: str) -> None:
    """Wait until jobs that were accepted from now on have run."""
    accepted = len(lines(folder, "accepted"))
    until(lambda: len(lines(folder, "accepted")) > accepted + 50, f"more jobs on {url}")
    number = lines(folder, "accepted")[-1].split()[1]
    until(lambda: number in lines(folder, "ran"), f"the last job on {url}")


def test_everybody_switches_over_and_back(tmp_path: Path) -> None:
    """From a file to PostgreSQL and on into a new file, under load: each accepted job ran once, under its id."""
    with postgres.database(empty=True) as server:
        first, last = f"sqlite:///{tmp_path}/a.db", f"sqlite:///{tmp_path}/b.db"
        with Treadle(first) as app:
            app.counts()
        with people(tmp_path, first, server, last) as processes:
            goes_on(tmp_path, first)
            for source, target in ((first, server), (server, last)):
                done = treadle("move", source, target, "--yes", "--wait", "60s", cwd=tmp_path)
                assert done.returncode == 0, done.stdout + done.stderr
                goes_on(tmp_path, target)
            (tmp_path / "stop").touch()
            for process in processes[:2]:
                assert process.wait(60) == 0, process.communicate()[1]
            accepted = dict(reversed(line.split()) for line in lines(tmp_path, "accepted"))
            until(lambda: set(accepted) <= set(lines(tmp_path, "ran")), "the last jobs")
            for process in processes[2:]:
                process.terminate()  # with "stop" there, a worker that has drained does not start again
                assert process.wait(60) == 0, process.communicate()[1]
        assert Counter(lines(tmp_path, "ran")) == Counter(list(accepted))
        assert len(lines(tmp_path, "moved")) >= 4
        with Treadle(last) as app:
            jobs = stored(app)
            assert jobs == {str(number): int(job) for number, job in accepted.items()}
            assert app.count(JobFilter(states=(JobState.SUCCEEDED,))) == len(accepted)
        assert run("verify", folder=tmp_path, store="b.db")[0] == 0


def stored(app: Treadle) -> dict[str, int]:
    """The number of every job, and its id."""
    found: dict[str, int] = {}
    before: int | None = None
    while True:
        page = app.find(before=before, size=500)
        found |= {json.loads(job.arguments or b"")["number"]: job.id for job in page.jobs}
        if page.next is None:
            return found
        before = page.next


SHOP = """
import threading
from pathlib import Path
from treadle import Treadle
app = Treadle()
@app.task(name="nap")
def nap() -> None:
    Path("begun").touch()
    threading.Event().wait(600)
"""


@pytest.fixture
def napping(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A worker process on jobs.db with a job that runs for long."""
    (tmp_path / "shop.py").write_text(SHOP)
    with Treadle(f"sqlite:///{tmp_path}/jobs.db") as app:
        app.remote("nap").enqueue()
        process = start("worker", "shop:app", "--store", "jobs.db", "--name", "anna", cwd=tmp_path)
        try:
            until((tmp_path / "begun").exists, "the running job")
            yield process
        finally:
            process.kill()
            process.communicate()


def test_a_dry_run_shows_and_changes_nothing(napping: subprocess.Popen[str], tmp_path: Path) -> None:
    """Rows by table, what runs, and no target is made; without a terminal and --yes nothing is done either."""
    words = ("move", str(tmp_path / "jobs.db"), str(tmp_path / "new.db"))
    done = treadle(*words, "--dry-run", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["rows"]["treadle_jobs"], found["running"], found["alive"]) == (1, 1, ["anna"])
    assert (found["dead"], found["conflict"], found["done"], found["dry_run"]) == ([], None, None, True)
    assert treadle(*words, "--abandon", cwd=tmp_path).returncode == 1
    assert not (tmp_path / "new.db").exists()
    done = treadle(*words, cwd=tmp_path)
    assert (done.returncode, "--yes" in done.stderr) == (2, True)
    with Treadle(f"sqlite:///{tmp_path}/jobs.db") as app:
        app.remote("nap").enqueue()
        assert app.workers()[0].orders is None


def test_a_job_that_does_not_end_keeps_the_store(napping: subprocess.Popen[str], tmp_path: Path) -> None:
    """Exit code 1 with the worker's name; the store works as before."""
    done = treadle("move", "jobs.db", "new.db", "--yes", "--wait", "300ms", cwd=tmp_path)
    assert (done.returncode, "1 jobs still ran" in done.stderr, "anna" in done.stderr) == (1, True, True), done.stderr
    with Treadle(f"sqlite:///{tmp_path}/jobs.db") as app:
        app.remote("nap").enqueue()
    assert run("jobs", "count", folder=tmp_path, store="new.db")[0] == 0


def test_jobs_of_a_dead_worker_need_a_word(napping: subprocess.Popen[str], tmp_path: Path) -> None:
    """A killed worker's job is told with the way out; with --take-running it moves, charged with a crash."""
    napping.kill()
    napping.wait()
    done = treadle("move", "jobs.db", "new.db", "--yes", cwd=tmp_path)
    assert (done.returncode, "anna" in done.stderr, "--take-running" in done.stderr) == (1, True, True), done.stderr
    done = treadle("move", "jobs.db", "new.db", "--yes", "--take-running", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["done"]["treadle_jobs"] == 1
    with Treadle(f"sqlite:///{tmp_path}/new.db") as app:
        (job,) = app.find().jobs
        assert (job.state, job.crashes) == (JobState.READY, 1)
    code, text = run("doctor", folder=tmp_path)
    assert (code, "PROBLEM  moved" in text, "new.db" in text) == (1, True, True)
    done = treadle("worker", "shop:app", "--store", "jobs.db", cwd=tmp_path)
    assert (done.returncode, "have moved to" in done.stderr) == (70, True), done.stderr


def test_whoever_waits_for_a_result_is_told(tmp_path: Path) -> None:
    """A result that will never come here is not waited for any longer."""
    with Treadle(f"sqlite:///{tmp_path}/jobs.db") as app:
        app.remote("nap").enqueue()
    following = start("logs", "1", "-f", "--store", "jobs.db", cwd=tmp_path)
    try:
        assert treadle("move", "jobs.db", "new.db", "--yes", cwd=tmp_path).returncode == 0
        told, _ = following.communicate(timeout=60)
        assert (following.returncode, "new.db" in told) == (1, True), told
    finally:
        following.kill()
