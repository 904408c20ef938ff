"""A child process: imports the app again, then runs one attempt after the other for its worker.

Started by :mod:`treadle.worker.talk` as ``python -m treadle.worker.child IN OUT STACKS``, three descriptors. The main
thread runs handlers; a second thread listens to the worker and ends the whole session when the worker is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import importlib
import logging
import os
import queue
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from itertools import count
from pathlib import Path
from typing import Any, Final, TextIO

from treadle.clock import Clock
from treadle.errors import LeaseLost, NotSupportedHere, StoreError
from treadle.host.children import (
    adopt_orphans,
    become_child,
    end_own_session,
    keep_from_children,
    kill_started,
    own_mark,
    parent_of,
    readable,
    write_stacks_to,
)
from treadle.host.locks import Hold
from treadle.host.usage import Meter, memory_limit
from treadle.model.definition import TaskDefinition
from treadle.model.job import LogLine
from treadle.model.outcome import Held, Outcome
from treadle.model.sanitise import describe_exception
from treadle.store.ops.meta import store_id
from treadle.store.ops.notes import lost
from treadle.store.store import Store
from treadle.worker import wire
from treadle.worker.around import Around
from treadle.worker.capture import capture_logging
from treadle.worker.completion import AttemptCompletion
from treadle.worker.context import RUNNING, JobContext
from treadle.worker.location import find_again
from treadle.worker.registry import Registry
from treadle.worker.resources import Resources
from treadle.worker.runner import Attempt, Runner, needs_loop, raised
from treadle.worker.transacting import Completion

CHUNK: Final = 1 << 16
LOOK_FOR_PARENT_EVERY: Final = 1.0
log = logging.getLogger("treadle.worker")


class Pipe:
    """The worker's end of the talk, as the child sees it; it is also the desk of the running job.

    Args:
        inward: descriptor to read from.
        outward: descriptor to write to.
        mark: what the environment of everything that is started here carries.
    """

    def __init__(self, inward: int, outward: int, mark: str) -> None:
        for descriptor in (inward, outward):
            keep_from_children(descriptor)
        self._inward = inward
        self._outward = outward
        self._inbox = wire.Inbox()
        self._writing = threading.Lock()
        self._asked: dict[int, Future[Any]] = {}
        self._numbers = count()
        self._parent = parent_of()
        self.mark = mark
        self.runs: queue.SimpleQueue[wire.Run] = queue.SimpleQueue()
        self.wish: wire.Cancel | None = None
        """That the attempt that was sent last should stop; it may come before the attempt has begun."""
        self.on_wish = _nobody
        self.store_id = self.worker = ""
        self.clock: Clock
        self.make_completion: Callable[[JobContext], Completion]

    def hello(self) -> wire.Hello:
        """The worker's first message."""
        while True:
            for message in self._read():
                found = wire.for_child(message)
                assert isinstance(found, wire.Hello)
                return found

    def listen(self) -> None:
        """Hear the worker until it is gone, or says what nobody understands; then end with everything started here."""
        try:
            while True:
                for message in self._read():
                    self._take(wire.for_child(message))
        except BaseException:
            # Without this thread nobody would notice the end of the worker. After an upgrade under a running worker
            # the two may speak differently.
            log.exception("A child process cannot go on.")
            end_own_session(self.mark)

    def say(self, message: wire.ToParent) -> None:
        """Tell the worker something."""
        data = wire.packed(message)
        with self._writing:
            while data:
                data = data[os.write(self._outward, data) :]

    def note_progress(self, lease: int, fraction: float, message: str) -> None:
        """Send the progress."""
        self.say(wire.Progress(lease, fraction, message))

    def note_line(self, lease: int, line: LogLine) -> None:
        """Send a line."""
        self.say(wire.Line(lease, line))

    def write_checkpoint(self, lease: int, codec: str, data: bytes) -> Future[None]:
        """Let the worker store a checkpoint."""
        return self._ask(lease, codec, data)

    def read_checkpoint(self, job_id: int) -> Future[tuple[str, bytes] | None]:
        """Let the worker read the job's last checkpoint."""
        return self._ask(job_id)

    def completion(self, context: JobContext) -> Completion:
        """What settles the attempt from here, by this process's own connection to the database."""
        return self.make_completion(context)

    def stop_soon(self, reason: str) -> None:
        """Let the worker drain and end."""
        self.say(wire.StopWorker(reason))

    def _ask(self, key: int, codec: str | None = None, data: bytes | None = None) -> Future[Any]:
        number, future = next(self._numbers), Future[Any]()
        self._asked[number] = future
        self.say(wire.Ask(number, key, codec, data))
        return future

    def _read(self) -> list[bytes]:
        # The pipe ends with the worker unless somebody forked a copy of its end: so its pid is looked at too.
        data = os.read(self._inward, CHUNK) if readable(self._inward, LOOK_FOR_PARENT_EVERY) else None
        if data == b"" or parent_of() != self._parent:
            end_own_session(self.mark)
        return list(self._inbox.feed(data or b""))

    def _take(self, message: wire.ToChild) -> None:
        match message:
            case wire.Run():
                self.wish = None
                self.runs.put(message)
            case wire.Cancel():
                self.wish = message
                self.on_wish()
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
        self._app = app
        self._attempt: Attempt | None = None
        self._registry: Registry = app.registry
        self._loop = asyncio.Runner()
        around = Around(app.extensions, Resources(app.extensions.resources, self._loop.run))
        self._runner = Runner(app.codecs, around, _here)
        self._outputs: tuple[TextIO, TextIO] = sys.stdout, sys.stderr
        self._context: JobContext | None = None
        self._task: asyncio.Task[Outcome] | None = None
        pipe.on_wish = self.grant
        pipe.make_completion = self._completion

    def handle(self, run: wire.Run) -> wire.Ended:
        """Run one attempt and say what came of it."""
        meter = Meter()
        definition = self._find(run)
        if isinstance(definition, Held):
            return _ended(definition, [], meter)
        context = self._context = JobContext(run.claimed, definition.codec, self._pipe)
        self.grant()
        self._pipe.say(wire.Begun())
        self._mend_outputs()
        wrapping = self._runner.wrapping_of(definition)
        self._attempt = Attempt(run.claimed, definition, context, wrapping)
        outcome = self._run(self._attempt, run.memory)
        self._context = self._attempt = None
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(AttributeError, OSError, ValueError):  # the handler has closed or replaced it
                stream.flush()
        kill_started(self._pipe.mark)
        return _ended(outcome, list(context.last_lines()), meter)

    def grant(self) -> None:
        """Ask the running handler to stop, if that is wanted; on the listening thread, and when an attempt begins."""
        wish, context, task = self._pipe.wish, self._context, self._task
        if wish is None or context is None:
            return
        context.cancel(wish.reason)
        if task is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                task.get_loop().call_soon_threadsafe(task.cancel)

    def _completion(self, context: JobContext) -> Completion:
        attempt = self._attempt
        if attempt is None or attempt.context is not context:
            raise lost(context.lease)
        store: Store = self._app.store
        if store.read(store_id) != self._pipe.store_id:
            raise NotSupportedHere(
                f"job.transaction() cannot be used here: the app of this process keeps its jobs in {store.place}, its "
                "worker in another database."
            )
        return AttemptCompletion(
            store, self._pipe.worker, attempt, self._app.clock.now(),
            on_settled=lambda settled: self._pipe.say(wire.Settled(settled.lease, settled.finished_at)),
        )  # fmt: skip

    def _mend_outputs(self) -> None:
        """A handler before this one may have closed them, or put others in their places."""
        out, err = self._outputs
        if out.closed or err.closed:
            self._outputs = out, err = open(1, "w", closefd=False), open(2, "w", closefd=False)
        sys.stdout, sys.stderr = out, err

    def _find(self, run: wire.Run) -> TaskDefinition | Held:
        """The task; the module that declares it may not be imported here yet."""
        name = run.claimed.task
        try:
            if self._registry.find(name) is None and run.module:
                importlib.import_module(run.module)
        except (Exception, SystemExit) as error:  # whatever a user's module raises
            return Held(f"its process cannot import {run.module}, which declares {name!r}: {_told(error)}")
        return self._registry.find(name) or Held(f"its process does not know the task {name!r}")

    def _run(self, attempt: Attempt, memory: int | None) -> Outcome:
        own = contextvars.copy_context()  # what a handler sets there must not reach the next one
        try:
            with memory_limit(memory):
                if needs_loop(attempt.definition, attempt.wrapping):
                    return self._loop.run(self._as_task(attempt), context=own)
                return own.run(self._runner.run_plain, attempt)
        except BaseException as error:  # not even what it raised could be told, as for want of memory
            return raised(attempt, error)

    async def _as_task(self, attempt: Attempt) -> Outcome:
        task = self._task = asyncio.get_running_loop().create_task(self._runner.run_async(attempt))
        if attempt.context.cancelled:  # before there was a task to cancel
            asyncio.get_running_loop().call_soon(task.cancel)
        try:
            return await task
        finally:
            self._task = None


