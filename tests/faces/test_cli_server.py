"""Every command works on PostgreSQL as it does on a file, and says clearly what only files have."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner

import postgres
from faces.commands import as_json, run, start, treadle, until
from treadle import Treadle
from treadle.cli import main
from treadle.doctor import server as about_server
from treadle.store.urls import without_password

APP = """
from treadle import Treadle, current_job
app = Treadle()
@app.task(name="greet")
def greet(whom: str) -> str:
    current_job().log(f"to {whom}")
    return f"hello {whom}"
@app.task(name="nap")
def nap() -> None: ...
"""

@pytest.fixture(params=[""])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a new store on PostgreSQL."""
    with postgres.database(request.param) as made:
        yield made


def fill(url: str) -> None:
    """A job that has succeeded with a log line, one that waits, one nobody knows, and a pause."""
    with Treadle(url) as app:

        @app.task(name="greet")
        def greet(whom: str) -> str:
            from treadle import current_job

            current_job().log(f"to {whom}")
            return whom

        with app.worker(name="anna"):
            assert greet.enqueue("ada").result(timeout=30) == "ada"
        greet.using(delay=3600).enqueue("bob")
        app.remote("mystery").enqueue()
        app.pause(queue="mail", reason="why", by="ada")


@pytest.mark.parametrize(
    "words",
    [
        ("stats",), ("jobs", "list"), ("jobs", "count"), ("jobs", "show", 1), ("queues", "list"), ("tasks", "list"),
        ("workers", "list"), ("logs",), ("logs", 1), ("verify",), ("prune", "--dry-run"),
        ("jobs", "cancel", "--state", "scheduled", "--yes"), ("jobs", "priority", "--to", 5, "--all", "--dry-run"),
    ],
    ids=lambda words: " ".join(map(str, words)),
)  # fmt: skip
def test_a_command_prints_the_same_keys_on_both(url: str, tmp_path: Path, words: tuple[str | int, ...]) -> None:
    """What reads its JSON need not know where the jobs are."""
    fill(url)
    fill(f"sqlite:///{tmp_path}/jobs.db")
    here, there = as_json(*words, folder=tmp_path), as_json(*words, folder=tmp_path, store=url)
    if words != ("verify",):
        assert shape(there) == shape(here)
    assert run(*words, folder=tmp_path)[0] == run(*words, folder=tmp_path, store=url)[0] == 0


def shape(value: Any) -> Any:
    """The keys of a JSON value at every depth; what a key has, and how many, is left out."""
    if isinstance(value, dict):
        return {key: shape(one) for key, one in value.items()}
    return [shape(value[0])] if isinstance(value, list) and value and isinstance(value[0], dict) else None


def test_a_worker_and_its_log_in_processes_of_their_own(url: str, tmp_path: Path) -> None:
    """TREADLE_STORE is enough: the worker runs what the program stores, and 'logs -f' ends with its job."""
    (tmp_path / "shop.py").write_text(APP)
    with Treadle(url) as app:
        job = app.remote("greet").enqueue(whom="ada")
        following = start("logs", str(job.id), "-f", "--store", url, cwd=tmp_path)
        worker = start("worker", "shop:app", "--store", url, "--name", "anna", cwd=tmp_path)
        try:
            assert following.wait(60) == 0
            assert "to ada" in following.communicate()[0]
            assert run("workers", "drain", "anna", folder=tmp_path, store=url)[0] == 0
            assert worker.wait(60) == 0
        finally:
            worker.kill()
            worker.communicate()
    done = treadle("worker", "shop:app", "--burst", cwd=tmp_path, TREADLE_STORE=url)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "instead"),
    [(("backup", "copy.db"), "pg_dump"), (("adopt",), "pg_restore"), (("compact", "--yes"), "VACUUM")],
)
def test_what_only_files_have_is_refused_with_the_way_here(
    url: str, tmp_path: Path, words: tuple[str, ...], instead: str
) -> None:
    """Exit code 2, and the words of PostgreSQL's own tool."""
    code, text = run(*words, folder=tmp_path, store=url)
    assert (code, instead in text, "Traceback" in text) == (2, True, False)


def test_migrate_makes_the_tables_and_its_script_does_too() -> None:
    """Into an empty database either way; afterwards nothing is missing, and verify finds nothing."""
    folder = Path()
    for by_script in (True, False):
        with postgres.database(empty=True) as url:
            script = run("migrate", "--sql", folder=folder, store=url)[1]
            assert "CREATE TABLE treadle_jobs" in script
            assert run("stats", folder=folder, store=url)[0] == 1
            if by_script:
                with psycopg.connect(url, autocommit=True) as connection:
                    connection.execute(script.encode())
            else:
                code, text = run("migrate", folder=folder, store=url)
                assert (code, "from schema 0" in text) == (0, True), text
            assert "nothing is missing" in run("migrate", "--sql", folder=folder, store=url)[1]
            assert "was current" in run("migrate", folder=folder, store=url)[1]
            assert run("verify", folder=folder, store=url)[0] == 0


