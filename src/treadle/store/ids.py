"""Job ids: taken from blocks that were burned in committed transactions, so none is ever given twice."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Final

from treadle.store.ops.sequences import burn
from treadle.store.session import Session

FIRST_BLOCK: Final = 16
LARGEST_BLOCK: Final = 4096
Submit = Callable[..., Future[int]]


class IdBlock:
    """Hands out job ids; small blocks first, larger ones for busy producers.

    Args:
        submit: queues an operation in a transaction of its own and returns its future.
    """

    def __init__(self, submit: Submit) -> None:
        self._submit = submit
        self.forget()

    def take(self, count: int, wait: Callable[[Future[int]], int]) -> Sequence[int]:
        """Take *count* ids; blocks while a new block is burned."""
        found = self._from_block(count)
        while found is None:
            size = self._next_size(count)
            self._put(wait(self._burn(size)), size)
            found = self._from_block(count)
        return found

    def take_later(self, count: int, use: Callable[[Sequence[int]], None], answer: Future[Any]) -> None:
        """Call *use* with *count* ids, now or when a block was burned; a failure goes to *answer*."""
        found = self._from_block(count)
        if found is not None:
            use(found)
            return
        size = self._next_size(count)

        def burned(done: Future[int]) -> None:
            try:
                self._put(done.result(), size)
                self.take_later(count, use, answer)
            except BaseException as error:
                if answer.set_running_or_notify_cancel():
                    answer.set_exception(error)

        self._burn(size).add_done_callback(burned)

    def take_in(self, session: Session, count: int) -> Sequence[int]:
        """Take *count* ids for a caller's own transaction, which may hold the lock a new block would need.

        Without a block at hand the ids come from that transaction: rolled back, they may be given again, to
        jobs that were never accepted.
        """
        found = self._from_block(count)
        if found is None:
            first = burn(session, "job", count)
            found = range(first, first + count)
        return found

    def forget(self) -> None:
        """Drop the block, as a forked child must: its parent hands out the same numbers."""
        self._lock = threading.Lock()
        self._next = 0
        self._end = 0
        self._size = FIRST_BLOCK

    def _burn(self, size: int) -> Future[int]:
        return self._submit(lambda session: burn(session, "job", size), guarded=False)

    def _from_block(self, count: int) -> Sequence[int] | None:
        with self._lock:
            if self._end - self._next < count:
                return None
            first = self._next
            self._next += count
            return range(first, first + count)

    def _next_size(self, count: int) -> int:
        with self._lock:
            self._size = min(self._size * 4, LARGEST_BLOCK)
            return max(count, self._size // 4)

    def _put(self, first: int, size: int) -> None:
        with self._lock:
            # What is left of the old block is dropped: gaps are harmless, a lock held over a burn is not.
            if size >= self._end - self._next:
                self._next, self._end = first, first + size
