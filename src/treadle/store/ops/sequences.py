"""Numbers never given twice: job ids, worker epochs, leases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from treadle.store.session import Session

BURN: Final = "UPDATE treadle_sequences SET next = next + :count WHERE name = :name RETURNING next - :count"
LOCK: Final = "UPDATE treadle_sequences SET next = next WHERE name = 'job'"
# PostgreSQL: outside of any transaction's fate, so nobody waits for anybody's commit. Leases come in blocks that
# follow each other without a gap, because a claim numbers its jobs from the first one.
NEXT: Final = "SELECT nextval('treadle_{name}_numbers') FROM generate_series(1, :count)"
LEASE_BLOCK: Final = 4096
"""What the sequence of leases counts by on PostgreSQL; no claim takes more."""


def lock(session: Session) -> None:
    """Become the writer by changing nothing: a deferred transaction that has not read yet waits here."""
    session.change(LOCK)


def burn(session: Session, name: str, count: int) -> Sequence[int]:
    """Take *count* numbers of the sequence "job", "epoch" or "lease".

    Run this in a transaction of its own that commits: only then can a rollback never give a number again.
    """
    if not session.dialect.shares_rows:
        first = int(session.value(BURN, {"name": name, "count": count}))
        return range(first, first + count)
    if name == "lease":
        assert count <= LEASE_BLOCK, f"a claim of {count} jobs is larger than a block of leases"
        first = int(session.value(NEXT.format(name=name), {"count": 1}))
        return range(first, first + count)
    return [int(number) for (number,) in session.rows(NEXT.format(name=name), {"count": count})]
