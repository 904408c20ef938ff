"""Doorbells within one process, for stores whose news comes over a connection instead of a folder."""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections.abc import Callable
from typing import Final

from treadle.host.process import forget_on_fork, no_fork, on_fork

_CAPACITY: Final = 1 << 16


class LocalBell:
    """A pipe to oneself: rung by one thread, heard by another or by an event loop.

    Args:
        on_close: called once when it is closed.

    Example:
        >>> bell = LocalBell()
        >>> bell.ring(b"r")
        >>> bell.wait(1.0)
        b'r'
        >>> bell.close()
    """

    def __init__(self, on_close: Callable[[LocalBell], None] = lambda bell: None) -> None:
        self._on_close = on_close
        with no_fork():
            self._hears, self._rings = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
            on_fork(self, after_in_child=self._drop)
        self._open = True
        self._closing = threading.Lock()
        self._poll = select.poll()
        self._poll.register(self._hears, select.POLLIN)

    def ring(self, token: bytes) -> None:
        """Put *token* in; a full bell was rung long ago."""
        with self._closing:  # else the number could be another file's by now
            if self._open:
                with contextlib.suppress(BlockingIOError):
                    os.write(self._rings, token)

    def fileno(self) -> int:
        """The descriptor, for event loops; readable when rung.

        Raises:
            ValueError: the bell is closed.
        """
        if not self._open:
            raise ValueError("the bell is closed")
        return self._hears

    def drain(self) -> bytes:
        """Take all tokens rung so far; never waits."""
        try:
            return os.read(self.fileno(), _CAPACITY)
        except BlockingIOError:
            return b""

    def wait(self, timeout: float | None) -> bytes:
        """Wait for a ring, at most *timeout* seconds (None: without limit), and take all tokens."""
        self.fileno()
        ready = self._poll.poll(None if timeout is None else max(0.0, timeout * 1000))
        return self.drain() if ready else b""

    def close(self) -> None:
        """Close; a second call does nothing."""
        forget_on_fork(self)
        if self._open:
            self._on_close(self)
            with self._closing:
                self._drop()

    def _drop(self) -> None:
        if self._open:
            self._open = False
            os.close(self._hears)
            os.close(self._rings)

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, OSError):
            self._drop()
