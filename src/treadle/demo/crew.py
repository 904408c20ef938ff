"""Worker processes of a demonstration or benchmark: started, replaced when they die, and killed on purpose."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from treadle.clock import Clock
from treadle.errors import TreadleError
from treadle.host.process import spawn_python

MOST_DEATHS = 5


class Process(Protocol):
    """What is needed of a child process."""

    pid: int

    def poll(self) -> int | None:
        """Its exit code once it ended."""

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end."""

    def kill(self) -> None:
        """End it with SIGKILL: it gets no chance to say goodbye."""


class WorkersFailed(TreadleError):
    """The worker processes keep ending by themselves; their log says why."""


@dataclass(frozen=True, slots=True)
class Member:
    """One worker process; it drains and ends when *lifeline*, its standard input, is closed, also by our death."""

    name: str
    process: Process
    lifeline: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """One SIGKILL: whom, when (microseconds), and after how many jobs."""

    worker: str
    pid: int
    at: int
    after: int


class Crew:
    """Keeps *count* worker processes running on one store.

    Args:
        url: the store.
        log: the file that gets their output.
        count: how many.
        clock: for the moment of a kill.
        words: what each is started with after ``treadle worker``: the app, and options beside store and name.
        prefix: how their names begin.
    """

    def __init__(
        self, url: str, log: Path, count: int, clock: Clock, *, words: Sequence[str], prefix: str
    ) -> None:
        self._url = url
        self._log = log
        self._count = count
        self._clock = clock
        self._words = words
        self._prefix = prefix
        self._members: list[Member] = []
        self._started = 0
        self._deaths = 0

    @property
    def pids(self) -> tuple[int, ...]:
        """Of those that run."""
        return tuple(member.process.pid for member in self._members)

    @property
    def deaths(self) -> int:
        """How many ended by themselves."""
        return self._deaths

    def mend(self) -> None:
        """Start what is missing; call it now and then.

        Raises:
            WorkersFailed: too many ended by themselves.
        """
        for member in [member for member in self._members if member.process.poll() is not None]:
            self._forget(member)
            self._deaths += 1
            if self._deaths > MOST_DEATHS:
                raise WorkersFailed(f"The workers keep ending by themselves; see {self._log}.")
        while len(self._members) < self._count:
            self._members.append(self._start())

    def kill(self, pid: int, after: int) -> Kill | None:
        """Kill the member *pid* with SIGKILL and start another; None when it is not one of ours."""
        for member in self._members:
            if member.process.pid == pid:
                at = self._clock.now()
                member.process.kill()
                member.process.wait()
                self._forget(member)
                self.mend()
                return Kill(worker=member.name, pid=pid, at=at, after=after)
        return None

    def stop(self, patience: float = 20.0) -> None:
        """Let every worker finish what it runs and end; kill those that do not within *patience* seconds."""
        members, self._members = self._members, []
        for member in members:
            os.close(member.lifeline)
        for member in members:
            try:
                member.process.wait(patience)
            except Exception:
                member.process.kill()
                member.process.wait()

    def _start(self) -> Member:
        self._started += 1
        name = f"{self._prefix}-{os.getpid()}-{self._started}"
        reading, lifeline = os.pipe()
        with self._log.open("ab") as log:
            process = spawn_python(
                ["-m", "treadle", "worker", *self._words, "--name", name, "--until-eof",
                 "--processes", "1"],  # whatever the settings say: each is to be one process
                # Not as an option: everybody on the machine may read a command line, and a URL has a password.
                env={**os.environ, "TREADLE_STORE": self._url},
                stdin=reading, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        os.close(reading)
        return Member(name, process, lifeline)

    def _forget(self, member: Member) -> None:
        os.close(member.lifeline)
        self._members.remove(member)
