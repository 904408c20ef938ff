"""Threads for plain functions: daemons of our own, so that a stuck handler cannot hold the process open."""

from __future__ import annotations

import contextvars
import queue
import threading
from collections.abc import Callable


class ThreadPool:
    """Runs calls on up to *size* threads, started as needed.

    The caller keeps count of what runs; the pool only makes sure that no call waits while a thread
    could be started for it.

    Args:
        size: threads at most.
        name: prefix of the threads' names.
    """

    def __init__(self, size: int, name: str) -> None:
        self._size = size
        self._name = name
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._idle = 0
        self._lock = threading.Lock()

    def start(self, call: Callable[[], None]) -> None:
        """Run *call* on a thread of the pool, in a context of its own; it must not raise."""
        with self._lock:
            if self._idle > 0:
                self._idle -= 1
            elif len(self._threads) < self._size:
                thread = threading.Thread(
                    target=self._serve, name=f"{self._name}-{len(self._threads)}", daemon=True
                )
                self._threads.append(thread)
                thread.start()
        self._calls.put(call)

    def close(self) -> None:
        """Let idle threads end; busy ones end after their call."""
        for _ in self._threads:
            self._calls.put(None)

    def _serve(self) -> None:
        while (call := self._calls.get()) is not None:
            contextvars.copy_context().run(call)
            with self._lock:
                self._idle += 1
