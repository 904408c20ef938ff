"""One child process and the talk with it, on the worker's event loop. See :mod:`treadle.worker.children`."""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import logging
import os
import sys
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import msgspec

from treadle.errors import LeaseLost
from treadle.host.children import Child, End, how_it_ended
from treadle.host.usage import Used, memory_of, oom_kills, peak_resident, resident_bytes, usage_of
from treadle.model.job import Usage
from treadle.model.outcome import Cancelled, Held, Outcome, Released
from treadle.model.parameters import module_of
from treadle.model.sanitise import clean_text
from treadle.worker import wire
from treadle.worker.context import Desk, JobContext
from treadle.worker.location import Location
from treadle.worker.runner import STOPPED, Attempt

T = TypeVar("T")
MODULE: Final = "treadle.worker.child"
WATCH_MEMORY_EVERY: Final = 0.2
LOOK_FOR_STACK_EVERY: Final = 0.05
STACK_CAP: Final = 16_000
CHUNK: Final = 1 << 16
READS_MOST: Final = 64
NOTHING: Final = Usage(None, None, None)
UTF_8: Final = codecs.getincrementaldecoder("utf-8")


class ChildEnded(Exception):
    """A child ended under its attempt.

    Attributes:
        words: how, for people.
        usage: what it used.
        stack: its last stack, when it told.
        beyond_memory: bytes it had in RAM when it was killed for having more than its cap, None otherwise.
        begun: False when its handler had not begun.
    """

    def __init__(
        self, words: str, usage: Usage, stack: str | None, beyond_memory: int | None, *, begun: bool
    ) -> None:
        super().__init__(words)
        self.begun = begun
        self.words = words
        self.usage = usage
        self.stack = stack
        self.beyond_memory = beyond_memory


class Birth(NamedTuple):
    """What every child of a worker is told at its start.

    Attributes:
        location: where its app is.
        lock: the file in which it locks a byte.
        mark: what its environment and that of everything it starts carries.
        worker: the worker's name, for the history.
    """

    location: Location
    lock: Path
    mark: str
    worker: str


