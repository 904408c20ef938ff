"""The promises of the design under kill -9, SIGSTOP and bad rows; the full size is ``python3 dev.py chaos``."""

from __future__ import annotations

import ast
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from faults.helpers import eventually, outsider, process, stop_at_rest
from faults.stage import Stage, build
from treadle import AttemptOutcome, JobRecord, JobState

CHAOS = Path(__file__).with_name("chaos.py")


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    """An app on a fresh file; the test itself runs no worker unless it says so."""
    made = build(tmp_path)
    yield made
    made.app.close()


def chaos(*words: str) -> str:
    """Run the chaos program and return what it printed; the seed is in it."""
    ended = subprocess.run([sys.executable, CHAOS, *words], capture_output=True, text=True, timeout=280, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def outcomes(found: JobRecord) -> list[AttemptOutcome]:
    return [attempt.outcome for attempt in found.attempts]


@pytest.mark.timeout(300)
def test_promise_2_at_most_one_accepted_outcome_per_attempt() -> None:
    """200 kills of workers and producers, with stops, locks and checkpoints: nothing lost, stale or twice."""
    told = chaos("--kills", "200", "--seconds", "120")
    kills = re.search(r"kills (\d+)", told)
    assert kills is not None, told
    assert int(kills[1]) >= 100, told


@pytest.mark.timeout(300)
def test_everything_at_once() -> None:
    """Children, bulk verbs, pauses, expiry, retries, evictions, recycling and kills together: every promise holds."""
    told = chaos("--scenario", "mixture", "--seconds", "9")
    for deed in ("kill", "evict", "drain", "cancel", "retry", "bulk", "shuffle", "pause", "expire", "waste"):
        assert re.search(rf"\b{deed} \d", told), told


@pytest.mark.timeout(300)
def test_scenario_004_c_durable_enqueue() -> None:
    """A producer killed right after enqueue returned: every acknowledged job is there (full size: 1000 rounds)."""
    assert "kills 30 " in chaos("--scenario", "durable-enqueue", "--rounds", "30")


def test_promise_1_accepted_is_durable(stage: Stage, tmp_path: Path) -> None:
    """What any form of enqueue acknowledged survives the SIGKILL that follows; an open transaction does not."""
    with process("faults.stage", "vanish", tmp_path, log=tmp_path / "log") as victim:
        assert victim.finish() == -signal.SIGKILL
    ids = ast.literal_eval((tmp_path / "log").read_text())
    with outsider(stage.app.store.path) as connection:
        found = [row[0] for row in connection.execute("SELECT id FROM treadle_jobs ORDER BY id")]
        (level,) = connection.execute("PRAGMA integrity_check").fetchone()
    assert found == sorted(ids)
    assert level == "ok"


def test_promise_4_killed_worker_is_rescued(stage: Stage, tmp_path: Path) -> None:
    """After kill -9 another worker runs the job again; the crash is in its history and spends no retry."""
    job = stage.wait.enqueue(name="go on")
    with process("faults.stage", "worker", tmp_path, "first", log=tmp_path / "log") as first:
        eventually(lambda: stage.starts(job.id), "the first worker runs the job")
        with process("faults.stage", "worker", tmp_path, "second", log=tmp_path / "log") as second:
            eventually(lambda: len(stage.app.workers()) == 2, "the second worker is there")
            first.kill()
            eventually(lambda: len(stage.starts(job.id)) == 2, "the second worker runs the job")
            (tmp_path / "go on").touch()
            assert job.result(60) == second.pid
    found = job.record()
    assert outcomes(found) == [AttemptOutcome.CRASHED, AttemptOutcome.SUCCEEDED]
    assert (found.attempts[0].worker, found.crashes, found.failures) == ("first", 1, 0)


def test_promise_4_stopped_worker_keeps_its_jobs(stage: Stage, tmp_path: Path) -> None:
    """SIGSTOP is not death: while another worker looks for dead ones, the job stays and ends after SIGCONT."""
    job = stage.wait.enqueue(name="go on")
    with process("faults.stage", "worker", tmp_path, "first", log=tmp_path / "log") as first:
        eventually(lambda: stage.starts(job.id), "the first worker runs the job")
        stop_at_rest(first, stage.app.store.path)
        with process("faults.stage", "worker", tmp_path, "second", log=tmp_path / "log"):
            two_beats(stage, "second")
            (tmp_path / "go on").touch()
            assert job.record().state is JobState.RUNNING
            first.send(signal.SIGCONT)
            assert job.result(60) == first.pid
    assert outcomes(job.record()) == [AttemptOutcome.SUCCEEDED]
    assert len(stage.starts(job.id)) == 1


def test_promise_4_blocked_loop_is_not_death(stage: Stage, tmp_path: Path) -> None:
    """An async job that blocks its event loop keeps its worker alive in the eyes of others."""
    job = stage.block.enqueue(name="go on")
    with process("faults.stage", "worker", tmp_path, "first", log=tmp_path / "log") as first:
        eventually(lambda: stage.starts(job.id), "the first worker runs the job")
        with process("faults.stage", "worker", tmp_path, "second", log=tmp_path / "log"):
            two_beats(stage, "second")
            two_beats(stage, "first")
            (tmp_path / "go on").touch()
            assert job.result(60) == first.pid
    assert outcomes(job.record()) == [AttemptOutcome.SUCCEEDED]
    assert len(stage.starts(job.id)) == 1


def test_scenario_000_b_poison_head(stage: Stage) -> None:
    """A corrupt row at the head of the queue is held with the decode error; the 500 jobs behind it all run."""
    ids = stage.app.enqueue_many(stage.quick.job(number=number) for number in range(500))
    broken = insert_raw(stage, "quick", '{"number": oops')
    with stage.app.worker():
        states = stage.app.wait(ids, timeout=60)
        found = eventually(lambda: held(stage, broken), "the broken job is held")
    assert set(states.values()) == {JobState.SUCCEEDED}
    assert found.reason is not None
    assert found.reason.startswith("undecodable: ")
    assert (found.failures, found.crashes) == (0, 0)
    assert stage.starts(broken) == []


@pytest.mark.parametrize("arguments", ['{"number": "seven"}', '{"wrong": 1}', "{}"])
def test_promise_5_changed_signature_is_held(stage: Stage, arguments: str) -> None:
    """Arguments that do not fit today's function hold the job, spend nothing and run no handler."""
    odd = insert_raw(stage, "quick", arguments)
    with stage.app.worker():
        found = eventually(lambda: held(stage, odd), "the job is held")
        assert stage.quick.enqueue(number=1).result(60) == 1
    assert found.reason
    assert (found.failures, found.crashes, stage.starts(odd)) == (0, 0, [])


def test_promise_5_unknown_task_is_held_and_freed(stage: Stage, tmp_path: Path) -> None:
    """A task no live worker knows is held with the reason, and runs once a worker that knows it registers."""
    job = stage.app.remote("added").enqueue(number=3)
    with stage.app.worker():
        found = eventually(lambda: held(stage, job.id), "the job is held")
        assert found.reason is not None
        assert "'added'" in found.reason
        assert found.attempt == 0
        with process("faults.stage", "worker", tmp_path, "newer", "new", log=tmp_path / "log"):
            assert job.result(60) == 3
    assert outcomes(job.record()) == [AttemptOutcome.SUCCEEDED]


def test_promise_5_missing_arguments_are_held(stage: Stage) -> None:
    """A job whose payload row is gone is held, not run and not dropped."""
    job = stage.quick.enqueue(number=1)
    with outsider(stage.app.store.path) as connection:
        connection.execute("DELETE FROM treadle_payloads WHERE job_id = ?", (job.id,))
    with stage.app.worker():
        found = eventually(lambda: held(stage, job.id), "the job is held")
    assert found.reason


def held(stage: Stage, job: int) -> JobRecord | None:
    """The job's record once it is held."""
    found = stage.app.get(job)
    return found if found.state is JobState.HELD else None


def insert_raw(stage: Stage, task: str, arguments: str) -> int:
    """Store a job at the head of the queue by plain SQL, as another program may."""
    with outsider(stage.app.store.path) as connection:
        connection.execute(
            "INSERT INTO treadle_enqueue (task, priority, arguments) VALUES (?, 100, ?)", (task, arguments)
        )
        return int(connection.execute("SELECT max(id) FROM treadle_jobs").fetchone()[0])


def two_beats(stage: Stage, name: str) -> None:
    """Wait until the worker *name* has shown two signs of life more: between them it looked for dead ones often."""
    eventually(lambda: seen(stage, name), f"{name} is registered")
    for _ in range(2):
        before = seen(stage, name)
        eventually(lambda last=before: seen(stage, name) > last, f"a beat of {name}")  # type: ignore[misc]


def seen(stage: Stage, name: str) -> float:
    return max((one.seen_at.timestamp() for one in stage.app.workers() if one.name == name), default=0.0)


