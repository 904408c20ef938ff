"""Crossing between plain and async code."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def on_own_loop(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on a loop made for it; the loop that this thread may have set otherwise stays set."""
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        return runner.run(coroutine)


def on_own_thread(function: Callable[[], T]) -> T:
    """Call a function on a thread made for it, in this context, and wait; for callers on an event loop."""
    found: list[T] = []
    errors: list[BaseException] = []
    context = contextvars.copy_context()

    def call() -> None:
        try:
            found.append(context.run(function))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=call, name="treadle-testing")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return found[0]
