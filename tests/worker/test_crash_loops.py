"""Jobs that kill their processes: found out, held with the reason, and nobody else pays."""

from __future__ import annotations

import signal
import sys
from collections import Counter
from pathlib import Path

import pytest

from faults.helpers import process
from treadle import AttemptOutcome, JobState, Treadle
from worker.isolated import TASKS, heard
from worker.kit import PATIENCE, change, eventually, every_job

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes as Linux has them")
MOST_DEATHS = 2


def work_until(app: Treadle, folder: Path, done: int) -> int:
    """Let worker processes work, one after the other as each dies, until *done* jobs have succeeded.

    Returns:
        How many died.
    """
    deaths = 0
    while True:
        with process("worker.isolated", f"worker-{deaths}", log=folder / "log") as worker:
            eventually(lambda one=worker: one.popen.poll() is not None or succeeded(app) >= done)  # type: ignore[misc]
            if worker.popen.poll() is None:
                eventually(lambda: not any(job.state is JobState.RUNNING for job in every_job(app)))
                worker.send(signal.SIGTERM)
                assert worker.finish() == 0, (folder / "log").read_text()
                return deaths
            assert worker.finish() == -signal.SIGKILL, (folder / "log").read_text()
            deaths += 1
            assert deaths <= MOST_DEATHS, "the workers die again and again"


def succeeded(app: Treadle) -> int:
    return app.counts().get("default", {}).get(JobState.SUCCEEDED, 0)


def test_promise_3_one_poison_and_99_innocents(shop: Treadle, tmp_path: Path) -> None:
    """At concurrency 10 a job that kills its worker is held after its own third crash; all the others are done."""
    act = TASKS["thread"]
    poison = act.enqueue("die", "SIGKILL")
    innocents = shop.enqueue_many(act.job("tarry", 0.01) for _ in range(99))
    deaths = work_until(shop, tmp_path, done=99)
    assert deaths == MOST_DEATHS
    counts = Counter(job.state for job in every_job(shop))
    assert counts == {JobState.SUCCEEDED: 99, JobState.HELD: 1}
    record = poison.record()
    assert (record.state, record.crashes, record.failures) == (JobState.HELD, 3, 0)
    assert record.reason is not None
    assert record.reason.startswith(
        "crash cap: its attempts ended with their process 3 times; the last time its process was killed by SIGKILL (9)"
    )
    assert [one.outcome for one in record.attempts] == [AttemptOutcome.CRASHED] * 3
    assert max(shop.get(job).crashes for job in innocents) <= 2


def test_a_suspect_runs_in_a_process_of_its_own(shop: Treadle, path: Path) -> None:
    """After two crashes even a task for threads is run in a child, one suspect at a time, beside all the others."""
    suspects = [TASKS["thread"].enqueue("wait", name) for name in ("one", "two")]
    suspects.append(TASKS["loop"].enqueue("wait", "three"))
    change(path, "UPDATE treadle_jobs SET crashes = 2")
    others = [TASKS["thread"].enqueue("pid") for _ in range(5)]
    pids = []
    with shop.worker(concurrency=3):
        ours = {job.result(PATIENCE) for job in others}
        for name, job in zip(("one", "two", "three"), suspects, strict=True):
            pids.append(int(heard(f"{name} begun")))
            later = [each.record() for each in suspects if each.id > job.id]
            assert not any((Path(path.parent) / f"{one} begun").exists() for one in ("two", "three")[job.id - 1 :])
            assert all(one.attempts == () for one in later)
            (Path(path.parent) / f"{name} go").touch()
            assert job.result(PATIENCE) == "went on"
    assert not ours & set(pids)


def test_a_cap_below_three_is_reached_by_own_crashes_only(shop: Treadle, path: Path) -> None:
    """With crashes=2 a job runs alone after its first crash already: a neighbour's death cannot hold it."""
    innocent = TASKS["twice"].enqueue("pid")
    guilty = TASKS["twice"].enqueue("die", "SIGSEGV")
    change(path, "UPDATE treadle_jobs SET crashes = 1")
    ours = TASKS["thread"].enqueue("pid")
    with shop.worker() as worker:
        assert innocent.result(PATIENCE) != ours.result(PATIENCE)
        eventually(lambda: guilty.record().state is JobState.HELD)
        assert worker.failure is None
    reason = guilty.record().reason
    assert reason is not None
    assert reason.startswith("crash cap: its attempts ended with their process 2 times; the last time its process was")


def test_a_held_job_has_its_crashes_again_when_it_is_retried(shop: Treadle) -> None:
    """A person has looked: the count starts anew, the history stays."""
    with shop.worker(concurrency=1):
        job = TASKS["fragile"].enqueue("die", "SIGKILL")
        eventually(lambda: job.record().state is JobState.HELD)
        job.retry(arguments={"what": "give", "value": 1})
        assert job.result(PATIENCE) == 1
    record = job.record()
    assert (record.crashes, record.reason) == (0, None)
    assert [one.outcome for one in record.attempts] == [AttemptOutcome.CRASHED, AttemptOutcome.SUCCEEDED]


def test_careful_work_is_held_when_its_worker_dies(shop: Treadle, tmp_path: Path) -> None:
    """on_crash="hold" holds the job although only its worker was killed; its neighbour runs again."""
    careful, plain = TASKS["careful"].enqueue("wait", "careful"), TASKS["thread"].enqueue("wait", "plain")
    with process("worker.isolated", "doomed", log=tmp_path / "log") as worker:
        heard("careful begun")
        heard("plain begun")
        worker.send(signal.SIGKILL)
        worker.finish()
    (tmp_path / "plain go").touch()
    with shop.worker():
        assert plain.result(PATIENCE) == "went on"
        eventually(lambda: careful.record().state is JobState.HELD)
    reason = careful.record().reason
    assert reason == 'outcome unknown: its process ended while it ran, and on_crash is "hold"'
