"""Whatever is stored, no command can harm the terminal it runs on; --json says the same, unharmed."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from faces.commands import as_json, environment, harmless, run
from treadle import Retry, Treadle, current_job

BAD = "\x1b[31m\x1b]52;c;aGFjaw==\x07\u202e\u2066\x9b2J\r\x00"
KEPT = BAD.replace("\x00", "\ufffd")
NAMED = BAD.replace("\x00", "")


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Path]:
    """A folder whose jobs.db has hostile text wherever text can be."""
    with Treadle(f"sqlite:///{tmp_path}/jobs.db") as app:

        @app.task(name="bad", retry=Retry(0))
        def bad(text: str) -> None:
            job = current_job()
            job.log(BAD)
            job.progress(0.5, BAD)
            raise ValueError(BAD)

        @app.task(name="good")
        def good(text: str) -> str:
            return text

        with app.worker(name=NAMED):
            app.wait([bad.using(tags=("vip",)).enqueue(NAMED), good.enqueue(NAMED)], timeout=30)
            app.cancel(good.using(delay=3600).enqueue(NAMED), BAD)
            app.pause(queue="mail", reason=BAD, by=BAD)
            app.pause(worker=app.workers()[0].slot, by=BAD)
            with closing(sqlite3.connect(tmp_path / "jobs.db", isolation_level=None)) as connection:
                connection.execute("INSERT INTO treadle_enqueue (task, queue) VALUES (?1, ?1)", (NAMED,))
                connection.execute("INSERT INTO treadle_pauses VALUES ('task', ?1, 1, ?1, ?1, 2)", (NAMED,))
            yield tmp_path


READS = (
    ("jobs", "list"), ("jobs", "show", "1"), ("jobs", "show", "2"), ("jobs", "show", "3"), ("jobs", "count"),
    ("queues", "list"), ("tasks", "list"), ("workers", "list"), ("logs",), ("logs", "1"), ("stats",), ("doctor",),
    ("verify",), ("compact", "--dry-run"), ("prune", "--dry-run"), ("jobs", "cancel", "--all", "--dry-run"),
)  # fmt: skip


@pytest.mark.parametrize("words", READS, ids=" ".join)
def test_reads_are_harmless(shop: Path, words: tuple[str, ...]) -> None:
    """Neither the text nor the JSON has a character that moves, reorders or hides anything."""
    code, text = run(*words, folder=shop)
    assert code in (0, 1)
    assert harmless(text)
    assert "\x1b" not in text
    _, printed = run(*words, "--json", folder=shop)
    assert harmless(printed)
    json.loads(printed)


def test_json_says_exactly_what_is_stored(shop: Path) -> None:
    """Names, reasons, messages, arguments and lines come out as they went in."""
    found = as_json("jobs", "show", "1", folder=shop)
    assert (found["attempts"][0]["message"], found["logs"][0]["text"]) == (KEPT, KEPT)
    assert found["arguments"] == {"text": NAMED}
    assert as_json("jobs", "show", "2", folder=shop)["result"] == NAMED
    assert as_json("jobs", "show", "3", folder=shop)["reason"] == KEPT
    queues = {one["name"]: one for one in as_json("queues", "list", folder=shop)["queues"]}
    assert NAMED in queues
    assert (queues["mail"]["paused"]["reason"], queues["mail"]["paused"]["paused_by"]) == (KEPT, KEPT)
    assert NAMED in {one["name"] for one in as_json("tasks", "list", folder=shop)["tasks"]}
    (worker,) = as_json("workers", "list", folder=shop)["workers"]
    assert (worker["name"], worker["ordered_by"]) == (NAMED, KEPT)


def test_errors_and_questions_are_harmless(shop: Path) -> None:
    """What a command repeats of its own words, or asks about a name, is shown escaped."""
    for words in (
        ("workers", "evict", NAMED), ("workers", "pause", BAD + "x"), ("queues", "resume", NAMED),
        ("tasks", "pause", "x\x07"), ("jobs", "cancel", "--queue", NAMED), ("jobs", "retry", "1", "--arguments", BAD),
        ("workers", "resume", NAMED),
    ):  # fmt: skip
        _, text = run(*words, folder=shop)
        assert harmless(text), words


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_narrow_terminal_shows_escapes(tmp_path: Path, encoding: str) -> None:
    """A terminal that lacks a letter gets its escape, not a traceback; JSON stays JSON."""
    with Treadle(f"sqlite:///{tmp_path}/jobs.db") as app:
        app.remote("Привет", queue="日本").enqueue(text="é")
    words = [sys.executable, "-m", "treadle", "jobs", "show", "1", "--store", "jobs.db"]
    for more in ([], ["--json"]):
        done = subprocess.run(
            [*words, *more], cwd=tmp_path, env=environment(PYTHONIOENCODING=encoding), capture_output=True, check=True,
            timeout=90, encoding="utf-8" if encoding == "ascii" else encoding,  # click takes ASCII for an oversight
        )  # fmt: skip
        assert done.stderr == ""
    assert json.loads(done.stdout)["queue"] == "日本"
