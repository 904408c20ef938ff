"""What one check of a store found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from treadle.store.session import Session

RESTORE: Final = "Stop the workers and restore a backup; check the disk."


class Verdict(NamedTuple):
    """What one check found.

    Attributes:
        check: what was looked at, in a few words.
        sound: True when it is as it must be.
        text: what was found.
        remedy: what to do, None when it is sound.
    """

    check: str
    sound: bool
    text: str
    remedy: str | None = None


Check = Callable[[Session], Verdict]


def numbers(used: list[tuple[str, int, int]], remedy: str) -> Verdict:
    """Whether a sequence could give a number twice.

    Args:
        used: for each sequence its name, the number it gives next and the largest one in use.
        remedy: a statement with ``{name}`` and ``{next}`` that puts one beyond it.
    """
    behind = [(name, following, largest) for name, following, largest in used if following <= largest]
    if not behind:
        return Verdict("sequences", sound=True, text="no number of a job, lease or worker can be given twice")
    text = "; ".join(f"{name} gives {following} next, but {largest} is used" for name, following, largest in behind)
    statements = " ".join(remedy.format(name=name, next=largest + 1) for name, _, largest in behind)
    told = f"Stop every program that uses the database, then: {statements}"
    return Verdict("sequences", sound=False, text=text, remedy=told)
