"""treadle compact, prune and verify: the file itself."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from faces.commands import as_json, run, typed
from treadle import HeldClock, JobState, Retry, Treadle

NOW = datetime.now(UTC)


def outside(folder: Path, *statements: str) -> None:
    """Change the file as a person at the sqlite3 prompt would."""
    with closing(sqlite3.connect(folder / "jobs.db", isolation_level=None)) as connection:
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        for statement in statements:
            connection.execute(statement)


# Compact ----------------------------------------------------------------------------------------


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Treadle]:
    """A store of 2,000 jobs with 2 kB each, of which all but ten were deleted."""
    with Treadle(f"sqlite:///{tmp_path}/jobs.db") as app:
        ids = app.enqueue_many(app.remote("send").job(text="x" * 2000) for _ in range(2000))
        outside(tmp_path, f"DELETE FROM treadle_jobs WHERE id > {ids[9]}")
        yield app


def test_compact_gives_the_space_back(full: Treadle, tmp_path: Path) -> None:
    """The file becomes as small as what is in it, is the same file, and has the same jobs; open stores go on."""
    path = tmp_path / "jobs.db"
    before, jobs = path.stat(), full.find(size=500).jobs
    found = as_json("compact", folder=tmp_path)
    assert found["unused"] > 3_000_000
    assert found["done"]["complete"] is True
    assert found["done"]["before"] > 4_000_000 > 500_000 > found["done"]["after"]
    after = path.stat()
    assert (after.st_ino, after.st_dev) == (before.st_ino, before.st_dev)
    assert after.st_size + Path(f"{path}-wal").stat().st_size == found["done"]["after"]
    assert full.find(size=500).jobs == jobs
    job = full.remote("send").enqueue(text="after")
    assert job.id > jobs[0].id
    assert run("verify", folder=tmp_path)[0] == 0
    assert "before, " in run("compact", folder=tmp_path)[1]


def test_compact_dry_run_changes_nothing(full: Treadle, tmp_path: Path) -> None:
    """It says how much is unused and what is needed meanwhile."""
    before = (tmp_path / "jobs.db").stat().st_size
    code, text = run("compact", "--dry-run", folder=tmp_path)
    assert (code, "of them unused" in text, "Compacting needs" in text) == (0, True, True)
    assert as_json("compact", "--dry-run", folder=tmp_path)["done"] is None
    assert (tmp_path / "jobs.db").stat().st_size == before


def test_compact_asks_when_workers_live(full: Treadle, tmp_path: Path) -> None:
    """It names them, and refuses without a terminal; with --yes it is done beside them, and they go on."""
    task = full.task(name="other")(lambda: "done")
    with full.worker(name="anna"):
        code, text = run("compact", folder=tmp_path)
        assert (code, "1 live worker (anna)" in text, "pass --yes" in text) == (2, True, True)
        assert typed("n\n", "compact", "--store", "jobs.db", cwd=tmp_path).returncode == 1
        found = as_json("compact", "--yes", folder=tmp_path)
        assert found["live_workers"] == ["anna"]
        assert found["done"]["after"] < 1_000_000
        assert task.enqueue().result(timeout=30) == "done"


# Prune ------------------------------------------------------------------------------------------


@pytest.fixture
def old(tmp_path: Path) -> Iterator[Treadle]:
    """A store with a job that succeeded and one that failed 8 days ago, and one that was cancelled just now."""
    clock = HeldClock(NOW - timedelta(days=8))
    with Treadle(f"sqlite:///{tmp_path}/jobs.db", clock=clock) as app:

        @app.task(name="good")
        def good() -> None: ...

        @app.task(name="bad", retry=Retry(0))
        def bad() -> None:
            raise ValueError

        with app.worker():
            app.wait([good.enqueue(), bad.enqueue()], timeout=30)
        clock.advance(seconds=8 * 86_400)
        good.enqueue().cancel()
        yield app


def left(app: Treadle) -> set[JobState]:
    """The states of the jobs that are left."""
    return {job.state for job in app.find(size=500).jobs}


def test_prune_counts_first(old: Treadle, tmp_path: Path) -> None:
    """A dry run says what each state would lose; without --yes and a terminal nothing is deleted."""
    found = as_json("prune", "--dry-run", folder=tmp_path)
    assert [(row["state"], row["older_than"], row["jobs"]) for row in found["old"]] == [
        ("succeeded", 7 * 86_400, 1), ("failed", 90 * 86_400, 0), ("cancelled", 30 * 86_400, 0),
    ]  # fmt: skip
    code, text = run("prune", folder=tmp_path)
    assert (code, "Delete 1 job" in text, "pass --yes" in text) == (2, True, True)
    assert typed("n\n", "prune", "--store", "jobs.db", cwd=tmp_path).returncode == 1
    assert len(left(old)) == 3
    assert "1 job would be deleted" in run("prune", "--dry-run", folder=tmp_path)[1]


def test_prune_by_state_and_age(old: Treadle, tmp_path: Path) -> None:
    """Only the states that are named, and only what ended before."""
    assert as_json("prune", "--state", "failed", "--older-than", "9d", "--yes", folder=tmp_path)["deleted"] == 0
    assert as_json("prune", "--state", "failed", "--older-than", "7d", "--yes", folder=tmp_path)["deleted"] == 1
    assert left(old) == {JobState.SUCCEEDED, JobState.CANCELLED}
    assert as_json("prune", "--older-than", "0", "--yes", folder=tmp_path)["deleted"] == 2
    assert left(old) == set()


@pytest.mark.parametrize("words", [("--older-than", "7"), ("--state", "ready"), ("--older-than", "-1d")])
def test_prune_wrong_usage(old: Treadle, tmp_path: Path, words: tuple[str, ...]) -> None:
    """A bare number has no unit, and only ended jobs are pruned."""
    assert run("prune", *words, "--yes", folder=tmp_path)[0] == 2
    assert len(left(old)) == 3


# Verify -----------------------------------------------------------------------------------------


def test_a_sound_file_is_sound(old: Treadle, tmp_path: Path) -> None:
    """After work, a retry and a prune every check holds; the same is true of a backup copy."""
    run("jobs", "retry", "--state", "failed", "--yes", folder=tmp_path)
    run("prune", "--yes", folder=tmp_path)
    found = as_json("verify", folder=tmp_path)
    assert found["sound"] is True
    assert [check for check in found["checks"] if not check["sound"] or check["remedy"]] == []
    assert run("backup", str(tmp_path / "copy.db"), folder=tmp_path)[0] == 0
    assert run("verify", folder=tmp_path, store="copy.db")[0] == 0


def test_what_is_broken_is_named_with_its_remedy(old: Treadle, tmp_path: Path) -> None:
    """Exit code 1, the rule, which jobs, and what to do."""
    outside(tmp_path, "DELETE FROM treadle_payloads WHERE job_id = 1")
    code, text = run("verify", folder=tmp_path)
    assert code == 1
    assert "PROBLEM  arguments: jobs that have lost their arguments: 1 (1)" in text
    assert "-> Restore a backup" in text
    found = as_json("verify", folder=tmp_path)
    assert found["sound"] is False
    assert [check["check"] for check in found["checks"] if not check["sound"]] == ["arguments"]
