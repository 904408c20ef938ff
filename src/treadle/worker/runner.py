"""Running one attempt: decode, call, and say what came of it as a value. Nothing here writes."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable
from typing import Any, NamedTuple

from treadle import defaults
from treadle.clock import SECOND, Clock, to_duration
from treadle.errors import ConfigurationError, PayloadError, PayloadTooLarge
from treadle.model.codec import CodecRegistry, check_size
from treadle.model.definition import TaskDefinition
from treadle.model.job import Claimed
from treadle.model.outcome import (
    Abort,
    Aborted,
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
from treadle.model.sanitise import clean_text, describe_exception
from treadle.worker.context import RUNNING, JobContext


class Attempt(NamedTuple):
    """One attempt about to run."""

    claimed: Claimed
    definition: TaskDefinition
    context: JobContext


Call = tuple[list[object], dict[str, object]]


class Runner:
    """Turns an attempt into an outcome.

    Args:
        codecs: the codecs stored arguments may name.
        clock: for the length of threads' attempts.
    """

    def __init__(self, codecs: CodecRegistry, clock: Clock) -> None:
        self._codecs = codecs
        self._clock = clock

    async def run_async(self, attempt: Attempt) -> Outcome:
        """Run a coroutine function on the running loop."""
        RUNNING.set(attempt.context)
        call = self._decode(attempt)
        if isinstance(call, Held):
            return call
        definition = attempt.definition
        try:
            coroutine = definition.function(*call[0], **call[1])
            if definition.timeout is None:
                value = await coroutine
            else:
                value = await _within(coroutine, definition)
        except BaseException as error:
            return self._raised(attempt, error)
        return self._returned(attempt, value)

    def run_plain(self, attempt: Attempt) -> Outcome:
        """Run a plain function on this thread."""
        RUNNING.set(attempt.context)
        call = self._decode(attempt)
        if isinstance(call, Held):
            return call
        began = self._clock.monotonic()
        try:
            value = attempt.definition.function(*call[0], **call[1])
            _refuse_coroutine(value)
            self._check_length(attempt.definition, began)
        except BaseException as error:
            return self._raised(attempt, error)
        return self._returned(attempt, value)

    def _decode(self, attempt: Attempt) -> Call | Held:
        claimed, definition = attempt.claimed, attempt.definition
        if claimed.data is None:
            return Held("undecodable: the arguments are missing from the database")
        try:
            codec = definition.codec if claimed.codec == definition.codec.name else self._codecs.get(claimed.codec)
            call = definition.signature.decode(codec, claimed.data)
        except ConfigurationError as error:
            return Held(_words("unknown codec", error))
        except PayloadError as error:
            return Held(_words("undecodable", error))
        except Exception as error:
            return Held(_words("undecodable", error))
        if definition.signature.context_parameter is not None:
            for name in definition.signature.injected:
                call[1][name] = attempt.context
        return call

    def _check_length(self, definition: TaskDefinition, began: float) -> None:
        # A thread cannot be stopped: its late return is a timeout all the same.
        if definition.timeout is not None and (self._clock.monotonic() - began) * SECOND > definition.timeout:
            raise TimeoutError(f"the attempt took longer than its timeout of {definition.timeout / SECOND:g} s")

    def _returned(self, attempt: Attempt, value: Any) -> Outcome:
        follow = attempt.context.follow
        codec = attempt.definition.codec
        if value is None:
            return Succeeded(codec.name, None, None, follow) if follow else NOTHING_RETURNED
        try:
            data = attempt.definition.signature.encode_result(codec, value)
        except Exception as error:
            return Succeeded(codec.name, None, not_stored(_message(error), None), follow)
        try:
            check_size(data, attempt.definition.result_cap, "contents of the result")
        except PayloadTooLarge as error:
            return Succeeded(codec.name, None, not_stored(_message(error), len(data)), follow)
        return Succeeded(codec.name, data, None, follow)

    def _raised(self, attempt: Attempt, error: BaseException) -> Outcome:
        try:
            match error:
                case Snooze():
                    return Snoozed(to_duration(error.delay))
                case RetryAfter():
                    return RetryLater(to_duration(error.delay), clean_text(str(error.message), 1000))
        except (TypeError, ValueError, OverflowError) as unusable:
            error = unusable  # a delay that is no time fails the attempt like any other mistake
        match error:
            case Abort():
                return Aborted(_words("aborted", error))
            case asyncio.CancelledError() if attempt.context.cancelled:
                return Released("the worker stopped before it was done")
        kind, message, trace = describe_exception(error, defaults.ERROR_CAP)
        return Failed(error, kind, message, trace)


NOTHING_RETURNED = Succeeded()


async def _within(coroutine: Awaitable[object], definition: TaskDefinition) -> object:
    assert definition.timeout is not None
    seconds = definition.timeout / SECOND
    try:
        async with asyncio.timeout(seconds) as limit:
            return await coroutine
    except TimeoutError as error:
        if limit.expired():
            raise TimeoutError(f"the attempt took longer than its timeout of {seconds:g} s") from error
        raise


def _refuse_coroutine(value: object) -> None:
    # Its work was never done, so a success here would be a job dropped silently.
    if inspect.iscoroutine(value):
        value.close()
        raise TypeError("a plain function returned a coroutine, which nobody awaited; declare it with 'async def'")


def _words(what: str, error: BaseException) -> str:
    return f"{what}: {_message(error)}"


def _message(error: BaseException) -> str:
    return describe_exception(error, 1000)[1]

