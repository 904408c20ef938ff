"""The operators' views: human words, plain SQL, other languages."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from store.making import PATIENCE, SECOND, apply, change, count, failure, get, job, put, register, state, success, take
from treadle.clock import SystemClock
from treadle.model.job import AttemptOutcome, JobState
from treadle.store.ops import find, workers
from treadle.store.options import StoreOptions
from treadle.store.store import Store

DAY = 86_400 * SECOND
VIEWS = ("job", "queue", "attempt", "stuck")
INSERT = "INSERT INTO treadle_enqueue (task, queue, priority, due_at, arguments) VALUES (?, ?, ?, ?, ?)"


@pytest.fixture
def live(path: Path) -> Iterator[Store]:
    """A store with the machine's own time, as the views ask SQLite for it."""
    opened = Store(f"sqlite:///{path}", StoreOptions(durability="normal"))
    yield opened
    opened.close()


@pytest.fixture
def sql(live: Store, path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that knows nothing of Treadle."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.row_factory = sqlite3.Row
        yield connection


def one(sql: sqlite3.Connection, text: str, *values: object) -> dict[str, Any]:
    """The single row of a query."""
    (row,) = sql.execute(text, values).fetchall()
    return dict(row)


def test_a_job_is_shown_in_words(live: Store, sql: sqlite3.Connection) -> None:
    """State as a word, times as text, JSON arguments as text."""
    (number,) = live.insert([job('{"to":"ädä"}'.encode(), queue="q", priority=3, due_at=1_700_000_000_250_000)])
    row = one(sql, "SELECT * FROM treadle_job_view WHERE id = ?", number)
    assert (row["state"], row["queue"], row["task"], row["priority"]) == ("ready", "q", "mail", 3)
    assert row["due_at"] == "2023-11-14 22:13:20.250"
    assert (row["codec"], row["arguments"]) == ("json", '{"to":"ädä"}')
    assert (row["started_at"], row["finished_at"], row["last_error"]) == (None, None, None)


def test_other_codecs_are_shown_in_hexadecimal(live: Store, sql: sqlite3.Connection) -> None:
    """Bytes nobody can read as text do not break the view."""
    live.insert([job(b"\x00\xff", codec="msgpack")])
    assert one(sql, "SELECT arguments FROM treadle_job_view")["arguments"] == "00FF"


def test_a_job_without_arguments_is_shown(live: Store, sql: sqlite3.Connection) -> None:
    """A payload row that is gone hides nothing."""
    put(live)
    sql.execute("DELETE FROM treadle_payloads")
    row = one(sql, "SELECT state, codec, arguments FROM treadle_job_view")
    assert (row["state"], row["codec"], row["arguments"] or None) == ("ready", None, None)


def test_every_state_has_its_word(live: Store, sql: sqlite3.Connection) -> None:
    """The words of the views are those of the code."""
    for number, each in zip(put(live, 9), JobState, strict=True):
        lease = number if each is JobState.RUNNING else None
        change(live, "UPDATE treadle_jobs SET state = ?, lease = ? WHERE id = ?", each.code, lease, number)
    words = [row["state"] for row in sql.execute("SELECT state FROM treadle_job_view ORDER BY id")]
    assert words == [each.value for each in JobState]
    assert {row["state"] for row in sql.execute("SELECT state FROM treadle_queue_view")} == set(words)


def test_the_last_error_is_the_latest(live: Store, sql: sqlite3.Connection) -> None:
    """Of several failures the newest message is shown."""
    put(live)
    for message in ("first", "last"):
        apply(live, failure(take(live)[0], due_at=0, message=message))
    assert one(sql, "SELECT last_error FROM treadle_job_view")["last_error"] == "last"


def test_status_counts_with_average_attempts(live: Store, sql: sqlite3.Connection) -> None:
    """How many jobs are in which state, and how many attempts they took on average."""
    put(live, 3)
    apply(live, *[failure(each, due_at=0) for each in take(live, 1)])
    apply(live, *[success(each) for each in take(live, 2)])
    rows = sql.execute("SELECT state, sum(jobs) AS jobs, avg(average_attempts) AS attempts FROM treadle_queue_view "
                       "GROUP BY state ORDER BY state").fetchall()  # fmt: skip
    assert [tuple(row) for row in rows] == [("ready", 1, 0.0), ("succeeded", 2, 1.5)]


def test_stuck_jobs_are_those_running_for_long(live: Store, sql: sqlite3.Connection) -> None:
    """Running for more than 300 s, with their worker and for how long."""
    register(live, 1, epoch=1)
    put(live, 2)
    old, _ = take(live)
    change(live, "UPDATE treadle_jobs SET started_at = started_at - ? WHERE id = ?", 400 * SECOND, old.id)
    row = one(sql, "SELECT * FROM treadle_stuck_view")
    assert (row["id"], row["task"], row["worker"]) == (old.id, "mail", "w1")
    assert 400 <= row["seconds"] < 400 + PATIENCE


def test_a_stuck_job_without_a_worker_is_shown(live: Store, sql: sqlite3.Connection) -> None:
    """A job whose worker's row is gone is stuck all the more."""
    put(live)
    take(live)
    change(live, "UPDATE treadle_jobs SET started_at = 0")
    assert one(sql, "SELECT worker FROM treadle_stuck_view")["worker"] is None


def test_attempts_are_shown_in_words(live: Store, sql: sqlite3.Connection) -> None:
    """Outcome, worker, duration and error of every attempt."""
    put(live)
    apply(live, failure(take(live)[0], due_at=0), worker="w3")
    row = one(sql, "SELECT * FROM treadle_attempt_view")
    assert (row["outcome"], row["worker"], row["seconds"], row["message"]) == ("failed", "w3", 1.0, "no")


def test_every_outcome_has_its_word(live: Store, sql: sqlite3.Connection) -> None:
    """The words of the view are those of the code."""
    (number,) = put(live)
    for each in AttemptOutcome:
        sql.execute(
            "INSERT INTO treadle_attempts (job_id, lease, attempt, worker, outcome, started_at, finished_at) "
            "VALUES (?, 1, 1, 'w', ?, 1, 2)",
            (number, each.code),
        )
    words = [row["outcome"] for row in sql.execute("SELECT outcome FROM treadle_attempt_view ORDER BY seq")]
    assert words == [each.value for each in AttemptOutcome]


def test_a_plain_update_bumps_the_priority(live: Store, sql: sqlite3.Connection) -> None:
    """The next claim takes the bumped job first."""
    made = put(live, 3)
    sql.execute("UPDATE treadle_jobs SET priority = 100 WHERE id = ?", (made[2],))
    assert take(live, 1)[0].id == made[2]


def test_a_plain_delete_of_old_jobs_takes_all_of_them_along(live: Store, sql: sqlite3.Connection) -> None:
    """Completed jobs older than 7 days go with arguments, results, history and tags."""
    put(live, 4, tags=("x",))
    apply(live, *[success(each, data=b"1") for each in take(live, 3)])
    sql.execute("UPDATE treadle_jobs SET finished_at = finished_at - ? WHERE id <= 2", (8 * DAY,))
    old = "DELETE FROM treadle_jobs WHERE state = 7 AND finished_at < (strftime('%s', 'now') - 7 * 86400) * 1000000"
    assert sql.execute(old).rowcount == 2
    left = {name: count(live, f"treadle_{name}") for name in ("jobs", "payloads", "results", "attempts", "tags")}
    assert left == {"jobs": 2, "payloads": 2, "results": 1, "attempts": 1, "tags": 2}


def test_deleting_everything_leaves_nothing(live: Store, sql: sqlite3.Connection) -> None:
    """Even a DELETE without WHERE takes the other tables along."""
    put(live, 5, tags=("x",))
    sql.execute("DELETE FROM treadle_jobs")
    assert count(live, "treadle_payloads") == count(live, "treadle_tags") == 0


@pytest.mark.parametrize("view", VIEWS)
def test_views_cannot_be_written(sql: sqlite3.Connection, view: str) -> None:
    """A slip of the hand in a view changes nothing."""
    with pytest.raises(sqlite3.OperationalError, match="view"):
        sql.execute(f"DELETE FROM treadle_{view}_view")


# --- enqueueing from other languages ----------------------------------------------------------------


def test_an_inserted_job_can_be_claimed(live: Store, sql: sqlite3.Connection) -> None:
    """One INSERT is one job, with its arguments as JSON."""
    sql.execute(INSERT, ("mail", "q", 7, None, '{"to":"ädä"}'))
    (found,) = take(live)
    assert (found.task, found.queue, found.priority, found.codec) == ("mail", "q", 7, "json")
    assert json.loads(found.data or b"") == {"to": "ädä"}


def test_only_the_task_has_to_be_given(live: Store, sql: sqlite3.Connection) -> None:
    """Queue, priority, moment and arguments have their defaults."""
    sql.execute("INSERT INTO treadle_enqueue (task) VALUES ('mail')")
    (found,) = take(live)
    assert (found.queue, found.priority, found.data) == ("default", 0, b"{}")
    assert abs(found.due_at - SystemClock().now()) < PATIENCE * SECOND


def test_a_later_moment_is_scheduled(live: Store, sql: sqlite3.Connection) -> None:
    """A job due in the future waits for it."""
    due_at = SystemClock().now() + 3600 * SECOND
    sql.execute(INSERT, ("mail", None, None, due_at, None))
    assert take(live) == []
    record = live.read(partial(find.find, which=find.JobFilter(), before=None, most=1)).jobs[0]
    assert record.state is JobState.SCHEDULED


def test_a_job_without_a_task_is_refused(live: Store, sql: sqlite3.Connection) -> None:
    """The tables refuse it, and nothing is left behind."""
    with pytest.raises(sqlite3.IntegrityError):
        sql.execute(INSERT, (None, "q", 0, None, "{}"))
    assert count(live, "treadle_jobs") == count(live, "treadle_payloads") == 0


def test_many_rows_in_one_statement_are_many_jobs(live: Store, sql: sqlite3.Connection) -> None:
    """Each row gets an id of its own."""
    sql.execute("INSERT INTO treadle_enqueue (task, arguments) SELECT 'mail', value FROM json_each('[1,2,3]')")
    assert [each.data for each in take(live)] == [b"1", b"2", b"3"]


def test_ids_of_others_never_collide_with_ours(live: Store, sql: sqlite3.Connection) -> None:
    """However both sides take turns, every job has its own id."""
    for size in (1, 3, 20, 1, 100):
        put(live, size)
        for _ in range(size):
            sql.execute("INSERT INTO treadle_enqueue (task) VALUES ('mail')")
    assert count(live, "treadle_jobs") == 250
    assert len(take(live, 500)) == 250


def test_a_rolled_back_insert_is_gone(live: Store, sql: sqlite3.Connection) -> None:
    """It shares the fate of the transaction it stands in."""
    sql.execute("BEGIN")
    sql.execute("INSERT INTO treadle_enqueue (task) VALUES ('mail')")
    sql.execute("ROLLBACK")
    assert take(live) == []
    assert state(live, *put(live)) is JobState.READY


def test_the_shell_can_enqueue(live: Store, path: Path) -> None:
    """The recipe works from the sqlite3 command line, where there is one."""
    shell = shutil.which("sqlite3")
    if shell is None:
        pytest.skip("there is no sqlite3 shell here")
    text = "INSERT INTO treadle_enqueue (task, queue, priority, due_at, arguments) VALUES ('mail','q',1,0,'[1]');"
    subprocess.run([shell, os.fspath(path), text], check=True, timeout=PATIENCE, capture_output=True)
    (found,) = take(live)
    assert (found.queue, found.data) == ("q", b"[1]")
    assert get(live, found.id).due_at.year == 1970


def test_a_worker_is_shown_with_what_it_runs(live: Store, sql: sqlite3.Connection) -> None:
    """The stuck view joins on the worker's registration, not on its slot."""
    register(live, 1, epoch=5)
    put(live)
    take(live, epoch=4)
    change(live, "UPDATE treadle_jobs SET started_at = 0")
    assert one(sql, "SELECT worker FROM treadle_stuck_view")["worker"] is None
    assert live.read(workers.every)[0].running == 0
