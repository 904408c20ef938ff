"""doctor names what is wrong, with a remedy, and is quiet when nothing is."""

from __future__ import annotations

import json
import sqlite3
import threading
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from faces.commands import start, treadle, until
from treadle import HeldClock, Retry, Treadle, current_job
from treadle.cli import main
from treadle.doctor import inside
from treadle.doctor.around import WAL_MOST

APP = "from treadle import Treadle\napp = Treadle()\n@app.task(name='nap')\ndef nap() -> None: ...\n"


def look(folder: Path) -> tuple[int, dict[str, dict[str, Any]]]:
    """The exit code and the findings by check."""
    done = CliRunner().invoke(main, ["doctor", "--store", str(folder / "jobs.db"), "--json"])
    findings = json.loads(done.output)["findings"]
    for finding in findings:
        assert finding["level"] == "ok" or finding["remedy"] or finding["check"] == "dead worker", finding
    return done.exit_code, {finding["check"]: finding for finding in findings}


def make(folder: Path, *tasks: str) -> None:
    """A database with one ready job of each of *tasks*."""
    with Treadle(f"sqlite:///{folder}/jobs.db") as app:
        app.counts()
        for task in tasks:
            app.remote(task).enqueue()


def test_a_healthy_store_is_healthy(tmp_path: Path) -> None:
    """Nothing is wrong with a new database."""
    make(tmp_path)
    code, found = look(tmp_path)
    assert code == 0
    assert not [finding for finding in found.values() if finding["level"] == "PROBLEM"]


def test_ready_jobs_nobody_takes(tmp_path: Path) -> None:
    """Ready jobs without a live worker are a problem, and with one they are not."""
    make(tmp_path, "nap")
    code, found = look(tmp_path)
    assert (code, found["ready jobs"]["level"]) == (1, "PROBLEM")
    with Treadle(f"sqlite:///{tmp_path}/jobs.db") as app:
        app.task(name="nap")(lambda: None)
        with app.worker():
            assert look(tmp_path)[0] == 0


def test_held_jobs_are_named_with_their_reason(tmp_path: Path) -> None:
    """A job whose task nobody knows is held, and doctor says why."""
    make(tmp_path, "mystery")
    with Treadle(f"sqlite:///{tmp_path}/jobs.db") as app:
        app.task(name="nap")(lambda: None)
        with app.worker():
            until(lambda: "held" in app.counts()["default"], "the job to be held")
    code, found = look(tmp_path)
    assert code == 1
    assert "mystery" in found["held jobs"]["text"]
    assert "unknown task" in found["held jobs"]["text"]


def test_a_dead_worker_is_named(tmp_path: Path) -> None:
    """A worker that was killed and that nobody rescued is a problem."""
    (tmp_path / "shop.py").write_text(APP)
    make(tmp_path)
    process = start("worker", "shop:app", "--store", "jobs.db", "--name", "anna", cwd=tmp_path)
    with Treadle(f"sqlite:///{tmp_path}/jobs.db") as app:
        until(lambda: any(worker.alive for worker in app.workers()), "the worker")
        process.kill()
        process.communicate(timeout=60)
    code, found = look(tmp_path)
    assert code == 1
    assert "anna" in found["dead worker"]["text"]


def test_surroundings_are_checked(tmp_path: Path) -> None:
    """A file that everybody may write and a log that does not shrink are problems."""
    make(tmp_path)
    (tmp_path / "jobs.db").chmod(0o666)
    with (tmp_path / "jobs.db-wal").open("wb") as file:
        file.truncate(WAL_MOST + 1)
    code, found = look(tmp_path)
    assert code == 1
    assert "chmod o-w" in found["file mode"]["remedy"]
    assert found["write-ahead log"]["level"] == "PROBLEM"


