"""One attempt while it runs: on the loop, on a thread or in a process of its own, and how each is stopped."""

from __future__ import annotations

import asyncio
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextvars import copy_context
from typing import Any, Final, NamedTuple

from treadle import defaults
from treadle.clock import SECOND, to_duration
from treadle.errors import TreadleError
from treadle.model.job import Usage
from treadle.model.outcome import Cancelled, Crashed, Failed, Held, Outcome, Released
from treadle.model.retry import kinds_of
from treadle.worker.children import Children
from treadle.worker.pools import ThreadPool
from treadle.worker.runner import STOPPED, Attempt, Runner, raised, timed_out
from treadle.worker.stacks import stack_of_coroutine, stack_of_thread
from treadle.worker.talk import ChildEnded

ENDINGS: Final = (Exception, SystemExit, KeyboardInterrupt)
"""What may come out of arguments or results, and must not cost a slot: an attempt always ends."""


class Means(NamedTuple):
    """What the attempts of one worker run by.

    Attributes:
        loop: the worker's event loop.
        new_task: makes a task on it, in a context of its own: what one handler sets there, no other must see.
        runner: turns attempts into outcomes.
        threads: for plain functions.
        children: for attempts in processes of their own, None where there can be none.
        read_arguments: reads arguments that are too large to come with the claim.
        ended: told on the loop what an attempt came to.
        on_late: told that an attempt keeps its slot although its timeout and its grace are over.
    """

    loop: asyncio.AbstractEventLoop
    new_task: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]
    runner: Runner
    threads: ThreadPool
    children: Children | None
    read_arguments: Callable[[int], Future[bytes | None]]
    ended: Callable[[Running, Outcome], None]
    on_late: Callable[[], None]


class Running(ABC):
    """An attempt that has begun; used from the worker's event loop."""

    __slots__ = ("attempt", "means", "started_at", "timers", "usage")

    def __init__(self, attempt: Attempt, means: Means, started_at: int) -> None:
        self.attempt = attempt
        self.means = means
        self.started_at = started_at
        self.timers: tuple[asyncio.TimerHandle, ...] = ()
        self.usage: Usage | None = None

    def begin(self) -> None:
        """Start the handler, and the clock of its timeout."""
        timeout = self.attempt.definition.timeout
        if timeout is not None:
            self.later(timeout, self.run_late)
        self.start()

    def later(self, micros: int, action: Callable[[], object]) -> None:
        """Do something after a while, unless the attempt has ended by then."""
        self.timers = (*self.timers, self.means.loop.call_later(micros / SECOND, action))

    @property
    def grace(self) -> int:
        """Microseconds the handler has to end after it was asked to."""
        own = self.attempt.definition.grace
        return to_duration(defaults.CANCEL_GRACE) if own is None else own

    def over(self) -> None:
        """Forget the timers: the attempt has ended."""
        if self.timers:
            for timer in self.timers:
                timer.cancel()

    def ask_to_stop(self, reason: str | None = None) -> None:
        """Ask the handler to stop; what can be stopped by force is, after the task's grace.

        Args:
            reason: given when the whole job is called off, None when only this attempt must end.
        """
        self.attempt.context.cancel(reason)
        self.interrupt()
        self.later(self.grace, self.kill)

    def lost(self) -> None:
        """The job belongs to another attempt: let the handler see it."""
        self.attempt.context.cancel()

    def run_late(self) -> None:
        """The timeout is over: remember where the handler stands, and stop it as far as that can be done."""
        context = self.attempt.context
        if context.overdue is None:
            context.overdue = self.stack()
            context.cancel()
            self.interrupt()
            self.later(self.grace, self._stay_late)

    @property
    def is_stuck(self) -> bool:
        """True when the timeout is over and the handler keeps its slot all the same."""
        return self.attempt.context.overdue is not None

    def _stay_late(self) -> None:
        self.kill()
        self.means.on_late()

    def given_up(self) -> Outcome:
        """What becomes of an attempt that is still running when its worker ends; what it has started ends here."""
        self.attempt.context.end_programs()
        return timed_out(self.attempt) if self.attempt.context.overdue is not None else Released(STOPPED)

    @abstractmethod
    def start(self) -> None:
        """Start the handler."""

    @abstractmethod
    def stack(self) -> str:
        """Where the handler stands now."""

    @abstractmethod
    def interrupt(self) -> None:
        """Make the handler notice that it should stop."""

    def kill(self) -> None:
        """Stop the handler by force, where that can be done; what it has started always can."""
        self.interrupt()
        self.attempt.context.end_programs()


class OnLoop(Running):
    """A coroutine function, as a task on the worker's loop. A task that swallows its cancellation keeps its slot."""

    __slots__ = ("task",)
    task: asyncio.Task[None]

    def start(self) -> None:
        """Start the task."""
        self.task = self.means.new_task(self._run())

    def stack(self) -> str:
        """Where the coroutine waits."""
        return stack_of_coroutine(self.task.get_coro())

    def interrupt(self) -> None:
        """Cancel the task; not before its first step, or nothing of it would ever run and tell of its end."""
        self.means.loop.call_soon(self.task.cancel)

    async def _run(self) -> None:
        attempt, means = self.attempt, self.means
        try:
            if attempt.claimed.data is None:
                data = await asyncio.wrap_future(means.read_arguments(attempt.claimed.id))
                attempt = with_arguments(attempt, data)
            outcome = await means.runner.run_async(attempt)
        except TreadleError as error:
            outcome = unread(error)
        except asyncio.CancelledError:
            outcome = Released(STOPPED, started=False)
        except ENDINGS as error:
            outcome = raised(attempt, error)
        means.ended(self, outcome)


