"""What the fault tests share: patience, real worker processes, and plain connections of an outsider."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TypeVar

import treadle
from treadle.host.guard import write_lock_holder
from treadle.host.locks import Probe
from treadle.store.connections import GATE

T = TypeVar("T")
PATIENCE = 60.0
"""Seconds after which a test gives up on something that must happen; no test measures time."""
PATHS = os.pathsep.join((str(Path(treadle.__file__).parents[1]), str(Path(__file__).parents[1])))


def eventually(look: Callable[[], T], what: str, patience: float = PATIENCE) -> T:
    """Call *look* until it brings something true, and return that."""
    until = time.monotonic() + patience
    while time.monotonic() < until:
        found = look()
        if found:
            return found
        threading.Event().wait(0.01)
    raise AssertionError(f"still not so after {patience:g} s: {what}")


class Process:
    """A Python process that runs a module of this folder; killed at the latest when the test ends."""

    def __init__(self, module: str, *words: object, log: Path) -> None:
        self._log = log.open("ab")
        self.log = log
        self.popen = subprocess.Popen(
            [sys.executable, "-m", module, *map(str, words)],
            env={**os.environ, "PYTHONPATH": PATHS}, stdout=self._log, stderr=self._log,
        )  # fmt: skip

    @property
    def pid(self) -> int:
        return self.popen.pid

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        self.popen.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        self.popen.kill()
        self.popen.wait(PATIENCE)

    def finish(self) -> int:
        """Wait for the end by itself; the exit code."""
        return self.popen.wait(PATIENCE)

    def close(self) -> None:
        """End whatever is left."""
        if self.popen.poll() is None:
            self.popen.kill()
        self.popen.wait(PATIENCE)
        self._log.close()


@contextmanager
def process(module: str, *words: object, log: Path) -> Iterator[Process]:
    """A :class:`Process` for the length of a block."""
    started = Process(module, *words, log=log)
    try:
        yield started
    finally:
        started.close()


def stop_at_rest(worker: Process, path: Path) -> None:
    """SIGSTOP a worker while it holds no lock of the database: else it would block every writer."""
    gate = Probe(Path(f"{path}-treadle") / GATE)
    while True:
        worker.send(signal.SIGSTOP)
        if gate.is_free(0) and write_lock_holder(path) != worker.pid:
            break
        worker.send(signal.SIGCONT)
    gate.close()


@contextmanager
def outsider(path: Path) -> Iterator[sqlite3.Connection]:
    """A plain connection such as another program has; it never checkpoints."""
    with closing(sqlite3.connect(path, timeout=30, isolation_level=None)) as connection:
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        yield connection
