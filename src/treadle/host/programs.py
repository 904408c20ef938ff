"""Programs that one attempt has started: they end with it, daemons included where the system shows environments."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Sequence
from typing import Any, Final

from treadle.host.children import MARK, kill_marked, until_none

Word = str | bytes | os.PathLike[str] | os.PathLike[bytes]
Program = subprocess.Popen[Any]
AsyncProgram = asyncio.subprocess.Process
BURIAL: Final = 1.0
"""Seconds that a killed program has to end before other things must go on."""


class Programs:
    """What one attempt has started; any thread may use it.

    Each program leads a session of its own. Its environment carries the mark, and so does that of everything it starts.

    Args:
        mark: the attempt's; whoever finds its worker dead kills by it too.
    """

    def __init__(self, mark: str) -> None:
        self._mark = mark
        self._lock = threading.Lock()
        self._started: list[Program | AsyncProgram] = []
        self._asked = self._ended = False

    def start(self, argv: Sequence[Word], **options: Any) -> Program:
        """Start a program as ``subprocess.Popen`` does."""
        with self._lock:  # or a program could be born just after all have been killed
            self._refuse()
            started: Program = subprocess.Popen(argv, **self._own(options))  # noqa: S603 - as asked for
            self._started.append(started)
        self._ask_late(started)
        return started

    async def astart(self, argv: Sequence[Word], **options: Any) -> AsyncProgram:
        """The same as ``asyncio.create_subprocess_exec`` does."""
        self._refuse()
        started = await asyncio.create_subprocess_exec(*argv, **self._own(options))
        with self._lock:
            self._started.append(started)
            ended = self._ended
        self._ask_late(started)
        if ended:  # meanwhile
            self.end()
        return started

    def ask(self) -> None:
        """Send SIGTERM to every program that still runs, and to what it has in its group."""
        with self._lock:
            self._asked = True
            for started in self._started:
                _signal_group(started, signal.SIGTERM)

    def end(self) -> None:
        """Kill whatever is left, daemons too; nothing can be started any more."""
        with self._lock:
            self._ended = True
            for started in self._started:
                _signal_group(started, signal.SIGKILL)
                _bury(started)
        for _ in range(2):  # one that is just becoming another program shows no environment for a moment
            until_none(lambda: kill_marked(self._mark))

    def _own(self, options: dict[str, Any]) -> dict[str, Any]:
        environment = os.environ if options.get("env") is None else options["env"]
        return {**options, "start_new_session": True, "env": {**environment, MARK: self._mark}}

    def _refuse(self) -> None:
        if self._ended:
            raise RuntimeError("The attempt has ended; what it started has been killed, and it can start nothing more.")

    def _ask_late(self, started: Program | AsyncProgram) -> None:
        if self._asked:  # nobody would tell it
            _signal_group(started, signal.SIGTERM)


def _bury(started: Program | AsyncProgram) -> None:
    """Wait for the end of a program that was killed; the event loop does it for its own."""
    if isinstance(started, subprocess.Popen):
        with contextlib.suppress(subprocess.TimeoutExpired):  # one that hangs in the kernel
            started.wait(BURIAL)


def _signal_group(started: Program | AsyncProgram, number: int) -> None:
    """Signal a program and its group; one that was waited for is gone, and its number may be somebody else's."""
    if started.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(started.pid, number)
