"""The treadle command: what it prints, what it refuses, and its exit codes."""

from __future__ import annotations

import signal
import sqlite3
from pathlib import Path

import pytest
from click.testing import CliRunner

import treadle as package
from faces.commands import as_json, run, start, treadle, until
from treadle import JobState, Retry, Treadle
from treadle.cli import main
from treadle.cli.store import url_of
from treadle.cli.worker import parse_queues

APP = """
from treadle import Treadle
app = Treadle()
fixed = Treadle("sqlite:///own.db")
text = "not an app"

@app.task(queue="mail")
def greet(name: str) -> str:
    return "hello " + name

@app.task(queue="mail", retry=0)
def fail(word: str) -> None:
    raise ValueError("\\x1b[31m" + word + "\\u202e")
"""
READS = (
    ("jobs", "list"), ("jobs", "show", "1"), ("jobs", "count"), ("queues", "list"), ("tasks", "list"),
    ("workers", "list"), ("logs",), ("stats",), ("doctor",), ("verify",),
)  # fmt: skip
CHANGES = (
    ("backup", "copy.db"), ("adopt",), ("prune",), ("compact",), ("jobs", "retry", "1"), ("jobs", "cancel", "--all"),
    ("queues", "pause", "mail"), ("tasks", "resume", "mail"), ("workers", "drain", "1"), ("workers", "evict", "1"),
)  # fmt: skip


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A folder with an application."""
    (tmp_path / "shop.py").write_text(APP)
    return tmp_path


@pytest.fixture
def worked(shop: Path) -> Path:
    """A folder whose jobs.db has one succeeded, one failed and one job nobody knows."""
    with Treadle(f"sqlite:///{shop}/jobs.db") as app:

        @app.task(name="shop.greet", queue="mail")
        def greet(name: str) -> str:
            return "hello " + name

        @app.task(name="shop.fail", queue="mail", retry=Retry(0))
        def fail(word: str) -> None:
            raise ValueError("\x1b[31m" + word + "\u202e")

        jobs = [greet.using(tags=("vip",)).enqueue("ada").id, fail.enqueue("red").id]
        with app.worker():
            app.wait(jobs, timeout=30)
        app.remote("elsewhere.task").enqueue(secret="\x1b]0;x\x07")
    return shop


# Looking ----------------------------------------------------------------------------------------


def test_list_filters(worked: Path) -> None:
    """Jobs are listed newest first, and every filter narrows the list."""
    every = as_json("jobs", "list", folder=worked)["jobs"]
    assert [(job["task"], job["state"]) for job in every] == [
        ("elsewhere.task", "ready"), ("shop.fail", "failed"), ("shop.greet", "succeeded"),
    ]  # fmt: skip
    for words, wanted in (
        (("--queue", "mail"), 2), (("--state", "failed", "--state", "ready"), 2), (("--task", "shop.greet"), 1),
        (("--tag", "vip"), 1), (("--tag", "nobody"), 0), (("--before", str(every[1]["id"])), 1), (("--size", "1"), 1),
    ):  # fmt: skip
        assert len(as_json("jobs", "list", *words, folder=worked)["jobs"]) == wanted, words
    code, text = run("jobs", "list", "--size", "1", folder=worked)
    assert code == 0
    assert f"--before {every[0]['id']}" in text


def test_show_tells_the_whole_story(worked: Path) -> None:
    """One job is shown with arguments, result, tags and every attempt with its traceback, escaped."""
    ids = {job["task"]: str(job["id"]) for job in as_json("jobs", "list", folder=worked)["jobs"]}
    _, good = run("jobs", "show", ids["shop.greet"], folder=worked)
    assert '{"name":"ada"}' in good
    assert '"hello ada"' in good
    assert "vip" in good
    _, bad = run("jobs", "show", ids["shop.fail"], folder=worked)
    assert "Traceback" in bad
    assert "ValueError" in bad
    assert "\\x1b[31mred\\u202e" in bad
    assert "\x1b" not in bad
    assert "\u202e" not in bad
    found = as_json("jobs", "show", ids["shop.fail"], folder=worked)
    assert [attempt["outcome"] for attempt in found["attempts"]] == ["failed"]
    assert found["attempts"][0]["message"] == "\x1b[31mred\u202e"
    assert as_json("jobs", "show", ids["shop.greet"], folder=worked)["result"] == "hello ada"
    code, text = run("jobs", "show", "999", folder=worked)
    assert (code, "no job 999" in text) == (1, True)


def test_stats_counts(worked: Path) -> None:
    """Figures say how many jobs each queue has in each state, and about the file."""
    found = as_json("stats", folder=worked)
    assert found["queues"] == {"mail": {"succeeded": 1, "failed": 1}, "default": {"ready": 1}}
    assert found["workers"] == {"alive": 0, "stalled": 0, "paused": 0, "draining": 0, "dead": 0}
    assert found["ended_last_hour"] == {"succeeded": 1, "failed": 1, "cancelled": 0}
    assert found["sqlite"] == sqlite3.sqlite_version
    assert found["bytes"] > 0
    _, text = run("stats", folder=worked)
    assert "SUCCEEDED" in text


def test_a_worker_is_listed_as_alive(worked: Path) -> None:
    """A live worker is shown with what it takes."""
    with Treadle(f"sqlite:///{worked}/jobs.db") as app:
        app.task(name="shop.greet", queue="mail")(lambda name: name)
        with app.worker(name="anna\x1b[1m", queues=["mail"]):
            found = as_json("workers", "list", folder=worked)["workers"]
            _, text = run("workers", "list", folder=worked)
    assert [(worker["name"], worker["alive"], worker["queues"]) for worker in found] == [
        ("anna\x1b[1m", True, ["mail"])
    ]
    assert "anna\\x1b[1m" in text


@pytest.mark.parametrize("words", [*READS, *CHANGES], ids=" ".join)
def test_looking_creates_nothing(tmp_path: Path, words: tuple[str, ...]) -> None:
    """A command on a database that is not there fails, says so, and leaves no file."""
    code, text = run(*words, folder=tmp_path)
    assert code == 1
    assert "There is no database" in text
    assert list(tmp_path.iterdir()) == []


def test_a_foreign_database_is_left_alone(tmp_path: Path) -> None:
    """Looking at a database without Treadle's tables fails and adds none."""
    with sqlite3.connect(tmp_path / "jobs.db") as connection:
        connection.execute("CREATE TABLE mine (x)")
    connection.close()
    code, text = run("stats", folder=tmp_path)
    assert (code, "treadle migrate" in text) == (1, True)
    connection = sqlite3.connect(tmp_path / "jobs.db")
    assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("mine",)]
    connection.close()


