"""Where a crash test kills: counted places of one attempt, from its claim until its outcome is stored."""

from __future__ import annotations

import linecache
import os
import re
import threading
from collections import Counter
from pathlib import Path
from typing import Final

from treadle.host.failpoints import kill_self
from treadle.host.linetrace import Place

BOUNDARIES: Final = ("before_commit", "after_commit", "before_own", "after_own")
CLAIMED: Final = "claimed"
OTHERS: Final = frozenset(
    {
        "claim", "sign", "expire", "prune", "rescue_dead", "rescue_orphans", "look_after", "hold_unknown", "free_known",
        "burn", "register", "leave", "release", "wal_checkpoint", "migrate",
    }
)  # fmt: skip
"""What a worker does beside the attempt."""
TIMES: Final = 2
"""How often a line is a place of its own: the first and the second turn of a loop."""
STORE_POINT: Final = re.compile(r"(?P<operation>\w+)\.(?:alone\.)?(?P<boundary>\w+)")
WORDS: Final = {
    CLAIMED: "after its claim, before it began",
    "apply.before_commit": "after it had ended, before its outcome was stored",
    "apply.after_commit": "after its outcome was stored",
    "insert.before_own": "before an enqueue in your own transaction",
    "insert.after_own": "after an enqueue in your own transaction, before your commit",
}


class Fuse:
    """Counts the places that are passed, and kills this process at one of them.

    Args:
        at: at the how-manieth place, 0 for none.
        note: file to write the places to, one a line; the last line is where it was killed.
    """

    def __init__(self, at: int, note: Path) -> None:
        self._at = at
        self._note = os.open(note, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._lock = threading.Lock()
        self._count = 0
        self._live = False
        self._seen: Counter[tuple[Place, int]] = Counter()

    def at_store(self, point: str) -> None:
        """A fail point of the store was reached; any thread calls this."""
        found = STORE_POINT.fullmatch(point)
        if found is None:
            return
        operation, boundary = found["operation"], found["boundary"]
        if (operation, boundary) == ("claim", "after_commit") and not self._live and not self._count:
            self._live = True
            self._burn(CLAIMED)
        elif self._live and boundary in BOUNDARIES and operation not in OTHERS:
            self._burn(f"{operation}.{boundary}")
            self._live = (operation, boundary) != ("apply", "after_commit")

    def at_line(self, place: Place, line: int) -> None:
        """A line of the handler is about to run."""
        self._seen[place, line] += 1
        if self._live and self._seen[place, line] <= TIMES:
            self._burn(f"{place.file}:{line}:{self._seen[place, line]}:{place.name}")

    def _burn(self, place: str) -> None:
        with self._lock:
            self._count += 1
            os.write(self._note, f"{place}\n".encode())
            if self._count == self._at:
                kill_self(place)


def in_words(place: str) -> str:
    """A place for people: ``before line 31 of charge(), save(order)``.

    Example:
        >>> in_words("insert.before_commit")
        'before the commit of its insert'
    """
    if place in WORDS:
        return WORDS[place]
    if STORE_POINT.fullmatch(place):
        operation, _, boundary = place.partition(".")
        return f"{boundary.partition('_')[0]} the commit of its {operation.replace('_', ' ')}"
    file, line, turn, name = place.rsplit(":", 3)
    again = ", the second time" if turn != "1" else ""
    return f"before line {line} of {name}(){again}: {linecache.getline(file, int(line)).strip()}"
