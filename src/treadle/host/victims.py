"""Python processes that are meant to die, in sessions of their own: fresh ones, or forks of one that has imported all.

A fork saves the imports, most of what a fresh process costs. It is made only of a process with one thread and nothing
open, so that no connection and no lock is ever shared.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from treadle.host.children import kill_session, readable, until_none
from treadle.host.process import spawn_python

KILLED: Final = -9
READY: Final = "ready"
FDS: Final = Path("/proc/self/fd")
TASKS: Final = Path("/proc/self/task")


def run_fresh(arguments: Sequence[str], output: Path, timeout: float) -> int | None:
    """Run a fresh Python until it ends, then kill whatever it has started.

    Args:
        arguments: what follows the interpreter.
        output: file to which what it prints on either stream is added.
        timeout: seconds after which it is killed.

    Returns:
        Its exit code, -9 for SIGKILL; None when the time ran out.
    """
    process = _start(arguments, output, subprocess.DEVNULL, None)
    code: int | None = None
    try:
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = process.wait(timeout)
    finally:
        until_none(lambda: kill_session(process.pid))
        process.wait()
    return code


class Nursery:
    """A process that runs :func:`breed`; ends with its owner.

    Args:
        arguments: what follows the interpreter.
        output: file to which what it and its forks print is added.
    """

    def __init__(self, arguments: Sequence[str], output: Path) -> None:
        self._process = _start(arguments, output, subprocess.PIPE, subprocess.PIPE)
        self._forked: int | None = None

    def hello(self, timeout: float) -> str | None:
        """Its first word: :data:`READY`, or why it cannot fork; None when it ended or said nothing in time."""
        return self._line(timeout)

    def run(self, order: str, timeout: float) -> int | None:
        """Fork a victim for *order*; its exit code, None when the time ran out or the nursery is gone."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(f"{order}\n".encode())
            self._process.stdin.flush()
        forked = self._line(timeout)
        self._forked = int(forked) if forked else None
        code = self._line(timeout)
        if code is not None:
            self._forked = None
        return None if code is None else int(code)

    def close(self) -> None:
        """End it, and the victim that did not end in time."""
        if self._forked is not None:
            until_none(lambda: kill_session(self._forked or 0))
        self._process.kill()
        self._process.communicate()

    def _line(self, timeout: float) -> str | None:
        assert self._process.stdout is not None
        descriptor, line = self._process.stdout.fileno(), b""
        while not line.endswith(b"\n"):
            piece = os.read(descriptor, 1) if readable(descriptor, timeout) else b""
            if not piece:
                return None
            line += piece
        return line.decode().strip()


def breed(run: Callable[[str], object], reason: str | None) -> None:
    """Fork a victim for each line of standard input, one after the other, and say its exit code on standard output.

    Args:
        run: what a victim does with its line; what it raises is printed and gives the exit code 1.
        reason: why nothing may be forked here; then it is said, and that is all.
    """
    # What victims print must not be taken for answers, and what they read is not ours.
    orders, answers = os.dup(0), os.dup(1)
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    _say(answers, reason or READY)
    if reason is not None:
        return
    for order in _lines(orders):
        pid = os.fork()
        if pid == 0:
            os.close(orders)
            os.close(answers)
            _be_victim(run, order)
        _say(answers, str(pid))
        _, status = os.waitpid(pid, 0)
        until_none(lambda: kill_session(pid))  # noqa: B023 - called at once
        _say(answers, str(os.waitstatus_to_exitcode(status)))


def open_now() -> frozenset[str]:
    """Descriptors that are open in this process; empty where the system does not tell."""
    if not FDS.is_dir():
        return frozenset()
    return frozenset(name for name in os.listdir(FDS) if os.path.lexists(FDS / name))


def why_not_fork(before: frozenset[str]) -> str | None:
    """Why this process must not be forked; None when it may: one thread, and nothing opened since *before*."""
    if not FDS.is_dir() or not TASKS.is_dir():
        return "the system does not tell what is open"
    threads, opened = len(os.listdir(TASKS)), open_now() - before
    if threads > 1:
        return f"it has {threads} threads"
    return f"it has opened {len(opened)} files or connections" if opened else None


def _be_victim(run: Callable[[str], object], order: str) -> None:
    code = 1
    try:
        os.setsid()
        run(order)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):  # the handler has closed or replaced it
                stream.flush()
        os._exit(code)


def _start(
    arguments: Sequence[str], output: Path, orders: int, answers: int | None
) -> subprocess.Popen[bytes]:
    with output.open("ab") as stream:
        # Into a file: what the victim has started would keep a pipe open after it.
        return spawn_python(
            arguments, stdin=orders, stdout=stream if answers is None else answers, stderr=stream,
            start_new_session=True,
        )  # fmt: skip


def _lines(descriptor: int) -> Iterator[str]:
    with os.fdopen(descriptor, "rb", closefd=False) as stream:
        for line in stream:
            yield line.decode().strip()


def _say(descriptor: int, text: str) -> None:
    os.write(descriptor, f"{text}\n".encode())
