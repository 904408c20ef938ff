"""An operator gets the same answers from the documented SQL as from the command line."""

from __future__ import annotations

import json
import re
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

import postgres
from faces.commands import as_json, run
from treadle import HeldClock, Retry, Treadle, current_job

PAGE = (Path(__file__).parents[2] / "docs" / "other-languages.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```sql\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ELSEWHERE = re.findall(r"^\| `([^`]*)` \| `([^`]*)` \|$", PAGE.partition("## On PostgreSQL")[2], re.MULTILINE)
"""What the page says is written otherwise on PostgreSQL."""
OLD = 700
"""More than the documented DELETE takes at once."""


def documented(beginning: str) -> str:
    """The one statement of the page that begins so."""
    texts = [re.sub(r"^--.*\n", "", text, flags=re.MULTILINE) for text in BLOCK.findall(PAGE)]
    found = [one.strip() for text in texts for one in text.split(";") if one.strip().startswith(beginning)]
    assert len(found) == 1, f"{len(found)} statements begin with {beginning!r}"
    return found[0]


def asked(folder: Path, sql: str, store: str = "jobs.db") -> list[dict[str, Any]]:
    """What a plain connection gets for a query."""
    if "://" in store:
        for here, there in ELSEWHERE:
            sql = sql.replace(here, there)
        with psycopg.connect(store, options="-c search_path=treadle", row_factory=dict_row) as server:
            return server.execute(sql.encode()).fetchall()
    with closing(sqlite3.connect(folder / store, isolation_level=None)) as connection:
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        return [dict(row) for row in connection.execute(sql)]


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Path]:
    """A folder whose jobs.db has old and new jobs in every state an operator meets, one of which is stuck."""
    with filled(f"sqlite:///{tmp_path}/jobs.db"):
        yield tmp_path


@pytest.fixture(params=["jobs.db", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The same jobs in the file jobs.db, and on PostgreSQL."""
    if request.param == "jobs.db":
        with filled(f"sqlite:///{tmp_path}/jobs.db"):
            yield request.param
        return
    with postgres.database() as url, filled(url):
        yield url


@contextmanager
def filled(url: str) -> Iterator[None]:
    """A store with jobs, while one of them runs."""
    now = datetime.now(UTC)
    clock = HeldClock(now - timedelta(days=8))
    with Treadle(url, clock=clock) as app:
        stuck, end = threading.Event(), threading.Event()

        @app.task(name="mail.send", queue="mail", retry=Retry(2, backoff=(60,)))
        def send(to: str) -> str:
            current_job().log(f"to {to}")
            if to == "nobody":
                raise ValueError("no such address")
            return to

        @app.task(name="mail.bounce", queue="mail", retry=Retry(0))
        def bounce() -> None:
            raise LookupError("gone")

        @app.task(name="nap", queue="slow")
        def nap() -> None:
            stuck.set()
            end.wait(60)

        try:
            with app.worker(name="anna"):
                app.wait(app.enqueue_many(send.job("ada") for _ in range(OLD)), timeout=60)
                app.wait([bounce.enqueue()], timeout=30)
                clock.advance(seconds=2 * 86_400)
                app.wait([send.enqueue("bob"), bounce.enqueue()], timeout=30)
                _move_to(clock, now - timedelta(minutes=10))
                nap.enqueue()
                assert stuck.wait(30)
                _move_to(clock, now)
                app.wait([send.enqueue("eve")], timeout=30)
                app.remote("unknown", queue="mail").enqueue()
                app.pause(queue="mail", reason="a reason", by="ada")
                send.enqueue("later")
                send.using(delay=3600, priority=5).enqueue("much later")
                app.cancel(send.using(delay=60).enqueue("x"), "not wanted")
                yield
                end.set()
        finally:
            end.set()


def _move_to(clock: HeldClock, moment: datetime) -> None:
    clock.advance(seconds=moment.timestamp() - clock.now() / 1_000_000)


def test_scenario_000_c_cli_and_sql_views_give_equal_answers(store: str, tmp_path: Path) -> None:
    """Counts and average attempts by state, what is stuck, each job, its attempts, its logs, the pauses."""
    said, ask = partial(as_json, folder=tmp_path, store=store), partial(asked, tmp_path, store=store)
    rows = ask(documented("SELECT queue, state, jobs, average_attempts FROM treadle_queue_view"))
    assert len(rows) >= 6
    key = ("queue", "state")
    assert ordered(said("stats")["states"], key) == ordered(rows, key)

    rows = ask(documented("SELECT id, task, worker, seconds FROM treadle_stuck_view"))
    found = said("jobs", "list", "--state", "running", "--started-before", "5m")["jobs"]
    assert [(job["id"], job["task"], job["worker"]) for job in found] == [
        (row["id"], row["task"], row["worker"]) for row in rows
    ]
    assert [row["worker"] for row in rows] == ["anna"]

    for row in ask("SELECT * FROM treadle_job_view WHERE id > (SELECT max(id) - 8 FROM treadle_jobs)"):
        job = said("jobs", "show", row["id"])
        assert exact(comparable(job)) == comparable(row)
        assert attempts_of(job) == ask(
            f"SELECT seq, attempt, worker, lease, outcome, error_type, message FROM treadle_attempt_view"
            f" WHERE job_id = {row['id']} ORDER BY seq"
        )

    lines = said("logs", "-n", "5")["lines"]
    columns = "seq, job_id, lease, level, source, text"
    newest = ask(f"SELECT {columns} FROM treadle_log_view ORDER BY seq DESC LIMIT 5")
    assert [{name: line[name] for name in newest[0]} for line in lines] == newest[::-1]
    pauses = ask("SELECT kind, name, paused_by, reason FROM treadle_pause_view")
    assert [{name: pause[name] for name in pauses[0]} for pause in said("stats")["pauses"]] == pauses


def test_scenario_000_c_cli_and_sql_find_the_same_failed_and_held_jobs(store: str, tmp_path: Path) -> None:
    """What failed since midnight and what waits for a person are the same jobs either way."""
    said, ask = partial(as_json, folder=tmp_path, store=store), partial(asked, tmp_path, store=store)
    rows = ask(documented("SELECT id, task, last_error FROM treadle_job_view WHERE state = 'failed'"))
    midnight = datetime.now(UTC).date().isoformat()
    found = said("jobs", "list", "--state", "failed", "--ended-after", midnight)["jobs"]
    assert sorted(row["id"] for row in rows) == sorted(job["id"] for job in found)
    rows = ask(documented("SELECT id, task, reason FROM treadle_job_view WHERE state = 'held'"))
    found = said("jobs", "list", "--state", "held")["jobs"]
    assert [(row["id"], row["reason"]) for row in rows] == [(job["id"], job["reason"]) for job in found]


def test_every_view_has_the_same_columns_on_both(tmp_path: Path) -> None:
    """Those that the page promises, in the same order."""
    with postgres.database() as url, Treadle(url) as app, Treadle(f"sqlite:///{tmp_path}/jobs.db") as other:
        app.counts(), other.counts()  # the first use makes the tables
        for view, columns in re.findall(r"^\| `(treadle_\w+_view)` \| ([^:|]+)", PAGE, re.MULTILINE):
            wanted = [column.strip() for column in columns.split(",")]
            with psycopg.connect(url, options="-c search_path=treadle") as server:
                there = server.execute(f"SELECT * FROM {view} LIMIT 0".encode()).description
            with closing(sqlite3.connect(tmp_path / "jobs.db")) as file:
                here = file.execute(f"SELECT * FROM {view} LIMIT 0").description
            assert [column.name for column in there or ()] == [column[0] for column in here] == wanted


def test_scenario_000_c_a_priority_bump_is_the_same_by_cli_and_sql(shop: Path) -> None:
    """The documented UPDATE and 'jobs priority' leave two copies of one file with the same jobs."""
    by_sql, by_cli = copies(shop)
    asked(shop, documented("UPDATE treadle_jobs SET priority"), by_sql)
    which = ("--task", "mail.send", "--state", "scheduled", "--state", "ready")
    done = as_json("jobs", "priority", "--to", "10", *which, "--yes", folder=shop, store=by_cli)
    assert done["changed"] == len(asked(shop, "SELECT 1 FROM treadle_job_view WHERE priority = 10", by_sql)) == 2
    assert everything(shop, by_sql) == everything(shop, by_cli)


def test_scenario_000_c_a_seven_day_cleanup_is_the_same_by_cli_and_sql(shop: Path) -> None:
    """The documented DELETE, repeated until nothing is left, and 'prune' leave the same jobs and the same history."""
    by_sql, by_cli = copies(shop)
    delete, counting = documented("DELETE FROM treadle_jobs WHERE id IN"), "SELECT count(*) AS jobs FROM treadle_jobs"
    before = asked(shop, counting, by_sql)[0]["jobs"]
    deleted = -1
    while deleted:
        earlier = asked(shop, counting, by_sql)[0]["jobs"]
        asked(shop, delete, by_sql)
        deleted = earlier - asked(shop, counting, by_sql)[0]["jobs"]
    words = ("prune", "--state", "succeeded", "--older-than", "7d")
    dry = as_json(*words, "--dry-run", folder=shop, store=by_cli)
    done = as_json(*words, "--yes", folder=shop, store=by_cli)
    assert dry["old"][0]["jobs"] == done["deleted"] == OLD == before - asked(shop, counting, by_sql)[0]["jobs"]
    assert everything(shop, by_sql) == everything(shop, by_cli)
    assert run("verify", folder=shop, store=by_sql)[0] == 0


def copies(shop: Path) -> tuple[str, str]:
    """Two copies of jobs.db that can be worked on."""
    for name in ("sql.db", "cli.db"):
        assert run("backup", str(shop / name), folder=shop)[0] == 0
        assert run("adopt", folder=shop, store=name)[0] == 0
    return "sql.db", "cli.db"


def everything(shop: Path, store: str) -> list[list[dict[str, Any]]]:
    """Every row of the public views."""
    views = ("job", "attempt", "log", "pause", "queue")
    found = [asked(shop, f"SELECT * FROM treadle_{view}_view ORDER BY 1, 2", store) for view in views]
    for row in found[1]:
        row["finished_at"] = row["seconds"] = None  # of what ran when the copy was made: when it was adopted
    return found


def ordered(rows: list[dict[str, Any]], key: tuple[str, ...]) -> list[dict[str, Any]]:
    """Rows in an order of their own."""
    return sorted(rows, key=lambda row: tuple(str(row[name]) for name in key))


def attempts_of(job: dict[str, Any]) -> list[dict[str, Any]]:
    """What the command says of a job's attempts, with the columns that are asked of the view."""
    names = ("seq", "attempt", "worker", "lease", "outcome", "error_type", "message")
    return [{name: one[name] for name in names} for one in job["attempts"]]


def comparable(row: dict[str, Any]) -> dict[str, Any]:
    """A job as both ways show it: JSON arguments read, times to the millisecond, however that was rounded."""
    names = ("id", "queue", "task", "state", "priority", "attempt", "failures", "crashes", "reason", "codec")
    found = {name: row[name] for name in (*names, "cancel_reason")}
    arguments = row["arguments"]
    found["arguments"] = json.loads(arguments) if isinstance(arguments, str) else arguments
    for name in ("due_at", "enqueued_at", "started_at", "finished_at", "expires_at"):
        text = row[name]
        found[name] = None if text is None else pytest.approx(_milliseconds(datetime.fromisoformat(text)), abs=1)
    return found


def exact(row: dict[str, Any]) -> dict[str, Any]:
    """One side of a comparison: its times as numbers."""
    return {name: getattr(value, "expected", value) for name, value in row.items()}


def _milliseconds(moment: datetime) -> float:
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000