class Talk:
    """One child and the talk with it.

    Args:
        birth: what it is told at its start.
        place: the byte it locks.
        desk: where notes of its jobs go.

    Attributes:
        gone: set once the child and everything it started is gone.
        jobs: attempts it was given.
        killed: True once we have killed it.
    """

    def __init__(self, birth: Birth, place: int, desk: Desk) -> None:
        self._birth = birth
        self._place = place
        self._desk = desk
        self._loop = asyncio.get_running_loop()
        self._inbox = wire.Inbox()
        self._unsent = bytearray()
        self._child: Child | None = None
        self._end: End | None = None
        self._context: JobContext | None = None
        self._ready: asyncio.Future[str] = self._loop.create_future()
        self._ended: asyncio.Future[wire.Ended] = self._loop.create_future()
        self._beyond: int | None = None
        self._oom_kills = 0
        self._stack = ""
        self._before = Used(None, None)
        self._peak = 0
        self._hurt = False
        self._decoders: dict[str, codecs.IncrementalDecoder] = {}
        self.gone = asyncio.Event()
        self.jobs = 0
        self._begun = False
        self.killed = False

    @property
    def fit(self) -> bool:
        """True while the child can take another attempt."""
        return self._child is not None and self._end is None and not self._hurt

    async def run(self, attempt: Attempt) -> tuple[Outcome, Usage]:
        """Run an attempt in this child.

        Raises:
            ChildEnded: the child ended before it said what came of it.
        """
        self._context = attempt.context
        self._ended = self._loop.create_future()
        self._begun = False
        if self._child is None:
            self._start()
        why = await self._answer(self._ready)
        if why:
            self._hurt = True
            return Held(f"its process could not be started: {why}"), NOTHING
        if attempt.context.cancelled:
            reason = attempt.context.cancel_reason
            return (Released(STOPPED, started=False) if reason is None else Cancelled(reason)), NOTHING
        assert self._child is not None
        self.jobs += 1
        self._before = usage_of(self._child.pid)
        self._peak = self._before.peak_rss or 0
        memory = attempt.definition.memory
        self.tell(wire.Run(attempt.claimed, memory, module_of(attempt.definition.function)))
        watch = None if memory is None else self._loop.create_task(self._watch_memory(memory))
        try:
            ended = await self._answer(self._ended)
        finally:
            if watch is not None:
                watch.cancel()
        self._finish(attempt.context, ended)
        return _outcome(ended), Usage(ended.peak_rss, ended.cpu, None)

    def tell(self, message: wire.ToChild) -> None:
        """Send a message; never waits for the child to read it."""
        if self._child is None or self._end is not None:
            return
        self._unsent += wire.packed(message)
        self._send()

    def kill(self) -> None:
        """Kill the child and what it started."""
        self.killed = True
        if self._child is None:
            self.gone.set()
        else:
            self._peak = max(self._peak, peak_resident(self._child.pid) or 0)
            self._child.kill()

    async def stack(self, patience: float) -> str:
        """Ask where the child stands, and wait until it has told, at most *patience* seconds."""
        if self._child is None or not self._child.ask_stacks():
            return ""
        for _ in range(round(patience / LOOK_FOR_STACK_EVERY)):
            await asyncio.sleep(LOOK_FOR_STACK_EVERY)
            before = self._stack
            self._stack += (_read(self._child.stacks) or b"").decode("utf-8", "replace")
            if before and self._stack == before:
                break
        return clean_text(_main_thread_first(self._stack), STACK_CAP)

    def close(self) -> None:
        """Close the pipes; a child that still lives notices it and ends."""
        child, self._child = self._child, None
        if child is not None:
            for descriptor in (child.outward, child.output, child.errors):
                self._loop.remove_reader(descriptor)
            self._loop.remove_writer(child.inward)
            child.close()

    def _start(self) -> None:
        self._oom_kills = oom_kills()
        child = self._child = Child(MODULE, f"{self._birth.mark}.{self._place}", self._tell_end)
        os.set_blocking(child.inward, False)
        self._loop.add_reader(child.outward, self._hear, child)
        self._loop.add_reader(child.output, self._hear_output, child.output, "stdout")
        self._loop.add_reader(child.errors, self._hear_output, child.errors, "stderr")
        where = self._birth.location
        self.tell(wire.Hello(
            where.app, where.main, list(where.sys_path), str(self._birth.lock), self._place, self._desk.store_id,
            logging.getLogger().getEffectiveLevel(), self._birth.worker,
        ))  # fmt: skip

    async def _answer(self, answer: asyncio.Future[T]) -> T:
        """Wait for *answer*, or for the end of the child."""
        gone = self._loop.create_task(self.gone.wait())
        waits: set[asyncio.Future[Any]] = {answer, gone}
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
        if answer.done():
            return answer.result()
        assert self._end is not None
        words = how_it_ended(self._end.code, out_of_memory=oom_kills() > self._oom_kills)
        peak, cpu = self._end.used
        # What the system counts is the whole life of the process: attempts before this one are taken off.
        cpu = None if cpu is None else max(0, cpu - (self._before.cpu or 0))
        usage = Usage(max(self._peak, peak or 0) or None, cpu, self._end.code)
        raise ChildEnded(words, usage, self._stack or None, self._beyond, begun=self._begun)

    def _finish(self, context: JobContext, ended: wire.Ended) -> None:
        """What must happen before another attempt may run in this child."""
        if self._child is not None:
            self._hear_all_output(self._child)
        for line in ended.lines:
            context.keep(line)
        self._context = None
        self._stack = ""

    async def _watch_memory(self, most: int) -> None:
        """Kill the child when it and what it started have more in RAM than they may."""
        while self._child is not None:
            found = memory_of(self._child.pid)
            self._peak = max(self._peak, resident_bytes(self._child.pid))
            if found > most:
                self._beyond = found
                self.kill()
                return
            await asyncio.sleep(WATCH_MEMORY_EVERY)

    def _tell_end(self, end: End) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._take_end, end)

    def _take_end(self, end: End) -> None:
        if self._child is not None:
            self._hear(self._child)
            self._hear_all_output(self._child)
        self._end = end
        self.gone.set()

    def _send(self) -> None:
        assert self._child is not None
        try:
            del self._unsent[: os.write(self._child.inward, self._unsent)]
        except BlockingIOError:
            pass  # it does not read now; the loop tells when it does
        except BrokenPipeError:
            self._unsent.clear()  # it is gone, or about to be; its end is told otherwise
        if self._unsent:
            self._loop.add_writer(self._child.inward, self._send)
        else:
            self._loop.remove_writer(self._child.inward)

    def _hear(self, child: Child) -> None:
        data = _read(child.outward)
        if data == EOF:
            self._loop.remove_reader(child.outward)
        for message in self._inbox.feed(data or b""):
            self._take(wire.for_parent(message))

    def _take(self, message: wire.ToParent) -> None:
        match message:
            case wire.Ready():
                _resolve(self._ready, "")
            case wire.Broken(why):
                _resolve(self._ready, why)
            case wire.Ended():
                _resolve(self._ended, message)
            case wire.Begun():
                self._begun = True
            case wire.StopWorker(reason):
                self._desk.stop_soon(reason)
            case wire.Progress() | wire.Line():
                self._note(message)
            case wire.Settled(lease, finished_at):
                if self._context is not None and self._context.lease == lease:
                    self._context.settled_elsewhere(finished_at)
            case wire.Ask():
                self._look_up(message)

    def _note(self, message: wire.Progress | wire.Line) -> None:
        if isinstance(message, wire.Progress):
            self._desk.note_progress(message.lease, message.fraction, message.message)
        else:
            self._hear_line(message)

    def _hear_line(self, message: wire.Line) -> None:
        line = message.line
        if self._context is not None and self._context.lease == message.lease:
            self._context.keep(line)
        if line.source != "job":
            logging.getLogger(line.source).log(line.level, "%s", line.text)

    def _look_up(self, ask: wire.Ask) -> None:
        future: Future[Any]
        if ask.codec is not None and ask.data is not None:
            future = self._desk.write_checkpoint(ask.key, ask.codec, ask.data)
        else:
            future = self._desk.read_checkpoint(ask.key)
        future.add_done_callback(partial(self._reply, ask.number))

    def _reply(self, number: int, future: Future[tuple[str, bytes] | None]) -> None:
        """On whatever thread answered."""
        error = future.exception()
        if error is not None:
            reply = wire.Reply(number, error=str(error), lost=isinstance(error, LeaseLost))
        else:
            reply = wire.Reply(number, *(future.result() or ()))
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self.tell, reply)

    def _hear_all_output(self, child: Child) -> None:
        """Read what it has printed so far; not for ever, because a thread of its may go on printing."""
        for descriptor, name in ((child.output, "stdout"), (child.errors, "stderr")):
            for _ in range(READS_MOST):
                if not self._hear_output(descriptor, name):
                    break

    def _hear_output(self, descriptor: int, name: str) -> bool:
        """Read some of what it has printed; False when there is nothing."""
        data = _read(descriptor)
        if data == EOF:
            self._hurt = True  # it has closed its output: what the next handler prints would be lost
            self._loop.remove_reader(descriptor)
        if not data:
            return False
        text = self._decoders.setdefault(name, UTF_8("replace")).decode(data)
        _pass_on(name, text)
        if self._context is not None:
            self._context.keep_text(logging.INFO if name == "stdout" else logging.WARNING, name, text)
        return True


def _outcome(ended: wire.Ended) -> Outcome:
    try:
        return wire.unpack_outcome(ended.kind, ended.fields)
    except msgspec.MsgspecError as error:  # its work may be done, so it is not repeated blindly
        return Held(f"outcome not stored: {error}"[:500])


def _main_thread_first(stacks: str) -> str:
    """Stacks as faulthandler writes them, the handler's thread before the others."""
    blocks = stacks.strip().split("\n\n")
    return "\n\n".join(sorted(blocks, key=lambda block: not block.startswith("Current thread")))


EOF: Final = b""


def _read(descriptor: int) -> bytes | None:
    """What can be read now; None when there is nothing yet, :data:`EOF` at the end."""
    try:
        return os.read(descriptor, CHUNK)
    except BlockingIOError:
        return None


def _resolve(future: asyncio.Future[T], found: T) -> None:
    if not future.done():
        future.set_result(found)


def _pass_on(name: str, text: str) -> None:
    """Print what a child printed, so that it reaches the worker's own log."""
    stream = sys.stdout if name == "stdout" else sys.stderr
    stream.write(text)
    stream.flush()
