"""Signal x phase with the real command; the whole matrix is ``python3 dev.py signals``."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import treadle

SIGNALS = Path(__file__).with_name("signals.py")
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals")


def play(folder: Path, *words: str, program: Path = SIGNALS) -> tuple[int, str]:
    """Run the program with its files in *folder*; its exit code, and what it printed, which has the seed."""
    env = {**os.environ, "TMPDIR": str(folder)}
    ended = subprocess.run(
        [sys.executable, program, *words], env=env, capture_output=True, text=True, timeout=120, check=False
    )
    return ended.returncode, ended.stdout + ended.stderr


@pytest.mark.timeout(150)
def test_signals_in_every_phase(tmp_path: Path) -> None:
    """Nine cells, every signal and every phase among them: each worker ends as it should, all promises hold."""
    code, told = play(tmp_path, "--most", "9")
    assert code == 0, told
    found = re.findall(r"^(\w+) +while (\w+): well$", told, re.MULTILINE)
    assert (len({hit for hit, _ in found}), len({phase for _, phase in found})) == (9, 7), told


@pytest.mark.timeout(150)
def test_the_matrix_sees_a_worker_that_does_not_drain(tmp_path: Path) -> None:
    """A copy in which the first signal ends the process at once does not pass."""
    shutil.copytree(Path(treadle.__file__).parent, tmp_path / "src/treadle")
    shutil.copytree(SIGNALS.parents[1], tmp_path / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    broken = tmp_path / "src/treadle/worker/process.py"
    text = broken.read_text(encoding="utf-8")
    assert "if len(heard_before) > 2:" in text
    broken.write_text(text.replace("if len(heard_before) > 2:", "if heard_before:"), encoding="utf-8")
    code, told = play(tmp_path, "--signals", "TERM", "--phases", "sync", program=tmp_path / "tests/faults/signals.py")
    assert code == 1, told
    assert "it ended with 143, not (0,)" in told
    assert "rescued_alive" in told
