"""The server's time, read once a transaction and carried on by this machine's monotonic clock."""

from __future__ import annotations

import threading
from typing import Final

from treadle.clock import SECOND, Clock, SystemClock
from treadle.store.postgres.session import Moment

FRESH: Final = 60.0
"""Seconds after which a reading is replaced by one that took longer: two machines' clocks drift apart."""


class ServerClock:
    """What time it is on the database server. The wall clock of this machine is shown and never trusted.

    Args:
        base: where monotonic time comes from; a clock other than the machine's own, as in tests, is obeyed in all.
    """

    def __init__(self, base: Clock) -> None:
        self._base = base
        self._held = not isinstance(base, SystemClock)
        self._lock = threading.Lock()
        self._offset: float | None = None
        self._took = 0.0
        self._read_at = 0.0

    def now(self) -> int:
        """The server's time in microseconds; this machine's until the first reading."""
        if self._held or self._offset is None:
            return self._base.now()
        return round(self._base.monotonic() * SECOND + self._offset)

    def monotonic(self) -> float:
        """Seconds on this machine's monotonic clock."""
        return self._base.monotonic()

    @property
    def skew(self) -> float:
        """Seconds by which this machine's wall clock is ahead of the server's; 0 until the first reading."""
        return 0.0 if self._offset is None else (self._base.now() - self.now()) / SECOND

    def reading(self, server: int, asked: float) -> Clock:
        """Keep a reading and return the clock of the transaction that took it.

        Args:
            server: what the server said, microseconds.
            asked: our monotonic clock before we asked.
        """
        if self._held:
            return self._base
        now = self._base.monotonic()
        took = now - asked
        with self._lock:
            if self._offset is None or took <= self._took or now - self._read_at > FRESH:
                self._offset = server - (asked + took / 2) * SECOND
                self._took, self._read_at = took, now
        return Moment(server, self._base)
