"""A worker that is the main thing of its process: it lives until a signal, or until something is done."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, Protocol

from treadle.errors import TreadleError
from treadle.host.process import exit_now, flush_outputs, stop_signals

LAST_PATIENCE: Final = 1.0
"""Seconds that tasks have to end once they are cancelled with their loop."""
log = logging.getLogger("treadle.worker")


class Living(Protocol):
    """What a worker is to its process."""

    failure: TreadleError | None

    @property
    def name(self) -> str:
        """What people call it."""

    async def start(self) -> None:
        """Begin to work."""

    async def stop(self) -> None:
        """Drain and end."""

    async def ended(self) -> None:
        """Wait for the end."""

    def hurry(self) -> None:
        """Cancel what still runs."""


async def live(worker: Living, until: Callable[[], Awaitable[object]] | None = None) -> None:
    """Start *worker* and let it work until SIGTERM or SIGINT, or until what *until* returns is done.

    The first signal drains, the second cancels what runs, the third ends the process at once.

    Raises:
        TreadleError: the worker could not start, or ended by itself for this reason.
        Exception: what *until* was waiting for failed.
    """
    loop = asyncio.get_running_loop()
    signals: asyncio.Queue[int] = asyncio.Queue()
    heard_before: list[int] = []

    def heard(number: int) -> None:
        heard_before.append(number)
        if len(heard_before) > 2:
            exit_now(128 + number)  # also when the event loop stands still
        loop.call_soon_threadsafe(signals.put_nowait, number)

    with stop_signals(heard):
        await worker.start()
        ended = loop.create_task(worker.ended())
        waits: set[asyncio.Future[Any]] = {loop.create_task(signals.get()), ended}
        asked = None if until is None else asyncio.ensure_future(until())
        if asked is not None:
            waits.add(asked)
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:  # also when this coroutine is cancelled: a worker that nobody waits for would go on for ever
            if not ended.done():
                await _drain(worker, signals)
            finished = asked is not None and asked.done()
            for wait in waits:
                wait.cancel()
    if worker.failure is not None:
        raise worker.failure
    if asked is not None and finished:
        asked.result()


def run_loop(main: Coroutine[Any, Any, None]) -> None:
    """As ``asyncio.run``, but a handler that swallows every cancellation cannot keep it from returning.

    Its job was given back; what is left of it ends with the loop.
    """
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        loop.run_until_complete(main)
    finally:
        try:
            loop.run_until_complete(_leave_behind())
        finally:
            asyncio.set_event_loop(None)
            loop.close()


def end_despite_threads(code: int, patience: float) -> None:
    """Let this process end with *code* although threads that handlers have left behind go on; call it just before.

    Python waits at its exit for every thread that is no daemon, also for those of ``asyncio.to_thread``. After
    *patience* seconds of that the process is ended all the same, without what is registered by ``atexit``.
    """

    def watch() -> None:
        threading.Event().wait(patience)
        main = threading.main_thread()
        left = [thread.name for thread in threading.enumerate() if not thread.daemon and thread is not main]
        if left:
            log.warning("The process ends although threads still run: %s. Nobody waits for them.", ", ".join(left))
            flush_outputs()
            exit_now(code)

    threading.Thread(target=watch, name="treadle-exit", daemon=True).start()


async def _leave_behind() -> None:
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    stubborn = (await asyncio.wait(left, timeout=LAST_PATIENCE))[1] if left else set()
    for task in stubborn:
        log.warning("A task swallowed its cancellation and is left behind: %r", task)
    await asyncio.get_running_loop().shutdown_asyncgens()


async def _drain(worker: Living, signals: asyncio.Queue[int]) -> None:
    """Stop in good order; one more signal cuts the grace short."""
    log.info("Worker %s drains: it finishes what runs, within its grace.", worker.name)
    stopping = asyncio.ensure_future(worker.stop())
    again = asyncio.ensure_future(signals.get())
    await asyncio.wait({stopping, again}, return_when=asyncio.FIRST_COMPLETED)
    if again.done():
        log.warning("Second signal: running attempts are cancelled now.")
        worker.hurry()
    again.cancel()
    await stopping
    await worker.ended()