# Choosing ---------------------------------------------------------------------------------------


def test_the_store_is_option_then_environment_then_file(worked: Path) -> None:
    """--store wins over TREADLE_STORE, which wins over pyproject.toml."""
    (worked / "pyproject.toml").write_text('[tool.treadle]\nstore = "sqlite:///jobs.db"\n')
    assert treadle("stats", cwd=worked).returncode == 0
    assert treadle("stats", cwd=worked, TREADLE_STORE="sqlite:///none.db").returncode == 1
    assert treadle("stats", "--store", "jobs.db", cwd=worked, TREADLE_STORE="sqlite:///none.db").returncode == 0
    assert url_of("sqlite:////a/b.db") == "sqlite:////a/b.db"


def test_memory_has_no_outside(tmp_path: Path) -> None:
    """A memory:// store cannot be looked at, and the message says why."""
    done = CliRunner().invoke(main, ["stats", "--store", "memory://"])
    assert (done.exit_code, "inside one process" in done.output) == (2, True)


def test_version_and_help() -> None:
    """--version tells the version; every command has a help text."""
    assert package.__version__ in CliRunner().invoke(main, ["--version"]).output
    for name, command in main.commands.items():
        assert CliRunner().invoke(main, [name, "--help"]).exit_code == 0
        assert command.get_short_help_str(), name


# Changing ---------------------------------------------------------------------------------------


def test_migrate_creates_and_prints(tmp_path: Path) -> None:
    """It makes the tables, --sql only prints the script, and the script makes the same tables."""
    code, script = run("migrate", "--sql", folder=tmp_path)
    assert code == 0
    assert list(tmp_path.iterdir()) == []
    connection = sqlite3.connect(tmp_path / "by-hand.db")
    connection.executescript(script)
    by_hand = tables(connection)
    assert "Upgraded" in run("migrate", folder=tmp_path)[1]
    assert "was current" in run("migrate", folder=tmp_path)[1]
    assert "nothing is missing" in run("migrate", "--sql", folder=tmp_path)[1]
    assert tables(sqlite3.connect(tmp_path / "jobs.db")) == by_hand


def test_a_backup_is_refused_until_adopted(worked: Path) -> None:
    """A worker refuses a copy; adopt makes it an ordinary database in WAL mode; an ordinary one is not adopted."""
    copy = worked / "copy.db"
    assert run("backup", str(copy), folder=worked)[0] == 0
    assert run("backup", str(copy), folder=worked)[0] == 2
    refused = treadle("worker", "shop:app", "--store", "copy.db", cwd=worked)
    assert (refused.returncode, "treadle adopt" in refused.stderr) == (1, True)
    assert "PROBLEM  backup copy" in run("doctor", folder=worked, store="copy.db")[1]
    assert run("adopt", folder=worked, store="copy.db")[0] == 0
    assert run("adopt", folder=worked, store="copy.db")[0] == 1
    connection = sqlite3.connect(copy)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


