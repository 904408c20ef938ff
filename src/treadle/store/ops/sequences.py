"""Numbers never given twice: job ids, worker epochs, leases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from treadle.store.ops import closing
from treadle.store.session import Session

BURN: Final = "UPDATE treadle_sequences SET next = next + :count WHERE name = :name RETURNING next - :count"
LOCK: Final = "UPDATE treadle_sequences SET next = next WHERE name = 'job'"
# PostgreSQL: outside of any transaction's fate, so nobody waits for anybody's commit. Leases come in blocks that
# follow each other without a gap, because a claim numbers its jobs from the first one.
NEXT: Final = """
SELECT nextval('treadle_{name}_numbers') FROM generate_series(1, :count)
WHERE NOT EXISTS (SELECT 1 FROM treadle_meta WHERE name = 'filling')
"""
NAMES: Final = ("job", "epoch", "lease")
FOLLOWING: Final = "SELECT next FROM treadle_sequences WHERE name = ?"
SERVER_FOLLOWING: Final = "SELECT last_value + is_called::int * {step} FROM treadle_{name}_numbers"
GO_ON: Final = "UPDATE treadle_sequences SET next = max(next, :following) WHERE name = :name"
SERVER_GO_ON: Final = "SELECT setval('treadle_{name}_numbers', :following, false)"
PLACED: Final = ("treadle_attempts", "treadle_logs")
LAST_PLACE: Final = "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name IN (?, ?)"
FORGET_PLACES: Final = "DELETE FROM sqlite_sequence WHERE name IN (?, ?)"
PLACE: Final = "INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)"
LEASE_BLOCK: Final = 4096
"""What the sequence of leases counts by on PostgreSQL; no claim takes more."""


def lock(session: Session) -> None:
    """Become the writer by changing nothing: a deferred transaction that has not read yet waits here."""
    session.change(LOCK)


def burn(session: Session, name: str, count: int) -> Sequence[int]:
    """Take *count* numbers of the sequence "job", "epoch" or "lease".

    Run this in a transaction of its own that commits: only then can a rollback never give a number again.

    Raises:
        StoreBusy: the store is being filled by a move, whose jobs bring numbers of their own. On PostgreSQL no trigger
            could say so, and whoever took numbers now would give some twice.
    """
    if not session.dialect.shares_rows:
        first = int(session.value(BURN, {"name": name, "count": count}))
        return range(first, first + count)
    # Workers live through a crash of the server that takes their last commits back; what it gave them must stay given.
    session.insist()
    if name == "lease":
        assert count <= LEASE_BLOCK, f"a claim of {count} jobs is larger than a block of leases"
        first = _next(session, name, 1)[0]
        return range(first, first + count)
    return _next(session, name, count)


def _next(session: Session, name: str, count: int) -> list[int]:
    found = [int(number) for (number,) in session.rows(NEXT.format(name=name), {"count": count})]
    if not found:
        closing.check_filling(session)
    return found


def following(session: Session, name: str) -> int:
    """A number above all that the sequence has given."""
    if not session.dialect.shares_rows:
        return int(session.value(FOLLOWING, (name,)))
    step = LEASE_BLOCK if name == "lease" else 1
    return int(session.value(SERVER_FOLLOWING.format(name=name, step=step)))


def go_on(session: Session, name: str, beyond: int) -> None:
    """Give no number below *beyond* any more; a sequence that is further already goes on where it is."""
    if not session.dialect.shares_rows:
        session.change(GO_ON, {"name": name, "following": beyond})
        return
    session.value(SERVER_GO_ON.format(name=name), {"following": max(beyond, following(session, name))})


def last_place(session: Session) -> int:
    """SQLite: the highest place ever given in the history or the logs."""
    return int(session.value(LAST_PLACE, PLACED))


def go_on_from_place(session: Session, place: int) -> None:
    """SQLite: give no place up to *place* any more."""
    beyond = max(place, last_place(session))
    session.change(FORGET_PLACES, PLACED)
    for table in PLACED:
        session.change(PLACE, (table, beyond))
