"""Who lives, on PostgreSQL: a lease by server time, shortened by a lost session lock or by proof on the same host.

Nobody's clock is compared with another's. A rescuer has to have seen, by its own monotonic clock and without a gap in
its looking, that a worker's sign of life stood still for the whole lease. So an outage of the database, or a rescuer
that was itself stopped, makes nobody look dead.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final, NamedTuple

from treadle import defaults
from treadle.clock import Clock, to_duration
from treadle.errors import StoreError
from treadle.host.process import ProcessIdentity, is_gone, own_identity
from treadle.store.ops.workers import IdentityRow
from treadle.store.postgres.listener import Listener
from treadle.store.session import Session

LEASE: Final = defaults.SERVER_LEASE.total_seconds()
LOST_LOCK_LEASE: Final = defaults.LOST_LOCK_LEASE.total_seconds()
GAP: Final = 3.0
"""Seconds without looking after which everything seen before counts for nothing."""
CREDIT: Final = 1.5 * defaults.SERVER_BEAT.total_seconds()
"""How much of the time between two looks counts at most: a look that came late may have waited for a server that nobody
could reach, and then nobody could show a sign either."""
LOCKS: Final = """
SELECT (classid::bigint << 32) | objid::bigint FROM pg_locks
WHERE locktype = 'advisory' AND objsubid = 1 AND granted
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
log = logging.getLogger("treadle.store")


def lock_key(store_id: str, epoch: int) -> int:
    """The advisory lock of a registration: 31 bits of the store's name, 32 bits of the epoch."""
    return (int(store_id[:8], 16) & 0x7FFFFFFF) << 32 | epoch & 0xFFFFFFFF


class ServerSeat:
    """A number of its own, and an advisory lock on the listening session while that lasts."""

    dev = 0
    ino = 0

    def __init__(self, slot: int, listener: Listener, store_id: str) -> None:
        self.slot = slot
        self._listener = listener
        self._store_id = store_id
        self._key: int | None = None

    def registered(self, epoch: int) -> None:
        """Lock what others will look for."""
        self._key = lock_key(self._store_id, epoch)
        self._listener.hold(self._key)

    def check(self) -> None:
        """Nothing to look at: a registration that was taken away is noticed at the next sign of life."""

    def release(self) -> None:
        """Unlock."""
        if self._key is not None:
            self._listener.let_go(self._key)
            self._key = None


class _Sign(NamedTuple):
    seen_at: int
    since: float
    was_locked: bool
    asked_at: float


_NEVER: Final = float("-inf")


class ServerJudge:
    """Watches the signs of life of others.

    Args:
        read: runs a read.
        listener: whose connection tells how long the server has been up without a break for us.
        store_id: for the keys of the locks.
        clock: the monotonic clock counts.
    """

    def __init__(
        self, read: Callable[[Callable[[Session], set[int]]], set[int]], listener: Listener, store_id: str, clock: Clock
    ) -> None:
        self._read = read
        self._listener = listener
        self._store_id = store_id
        self._clock = clock
        self._own = own_identity()
        self._signs: dict[int, _Sign] = {}
        self._looked = _NEVER
        self._watched = 0.0
        """Seconds of looking so far; what signs of life stand still by."""
        self._locks: set[int] = set()

    def is_dead(self, row: IdentityRow) -> bool:
        """True when the process is provably gone, or showed no sign for a whole lease while we were looking."""
        now = self._clock.monotonic()
        self._look(now)
        if self._is_gone_here(row):
            return True
        locked = lock_key(self._store_id, row.epoch) in self._locks
        sign = self._signs.get(row.epoch)
        was_locked = locked or (sign is not None and sign.was_locked)
        moved = sign is None or sign.seen_at != row.seen_at
        since = self._watched if sign is None or moved else sign.since
        self._signs[row.epoch] = _Sign(row.seen_at, since, was_locked, self._watched)
        still = self._watched - since
        return still >= LEASE or (was_locked and not locked and still >= LOST_LOCK_LEASE and self._is_quiet(now))

    def looks_alive(self, row: IdentityRow, now: int) -> bool:
        """For people: its lease has not run out, and its process is not provably gone. *now* is the server's time."""
        return not self._is_gone_here(row) and now - row.seen_at <= to_duration(LEASE)

    def close(self) -> None:
        """Nothing to let go of."""

    def _look(self, now: float) -> None:
        """Once a round: forget everything after a gap, and read which locks are held."""
        gap, self._looked = now - self._looked, now
        if gap > GAP:
            self._signs.clear()
        else:
            self._watched += min(gap, CREDIT)
            # Those nobody asks about any more have left; their locks say nothing.
            self._signs = {epoch: sign for epoch, sign in self._signs.items() if self._watched - sign.asked_at < GAP}
        if gap > 0.1 or not self._locks:
            try:
                self._locks = self._read(_locks)
            except StoreError as error:
                log.debug("Locks could not be read: %s", error)
                self._signs.clear()

    def _is_gone_here(self, row: IdentityRow) -> bool:
        if not row.boot_id or row.boot_id != self._own.boot_id:
            return False  # another host, or this one before it was restarted: its lease will tell
        worker = ProcessIdentity(
            pid=row.pid, started=row.pid_started, boot_id=row.boot_id, namespace=row.pid_namespace
        )
        return is_gone(worker, self._own)

    def _is_quiet(self, now: float) -> bool:
        """False when a lost lock says little: the server came up lately, or most workers lost theirs together."""
        since = self._listener.since
        if since is None or now - since < LEASE:
            return False
        locked = [epoch for epoch, sign in self._signs.items() if sign.was_locked]
        lost = [epoch for epoch in locked if lock_key(self._store_id, epoch) not in self._locks]
        return len(lost) * 2 <= len(locked) or len(locked) == 1


def _locks(session: Session) -> set[int]:
    return {int(key) for (key,) in session.rows(LOCKS)}
