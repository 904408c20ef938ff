"""Running one attempt: decode, call, and say what came of it as a value. Nothing here writes."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial
from typing import Any, Final, NamedTuple

from treadle import defaults
from treadle.clock import SECOND, to_duration
from treadle.errors import ConfigurationError, PayloadError, PayloadTooLarge
from treadle.model.codec import CodecRegistry, check_size
from treadle.model.definition import TaskDefinition
from treadle.model.job import Claimed
from treadle.model.outcome import (
    Abort,
    Aborted,
    Cancelled,
    Failed,
    Held,
    Outcome,
    Released,
    RetryAfter,
    RetryLater,
    Snooze,
    Snoozed,
    Succeeded,
    not_stored,
)
from treadle.model.retry import DELAY_MAX, kinds_of
from treadle.model.sanitise import clean_text, describe_exception
from treadle.worker.around import Around, Wrapping
from treadle.worker.context import RUNNING, JobContext
from treadle.worker.extensions import Call

STOPPED: Final = "the worker stopped before it was done"


class Attempt(NamedTuple):
    """One attempt about to run; *wrapping* is what surrounds its handler, None for nothing."""

    claimed: Claimed
    definition: TaskDefinition
    context: JobContext
    wrapping: Wrapping | None = None


Decoded = tuple[list[object], dict[str, object]]
InThread = Callable[[Callable[[], object]], Awaitable[object]]


class Runner:
    """Turns an attempt into an outcome.

    Args:
        codecs: the codecs stored arguments may name.
        around: what surrounds handlers.
        in_thread: runs a plain function for a coroutine that waits for it, whatever happens.
        on_raised: told the lease and what the handler or something around it raised, for tests that want to see it.
    """

    def __init__(
        self,
        codecs: CodecRegistry,
        around: Around,
        in_thread: InThread,
        on_raised: Callable[[int, BaseException], None] | None = None,
    ) -> None:
        self._codecs = codecs
        self._around = around
        self._in_thread = in_thread
        self._on_raised = on_raised

    def wrapping_of(self, definition: TaskDefinition) -> Wrapping | None:
        """What surrounds the handler of a task."""
        return self._around.of(definition)

    async def run_async(self, attempt: Attempt) -> Outcome:
        """Run a handler on the running loop."""
        RUNNING.set(attempt.context)
        call = self._decode(attempt)
        if isinstance(call, Held):
            return call
        definition, wrapping = attempt.definition, attempt.wrapping
        try:
            if wrapping is None:
                value = await definition.function(*call[0], **call[1])
            else:
                whole = Call(attempt.context, *call)
                value = await self._around.call(wrapping, whole, partial(self._handle, definition))
        except BaseException as error:
            return self._raised(attempt, error)
        finally:
            attempt.context.end_programs()
        return returned(attempt, value)

    def run_plain(self, attempt: Attempt) -> Outcome:
        """Run a plain function on this thread."""
        RUNNING.set(attempt.context)
        call = self._decode(attempt)
        if isinstance(call, Held):
            return call
        definition, wrapping = attempt.definition, attempt.wrapping
        try:
            if wrapping is None:
                value = _refused_coroutine(definition.function(*call[0], **call[1]))
            else:
                whole = Call(attempt.context, *call)
                value = self._around.call_plain(wrapping, whole, partial(_handle_plain, definition))
        except BaseException as error:
            return self._raised(attempt, error)
        finally:
            attempt.context.end_programs()
        return returned(attempt, value)

    def _raised(self, attempt: Attempt, error: BaseException) -> Outcome:
        if self._on_raised is not None:
            self._on_raised(attempt.claimed.lease, error)
        return raised(attempt, error)

    def _decode(self, attempt: Attempt) -> Decoded | Held:
        claimed, definition = attempt.claimed, attempt.definition
        if claimed.data is None:
            return Held("undecodable: the arguments are missing from the database")
        try:
            codec = definition.codec if claimed.codec == definition.codec.name else self._codecs.get(claimed.codec)
            if claimed.version == definition.version:
                call = definition.signature.decode(codec, claimed.data)
            else:
                call = definition.decode(codec, claimed.data, claimed.version)
        except ConfigurationError as error:
            return Held(_words("unknown codec", error))
        except PayloadError as error:
            return Held(_words("undecodable", error))
        except Exception as error:
            return Held(_words("undecodable", error))
        if definition.signature.injected:
            for name, kind in definition.signature.injected.items():
                if kind is JobContext:
                    call[1][name] = attempt.context
        return call

    async def _handle(self, definition: TaskDefinition, call: Call) -> object:
        if definition.is_async:
            return await definition.function(*call.args, **call.kwargs)
        return await self._in_thread(partial(_handle_plain, definition, call))


NOTHING_RETURNED: Final = Succeeded()


UNTELLABLE: Final = Failed(("BaseException",), "BaseException", "what was raised could not even be told", "")
"""Made beforehand: there may be no memory left to make one."""


def needs_loop(definition: TaskDefinition, wrapping: Wrapping | None) -> bool:
    """True when a task has to be started on the event loop: a coroutine function, or one inside of such."""
    return definition.is_async or (wrapping is not None and wrapping.on_loop)


def returned(attempt: Attempt, value: Any) -> Outcome:
    """What *value*, returned by the handler of *attempt*, makes of it."""
    context = attempt.context
    if context.overdue is not None:
        return timed_out(attempt)  # its work was late, and others may have taken it for lost
    if isinstance(value, Snooze | RetryAfter | Abort):
        return raised(attempt, value)
    codec = attempt.definition.codec
    if value is None:
        return Succeeded(codec.name, None, None, context.follow) if context.follow else NOTHING_RETURNED
    try:
        data = attempt.definition.signature.encode_result(codec, value)
    except Exception as error:
        return Succeeded(codec.name, None, not_stored(_message(error), None), context.follow)
    try:
        check_size(data, attempt.definition.result_cap, "contents of the result")
    except PayloadTooLarge as error:
        return Succeeded(codec.name, None, not_stored(_message(error), len(data)), context.follow)
    return Succeeded(codec.name, data, None, context.follow)


def raised(attempt: Attempt, error: BaseException) -> Outcome:
    """What *error*, raised in the handler of *attempt*, makes of it. Never raises: an attempt always ends."""
    try:
        return _raised(attempt, error)
    except BaseException:
        return UNTELLABLE


def _raised(attempt: Attempt, error: BaseException) -> Outcome:
    context = attempt.context
    if context.overdue is not None:
        return timed_out(attempt, error)
    try:
        match error:
            case Snooze():
                return Snoozed(_delay(error.delay))
            case RetryAfter():
                return RetryLater(_delay(error.delay), clean_text(str(error.message), 1000))
    except (TypeError, ValueError, OverflowError) as unusable:
        error = unusable  # a delay that is no time fails the attempt like any other mistake
    match error:
        case Abort():
            return Aborted(_words("aborted", error))
        case asyncio.CancelledError() if context.cancel_reason is not None:
            return Cancelled(context.cancel_reason)
        case asyncio.CancelledError() if context.cancelled:
            return Released(STOPPED)
    kind, message, trace = describe_exception(error, defaults.ERROR_CAP)
    return Failed(kinds_of(error), kind, message, trace)


def timed_out(attempt: Attempt, error: BaseException | None = None) -> Failed:
    """The failure of an attempt that took longer than its timeout, with the stack at that moment.

    Args:
        attempt: whose timeout is over.
        error: what its handler raised afterwards, if it ended so.
    """
    assert attempt.definition.timeout is not None
    message = f"the attempt took longer than its timeout of {attempt.definition.timeout / SECOND:g} s"
    stack = attempt.context.overdue or ""
    if error is not None and not isinstance(error, asyncio.CancelledError):
        kind, told, trace = describe_exception(error, defaults.ERROR_CAP // 2)
        message += f"; then it raised {kind}: {told}"
        stack += f"\n{trace}"
    return Failed(kinds_of(TimeoutError()), "TimeoutError", clean_text(message, 2000), stack)


def _delay(delay: timedelta | float) -> int:
    micros = to_duration(delay)
    if micros > to_duration(DELAY_MAX):
        raise ValueError(f"a delay of {delay!r} is longer than {DELAY_MAX.days} days")
    return micros


def _handle_plain(definition: TaskDefinition, call: Call) -> object:
    return _refused_coroutine(definition.function(*call.args, **call.kwargs))


def _refused_coroutine(value: object) -> object:
    # Its work was never done, so a success here would be a job dropped silently.
    if inspect.iscoroutine(value):
        value.close()
        raise TypeError("a plain function returned a coroutine, which nobody awaited; declare it with 'async def'")
    return value


def _words(what: str, error: BaseException) -> str:
    return f"{what}: {_message(error)}"


def _message(error: BaseException) -> str:
    return describe_exception(error, 1000)[1]
