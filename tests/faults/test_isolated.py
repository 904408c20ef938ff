"""Workers that die while their children run: nothing of an attempt lives on when its job begins again."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from faults.helpers import eventually, process
from treadle import AttemptOutcome, JobState, Treadle
from worker.isolated import TASKS, heard, place
from worker.kit import path, shop

__all__ = ["path", "shop"]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes as Linux has them")
PATIENCE = 60


@pytest.fixture
def stopped() -> Iterator[list[int]]:
    """Processes that a test has stopped; none is left so."""
    pids: list[int] = []
    yield pids
    for pid in pids:
        try:
            os.kill(pid, signal.SIGCONT)
        except ProcessLookupError:
            continue


def last_tick() -> int:
    """The last moment at which anything of the first attempt was alive."""
    return max(int(place(f"ticks {number}").read_text().split("\n")[-2]) for number in range(3))


@pytest.mark.parametrize("frozen", [False, True], ids=["child runs", "child is stopped"])
def test_a_child_and_what_it_started_are_gone_before_the_job_begins_again(
    shop: Treadle, tmp_path: Path, stopped: list[int], frozen: bool
) -> None:
    """SIGKILL of the worker: the ticks of child, program and daemon end before the second attempt starts."""
    job = TASKS["act"].enqueue("tick", "job")
    with process("worker.isolated", "doomed", log=tmp_path / "log") as doomed:
        child = int(heard("job begun"))
        with process("worker.isolated", "heir", log=tmp_path / "log"):
            eventually(lambda: len(shop.workers()) == 2, "the heir is there")
            if frozen:
                stopped.append(child)
                os.kill(child, signal.SIGSTOP)
            doomed.kill()
            began = job.result(PATIENCE)
    assert last_tick() < began
    record = job.record()
    assert [one.outcome for one in record.attempts] == [AttemptOutcome.CRASHED, AttemptOutcome.SUCCEEDED]
    assert (record.crashes, record.failures) == (1, 0)


def test_a_single_worker_takes_its_own_job_back(shop: Treadle, tmp_path: Path) -> None:
    """Started again under its name: what its dead predecessor's child had started is gone before the job begins."""
    job = TASKS["act"].enqueue("tick", "job")
    with process("worker.isolated", "same", log=tmp_path / "log") as first:
        heard("job begun")
        first.kill()
    with process("worker.isolated", "same", log=tmp_path / "log"):
        began = job.result(PATIENCE)
    assert last_tick() < began


def test_children_of_a_dead_worker_end_by_themselves(shop: Treadle, tmp_path: Path) -> None:
    """Nobody has to come: the child sees that its worker is gone, and ends with everything it started."""
    TASKS["act"].enqueue("leave_behind", "job")
    with process("worker.isolated", "doomed", log=tmp_path / "log") as worker:
        pids = [int(word) for word in heard("job begun").split()]
        worker.kill()
        eventually(lambda: not any(map(_alive, pids)), "all are gone")


def test_a_stop_by_signal_leaves_no_child(shop: Treadle, tmp_path: Path) -> None:
    """Two SIGTERMs: the attempt is given back unspent and its processes are gone when the worker's has ended."""
    job = TASKS["act"].enqueue("leave_behind", "job")
    with process("worker.isolated", "stopped", log=tmp_path / "log") as worker:
        pids = [int(word) for word in heard("job begun").split()]
        worker.send(signal.SIGTERM)
        eventually(lambda: "drains: it finishes" in (tmp_path / "log").read_text(), "it drains")
        worker.send(signal.SIGTERM)
        assert worker.finish() == 0, (tmp_path / "log").read_text()
    assert not any(map(_alive, pids))
    record = job.record()
    assert (record.state, record.crashes, record.failures) == (JobState.READY, 0, 0)


def _alive(pid: int) -> bool:
    """True while a process can still do anything; one that has ended, or is about to without its memory, cannot."""
    try:
        return Path(f"/proc/{pid}/statm").read_text().split()[0] != "0"
    except OSError:
        return False