def test_bench_on_a_server(url: str, tmp_path: Path) -> None:
    """Every job runs once; a schema that has jobs is refused and left alone."""
    words = ("bench", "--jobs", "100", "--every", "1ms", "--processes", "2", "--idle", "0", "--store", url)
    done = treadle(*words, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["done"], found["duplicates"], found["missing"]) == (100, 0, 0)
    assert (found["sqlite"], found["postgresql"] is None) == (None, False)
    assert list(tmp_path.iterdir()) == []
    again = treadle(*words, cwd=tmp_path)
    assert (again.returncode, "a store of its own" in again.stderr) == (2, True)


def test_the_demo_on_a_server(url: str, tmp_path: Path) -> None:
    """It copies, kills, resumes with nothing to do, begins anew, and refuses a database with jobs of others."""
    source = tmp_path / "source"
    source.mkdir()
    for number in range(40):
        (source / f"{number}.txt").write_text(str(number) * 1000)
    words = ("demo", "--source", str(source), "--dest", "out", "--store", url)
    done = treadle(*words, cwd=tmp_path)
    assert (done.returncode, "Everything matches" in done.stdout) == (0, True), done.stdout + done.stderr
    assert not (tmp_path / "out" / "jobs.db").exists()
    assert treadle(*words, cwd=tmp_path).returncode == 0
    done = treadle(*words, "--fresh", cwd=tmp_path)
    assert (done.returncode, "Everything matches" in done.stdout) == (0, True), done.stdout + done.stderr
    with Treadle(url) as app:
        app.remote("other").enqueue()
    shutil.rmtree(tmp_path / "out")
    done = treadle(*words, cwd=tmp_path)
    assert (done.returncode, "jobs of other queues" in done.stderr) == (2, True)


# Passwords --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://app:s3cret@db.example:5432/shop?sslmode=require&password=s3cret", "postgresql://app@db.example:5432/shop"),
        ("postgresql://app:s3/cret@db.example/shop", "postgresql://…"),
        ("postgresql://app:s3#cret@db.example/shop", "postgresql://…"),
        ("postgresql://app:s3?cret@db.example/shop", "postgresql://…"),
        ("postgresql://app:s3@cret@db.example/shop", "postgresql://…"),
        ("postgresql://[s3cret", "postgresql://…"),
        ("mysql:app:s3cret@db", "…"),
        ("sqlite:///jobs@home.db", "sqlite:///jobs@home.db"),
    ],
)  # fmt: skip
def test_a_url_is_shown_without_its_password(url: str, shown: str) -> None:
    """Also one in which a letter should have been encoded, and one that nobody can read."""
    assert without_password(url) == shown


@pytest.mark.parametrize(("words", "secret"), [
    *((words.split(), "s3cret") for words in (
        "doctor", "verify", "migrate --sql", "backup x", "compact", "bench", "worker shop:app", "worker own:app",
        "demo --dest out",
    )),
    *((words.split(), secret) for words in ("stats", "doctor") for secret in ("s3/cr3t", "12/s3cret")),
])  # fmt: skip
def test_no_command_tells_a_password(words: list[str], secret: str, tmp_path: Path) -> None:
    """Whatever goes wrong: a server that is not there, a URL that cannot be read."""
    (tmp_path / "shop.py").write_text(APP)
    (tmp_path / "own.py").write_text(APP.replace("Treadle()", "Treadle('postgresql://app:s3cret@127.0.0.1:1/y')"))
    store = f"postgresql://app:{secret}@127.0.0.1:1/x"
    done = treadle(*words, "--store", store, cwd=tmp_path, TREADLE_LOCK_TIMEOUT="0.2")
    told = done.stdout + done.stderr
    assert done.returncode in (1, 2, 70), told
    assert not [part for part in ("s3", "cr3t") if part in told]


# doctor -----------------------------------------------------------------------------------------


