"""Fail points under real workers: whatever happens at a transaction boundary, every promise holds.

The full size is ``python3 dev.py faults points``: every point, seven faults, the first time, the third time, for ever.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import treadle

POINTS = Path(__file__).with_name("points.py")
CHOSEN = "insert.*,burn.*,claim.*,apply.*,register.*,release.*,leave.*,rescue_dead.*,checkpoint.*,wal_checkpoint.*"
"""What the lane does for its other operations is the same."""
SPRUNG = re.compile(r"(\d+) points sprung")


def sweep(folder: Path, *words: str, program: Path = POINTS, expected: int = 0) -> str:
    """Run the program with its files in *folder*; what it printed, which has the seed."""
    seed = str(random.SystemRandom().randrange(2**32))
    ended = subprocess.run(
        [sys.executable, program, "--seed", seed, *words], env={**os.environ, "TMPDIR": str(folder)},
        capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    told = ended.stdout + ended.stderr
    assert ended.returncode == expected, told
    return told


def sprung(told: str) -> int:
    """How many points sprang, so that no sweep passes by doing nothing."""
    return sum(map(int, SPRUNG.findall(told)))


@pytest.mark.timeout(300)
def test_killed_at_a_boundary(tmp_path: Path) -> None:
    """SIGKILL at each point: what was acknowledged is there, what was not is whole or absent, nothing twice."""
    assert sprung(sweep(tmp_path, "--faults", "kill", "--at", "1", "--points", CHOSEN)) >= 50


@pytest.mark.timeout(300)
def test_stalled_at_a_boundary(tmp_path: Path) -> None:
    """A thread that stands still at a point, and goes on or is killed there."""
    assert sprung(sweep(tmp_path, "--faults", "stall", "--at", "1", "--points", CHOSEN, "--every", "3")) >= 16


@pytest.mark.timeout(300)
def test_errors_at_a_boundary(tmp_path: Path) -> None:
    """An unknown error, a lock, a full disk, a broken one, at each point once; workers end for the last one only."""
    assert sprung(sweep(tmp_path, "--faults", "exception,busy,full,ioerr", "--at", "1", "--points", CHOSEN)) >= 200


@pytest.mark.timeout(300)
@pytest.mark.parametrize("fault", ["busy", "full", "ioerr"])
def test_errors_for_ever(tmp_path: Path, fault: str) -> None:
    """While every point of one boundary fails a worker waits, or ends with code 70; then all goes on."""
    assert sprung(sweep(tmp_path, "--faults", fault, "--at", "forever")) >= 40


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("        self._ring(session, operation, ALONE)\n", '        reach("after_commit", operation, ALONE)\n',
         ("--faults", "exception", "--points", "insert.alone.after_commit")),
        ("            commit(connection, self._connections.path, running)\n",
         "            tell(answers)\n            answers = []\n"
         "            commit(connection, self._connections.path, running)\n",
         ("--faults", "stall", "--points", "insert.before_commit")),
    ],
    ids=["stored and denied", "told before the commit"],
)  # fmt: skip
@pytest.mark.timeout(300)
def test_the_sweep_sees_a_broken_lane(tmp_path: Path, before: str, after: str, words: tuple[str, ...]) -> None:
    """A copy whose lane breaks a promise at one point does not pass."""
    shutil.copytree(Path(treadle.__file__).parent, tmp_path / "src/treadle")
    shutil.copytree(POINTS.parent, tmp_path / "tests/faults")
    lane = tmp_path / "src/treadle/store/lane.py"
    text = lane.read_text(encoding="utf-8")
    assert before in text
    lane.write_text(text.replace(before, after), encoding="utf-8")
    told = sweep(tmp_path, *words, "--at", "1", program=tmp_path / "tests/faults/points.py", expected=1)
    assert re.search(r"ANOMALY (half_a_batch|accepted_lost)", told), told