class OnThread(Running):
    """A plain function on a thread. Nothing can stop it: it keeps its slot until it returns."""

    __slots__ = ("ident",)

    def start(self) -> None:
        """Start it on a free thread."""
        self.ident: int | None = None
        self.means.threads.start(self._run)

    def stack(self) -> str:
        """Where the thread stands."""
        return stack_of_thread(self.ident)

    def interrupt(self) -> None:
        """Nothing beyond ``job.cancelled``: an exception thrown into a thread does not wake a blocking call."""

    def _run(self) -> None:
        attempt, means = self.attempt, self.means
        self.ident = threading.get_ident()
        try:
            if attempt.claimed.data is None:
                attempt = with_arguments(attempt, means.read_arguments(attempt.claimed.id).result())
            outcome = means.runner.run_plain(attempt)
        except TreadleError as error:
            outcome = unread(error)
        except ENDINGS as error:
            outcome = raised(attempt, error)
        if not means.loop.is_closed():
            means.loop.call_soon_threadsafe(means.ended, self, outcome)


class InChild(Running):
    """A function of either kind in a process of its own, which is killed with everything it started."""

    __slots__ = ("_asking", "_limit", "_task", "_why_killed")

    def start(self) -> None:
        """Hand it to a child process."""
        self._why_killed: str | None = None
        self._limit = self.attempt.definition.memory
        self._task = self.means.new_task(self._run())

    def stack(self) -> str:
        """Not known here; the child is asked in :meth:`run_late`."""
        return ""

    def interrupt(self) -> None:
        """Tell the child's handler."""
        assert self.means.children is not None
        self.means.children.interrupt(self.attempt.claimed.lease, self.attempt.context.cancel_reason)

    def lost(self) -> None:
        """Tell the child's handler too."""
        super().lost()
        self.interrupt()

    def kill(self) -> None:
        """Kill the child and whatever it started."""
        assert self.means.children is not None
        self._why_killed = self._why_killed or "it did not stop within its grace"
        self.means.children.kill(self.attempt.claimed.lease)

    def run_late(self) -> None:
        """Ask the child for its stack, then kill it."""
        assert self.means.children is not None
        context = self.attempt.context
        if context.overdue is None:
            context.overdue = "The stack of its process could not be had."
            self._asking = self.means.loop.create_task(self._ask_and_kill())

    def given_up(self) -> Outcome:
        """Its process is killed before the worker ends."""
        self.kill()
        return super().given_up()

    async def _ask_and_kill(self) -> None:
        assert self.means.children is not None
        lease = self.attempt.claimed.lease
        try:
            stack = await self.means.children.stack(lease, DUMP_PATIENCE)
            self.attempt.context.overdue = stack or self.attempt.context.overdue
        finally:
            self.attempt.context.cancel()
            self.means.children.kill(lease)

    async def _run(self) -> None:
        means, attempt = self.means, self.attempt
        assert means.children is not None
        try:
            if attempt.claimed.data is None:
                data = await asyncio.wrap_future(means.read_arguments(attempt.claimed.id))
                attempt = with_arguments(attempt, data)
            outcome, self.usage = await means.children.run(attempt)
            if attempt.context.overdue is not None:
                outcome = timed_out(attempt)  # as everywhere, what comes after the timeout is too late
        except ChildEnded as end:
            self.usage = end.usage
            outcome = self._ended_by(end)
        except TreadleError as error:
            outcome = unread(error)
        except asyncio.CancelledError:
            outcome = Released(STOPPED, started=False)
        except ENDINGS as error:  # such as no process to be had; tried again like any failure
            outcome = raised(attempt, error)
        means.ended(self, outcome)

    def _ended_by(self, end: ChildEnded) -> Outcome:
        """What the end of its process makes of the attempt."""
        context = self.attempt.context
        if context.overdue is not None:
            return timed_out(self.attempt)
        if end.beyond_memory is not None:
            message = f"its process had {end.beyond_memory:,} bytes in memory, more than the cap of {self._limit:,}"
            return Failed(kinds_of(MemoryError()), "MemoryError", message, end.stack or "")
        if context.cancel_reason is not None:
            return Cancelled(context.cancel_reason)
        if self._why_killed is not None or context.cancelled:
            return Released(self._why_killed or STOPPED)
        if not end.begun and self.attempt.definition.crash_cap == 0:
            return Held(f"its process could not be started: {end.words}")  # nothing was done that must not be repeated
        return Crashed(end.words, end.stack)


DUMP_PATIENCE: Final = 1.0
"""Seconds a child has to say where it stands before it is killed."""


def with_arguments(attempt: Attempt, data: bytes | None) -> Attempt:
    """The attempt with arguments that were read after the claim."""
    return attempt._replace(claimed=attempt.claimed._replace(data=data))


def unread(error: TreadleError) -> Released:
    """What becomes of an attempt whose arguments could not be read; it has not begun."""
    return Released(f"its arguments could not be read: {error}", started=False)


def task_maker(loop: asyncio.AbstractEventLoop) -> Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]:
    """How to make tasks that see the context variables of this moment, and not those of the job that ended before them.

    The C constructor costs half of ``loop.create_task``; a program's own factory is respected.
    """
    outside = copy_context()
    if loop.get_task_factory() is None:
        return lambda coroutine: asyncio.Task(coroutine, loop=loop, context=outside.copy())
    return lambda coroutine: outside.copy().run(loop.create_task, coroutine)
