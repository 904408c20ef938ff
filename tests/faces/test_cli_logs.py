"""treadle logs: what was said, and what is being said now."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from queue import Queue
from threading import Thread

import pytest

from faces.commands import as_json, interrupt, run, start, until
from treadle import JobState, Treadle, current_job

APP = """
import os
from treadle import Treadle, current_job
app = Treadle()

@app.task(name="talk")
def talk(word: str) -> None:
    current_job().log(f"{word} from {os.getpid()}")
"""


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Treadle]:
    """A store in jobs.db whose jobs 1 and 2, of tasks one and two, have logged three lines each."""
    with Treadle(f"sqlite:///{tmp_path}/jobs.db") as made:

        def talk() -> None:
            job = current_job()
            job.log("first", logging.DEBUG)
            job.log("second\nof two lines", logging.WARNING)
            job.log("third \x1b[31m", logging.ERROR)

        jobs = [made.task(name=name)(talk).enqueue() for name in ("one", "two")]
        with made.worker(concurrency=1):
            made.wait(jobs, timeout=30)
        yield made


def texts(*words: str, folder: Path) -> list[str]:
    """The first word of each line that is found."""
    return [line["text"].split()[0] for line in as_json("logs", *words, folder=folder)["lines"]]


def test_lines_are_shown_and_narrowed(app: Treadle, tmp_path: Path) -> None:
    """The newest lines, oldest first: of all jobs, one job, a task, a level."""
    assert texts(folder=tmp_path) == ["first", "second", "third"] * 2
    assert texts("1", folder=tmp_path) == ["first", "second", "third"]
    assert texts("--task", "two", "--level", "warning", folder=tmp_path) == ["second", "third"]
    assert texts("--level", "CRITICAL", folder=tmp_path) == []
    assert texts("-n", "2", folder=tmp_path) == ["second", "third"]
    assert texts("1", "--lines", "1", folder=tmp_path) == ["third"]
    _, text = run("logs", "1", folder=tmp_path)
    assert " 1 WARNING job: second\n    of two lines\n" in text
    assert "third \\x1b[31m" in text


def test_json_has_the_level_as_number_and_word(app: Treadle, tmp_path: Path) -> None:
    """A line is one object; hostile text is there as it was said."""
    line = as_json("logs", "1", "-n", "1", folder=tmp_path)["lines"][0]
    assert line.keys() == {"seq", "job_id", "lease", "logged_at", "level", "level_name", "source", "text"}
    assert (line["level"], line["level_name"], line["text"]) == (40, "error", "third \x1b[31m")


def test_an_unknown_job_has_no_logs(app: Treadle, tmp_path: Path) -> None:
    """Exit code 1 and the reason, not an empty answer."""
    code, text = run("logs", "99", folder=tmp_path)
    assert (code, "There is no job 99" in text) == (1, True)
    assert run("logs", "--level", "loud", folder=tmp_path)[0] == 2
    assert run("logs", "x", folder=tmp_path)[0] == 2


def test_following_an_ended_job_ends(app: Treadle, tmp_path: Path) -> None:
    """-f of one job shows everything and ends with it."""
    code, text = run("logs", "1", "-f", folder=tmp_path)
    assert code == 0
    assert text.count("\n") == 4


class Reader:
    """Reads the lines of a process as they come."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: Queue[str] = Queue()
        self._thread = Thread(target=self._read, daemon=True)
        self._thread.start()

    def next(self) -> str:
        """The next line."""
        return self.lines.get(timeout=60)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line)


def test_following_goes_on_over_restarts_of_workers(tmp_path: Path) -> None:
    """Lines of one worker, then of another one after the first was killed, come as they are said; Ctrl-C is 130."""
    (tmp_path / "shop.py").write_text(APP)
    with Treadle(f"sqlite:///{tmp_path}/jobs.db") as app:
        talk = app.remote("talk")
        earlier = talk.enqueue(word="before")
        workers = [start("worker", "shop:app", "--store", "jobs.db", cwd=tmp_path)]
        follower = start("logs", "-f", "--task", "talk", "--json", "--store", "jobs.db", cwd=tmp_path)
        try:
            reader = Reader(follower)
            first = json.loads(reader.next())
            earlier.result(60)  # a line comes before the outcome of its attempt: killed between them, it is said again
            workers[0].kill()
            workers[0].wait(60)
            workers.append(start("worker", "shop:app", "--store", "jobs.db", cwd=tmp_path))
            job = talk.enqueue(word="after")
            second = json.loads(reader.next())
            assert (first["text"].split()[0], second["text"].split()[0]) == ("before", "after")
            assert first["text"].split()[2] != second["text"].split()[2]
            assert second["job_id"] == job.id
            assert interrupt(follower) == 130
            assert reader.lines.empty()
        finally:
            for process in (*workers, follower):
                process.kill()
                process.communicate(timeout=60)


def test_following_one_job_until_its_end(tmp_path: Path) -> None:
    """-f of a job that waits shows its lines when they come, and ends with exit code 0 when it has ended."""
    (tmp_path / "shop.py").write_text(APP)
    with Treadle(f"sqlite:///{tmp_path}/jobs.db") as app:
        job = app.remote("talk").enqueue(word="here")
        follower = start("logs", str(job.id), "-f", "--store", "jobs.db", cwd=tmp_path)
        worker = start("worker", "shop:app", "--store", "jobs.db", cwd=tmp_path)
        try:
            told, _ = follower.communicate(timeout=60)
            assert follower.returncode == 0
            assert "INFO job: here from" in told
            assert job.record().state is JobState.SUCCEEDED
        finally:
            worker.send_signal(signal.SIGTERM)
            worker.communicate(timeout=60)


def test_a_deleted_job_ends_its_follower(tmp_path: Path) -> None:
    """Nobody waits for ever for lines of a job that is gone."""
    with Treadle(f"sqlite:///{tmp_path}/jobs.db") as app:
        job = app.remote("talk").enqueue(word="x")
        waiters = tmp_path / "jobs.db-treadle" / "waiters"
        follower = start("logs", str(job.id), "-f", "--store", "jobs.db", cwd=tmp_path)
        until(lambda: waiters.exists() and any(waiters.iterdir()), "the follower to wait")
        app.delete(job)
        told, _ = follower.communicate(timeout=60)
        assert (follower.returncode, f"Job {job.id} is gone" in told) == (1, True)
