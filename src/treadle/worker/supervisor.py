"""Keeping a number of worker processes alive: spawned, never forked, restarted when they end, replaced when they drain.

The supervisor opens no database and runs no jobs, so nothing that workers do can hurt it. When it is killed itself, its
workers see the end of their standard input and drain.
"""

from __future__ import annotations

import logging
import queue
import random
import threading
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from treadle.clock import Clock
from treadle.host.fleet import Member
from treadle.host.process import stop_signals

BACKOFF_FIRST: Final = 0.5
BACKOFF_MOST: Final = 30.0
HEALTHY_AFTER: Final = 60.0
"""Seconds a worker must live for its end to count as the first again."""
MISUSED: Final = 2
log = logging.getLogger("treadle.supervisor")


class Ended(NamedTuple):
    """A worker process ended with a code, -9 for signal 9."""

    member: Member
    code: int


class Draining(NamedTuple):
    """A worker process finishes what it runs, to be replaced."""

    member: Member
    reason: str


class Signalled(NamedTuple):
    """Somebody wants us to stop."""

    number: int


class Due(NamedTuple):
    """It is time to start a worker in a place."""

    place: int


Happening = Ended | Draining | Signalled | Due


class Supervisor:
    """Runs worker processes until told to stop.

    Args:
        command: makes the words of the command of a place, from ``worker`` on; places count from 1.
        processes: how many to keep alive.
        burst: workers end when there is nothing left to do, and are not started again.
        clock: for the backoff.
    """

    def __init__(self, command: Callable[[int], Sequence[str]], processes: int, clock: Clock, *, burst: bool) -> None:
        self._command = command
        self._processes = processes
        self._burst = burst
        self._clock = clock
        self._happenings: queue.SimpleQueue[Happening] = queue.SimpleQueue()
        self._members: dict[Member, int] = {}
        self._replaced: set[Member] = set()
        self._born: dict[Member, float] = {}
        self._failures: dict[int, int] = {}
        self._timers: set[threading.Timer] = set()
        self._signals = 0
        self._code = 0

    def run(self) -> int:
        """Work until SIGTERM or SIGINT, or until every worker of a burst has ended.

        The first signal lets workers drain, the second makes them cancel what runs, the third kills them.

        Returns:
            The exit code: 0, or that of a worker that ended badly while nobody started it again.
        """
        with stop_signals(lambda number: self._happenings.put(Signalled(number))):
            for place in range(1, self._processes + 1):
                self._start(place)
            while self._members or self._timers:
                self._take(self._happenings.get())
        return self._code

    @property
    def code(self) -> int:
        """The exit code so far."""
        return self._code

    def _take(self, happening: Happening) -> None:
        match happening:
            case Signalled():
                self._stop()
            case Draining(member, reason) if not self._signals and member not in self._replaced:
                log.info("Worker process %d drains (%s); another one takes its place.", member.pid, reason)
                self._replaced.add(member)
                self._start(self._members[member])
            case Due(place) if not self._signals:
                self._start(place)
            case Ended(member, code):
                self._bury(member, code)

    def _start(self, place: int) -> None:
        member = Member(self._command(place), self._tell_draining, self._tell_end)
        self._members[member] = place
        self._born[member] = self._clock.monotonic()
        log.info("Worker process %d started in place %d.", member.pid, place)

    def _bury(self, member: Member, code: int) -> None:
        """What to do after a worker process has ended."""
        place, lived = self._members.pop(member), self._clock.monotonic() - self._born.pop(member)
        replaced = member in self._replaced
        self._replaced.discard(member)
        if self._signals or replaced or (self._burst and code == 0):
            self._code = self._code or max(0, code)
            return
        if code == MISUSED:
            log.error("A worker process refuses to start as it was asked to; see above.")
            self._code = MISUSED
            self._stop()
            return
        self._failures[place] = 1 if lived > HEALTHY_AFTER else self._failures.get(place, 0) + 1
        pause = min(BACKOFF_MOST, BACKOFF_FIRST * 2 ** (self._failures[place] - 1)) * random.uniform(0.8, 1.2)  # noqa: S311
        log.warning("Worker process %d ended with code %d; another one starts in %.1f s.", member.pid, code, pause)
        self._later(pause, place)

    def _later(self, seconds: float, place: int) -> None:
        timer = threading.Timer(seconds, lambda: self._happenings.put(Due(place)))
        timer.daemon = True
        self._timers.add(timer)
        timer.start()

    def _stop(self) -> None:
        self._signals += 1
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        for member in self._members:
            if self._signals < 3:
                member.stop()
            else:
                member.kill()

    def _tell_draining(self, member: Member, reason: str) -> None:
        self._happenings.put(Draining(member, reason))

    def _tell_end(self, member: Member, code: int) -> None:
        self._happenings.put(Ended(member, code))
