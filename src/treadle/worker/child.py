"""A child process: imports the app again, then runs one attempt after the other for its worker.

Started by :mod:`treadle.worker.talk` as ``python -m treadle.worker.child IN OUT STACKS``, three descriptors. The main
thread runs handlers; a second thread listens to the worker and ends the whole session when the worker is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import os
import queue
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from itertools import count
from pathlib import Path
from typing import Any, Final

from treadle.clock import Clock
from treadle.errors import LeaseLost, StoreError
from treadle.host.children import (
    become_child,
    end_own_session,
    keep_from_children,
    parent_of,
    readable,
    write_stacks_to,
)
from treadle.host.locks import Hold
from treadle.host.usage import Meter, limit_memory
from treadle.model.job import LogLine
from treadle.model.outcome import Held, Outcome
from treadle.model.sanitise import describe_exception
from treadle.worker import wire
from treadle.worker.around import Around
from treadle.worker.capture import capture_logging
from treadle.worker.context import JobContext
from treadle.worker.location import find_again
from treadle.worker.registry import Registry
from treadle.worker.resources import Resources
from treadle.worker.runner import Attempt, Runner, needs_loop

CHUNK: Final = 1 << 16
LOOK_FOR_PARENT_EVERY: Final = 1.0


class Pipe:
    """The worker's end of the talk, as the child sees it; it is also the desk of the running job.

    Args:
        inward: descriptor to read from.
        outward: descriptor to write to.
    """

    def __init__(self, inward: int, outward: int) -> None:
        for descriptor in (inward, outward):
            keep_from_children(descriptor)
        self._inward = inward
        self._outward = outward
        self._inbox = wire.Inbox()
        self._writing = threading.Lock()
        self._asked: dict[int, Future[Any]] = {}
        self._numbers = count()
        self._parent = parent_of()
        self.runs: queue.SimpleQueue[wire.Run] = queue.SimpleQueue()
        self.on_cancel = _nobody
        self.store_id = ""
        self.clock: Clock

    def hello(self) -> wire.Hello:
        """The worker's first message."""
        while True:
            for message in self._read():
                found = wire.for_child(message)
                assert isinstance(found, wire.Hello)
                return found

    def listen(self) -> None:
        """Hear the worker until it is gone; then end this session."""
        while True:
            for message in self._read():
                self._take(wire.for_child(message))

    def say(self, message: wire.ToParent) -> None:
        """Tell the worker something."""
        data = wire.packed(message)
        with self._writing:
            while data:
                data = data[os.write(self._outward, data) :]

    def note_progress(self, lease: int, fraction: float, message: str) -> None:
        """Send the progress."""
        self.say(wire.Progress(fraction, message))

    def note_line(self, lease: int, line: LogLine) -> None:
        """Send a line."""
        self.say(wire.Line(line))

    def write_checkpoint(self, lease: int, codec: str, data: bytes) -> Future[None]:
        """Let the worker store a checkpoint."""
        return self._ask(codec, data)

    def read_checkpoint(self, job_id: int) -> Future[tuple[str, bytes] | None]:
        """Let the worker read the job's last checkpoint."""
        return self._ask(None, None)

    def stop_soon(self, reason: str) -> None:
        """Let the worker drain and end."""
        self.say(wire.StopWorker(reason))

    def _ask(self, codec: str | None, data: bytes | None) -> Future[Any]:
        number, future = next(self._numbers), Future[Any]()
        self._asked[number] = future
        self.say(wire.Ask(number, codec, data))
        return future

    def _read(self) -> list[bytes]:
        # The pipe ends with the worker unless somebody forked a copy of its end: so its pid is looked at too.
        data = os.read(self._inward, CHUNK) if readable(self._inward, LOOK_FOR_PARENT_EVERY) else None
        if data == b"" or parent_of() != self._parent:
            end_own_session()
        return list(self._inbox.feed(data or b""))

    def _take(self, message: wire.ToChild) -> None:
        match message:
            case wire.Run():
                self.runs.put(message)
            case wire.Cancel(reason):
                self.on_cancel(reason)
            case wire.Reply():
                self._resolve(message)

    def _resolve(self, reply: wire.Reply) -> None:
        future = self._asked.pop(reply.number)
        if reply.error is not None:
            future.set_exception(LeaseLost(reply.error) if reply.lost else StoreError(reply.error))
        elif reply.codec is None:
            future.set_result(None)
        else:
            future.set_result((reply.codec, reply.data))


