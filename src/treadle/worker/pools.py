"""Threads for plain functions: daemons of our own, so that a stuck handler cannot hold the process open."""

from __future__ import annotations

import asyncio
import contextvars
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial


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

    async def call(self, function: Callable[[], object]) -> object:
        """Run *function* on a thread for the running coroutine, in its context; wait until it returns, come what may.

        A cancellation meanwhile does not end the wait: the thread goes on, and so must whoever holds its slot.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[object] = loop.create_future()
        context = contextvars.copy_context()

        def run() -> None:
            try:
                finish = partial(future.set_result, context.run(function))
            except BaseException as error:
                finish = partial(future.set_exception, _without_stop(error))
            if not loop.is_closed():
                loop.call_soon_threadsafe(finish)

        self.start(run)
        while not future.done():
            with suppress(asyncio.CancelledError):
                await asyncio.shield(future)
        return future.result()

    def close(self) -> None:
        """Let idle threads end; busy ones end after their call."""
        for _ in self._threads:
            self._calls.put(None)

    def _serve(self) -> None:
        while (call := self._calls.get()) is not None:
            contextvars.copy_context().run(call)
            with self._lock:
                self._idle += 1


def _without_stop(error: BaseException) -> BaseException:
    """A future cannot carry StopIteration; it fails the attempt like any other error."""
    return RuntimeError(f"the handler raised {error!r}") if isinstance(error, StopIteration) else error
