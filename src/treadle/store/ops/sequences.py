"""Numbers never given twice: job ids in blocks, worker epochs one by one."""

from __future__ import annotations

from typing import Final

from treadle.store.session import Session

BURN: Final = "UPDATE treadle_sequences SET next = next + :count WHERE name = :name RETURNING next - :count"

LOCK: Final = "UPDATE treadle_sequences SET next = next WHERE name = 'job'"


def lock(session: Session) -> None:
    """Become the writer by changing nothing: a deferred transaction that has not read yet waits here."""
    session.change(LOCK)


def burn(session: Session, name: str, count: int) -> int:
    """Take *count* numbers of sequence *name*; the first is returned, the rest follow.

    Run this in a transaction of its own that commits: only then can a rollback never give a number again.
    """
    return int(session.value(BURN, {"name": name, "count": count}))
