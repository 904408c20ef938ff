"""Job ids: taken from blocks that were burned in committed transactions, so none is ever given twice."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Final

from treadle.errors import OutcomeUnknown, StoreBroken
from treadle.store.ops.sequences import burn
from treadle.store.session import Session
from treadle.store.work import Operation

Numbers = Sequence[int]
FIRST_BLOCK: Final = 16
LARGEST_BLOCK: Final = 4096


class IdBlock:
    """Hands out job ids; small blocks first, larger ones for busy producers.

    Args:
        run: runs an operation in a transaction of its own.
        arun: the same for callers on an event loop.
    """

    def __init__(
        self, run: Callable[[Operation[Numbers]], Numbers], arun: Callable[[Operation[Numbers]], Awaitable[Numbers]]
    ) -> None:
        self._run = run
        self._arun = arun
        self.forget()

    def take(self, count: int) -> Sequence[int]:
        """Take *count* ids; blocks while a new block is burned."""
        while True:
            found = self.at_hand(count)
            if found is not None:
                return found
            size = self._next_size(count)
            with _nothing_stored():
                self._put(self._run(_burn(size)))

    async def atake(self, count: int) -> Sequence[int]:
        """The same on an event loop."""
        while True:
            found = self.at_hand(count)
            if found is not None:
                return found
            size = self._next_size(count)
            with _nothing_stored():
                self._put(await self._arun(_burn(size)))

    def take_in(self, session: Session, count: int) -> Sequence[int]:
        """Take *count* ids for a caller's own transaction, which may hold the lock a new block would need.

        Without a block at hand the ids come from that transaction: rolled back, they may be given again, to
        jobs that were never accepted.
        """
        found = self.at_hand(count)
        if found is None:
            found = burn(session, "job", count)
        return found

    def forget(self) -> None:
        """Drop the block, as a forked child must: its parent hands out the same numbers."""
        self._lock = threading.Lock()
        self._block: Numbers = ()
        self._next = 0
        self._size = FIRST_BLOCK

    def at_hand(self, count: int) -> Sequence[int] | None:
        """Take *count* ids from the block, None when it has not so many left."""
        with self._lock:
            if len(self._block) - self._next < count:
                return None
            first = self._next
            self._next += count
            return self._block[first : first + count]

    def _next_size(self, count: int) -> int:
        with self._lock:
            self._size = min(self._size * 4, LARGEST_BLOCK)
            return max(count, self._size // 4)

    def _put(self, block: Numbers) -> None:
        with self._lock:
            # What is left of the old block is dropped: gaps are harmless, a lock held over a burn is not.
            if len(block) >= len(self._block) - self._next:
                self._block, self._next = block, 0


@contextmanager
def _nothing_stored() -> Iterator[None]:
    """Numbers that may be burned or not are no job that may be stored or not."""
    try:
        yield
    except OutcomeUnknown as error:
        raise StoreBroken(f"{error} That was about job numbers only: no job was stored.") from error


def _burn(size: int) -> Operation[Numbers]:
    return partial(burn, name="job", count=size)
