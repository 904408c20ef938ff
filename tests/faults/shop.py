"""A folder with the app of :mod:`faults.shop_app`: jobs that are told to the ledgers, workers by the real command.

``python -m faults.shop FOLDER WORDS...`` is ``treadle worker`` with WORDS; the worker is called w<pid>.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from contextlib import closing
from pathlib import Path
from typing import Any

from faults.helpers import PATHS, PATIENCE, Process, eventually
from faults.ledger import Ledger, Record, read_all
from treadle import Job, JobFilter, JobState, Task, Treadle

FOLDER, STALL = "TREADLE_TEST_FOLDER", "TREADLE_TEST_STALL"
"""Where :mod:`faults.shop_app` lies, and the fail point at which its worker stands still until ``go``."""

LIVE = (JobState.WAITING, JobState.SCHEDULED, JobState.READY, JobState.BLOCKED, JobState.RUNNING)


class Shop:
    """One folder, its app and its history.

    Args:
        folder: empty; gets jobs.db, ledgers, and the files that handlers wait for.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.database = folder / "jobs.db"
        self.log = folder / "log"
        (folder / "ledgers").mkdir()
        self.ledger = Ledger(folder / "ledgers")
        self.app = Treadle(f"sqlite:///{self.database}")
        self.forgiven = ""
        """The one anomaly that a test has brought about on purpose."""
        self._tasks: dict[str, Task[Any, Any]] = {}

    def enqueue(self, task: str, **options: Any) -> Job[Any]:
        """Store one job, as a producer that writes down what it does; *options* go to ``using``."""
        given = {name: options.pop(name) for name in ("kind", "millis") if name in options}
        facts = {name: options.pop(name) for name in ("may_vanish",) if name in options}
        if "expires" in options:
            facts["expires"] = time.time_ns() // 1000 + round(options["expires"] * 1_000_000)
        token = uuid.uuid4().hex
        self.ledger.write("intent", token=token, count=1, **facts)
        job: Job[Any] = self._task(task).using(**options).enqueue(token=token, place=0, **given)
        self.ledger.write("ack", token=token, ids=[job.id])
        return job

    def worker(self, *words: object, stall: str = "") -> Process:
        """Start ``treadle worker``; close it."""
        return Process("faults.shop", self.folder, stall or "-", *words, log=self.log)

    def go(self) -> None:
        """Let go who waits."""
        (self.folder / "go").touch()

    def started(self, job: Job[Any], times: int = 1) -> list[Record]:
        """Wait until so many attempts of a job have begun."""
        return eventually(lambda: self._starts(job) if len(self._starts(job)) >= times else [], f"{job} begins")

    def told(self, text: str, times: int = 1) -> None:
        """Wait until workers have said *text* so often."""
        eventually(lambda: self.log.exists() and self.log.read_text().count(text) >= times, f"the log says {text!r}")

    def gone(self, worker: Process) -> None:
        """Write down that a worker is about to be killed, or has ended: nothing of it runs beyond this moment."""
        self.ledger.write("kill", victim=worker.pid, role="worker")

    def begun(self) -> None:
        """Wait until some handler has begun."""
        eventually(lambda: any(one["kind"] == "start" for one in read_all(self.folder / "ledgers")), "a handler begins")

    def drain(self) -> int:
        """Let go who waits, and run what is left with a fresh worker; its exit code."""
        self.go()
        live = JobFilter(states=LIVE)
        with closing(self.worker()) as fresh:
            # Before it is there it would die of the signal.
            eventually(lambda: any(one.pid == fresh.pid for one in self.app.workers()), "the fresh worker is there")
            eventually(lambda: self.app.count(live) == 0, "everything has ended")
            fresh.send(signal.SIGTERM)
            return fresh.finish()

    def judge(self) -> str:
        """What the history checker, in a process of its own, has to say; empty when every promise held."""
        self.app.close()
        ended = subprocess.run(
            [sys.executable, "-m", "faults.checker", self.folder], env={"PYTHONPATH": PATHS}, capture_output=True,
            text=True, timeout=PATIENCE, check=False,
        )  # fmt: skip
        return "" if ended.returncode == 0 else ended.stdout + ended.stderr

    def _task(self, name: str) -> Task[Any, Any]:
        if name not in self._tasks:
            self._tasks[name] = self.app.task(name=name)(_worked if name.startswith("work_") else _done)
        return self._tasks[name]

    def _starts(self, job: Job[Any]) -> list[Record]:
        return [one for one in read_all(self.folder / "ledgers") if one["kind"] == "start" and one["job"] == job.id]


def _done(token: str, place: int) -> Any:
    """What a producer knows of a task: how it is called."""


def _worked(token: str, place: int, kind: str, millis: int) -> Any:
    """The same of one that works."""


def work(folder: str, stall: str, *words: str) -> None:
    """Be ``treadle worker``."""
    os.environ[FOLDER] = folder
    if stall != "-":
        os.environ[STALL] = stall
    from treadle.cli import main  # only this process is a command

    sys.argv = ["treadle", "worker", "faults.shop_app:app", "--name", f"w{os.getpid()}", *words]
    main()


if __name__ == "__main__":
    work(*sys.argv[1:])
