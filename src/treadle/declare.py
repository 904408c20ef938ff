"""Turning a decorated function and its options into a task definition, checked once."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypedDict

from treadle import defaults
from treadle.clock import to_duration
from treadle.errors import ConfigurationError
from treadle.model.codec import Codec
from treadle.model.definition import TaskDefinition
from treadle.model.job import Options
from treadle.model.retry import Retry
from treadle.model.signature import Signature
from treadle.tasks import Task, check_name, check_priority
from treadle.worker.context import JobContext


class Policy(TypedDict, total=False):
    """What ``@app.task(...)`` accepts.

    ``name`` is by default the module and qualified name; ``aliases`` are older names that stored jobs may carry;
    ``retry`` is a :class:`Retry` or a number of retries; ``timeout`` is in seconds.
    """

    name: str
    aliases: Sequence[str]
    queue: str
    priority: int
    retry: Retry | int
    timeout: timedelta | float | None
    codec: str
    result_cap: int


def define(function: Callable[..., Any], policy: Policy, codec: Codec) -> tuple[TaskDefinition, Options]:
    """Check *policy* and read the signature of *function*.

    Raises:
        ConfigurationError: naming the option or parameter that cannot be used.
    """
    unknown = policy.keys() - Policy.__annotations__.keys()
    if unknown:
        known = ", ".join(Policy.__annotations__)
        raise ConfigurationError(f"@app.task does not know {', '.join(sorted(unknown))}; it knows {known}.")
    if isinstance(function, Task):
        function = function.definition.function
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise ConfigurationError(f"{function!r} is a generator: calling it runs nothing, so it cannot be a task.")
    name = check_name("name", policy.get("name") or task_name(function), 200)
    signature = Signature.of(function, context_types=(JobContext,))
    signature.check_codec(codec)
    timeout = policy.get("timeout")
    definition = TaskDefinition(
        name=name,
        aliases=tuple(check_name("alias", alias, 200) for alias in policy.get("aliases", ())),
        function=function,
        signature=signature,
        codec=codec,
        retry=_retry(policy.get("retry")),
        timeout=None if timeout is None else _positive(timeout),
        result_cap=policy.get("result_cap", defaults.RESULT_CAP),
        is_async=inspect.iscoroutinefunction(function),
    )
    options = Options(
        task=name,
        codec=codec.name,
        queue=check_name("queue", policy.get("queue", defaults.QUEUE), 100),
        priority=check_priority(policy.get("priority", defaults.PRIORITY)),
    )
    return definition, options


def task_name(function: Callable[..., Any]) -> str:
    """The name a function's jobs are stored under unless ``name=`` says otherwise.

    Raises:
        ConfigurationError: the function has no stable name.
    """
    qualified = getattr(function, "__qualname__", "")
    module = getattr(function, "__module__", "")
    if not qualified or "<lambda>" in qualified:
        raise ConfigurationError(f"{function!r} has no name to store jobs under; pass name=.")
    return f"{module}.{qualified}".replace("<locals>.", "")


def _retry(given: Retry | int | None) -> Retry:
    if isinstance(given, Retry):
        return given
    return Retry() if given is None else Retry(given)


def _positive(timeout: timedelta | float) -> int:
    micros = to_duration(timeout)
    if micros <= 0:
        raise ConfigurationError(f"timeout={timeout!r} must be longer than nothing.")
    return micros
