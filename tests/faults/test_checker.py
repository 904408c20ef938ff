"""The history checker sees every kind of broken promise, in made-up histories and in an unfenced copy."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import treadle
from faults.checker import CRASHED, OK, AttemptRow, History, JobRow, check, read_database
from faults.helpers import PATIENCE
from faults.ledger import Ledger, Record, read_all

TESTS = Path(__file__).parents[1]
UNFENCED = '''

def _succeed(session: Session, ended: list[Transition], worker: str) -> set[int]:
    for one in ended:
        session.change(
            "INSERT INTO treadle_attempts (job_id, lease, attempt, worker, outcome, started_at, finished_at) "
            "SELECT id, :lease, attempt, :worker, 1, :began, :now FROM treadle_jobs WHERE id = :job",
            {"lease": one.lease, "worker": worker, "began": one.started_at, "now": one.finished_at, "job": one.job_id},
        )
        session.change(
            "UPDATE treadle_jobs SET state = 7, lease = NULL, finished_at = :now WHERE id = :job",
            {"now": one.finished_at, "job": one.job_id},
        )
    return set()
'''


def record(kind: str, at: int, **facts: Any) -> Record:
    return {"kind": kind, "at": at, "wall": at, "pid": facts.pop("pid", 1), **facts}


def ran(at: int, lease: int, attempt: int = 1, job: int = 1, pid: int = 1) -> list[Record]:
    return [record(kind, when, job=job, lease=lease, attempt=attempt, pid=pid)
            for kind, when in (("start", at), ("end", at + 5))]  # fmt: skip


GOOD_LEDGER = [
    record("intent", 1, token="t", count=1), record("ack", 2, token="t", ids=[1]),
    record("start", 10, job=1, lease=11, attempt=1, pid=7), record("checkpoint", 11, job=1, value=1, pid=7),
    record("kill", 12, victim=7),
    *ran(20, lease=22, attempt=2), record("resumed", 21, job=1, value=1), record("follow", 22, lease=22, token="f"),
    *ran(30, lease=23, job=2),
]  # fmt: skip
GOOD_JOBS = [JobRow(1, 7, 2, 1, None, "t", 0), JobRow(2, 7, 1, 0, None, "f", 0)]
GOOD_ROWS = [AttemptRow(1, 1, 11, 1, "w7", CRASHED, 13), AttemptRow(2, 1, 22, 2, "w1", OK, 25),
             AttemptRow(3, 2, 23, 1, "w1", OK, 35)]  # fmt: skip


def checks(ledger: list[Record], jobs: list[JobRow], rows: list[AttemptRow], **how: bool) -> set[str]:
    return {anomaly.check for anomaly in check(History(ledger, jobs, rows, **how))}


def test_a_good_history_has_no_anomaly() -> None:
    """A job that crashed once, resumed, succeeded and enqueued a follow-up is no anomaly."""
    assert checks(GOOD_LEDGER, GOOD_JOBS, GOOD_ROWS) == set()


@pytest.mark.parametrize(
    ("jobs", "expected"),
    [
        ([GOOD_JOBS[1]], "accepted_lost"),
        ([GOOD_JOBS[0]._replace(token="other"), GOOD_JOBS[1]], "accepted_lost"),
        ([GOOD_JOBS[0]], "follow_up"),
        ([*GOOD_JOBS, JobRow(3, 6, 0, 0, None, "t", 1)], "forgotten"),
        ([*GOOD_JOBS, JobRow(3, 3, 0, 0, None, "t", 1)], "forgotten"),
        ([*GOOD_JOBS, JobRow(3, 6, 0, 0, "why", "t", 1)], "half_a_batch"),
        ([*GOOD_JOBS, JobRow(3, 6, 0, 0, "why", "nobody's", 0)], "unexpected"),
        ([*GOOD_JOBS, JobRow(3, 6, 0, 0, "why", "t", 0)], "unexpected"),
        ([GOOD_JOBS[0]._replace(state=8), GOOD_JOBS[1]], "history_disagrees"),
        ([GOOD_JOBS[0]._replace(attempt=1), GOOD_JOBS[1]], "history_disagrees"),
    ],
)
def test_a_wrong_job_row_is_seen(jobs: list[JobRow], expected: str) -> None:
    """A lost, forgotten, doubled or unexplained job is an anomaly."""
    assert expected in checks(GOOD_LEDGER, jobs, GOOD_ROWS)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([*GOOD_ROWS, AttemptRow(4, 1, 11, 1, "w7", OK, 40)], "stale_accepted"),
        ([*GOOD_ROWS, AttemptRow(4, 1, 11, 3, "w7", OK, 40)], "finished_twice"),
        ([GOOD_ROWS[1], GOOD_ROWS[0]._replace(seq=4), GOOD_ROWS[2]], "stale_accepted"),
        ([GOOD_ROWS[0]._replace(outcome=OK), *GOOD_ROWS[2:]], "stale_accepted"),
        ([GOOD_ROWS[0]._replace(finished_at=11), *GOOD_ROWS[1:]], "rescued_alive"),
        ([GOOD_ROWS[0]._replace(worker="w8"), *GOOD_ROWS[1:]], "rescued_alive"),
        (GOOD_ROWS[1:], "left_no_row"),
        ([*GOOD_ROWS, AttemptRow(4, 2, 99, 2, "w1", 2, 40)], "history_disagrees"),
        ([GOOD_ROWS[0], GOOD_ROWS[1]._replace(job_id=2), GOOD_ROWS[2]], "history_disagrees"),
    ],
)
def test_a_wrong_attempt_row_is_seen(rows: list[AttemptRow], expected: str) -> None:
    """A stale, doubled, early or unfounded outcome is an anomaly."""
    assert expected in checks(GOOD_LEDGER, GOOD_JOBS, rows)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (ran(40, lease=22, attempt=2), "lease_started_twice"),
        (ran(22, lease=24, attempt=3), "overlap"),
        (ran(11, lease=24, attempt=3), "overlap"),
        (ran(40, lease=24, attempt=3), "stale_accepted"),
        ([record("intent", 3, token="cut", count=0), record("intent", 3, token="gone", count=2),
          record("ack", 4, token="gone", ids=[])], "half_a_batch"),
        ([record("fail", 4, token="t")], "half_a_batch"),
        ([record("ack", 4, token="t", ids=[1, 99])], "accepted_lost"),
        ([record("resumed", 24, job=1, value=None)], "checkpoint_lost"),
        ([record("follow", 24, lease=11, token="f")], "follow_up"),
    ],
)  # fmt: skip
def test_a_wrong_ledger_is_seen(more: list[Record], expected: str) -> None:
    """What handlers and producers saw is compared with the rows."""
    ledger = sorted([*GOOD_LEDGER, *more], key=lambda one: one["at"])
    assert expected in checks(ledger, GOOD_JOBS, GOOD_ROWS)


def test_an_unfinished_run_may_have_live_jobs() -> None:
    """Before the drain a ready job is no anomaly."""
    jobs = [*GOOD_JOBS, JobRow(3, 3, 0, 0, None, "u", 0)]
    ledger = [*GOOD_LEDGER, record("intent", 50, token="u", count=1)]
    assert checks(ledger, jobs, GOOD_ROWS, drained=False) == set()


@pytest.mark.parametrize(
    ("task", "is_there", "expected"),
    [("noise", False, set()), ("noise", True, {"left_no_row"}), ("plain", False, {"left_no_row"})],
)
def test_only_what_may_be_pruned_leaves_no_row(task: str, is_there: bool, expected: set[str]) -> None:
    """A job that was cancelled, rescued and pruned takes its rows with it; any other attempt leaves one."""
    jobs = [*GOOD_JOBS, JobRow(3, 9, 1, 1, "why", None, None)] if is_there else GOOD_JOBS
    started = record("start", 40, job=3, lease=31, attempt=1, task=task)
    assert checks([*GOOD_LEDGER, started], jobs, GOOD_ROWS) == expected


def test_the_ledger_survives_a_cut_line(tmp_path: Path) -> None:
    """A line cut by a kill counts as never written, the others are read in order."""
    ledger = Ledger(tmp_path)
    ledger.write("one")
    ledger.write("two")
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes() + b'{"kind":"thr')
    assert [found["kind"] for found in read_all(tmp_path)] == ["one", "two"]


def test_a_stale_outcome_is_refused(tmp_path: Path) -> None:
    """With the fence, an attempt that was taken away changes nothing when it ends."""
    found = forced_rescue(tmp_path, Path(treadle.__file__).parents[1])
    assert not found.keys() & {"stale_accepted", "finished_twice", "history_disagrees", "lease_started_twice"}, found
    assert found["overlap"] == 1  # the rescue was forced on a living worker, and the checker sees even that


def test_the_checker_sees_a_missing_fence(tmp_path: Path) -> None:
    """The same run of a copy that settles by job id, without the lease, is reported as stale."""
    copy = tmp_path / "src"
    shutil.copytree(Path(treadle.__file__).parent, copy / "treadle", ignore=shutil.ignore_patterns("__pycache__"))
    with (copy / "treadle/store/ops/settle.py").open("a") as settle:
        settle.write(UNFENCED)
    found = forced_rescue(tmp_path, copy)
    assert found["stale_accepted"] > 0
    assert found["finished_twice"] > 0


def forced_rescue(folder: Path, source: Path) -> Counter[str]:
    """Run the scenario with the treadle of *source*; anomalies by check."""
    (folder / "run").mkdir()
    ended = subprocess.run(
        [sys.executable, "-m", "faults.forced_rescue", str(folder / "run")],
        env={"PYTHONPATH": f"{source}:{TESTS}"}, capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    jobs, attempts = read_database(folder / "run/jobs.db")
    return Counter(one.check for one in check(History(read_all(folder / "run/ledgers"), jobs, attempts)))
