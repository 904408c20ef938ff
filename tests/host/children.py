"""Child processes for the host tests: a Python each, commanded through its standard streams."""

from __future__ import annotations

import os
import select
import subprocess
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from treadle.host.process import spawn_python

PATIENCE = 30.0
"""Seconds after which a test gives up on something that must happen; no test measures time."""


class Child:
    """A Python that runs the given code; the code talks with ``say(text)`` and ``hear()``."""

    def __init__(self, code: str, *args: object) -> None:
        prelude = (
            "import sys\n"
            "def say(text): print(text, flush=True)\n"
            "def hear(): return sys.stdin.readline().strip()\n"
        )
        self.process: subprocess.Popen[bytes] = spawn_python(
            ["-c", prelude + textwrap.dedent(code), *map(str, args)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._heard = b""

    @property
    def pid(self) -> int:
        return self.process.pid

    def hear(self) -> str:
        """The child's next line; several may come at once."""
        assert self.process.stdout is not None
        while b"\n" not in self._heard:
            ready, _, _ = select.select([self.process.stdout], [], [], PATIENCE)
            assert ready, "the child says nothing"
            data = os.read(self.process.stdout.fileno(), 1 << 16)
            if not data:
                break
            self._heard += data
        line, _, self._heard = self._heard.partition(b"\n")
        return line.decode().strip()

    def silent(self) -> bool:
        """Whether the child has said nothing yet."""
        assert self.process.stdout is not None
        return not self._heard and not select.select([self.process.stdout], [], [], 0)[0]

    def say(self, text: str) -> None:
        """Give the child a line."""
        assert self.process.stdin is not None
        self.process.stdin.write(text.encode() + b"\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        """End it with SIGKILL and wait for its end."""
        self.process.kill()
        self.process.wait(PATIENCE)


@contextmanager
def child(code: str, *args: object) -> Iterator[Child]:
    """Run a child for the length of the block."""
    started = Child(code, *args)
    try:
        yield started
    finally:
        started.kill()
        for stream in (started.process.stdin, started.process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except BrokenPipeError:
                    continue


def until(truth: Callable[[], bool]) -> None:
    """Wait for something that another process brings about."""
    quiet = select.poll()
    for _ in range(int(PATIENCE * 1000 / 5)):
        if truth():
            return
        quiet.poll(5)
    raise AssertionError("it never came true")
