"""Who is taken for dead on PostgreSQL: by time that was watched, never by a clock that ran while nobody could look."""

from __future__ import annotations

from typing import Any

import pytest

from treadle import defaults
from treadle.store.ops.workers import IdentityRow
from treadle.store.postgres.seats import ServerJudge, lock_key

pytest.importorskip("psycopg")
STORE = "0123456789ab"
LEASE = int(defaults.SERVER_LEASE.total_seconds())


class Watcher:
    """A judge on a clock of its own, which sees worker 7 of another host, and whether that one's lock is held."""

    def __init__(self) -> None:
        self.time = 1000.0
        self.locked = False
        self.others: set[int] = set()
        self.since: float | None = 0.0
        self.seen_at = 1
        self.judge = ServerJudge(lambda _: self.locks(), self, STORE, self)  # type: ignore[arg-type]

    def locks(self) -> set[int]:
        """What the server would say."""
        return {lock_key(STORE, epoch) for epoch in self.others} | ({lock_key(STORE, 7)} if self.locked else {1})

    def monotonic(self) -> float:
        """The clock."""
        return self.time

    def look(self, after: float = 1.0) -> bool:
        """Look again *after* so many seconds."""
        self.time += after
        return self.judge.is_dead(self.row(7))

    def row(self, epoch: int) -> IdentityRow:
        """The registration of a worker on another host."""
        row: dict[str, Any] = {name: 0 for name in IdentityRow._fields}
        row |= {"epoch": epoch, "name": "far", "boot_id": "another host", "seen_at": self.seen_at}
        return IdentityRow(**row)


@pytest.fixture
def watcher() -> Watcher:
    """A fresh one that has looked once."""
    made = Watcher()
    assert not made.look()
    return made


def test_silence_for_a_whole_lease_is_death(watcher: Watcher) -> None:
    """Looked at every second, and not a moment earlier."""
    assert [watcher.look() for _ in range(LEASE)] == [False] * (LEASE - 1) + [True]


def test_a_sign_of_life_starts_the_lease_anew(watcher: Watcher) -> None:
    """However late it comes."""
    assert not any(watcher.look() for _ in range(LEASE - 1))
    watcher.seen_at += 1
    assert [watcher.look() for _ in range(LEASE + 1)] == [False] * LEASE + [True]


def test_time_nobody_could_look_does_not_count(watcher: Watcher) -> None:
    """Looks that come late, as during restarts, count a little; after a long gap everything is forgotten."""
    assert not any(watcher.look(2.5) for _ in range(LEASE * 2 // 3 - 1))
    assert not watcher.look(20)
    assert not any(watcher.look() for _ in range(LEASE - 1))


def test_a_lost_lock_shortens_the_lease(watcher: Watcher) -> None:
    """The server has seen that connection end; 3 s of silence are enough then."""
    watcher.locked = True
    assert not watcher.look()
    watcher.locked = False
    assert [watcher.look() for _ in range(2)] == [False, True]


def test_a_lost_lock_says_nothing_after_the_server_came_up(watcher: Watcher) -> None:
    """Every lock is lost then; so it is while there is no connection that could tell."""
    watcher.locked = True
    assert not watcher.look()
    watcher.locked = False
    for since in (watcher.time - 1, None):
        watcher.since = since
        assert not any(watcher.look() for _ in range(3))


def test_those_who_left_in_good_order_are_no_outage(watcher: Watcher) -> None:
    """However many there were: a lost lock of one who is still registered counts after 3 s all the same."""
    watcher.others = set(range(100, 120))
    assert not watcher.look()
    for epoch in watcher.others:
        assert not watcher.judge.is_dead(watcher.row(epoch))
    watcher.others = set()
    watcher.locked = True
    for _ in range(4):
        watcher.seen_at += 1
        assert not watcher.look()
    watcher.locked = False
    assert [watcher.look() for _ in range(3)] == [False, False, True]
