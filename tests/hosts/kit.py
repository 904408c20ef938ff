"""What the tests of several hosts share: workers that look like other machines, and what must be true at the end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from faults.helpers import Process, eventually, process
from postgres import SAFE, Server, needed
from treadle import JobState, Treadle

HISTORY = "SELECT outcome, count(*) FROM treadle_attempts GROUP BY outcome"
TWICE = """
SELECT count(*) FROM
    (SELECT 1 FROM treadle_attempts WHERE outcome = 1 GROUP BY job_id HAVING count(*) > 1) AS twice
"""


class Fleet:
    """Workers of one store, each on a host of its own.

    Args:
        url: the store's address.
        folder: where their jobs and logs leave files.
    """

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self.folder = folder
        self.app = Treadle(url, lock_timeout=20)
        self._stack = ExitStack()

    def start(self, host: str, *words: str) -> Process:
        """Start a worker; returns once it is registered. ``newer`` makes it one of the next version."""
        log = self.folder / f"{host}.log"
        started = self._stack.enter_context(
            process("hosts.hosts_app", self.url, host, self.folder, *words, log=log)
        )
        eventually(lambda: f"Worker {host} works on" in log.read_text(), f"{host} works: {log.read_text()}")
        return started

    def said(self, host: str) -> str:
        """What a worker has logged."""
        return (self.folder / f"{host}.log").read_text()

    def begun(self, number: int) -> list[Path]:
        """The attempts of job *number* that have begun, as the files they left."""
        return sorted(self.folder.glob(f"begun-{number}-*"))

    def let_go(self, number: int) -> None:
        """Let job *number* end."""
        (self.folder / f"go-{number}").touch()

    def all_succeeded(self) -> bool:
        """True when nothing is left to do."""
        return {state for found in self.app.counts().values() for state in found} <= {JobState.SUCCEEDED}

    def history(self) -> dict[int, int]:
        """How many attempts ended with each outcome."""
        return dict(self.app.store.read(lambda session: session.rows(HISTORY)))

    def doubled(self) -> int:
        """Jobs that have more than one accepted success."""
        return int(self.app.store.read(lambda session: session.value(TWICE)))

    def close(self) -> None:
        """End everybody."""
        self._stack.close()
        self.app.close()


@contextmanager
def fleet(url: str, folder: Path) -> Iterator[Fleet]:
    """A :class:`Fleet` for the length of a block."""
    made = Fleet(url, folder)
    try:
        yield made
    finally:
        made.close()


@contextmanager
def server() -> Iterator[Server]:
    """A server of the test's own that keeps what it has acknowledged."""
    made = Server(needed(), SAFE)
    try:
        yield made
    finally:
        made.remove()

