"""treadle queues, tasks and workers: boards, pauses and orders."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from faces.commands import as_json, run, start, typed, until
from treadle import JobState, Treadle

APP = "from treadle import Treadle\napp = Treadle()\n@app.task(name='nap', queue='mail')\ndef nap() -> None: ...\n"


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Treadle]:
    """A store in jobs.db with a ready job of queue mail and a cap on queue slow."""
    with Treadle(f"sqlite:///{tmp_path}/jobs.db") as made:
        made.queue("slow", max_length=7)
        made.remote("nap", queue="mail").enqueue()
        yield made


def named(rows: list[dict[str, object]]) -> dict[object, dict[str, object]]:
    """Rows of JSON by name."""
    return {row["name"]: row for row in rows}


# Queues and tasks -------------------------------------------------------------------------------


def test_the_board_of_queues(app: Treadle, tmp_path: Path) -> None:
    """Each queue that has jobs, a cap, a pause or a worker is listed with what matters."""
    app.pause(queue="held up", reason="a reason", by="ada")
    app.task(name="nap")(lambda: None)
    with app.worker(queues=["other"]):
        found = named(as_json("queues", "list", folder=tmp_path)["queues"])
        _, text = run("queues", "list", folder=tmp_path)
    assert set(found) == {"mail", "slow", "held up", "other"}
    assert found["mail"]["counts"] == {"ready": 1}
    assert datetime.fromisoformat(str(found["mail"]["oldest_ready_at"])).tzinfo == UTC
    assert (found["slow"]["max_length"], found["slow"]["when_full"]) == (7, "refuse")
    assert [found[name]["workers"] for name in ("mail", "other")] == [0, 1]
    paused = found["held up"]["paused"]
    assert isinstance(paused, dict)
    assert (paused["paused_by"], paused["reason"], paused["until"]) == ("ada", "a reason", None)
    assert "by ada since" in text
    assert "a reason" in text


def test_queues_are_paused_and_resumed(app: Treadle, tmp_path: Path) -> None:
    """A pause is stored with who, why and until when; resuming what was not paused is exit code 1."""
    words = ("--reason", "the provider is down", "--by", "ada", "--for", "2h")
    code, text = run("queues", "pause", "mail", "slow", *words, folder=tmp_path)
    assert (code, "queue mail is paused until" in text) == (0, True)
    first, second = app.pauses()
    assert (first.name, first.paused_by, first.reason) == ("mail", "ada", "the provider is down")
    assert first.until is not None
    assert timedelta(hours=1) < first.until - datetime.now(UTC) <= timedelta(hours=2)
    assert second.name == "slow"
    assert run("queues", "resume", "mail", folder=tmp_path) == (0, "queue mail goes on.\n")
    assert [one.name for one in app.pauses()] == ["slow"]
    code, text = run("queues", "resume", "mail", "slow", folder=tmp_path)
    assert (code, "mail was not paused" in text, "slow goes on" in text) == (1, True, True)
    assert app.pauses() == ()


def test_a_misspelt_name_is_noticed(app: Treadle, tmp_path: Path) -> None:
    """A name that nobody knows is paused all the same, because its jobs may come; but it is said."""
    code, text = run("queues", "pause", "mial", folder=tmp_path)
    assert (code, "is the name right?" in text) == (0, True)
    assert "is the name right?" not in run("tasks", "pause", "nap", folder=tmp_path)[1]


def test_tasks_are_paused_and_resumed(app: Treadle, tmp_path: Path) -> None:
    """Jobs of a paused task are blocked; the board shows them, who paused it, and how many workers know it."""
    app.task(name="other")(lambda: None)
    code, text = run("tasks", "pause", "nap", "--until", "2100-01-01", folder=tmp_path)
    assert (code, "until 2100-01-01T00:00:00" in text) == (0, True)
    with app.worker():
        found = named(as_json("tasks", "list", folder=tmp_path)["tasks"])
    assert found["nap"]["counts"] == {"blocked": 1}
    assert found["nap"]["paused"] is not None
    assert [found[name]["workers"] for name in ("nap", "other")] == [0, 1]
    assert "BLOCKED" in run("tasks", "list", folder=tmp_path)[1]
    assert run("tasks", "resume", "nap", folder=tmp_path)[0] == 0
    assert app.counts()["mail"] == {JobState.READY: 1}


@pytest.mark.parametrize(
    "words",
    [
        ("queues", "pause"), ("queues", "pause", "mail", "--for", "1h", "--until", "2100-01-01"),
        ("queues", "pause", "mail", "--for", "0"), ("queues", "pause", "mail", "--until", "2000-01-01"),
        ("queues", "pause", "mail", "--until", "soon"), ("queues", "pause", ""), ("tasks", "resume"),
        ("workers", "drain"),
    ],
)  # fmt: skip
def test_wrong_usage_pauses_nothing(app: Treadle, tmp_path: Path, words: tuple[str, ...]) -> None:
    """What cannot be meant is exit code 2."""
    assert run(*words, folder=tmp_path)[0] == 2
    assert app.pauses() == ()


def test_boards_of_an_empty_store(tmp_path: Path) -> None:
    """Without anything there is nothing to list, and that is said."""
    with Treadle(f"sqlite:///{tmp_path}/jobs.db") as app:
        app.counts()
    for board in ("queues", "tasks", "workers"):
        assert run(board, "list", folder=tmp_path) == (0, f"No {board}.\n")
        assert as_json(board, "list", folder=tmp_path) == {board: []}


# Workers ----------------------------------------------------------------------------------------


def test_workers_are_paused_and_resumed(app: Treadle, tmp_path: Path) -> None:
    """By name or by slot; the list shows the order and who gave it."""
    app.task(name="other")(lambda: None)
    with app.worker(name="anna"):
        (slot,) = [one.slot for one in app.workers()]
        assert run("workers", "pause", "anna", "--by", "ada", folder=tmp_path)[0] == 0
        (shown,) = as_json("workers", "list", folder=tmp_path)["workers"]
        assert (shown["orders"], shown["ordered_by"], shown["state"]) == ("pause", "ada", "alive")
        assert "pause by ada" in run("workers", "list", folder=tmp_path)[1]
        assert run("workers", "resume", slot, folder=tmp_path)[0] == 0
        assert [one.orders for one in app.workers()] == [None]
        code, text = run("workers", "pause", "nobody", folder=tmp_path)
        assert (code, "No worker 'nobody' is registered" in text) == (1, True)


def test_a_drained_worker_ends(app: Treadle, tmp_path: Path) -> None:
    """Drain lets a worker process end by itself with exit code 0; a drain cannot be taken back."""
    (tmp_path / "shop.py").write_text(APP)
    process = start("worker", "shop:app", "--store", "jobs.db", "--name", "anna", cwd=tmp_path)
    try:
        until(lambda: any(one.alive for one in app.workers()), "the worker")
        app.pause(queue="mail")
        code, text = run("workers", "drain", "anna", folder=tmp_path)
        assert (code, "worker anna" in text) == (0, True)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.communicate(timeout=60)


def test_a_drain_is_not_taken_back(app: Treadle, tmp_path: Path) -> None:
    """Resume refuses a worker that drains, because it ends all the same."""
    begun, done = threading.Event(), threading.Event()

    @app.task(name="nap")
    def nap() -> None:
        begun.set()
        done.wait(30)

    with app.worker(name="anna"):
        assert begun.wait(30)
        app.drain("anna")
        code, text = run("workers", "resume", "anna", folder=tmp_path)
        assert (code, "cannot be taken back" in text) == (1, True)
        done.set()


def test_a_dead_worker_gets_no_orders(app: Treadle, tmp_path: Path) -> None:
    """An order to a dead worker is refused: nobody would hear it."""
    (tmp_path / "shop.py").write_text(APP)
    process = start("worker", "shop:app", "--store", "jobs.db", "--name", "anna", cwd=tmp_path)
    until(lambda: any(one.alive for one in app.workers()), "the worker")
    process.kill()
    process.communicate(timeout=60)
    code, text = run("workers", "drain", "anna", folder=tmp_path)
    assert (code, "anna is dead" in text) == (1, True)
    assert as_json("workers", "list", folder=tmp_path)["workers"][0]["state"] == "dead"


def test_evicting_says_what_it_means_and_asks(app: Treadle, tmp_path: Path) -> None:
    """The warning names the worker and what it runs; without a yes nothing happens, with one its job is taken away."""
    begun, done = threading.Event(), threading.Event()

    @app.task(name="nap")
    def nap() -> None:
        begun.set()
        done.wait(30)

    with app.worker(name="anna") as worker:
        assert begun.wait(30)
        code, text = run("workers", "evict", "anna", folder=tmp_path)
        assert (code, "pass --yes" in text) == (2, True)
        assert "Worker anna (slot" in text
        assert "runs 1 job" in text
        assert "charged with a crash" in text
        assert run("workers", "evict", "anna", "--dry-run", folder=tmp_path)[0] == 0
        assert typed("n\n", "workers", "evict", "anna", "--store", "jobs.db", cwd=tmp_path).returncode == 1
        assert [one.running for one in app.workers()] == [1]
        code, text = run("workers", "evict", "anna", "--yes", "--reason", "it hangs", "--by", "ada", folder=tmp_path)
        assert (code, "1 job taken from it" in text) == (0, True)
        done.set()
        until(lambda: worker.failure is not None, "the worker to notice")
    attempt = app.get(1).attempts[0]  # until it notices, the worker may claim again
    assert (attempt.outcome, attempt.message) == ("crashed", "evicted: by ada: it hangs")
