"""Running the treadle command as people do: a process of its own, sometimes on a terminal; or quickly, in this one."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from treadle.cli import main

SOURCE = Path(__file__).parents[2] / "src"


def run(*words: str | Path | int, folder: Path, store: str = "jobs.db") -> tuple[int, str]:
    """Run a command in this process on the database *store* of *folder*: exit code, and all that was printed."""
    done = CliRunner().invoke(main, [*map(str, words), "--store", where(folder, store)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output


def as_json(*words: str | Path | int, folder: Path, store: str = "jobs.db") -> Any:
    """What a command prints with --json on its standard output."""
    done = CliRunner().invoke(main, [*map(str, words), "--json", "--store", where(folder, store)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return json.loads(done.stdout)


def where(folder: Path, store: str) -> str:
    """The store as a command takes it: a URL, or a file of *folder*."""
    return store if "://" in store else str(folder / store)


def harmless(text: str) -> bool:
    """True when no character of *text* can move the cursor, reorder or hide anything."""
    return all(
        letter == "\n" or unicodedata.category(letter) not in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl") for letter in text
    )


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


def typed(text: str, *words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run ``treadle`` to its end with a terminal as standard input, on which somebody types *text*."""
    terminal, inside = pty.openpty()
    try:
        os.write(terminal, text.encode())
        return subprocess.run(
            [sys.executable, "-m", "treadle", *map(str, words)],
            cwd=cwd, env=environment(), stdin=inside, capture_output=True, text=True, check=False, timeout=90,
        )  # fmt: skip
    finally:
        os.close(inside)
        os.close(terminal)


def start(*words: str | Path, cwd: Path) -> subprocess.Popen[str]:
    """Start ``treadle`` and go on; its own process group keeps signals apart."""
    return subprocess.Popen(
        [sys.executable, "-m", "treadle", *map(str, words)],
        cwd=cwd, env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, start_new_session=True,
    )  # fmt: skip


def interrupt(process: subprocess.Popen[Any]) -> int:
    """Press Ctrl-C until the process ends, and return its exit code.

    Once is not always enough: a signal that comes just before a blocking read is only noticed after it.
    """
    for _ in range(10):
        process.send_signal(signal.SIGINT)
        try:
            return process.wait(6)
        except subprocess.TimeoutExpired:
            continue
    raise AssertionError("Ctrl-C does not end it")


def until(condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
    """Look at *condition* until it holds; give up with a failure that says what never came."""
    pause, deadline = threading.Event(), time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"never came: {what}"
        pause.wait(0.02)