class Handler:
    """Runs attempts on the main thread.

    Args:
        pipe: where their notes go.
        app: the Treadle: its tasks, codecs and extensions.
    """

    def __init__(self, pipe: Pipe, app: Any) -> None:
        self._pipe = pipe
        self._registry: Registry = app.registry
        self._loop = asyncio.Runner()
        around = Around(app.extensions, Resources(app.extensions.resources, self._loop.run))
        self._runner = Runner(app.codecs, around, _here)
        self._context: JobContext | None = None
        self._task: asyncio.Task[Outcome] | None = None
        pipe.on_cancel = self.cancel

    def handle(self, run: wire.Run) -> wire.Ended:
        """Run one attempt and say what came of it."""
        meter = Meter()
        definition = self._registry.find(run.claimed.task)
        if definition is None:
            return _ended(Held(f"its process does not know the task {run.claimed.task!r}"), [], meter)
        context = self._context = JobContext(run.claimed, definition.codec, self._pipe)
        wrapping = self._runner.wrapping_of(definition)
        attempt = Attempt(run.claimed, definition, context, wrapping)
        limit_memory(run.memory)
        try:
            own = contextvars.copy_context()  # what a handler sets there must not reach the next one
            if needs_loop(definition, wrapping):
                outcome = self._loop.run(self._as_task(attempt), context=own)
            else:
                outcome = own.run(self._runner.run_plain, attempt)
        finally:
            limit_memory(None)
            self._context = None
        sys.stdout.flush()
        sys.stderr.flush()
        return _ended(outcome, list(context.last_lines()), meter)

    def cancel(self, reason: str | None) -> None:
        """Ask the running handler to stop; on the listening thread."""
        context, task = self._context, self._task
        if context is not None:
            context.cancel(reason)
        if task is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                task.get_loop().call_soon_threadsafe(task.cancel)

    async def _as_task(self, attempt: Attempt) -> Outcome:
        self._task = asyncio.get_running_loop().create_task(self._runner.run_async(attempt))
        try:
            return await self._task
        finally:
            self._task = None


def main(inward: int, outward: int, stacks: int) -> None:
    """Live until the worker is gone."""
    become_child()
    keep_from_children(stacks)
    write_stacks_to(stacks)
    pipe = Pipe(inward, outward)
    hello = pipe.hello()
    pipe.store_id = hello.store_id
    hold = Hold.take(Path(hello.lock), hello.place)
    if hold is None:
        pipe.say(wire.Broken(f"byte {hello.place} of {hello.lock} is locked by another process"))
        return
    threading.Thread(target=pipe.listen, name="treadle-listen", daemon=True).start()
    logging.getLogger().setLevel(hello.log_level)
    with capture_logging(hello.log_level):
        try:
            app: Any = find_again(hello.app, hello.main, hello.sys_path)
            handler = Handler(pipe, app)
            pipe.clock = app.clock
        except (Exception, SystemExit) as error:  # whatever a user's module raises
            pipe.say(wire.Broken(": ".join(describe_exception(error, 2000)[:2])))
            return
        pipe.say(wire.Ready())
        while True:
            pipe.say(handler.handle(pipe.runs.get()))


def _ended(outcome: Outcome, lines: list[LogLine], meter: Meter) -> wire.Ended:
    kind, fields = wire.pack_outcome(outcome)
    used = meter.read()
    return wire.Ended(kind, fields, lines, used.peak_rss, used.cpu)


async def _here(function: Callable[[], object]) -> object:
    """A plain function inside a coroutine: nothing else runs here, so it may block the loop."""
    return function()


def _nobody(reason: str | None) -> None:
    """Nothing runs, so nothing is cancelled."""


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
