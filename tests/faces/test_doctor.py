"""doctor names what is wrong, with a remedy, and is quiet when nothing is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from faces.commands import start, treadle, until
from treadle import Treadle
from treadle.cli import main
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