def test_prune_deletes_only_what_is_old(worked: Path) -> None:
    """By default young history stays; --older-than 0 takes every ended job and no other."""
    assert "Deleted 0 jobs" in run("prune", folder=worked)[1]
    assert "Deleted 2 jobs" in run("prune", "--older-than", "0", "--yes", folder=worked)[1]
    assert as_json("stats", folder=worked)["queues"] == {"default": {"ready": 1}}


# Working ----------------------------------------------------------------------------------------


def test_a_worker_works_until_the_signal(shop: Path) -> None:
    """``treadle worker`` finds the app in the current folder, runs its jobs, and ends with 0 on SIGTERM."""
    with Treadle(f"sqlite:///{shop}/jobs.db") as app:
        job = app.remote("shop.greet", queue="mail").enqueue(name="ada")
        process = start("worker", "shop:app", "--store", "jobs.db", "--queues", "mail=2,other=1", "-v", cwd=shop)
        until(lambda: app.get(job.id).state is JobState.SUCCEEDED, "the job's end")
        process.send_signal(signal.SIGTERM)
        told, _ = process.communicate(timeout=60)
    assert process.returncode == 0, told
    assert "sys.path" in told


def test_a_worker_stops_when_its_input_ends(shop: Path) -> None:
    """With --until-eof the end of standard input is a request to stop."""
    done = treadle("worker", "shop:app", "--store", "jobs.db", "--until-eof", cwd=shop)
    assert done.returncode in (0, -signal.SIGTERM), done.stderr  # the signal may come before the worker listens


def test_a_lost_store_is_exit_code_70(shop: Path) -> None:
    """A worker whose database was replaced under it stops by itself with exit code 70."""
    process = start("worker", "shop:app", "--store", "jobs.db", cwd=shop)
    with Treadle(f"sqlite:///{shop}/jobs.db") as app:
        until(lambda: any(worker.alive for worker in app.workers()), "the worker")
    (shop / "jobs.db").rename(shop / "moved.db")
    told, _ = process.communicate(timeout=60)
    assert process.returncode == 70, told


def test_a_corrupt_store_is_exit_code_70(shop: Path) -> None:
    """After a failure of the disk a worker looks first, and works on no file that is corrupt."""
    with Treadle(f"sqlite:///{shop}/jobs.db") as app:
        app.enqueue_many(app.remote("shop.greet").job(name="a" * 500) for _ in range(300))
    (shop / "jobs.db-treadle/suspect").touch()
    content = bytearray((shop / "jobs.db").read_bytes())
    content[5 * 4096 : 12 * 4096] = bytes(7 * 4096)
    (shop / "jobs.db").write_bytes(content)
    done = treadle("worker", "shop:app", "--store", "jobs.db", cwd=shop)
    assert done.returncode == 70, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nosuch:app",), "no module 'nosuch'"), (("shop",), "not MODULE:APP"), (("shop:nosuch",), "no attribute"),
        (("shop:text",), "not a Treadle"), (("shop:fixed",), "no tasks"),
        (("shop:app", "--queues", "a=0"), "whole numbers"), (("shop:app", "--tasks", "nosuch"), "No task named"),
        (("shop:fixed", "--store", "x.db"), "its own store"),
        (("shop:app", "--concurrency", "0"), "concurrency"),
    ],
)  # fmt: skip
def test_wrong_usage_is_exit_code_2(shop: Path, words: tuple[str, ...], message: str) -> None:
    """What cannot be meant is refused with one clear line."""
    done = treadle("worker", *words, cwd=shop, TREADLE_STORE="sqlite:///jobs.db")
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_queues_are_read_both_ways() -> None:
    """Names keep their order, weights are whole numbers, nothing means every queue."""
    assert parse_queues(" b , a ") == ("b", "a")
    assert parse_queues("a=3,b=1") == {"a": 3, "b": 1}
    assert parse_queues(None) is None
    assert parse_queues(" , ") is None


def tables(connection: sqlite3.Connection) -> list[tuple[str, str]]:
    """Every table, index, view and trigger of a database."""
    found = connection.execute("SELECT name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%' ORDER BY name")
    rows = [(name, sql) for name, sql in found if name != "treadle_migrations"]
    connection.close()
    return rows