def look(url: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """The exit code and the findings by check; each but a good one has a remedy."""
    done = CliRunner().invoke(main, ["doctor", "--store", url, "--json"])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    findings = json.loads(done.output)["findings"]
    assert [one for one in findings if one["level"] != "ok" and not one["remedy"]] == []
    return done.exit_code, {finding["check"]: finding for finding in findings}


@pytest.fixture
def sound(url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A store on a server that seems to be set as it should be."""
    read = about_server.health.server

    def safe(session: Any) -> Any:
        return read(session)._replace(fsync="on", synchronous_commit="on", autovacuum="on")

    monkeypatch.setattr(about_server.health, "server", safe)
    return url


@pytest.mark.parametrize("url", ["", "15"], indirect=True)
def test_a_healthy_server_is_healthy(sound: str) -> None:
    """Nothing is wrong with a new store on a server that is set as it should be."""
    code, found = look(sound)
    assert code == 0, found
    assert {one["level"] for one in found.values()} == {"ok"}
    assert found["server"]["text"].startswith("PostgreSQL ")


def test_settings_that_lose_jobs_are_problems(url: str) -> None:
    """The tests' own server, which is fast because nothing on it is safe, is called what it is."""
    code, found = look(url)
    assert code == 1
    assert "fsync" in found["durability"]["text"]
    assert "autovacuum" in found["vacuum"]["text"]


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    """One finding, which says so; nothing else can be known."""
    code, found = look("postgresql://app@127.0.0.1:1/x")
    assert (code, list(found)) == (1, ["server"])
    assert "cannot be reached" in found["server"]["text"]


def test_missing_tables_are_named() -> None:
    """A database without our tables says what makes them."""
    with postgres.database(empty=True) as url:
        code, found = look(url)
    assert (code, list(found), "treadle migrate" in found["schema"]["remedy"]) == (1, ["schema"], True)


def test_rights_that_the_role_lacks_are_named_with_their_grant(sound: str) -> None:
    """What is missing is told, and the statements that are offered give it."""
    role = f"clerk_{os.getpid()}"
    with psycopg.connect(sound, autocommit=True) as owner:
        owner.execute(f'CREATE ROLE {role} LOGIN')
        try:
            owner.execute(f"GRANT USAGE ON SCHEMA treadle TO {role}")
            owner.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA treadle TO {role}")
            as_clerk = sound.replace("postgres@", f"{role}@")
            code, found = look(as_clerk)
            assert (code, found["rights"]["level"]) == (1, "PROBLEM")
            owner.execute(found["rights"]["remedy"].partition(": ")[2].encode())
            code, found = look(as_clerk)
            assert (code, found["rights"]["level"]) == (0, "ok"), found
            assert run("verify", folder=Path(), store=as_clerk)[0] == 0
        finally:
            owner.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


def test_an_old_open_transaction_is_named(sound: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What holds vacuum back is told with its program and how to end it."""
    with psycopg.connect(sound, application_name="forgetful") as open_one:
        open_one.execute("SELECT pg_current_xact_id()")
        assert "forgetful" in look(sound)[1]["open transactions"]["text"]
        for limit, level in (("OPEN_NOTE", "note"), ("OPEN_MOST", "PROBLEM")):
            monkeypatch.setattr(about_server, limit, timedelta(-1))
            found = look(sound)[1]["open transactions"]
            assert (found["level"], "idle in transaction" in found["text"]) == (level, True)
        assert f"pg_terminate_backend({open_one.info.backend_pid})" in found["remedy"]


def test_dead_rows_and_connections_are_counted(sound: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that vacuum has not taken yet, and connections, each beyond its limit."""
    with Treadle(sound) as app:
        app.enqueue_many(app.remote("nap").job() for _ in range(200))
    with psycopg.connect(sound, autocommit=True) as connection:
        connection.execute("DELETE FROM treadle.treadle_payloads; SELECT pg_stat_force_next_flush()")
        monkeypatch.setattr(about_server, "DEAD_LEAST", 100)
        until(lambda: look(sound)[1]["vacuum"]["level"] == "note", "the server's own count")
        assert "treadle_payloads: 200 dead rows" in look(sound)[1]["vacuum"]["text"]
    monkeypatch.setattr(about_server, "FULL_NOTE", 0)
    assert look(sound)[1]["connections"]["level"] == "note"
    monkeypatch.setattr(about_server, "FULL_MOST", 0)
    assert look(sound)[0] == 1


def test_a_wrong_clock_is_a_note(sound: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stored times are the server's, so it is no problem; a person should know all the same."""
    monkeypatch.setattr(about_server, "SKEW_MOST", -1)
    code, found = look(sound)
    assert (code, found["clock"]["level"]) == (0, "note")


def test_a_silent_worker_is_named(sound: str, tmp_path: Path) -> None:
    """A killed worker that nobody takes over from is a problem; a ready job without a worker too."""
    (tmp_path / "shop.py").write_text(APP)
    process = start("worker", "shop:app", "--store", sound, "--name", "anna", cwd=tmp_path)
    with Treadle(sound) as app:
        until(lambda: any(worker.alive for worker in app.workers()), "the worker")
        process.kill()
        process.communicate(timeout=60)
        app.remote("nap").enqueue()
        code, found = look(sound)
    assert code == 1
    assert "anna" in found["dead worker"]["text"]
    assert "no sign since" in found["dead worker"]["text"]
    assert found["ready jobs"]["level"] == "PROBLEM"