def test_what_is_not_a_database_is_told(tmp_path: Path) -> None:
    """A file of other content is named without a traceback, and is not changed."""
    (tmp_path / "jobs.db").write_text("these are not the pages you are looking for" * 100)
    before = (tmp_path / "jobs.db").read_bytes()
    done = treadle("doctor", "--store", "jobs.db", cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert (tmp_path / "jobs.db").read_bytes() == before


def test_damage_is_found(tmp_path: Path) -> None:
    """Pages overwritten with zeros are reported."""
    make(tmp_path, *(f"task-{number}" for number in range(300)))
    path = tmp_path / "jobs.db"
    data = bytearray(path.read_bytes())
    middle = len(data) // 2 // 4096 * 4096
    data[middle : middle + 8 * 4096] = bytes(8 * 4096)
    path.write_bytes(data)
    assert look(tmp_path)[0] == 1


# What people have stopped -----------------------------------------------------------------------


def test_a_paused_queue_is_named_with_who_and_why(tmp_path: Path) -> None:
    """It is a note with its remedy; its ready jobs are no problem then, though no worker takes them."""
    make(tmp_path, "nap")
    with Treadle(f"sqlite:///{tmp_path}/jobs.db") as app:
        app.pause(queue="default", reason="the provider is down", by="ada")
    code, found = look(tmp_path)
    assert (code, found["ready jobs"]["level"]) == (0, "ok")
    assert found["paused queue"]["level"] == "note"
    for word in ("default", "ada", "the provider is down", "1 job waiting"):
        assert word in found["paused queue"]["text"]
    assert found["paused queue"]["remedy"] == "treadle queues resume default"


def test_a_paused_task_is_named_with_its_blocked_jobs(tmp_path: Path) -> None:
    """The jobs that are blocked for it are counted; a name that needs it is quoted for the shell."""
    make(tmp_path, "a nap")
    with Treadle(f"sqlite:///{tmp_path}/jobs.db") as app:
        app.pause(task="a nap", until=datetime(2100, 1, 1, tzinfo=UTC))
    _, found = look(tmp_path)
    assert "1 job waiting" in found["paused task"]["text"]
    assert "until 2100-01-01" in found["paused task"]["text"]
    assert found["paused task"]["remedy"] == "treadle tasks resume 'a nap'"


def test_an_expired_pause_is_noticed(tmp_path: Path) -> None:
    """A pause that nobody has cleared after its time is a note; it keeps nothing from being a problem."""
    make(tmp_path, "nap")
    clock = HeldClock(datetime.now(UTC) - timedelta(hours=2))
    with Treadle(f"sqlite:///{tmp_path}/jobs.db", clock=clock) as app:
        app.pause(queue="default", until=datetime.now(UTC) - timedelta(hours=1))
    code, found = look(tmp_path)
    assert (code, found["ready jobs"]["level"]) == (1, "PROBLEM")
    assert "was over at" in found["expired pause"]["text"]


def test_workers_with_orders_are_named(tmp_path: Path) -> None:
    """A paused worker is a note with who paused it; when nobody else works it is a problem."""
    make(tmp_path)
    with Treadle(f"sqlite:///{tmp_path}/jobs.db") as app:
        app.task(name="nap")(lambda: None)
        with app.worker(name="anna"), app.worker(name="bert"):
            app.pause(worker="anna", by="ada")
            code, found = look(tmp_path)
            assert (code, found["paused worker"]["remedy"]) == (0, "treadle workers resume anna")
            assert "ada" in found["paused worker"]["text"]
            app.pause(worker="bert")
            code, found = look(tmp_path)
            assert (code, found["no worker at work"]["level"]) == (1, "PROBLEM")


def test_a_drain_and_a_job_that_does_not_stop_are_named(tmp_path: Path) -> None:
    """What a draining worker still runs, and jobs that were asked to stop and go on, with what helps."""
    begun, done = threading.Event(), threading.Event()
    with Treadle(f"sqlite:///{tmp_path}/jobs.db") as app:

        @app.task(name="nap")
        def nap() -> None:
            begun.set()
            done.wait(30)

        with app.worker(name="anna"):
            job = nap.enqueue()
            assert begun.wait(30)
            job.cancel("not wanted")
            app.drain("anna", by="ada")
            _, found = look(tmp_path)
            done.set()
    assert "1 running job of worker anna" in found["jobs asked to stop"]["text"]
    assert "drain" in found["jobs asked to stop"]["remedy"]
    assert "still runs 1 job" in found["draining worker"]["text"]
    assert "ada" in found["draining worker"]["text"]


# What goes wrong --------------------------------------------------------------------------------


def test_failures_of_the_last_hour_are_counted(tmp_path: Path) -> None:
    """They are a note that says how to see them and how to run them again."""
    with Treadle(f"sqlite:///{tmp_path}/jobs.db") as app:

        @app.task(name="bad", retry=Retry(0))
        def bad() -> None:
            raise ValueError

        with app.worker():
            app.wait([bad.enqueue(), bad.enqueue()], timeout=30)
    code, found = look(tmp_path)
    assert (code, found["failed jobs"]["level"]) == (0, "note")
    assert found["failed jobs"]["text"].startswith("2 jobs")
    assert "--state failed --ended-after 1h" in found["failed jobs"]["remedy"]


def test_due_jobs_that_nobody_starts(tmp_path: Path) -> None:
    """Scheduled jobs whose time has come are a problem when no worker lives, though none of them is ready."""
    clock = HeldClock(datetime.now(UTC) - timedelta(hours=1))
    with Treadle(f"sqlite:///{tmp_path}/jobs.db", clock=clock) as app:
        app.task(name="nap")(lambda: None).using(delay=60).enqueue()
    code, found = look(tmp_path)
    assert (code, found["due jobs"]["level"]) == (1, "PROBLEM")
    assert "1 scheduled job due" in found["due jobs"]["text"]


# Room -------------------------------------------------------------------------------------------


def test_logs_and_unused_pages_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above their limits they are notes with a remedy; below they are fine. The estimate is near what was logged."""
    with Treadle(f"sqlite:///{tmp_path}/jobs.db") as app:

        @app.task(name="talk")
        def talk() -> None:
            for _ in range(50):
                current_job().log("x" * 1000)

        with app.worker():
            app.wait([talk.enqueue()], timeout=30)
        app.delete(app.enqueue_many(app.remote("big").job(text="x" * 9000) for _ in range(100))[0])
        with closing(sqlite3.connect(tmp_path / "jobs.db", isolation_level=None)) as connection:
            connection.execute("DELETE FROM treadle_jobs WHERE task = 'big'")
    _, found = look(tmp_path)
    assert found["logs of jobs"]["level"] == "ok"
    assert "unused space" not in found
    monkeypatch.setattr(inside, "LOGS_MOST", 40_000)
    monkeypatch.setattr(inside, "UNUSED_MOST", 400_000)
    code, found = look(tmp_path)
    assert (code, found["logs of jobs"]["level"], found["unused space"]["level"]) == (0, "note", "note")
    assert "(50 lines)" in found["logs of jobs"]["text"]
    size = int(found["logs of jobs"]["text"].split(" bytes")[0].rpartition(" ")[2].replace(",", ""))
    assert 50_000 < size < 60_000
    assert "treadle compact" in found["unused space"]["remedy"]


@pytest.mark.parametrize(
    ("setting", "value", "check"), [("MAX_SIZE", "1000", "size budget"), ("MIN_FREE", str(1 << 60), "disk")]
)
def test_limits_are_those_of_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, value: str, check: str
) -> None:
    """When enqueue would be refused for want of room, doctor says so."""
    make(tmp_path)
    assert look(tmp_path)[0] == 0
    monkeypatch.setenv(f"TREADLE_{setting}", value)
    code, found = look(tmp_path)
    assert (code, found[check]["level"]) == (1, "PROBLEM")
    assert "enqueue is refused" in found[check]["text"]


# Versions ---------------------------------------------------------------------------------------


def test_an_old_schema_is_named(tmp_path: Path) -> None:
    """A file that an older Treadle made is a problem, and migrate is the remedy, which works."""
    done = treadle("migrate", "--sql", "--store", "jobs.db", cwd=tmp_path)
    with closing(sqlite3.connect(tmp_path / "jobs.db")) as connection:
        connection.executescript(done.stdout.partition("-- 002_")[0])
    code, found = look(tmp_path)
    assert (code, found["schema"]["level"]) == (1, "PROBLEM")
    assert "treadle migrate" in found["schema"]["remedy"]
    assert treadle("migrate", "--store", "jobs.db", cwd=tmp_path).returncode == 0
    assert look(tmp_path)[0] == 0


def make_newer(folder: Path, reader: int) -> None:
    """A file that a later Treadle has migrated, for readers from *reader* on."""
    make(folder)
    with closing(sqlite3.connect(folder / "jobs.db", isolation_level=None)) as connection:
        connection.execute("INSERT INTO treadle_migrations VALUES (999, '999_later', ?, 1)", (reader,))


def test_a_newer_schema_that_can_be_read_is_a_note(tmp_path: Path) -> None:
    """A file that a newer Treadle has added to works here, and doctor says that this one is behind."""
    make_newer(tmp_path, reader=1)
    code, found = look(tmp_path)
    assert (code, found["schema"]["level"]) == (0, "note")
    assert "999" in found["schema"]["text"]


def test_a_newer_schema_that_is_refused_is_not_called_usable(tmp_path: Path) -> None:
    """Where a file needs a newer reader, opening it is the problem, and no other finding says that it works."""
    make_newer(tmp_path, reader=2)
    code, found = look(tmp_path)
    assert (code, found["opening"]["level"]) == (1, "PROBLEM")
    assert "Install the newer Treadle" in found["opening"]["text"]
    assert "can still work" not in found["schema"]["text"]


def test_a_backup_can_be_looked_at_where_it_is_restored(tmp_path: Path) -> None:
    """A copy of a busy store, moved to a folder that no worker has ever used, is examined and listed like any other."""
    (tmp_path / "shop.py").write_text(APP)
    make(tmp_path, "nap")
    (tmp_path / "new").mkdir()
    with Treadle(f"sqlite:///{tmp_path}/jobs.db") as app:
        app.task(name="nap")(lambda: None)
        with app.worker():
            app.backup(tmp_path / "copy.db")
    (tmp_path / "copy.db").rename(tmp_path / "new" / "jobs.db")
    code, found = look(tmp_path / "new")
    assert (code, found["backup copy"]["level"]) == (1, "PROBLEM")
    for words in (("workers", "list"), ("stats",), ("queues", "list"), ("adopt",)):
        done = treadle(*words, "--store", "jobs.db", cwd=tmp_path / "new")
        assert (words, done.returncode, done.stderr) == (words, 0, "")
