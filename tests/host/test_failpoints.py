"""Fail points: nothing unless armed, then exactly what was asked for, at the time it was asked for."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

from treadle.host import failpoints
from treadle.host.failpoints import ALONE, Stall, arm, disarm, raising, reach, recording

PATIENCE = 30.0
SOURCE = str(Path(failpoints.__file__).parents[2])


class Insert:
    """An operation that is an object."""


class Waiting(NamedTuple):
    """A work that waits in a group."""

    operation: object


def claim(session: object, request: int) -> None:
    """An operation that is a function."""


def _adopt(session: object) -> None:
    """An operation with a private name."""


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    """No trap outlives its test."""
    yield
    disarm()


def boom() -> RuntimeError:
    return RuntimeError("boom")


def test_a_point_does_nothing_unless_armed() -> None:
    """Without a trap nothing happens and nothing is remembered."""
    reach("before_commit", "insert")
    with recording() as names:
        pass
    assert names == []


def test_points_are_called_after_their_work() -> None:
    """Functions, partials, objects, names and groups all give a word; a group each word once, in order."""
    with recording() as names:
        reach("after_begin", claim)
        reach("after_begin", partial(claim, request=1))
        reach("after_begin", Insert(), ALONE)
        reach("after_begin", _adopt)
        reach("after_begin", "wal_checkpoint")
        reach("after_begin", [Waiting(Insert()), Waiting(partial(claim, request=1)), Waiting(Insert())])
    assert names == [
        "claim.after_begin", "claim.after_begin", "insert.alone.after_begin", "adopt.after_begin",
        "wal_checkpoint.after_begin", "insert.after_begin", "claim.after_begin",
    ]  # fmt: skip


def test_a_trap_springs_at_its_time() -> None:
    """From the third time on, twice, and only at points that fit."""
    trap = arm(raising(boom), "claim.*", at=3, times=2)
    outcome = []
    for _ in range(6):
        reach("before_begin", "insert")
        try:
            reach("before_commit", claim)
            outcome.append("went on")
        except RuntimeError:
            outcome.append("raised")
    assert outcome == ["went on", "went on", "raised", "raised", "went on", "went on"]
    assert (trap.seen, trap.sprung) == (6, 2)


def test_a_trap_may_spring_for_ever() -> None:
    """With times=None it never lets anyone through, until disarmed."""
    arm(raising(boom), times=None)
    for _ in range(5):
        with pytest.raises(RuntimeError, match="boom"):
            reach("before_begin", claim)
    disarm()
    reach("before_begin", claim)


def test_several_traps_count_for_themselves() -> None:
    """Each trap sees every point that fits it, whatever the others do."""
    seen: list[str] = []
    first = arm(seen.append, "*.before_begin", at=2)
    second = arm(seen.append, "claim.*", at=2)
    for boundary in ("before_begin", "after_begin", "before_begin"):
        reach(boundary, claim)
    assert seen == ["claim.after_begin", "claim.before_begin"]
    assert (first.seen, second.seen) == (2, 3)


def test_recording_goes_on_beside_traps() -> None:
    """What a trap lets through is still recorded, and a recording forgets no trap."""
    arm(raising(boom), "insert.*")
    with recording() as names:
        reach("before_begin", claim)
        with pytest.raises(RuntimeError):
            reach("before_begin", "insert")
    assert names == ["claim.before_begin", "insert.before_begin"]
    reach("before_begin", "insert")


def test_a_stall_holds_one_thread_until_released() -> None:
    """Who reaches the point stands there; others pass; once released it goes on."""
    stall = Stall()
    arm(stall, "claim.*")
    through = threading.Event()

    def go() -> None:
        reach("before_commit", claim)
        through.set()

    thread = threading.Thread(target=go)
    thread.start()
    assert stall.reached.wait(PATIENCE)
    reach("before_commit", claim)
    assert not through.is_set()
    stall.release()
    thread.join(PATIENCE)
    assert through.is_set()


@pytest.mark.parametrize(("action", "code"), [("kill_self", -9), ("exit_self", failpoints.EXIT_CODE)])
def test_a_process_ends_at_the_point(action: str, code: int) -> None:
    """SIGKILL and exit end the process right there, with no clean-up."""
    program = f"""
import atexit
from treadle.host import failpoints
atexit.register(print, "clean-up")
failpoints.arm(failpoints.{action}, "claim.before_commit", at=2)
for number in range(3):
    print(number, flush=True)
    failpoints.reach("before_commit", "claim")
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONPATH": SOURCE}, capture_output=True, text=True,
        timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert (ended.returncode, ended.stdout) == (code, "0\n1\n")
