"""Running the treadle command as people do: a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src"


def environment(**more: str) -> dict[str, str]:
    """The environment of a command: this source tree, no setting of the machine's."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TREADLE_")}
    return {**kept, "PYTHONPATH": str(SOURCE), "PYTHONWARNINGS": "error", **more}


def treadle(*words: str | Path, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Run ``treadle`` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "treadle", *map(str, words)],
        cwd=cwd, env=environment(**more), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        timeout=90,
    )  # fmt: skip


def start(*words: str | Path, cwd: Path) -> subprocess.Popen[str]:
    """Start ``treadle`` and go on; its own process group keeps signals apart."""
    return subprocess.Popen(
        [sys.executable, "-m", "treadle", *map(str, words)],
        cwd=cwd, env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, start_new_session=True,
    )  # fmt: skip


def until(condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
    """Look at *condition* until it holds; give up with a failure that says what never came."""
    pause, deadline = threading.Event(), time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"never came: {what}"
        pause.wait(0.02)