def main(inward: int, outward: int, stacks: int) -> None:
    """Live until the worker is gone."""
    become_child()
    adopt_orphans()
    keep_from_children(stacks)
    write_stacks_to(stacks)
    pipe = Pipe(inward, outward, own_mark())
    hello = pipe.hello()
    pipe.store_id, pipe.worker = hello.store_id, hello.worker
    hold = Hold.take(Path(hello.lock), hello.place)
    if hold is None:
        pipe.say(wire.Broken(f"byte {hello.place} of {hello.lock} is locked by another process"))
        return
    threading.Thread(target=pipe.listen, name="treadle-listen", daemon=True).start()
    logging.getLogger().setLevel(hello.log_level)
    # What is logged outside a job, at import or by threads of a handler's own, is printed; the worker passes it on.
    outside = logging.StreamHandler(sys.__stderr__)
    outside.addFilter(lambda _: RUNNING.get(None) is None)
    logging.getLogger().addHandler(outside)
    with capture_logging(hello.log_level):
        try:
            app: Any = find_again(hello.app, hello.main, hello.sys_path)
            handler = Handler(pipe, app)
            pipe.clock = app.clock
        except (Exception, SystemExit) as error:  # whatever a user's module raises
            pipe.say(wire.Broken(_told(error)))
            return
        pipe.say(wire.Ready())
        while True:
            pipe.say(handler.handle(pipe.runs.get()))


def _ended(outcome: Outcome, lines: list[LogLine], meter: Meter) -> wire.Ended:
    try:
        kind, fields = wire.pack_outcome(outcome)
    except Exception as error:  # its work may be done, so it is not repeated blindly
        kind, fields = wire.pack_outcome(Held(f"outcome not stored: {_told(error)}"))
    used = meter.read()
    return wire.Ended(kind, fields, lines, used.peak_rss, used.cpu)


async def _here(function: Callable[[], object]) -> object:
    """A plain function inside a coroutine: nothing else runs here, so it may block the loop."""
    return function()


def _told(error: BaseException) -> str:
    return ": ".join(describe_exception(error, 2000)[:2])


def _nobody() -> None:
    """Nothing runs, so nothing is cancelled."""


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
