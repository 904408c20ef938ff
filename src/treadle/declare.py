"""Turning a decorated function and its options into a task definition, checked once."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Coroutine, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, Literal, ParamSpec, TypedDict, TypeVar, overload

from treadle import defaults
from treadle.clock import to_duration
from treadle.errors import ConfigurationError
from treadle.handles import Host
from treadle.model.codec import Codec, CodecRegistry
from treadle.model.definition import TaskDefinition
from treadle.model.job import Options
from treadle.model.parameters import body_of
from treadle.model.retry import Retry
from treadle.model.signature import Signature
from treadle.options import as_retry, check_name, check_priority, delay_of
from treadle.tasks import AsyncTask, Task
from treadle.worker.context import JobContext
from treadle.worker.extensions import Extensions
from treadle.worker.registry import Registry

P = ParamSpec("P")
R = TypeVar("R")
LEAST_MEMORY: Final = 64_000_000
"""Bytes a child process needs for Python itself, the app and some room."""
STARTED: Final = ("__main__", "__mp_main__")
"""What the module a program was started with is called while it runs; the second one by multiprocessing."""


class Policy(TypedDict, total=False):
    """What ``@app.task(...)`` accepts.

    ``name`` is by default the module and qualified name; ``aliases`` are older names that stored jobs may carry;
    ``retry`` is a :class:`Retry` or a number of retries; ``timeout`` is in seconds. ``isolation="process"`` runs each
    attempt in a child process that can be killed, ``memory`` caps what that may have, in bytes. ``grace`` is how long
    an attempt that should stop may take (seconds). ``on_crash="hold"`` parks a job whose process died under it as
    "outcome unknown" instead of running it again; ``crashes`` is the cap for the others. ``version`` is that of the
    parameters; see :meth:`treadle.Task.upcast`.
    """

    name: str
    aliases: Sequence[str]
    queue: str
    priority: int
    retry: Retry | int
    timeout: timedelta | float | None
    codec: str
    result_cap: int
    isolation: Literal["process"] | None
    memory: int | None
    grace: timedelta | float | None
    on_crash: Literal["retry", "hold"]
    crashes: int
    version: int


class Declare:
    """What ``@app.task(...)`` returns: a decorator that keeps the function's types."""

    def __init__(
        self, host: Host, registry: Registry, extensions: Extensions, codecs: CodecRegistry, codec: str, policy: Policy
    ) -> None:
        self._host = host
        self._registry = registry
        self._extensions = extensions
        self._codecs = codecs
        self._codec = codec
        self._policy = policy

    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncTask[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> Task[P, R]: ...

    def __call__(self, function: Callable[..., Any], /) -> Task[..., Any]:
        """Register *function*."""
        codec = self._codecs.get(self._policy.get("codec", self._codec))
        definition, options = define(function, self._policy, codec, tuple(self._extensions.resources))
        self._registry.add(definition)
        kind = AsyncTask if definition.is_async else Task
        return kind(self._host, definition, options)


def define(
    function: Callable[..., Any], policy: Policy, codec: Codec, resources: tuple[type, ...] = ()
) -> tuple[TaskDefinition, Options]:
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
    body = body_of(function)
    if inspect.isgeneratorfunction(body) or inspect.isasyncgenfunction(body):
        raise ConfigurationError(f"{function!r} is a generator: calling it runs nothing, so it cannot be a task.")
    name = check_name("name", policy.get("name") or task_name(function), 200)
    signature = Signature.of(function, context_types=(JobContext, *resources))
    signature.check_codec(codec)
    retry, timeout = policy.get("retry"), policy.get("timeout")
    definition = TaskDefinition(
        name=name,
        aliases=tuple(check_name("alias", alias, 200) for alias in policy.get("aliases", ())),
        function=function,
        signature=signature,
        codec=codec,
        retry=Retry() if retry is None else as_retry(retry),
        timeout=None if timeout is None else _positive(timeout),
        result_cap=policy.get("result_cap", defaults.RESULT_CAP),
        is_async=inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(body),
        version=_counted("version", policy.get("version", 1), 1),
        **_stopping(policy),
    )
    options = Options(
        task=name,
        codec=codec.name,
        version=definition.version,
        queue=check_name("queue", policy.get("queue", defaults.QUEUE), 100),
        priority=check_priority(policy.get("priority", defaults.PRIORITY)),
    )
    return definition, options


def task_name(function: Callable[..., Any]) -> str:
    """The name a function's jobs are stored under unless ``name=`` says otherwise.

    A module that is run as a script counts under the name others import it by, so that ``python shop.py`` and
    ``treadle worker shop:app`` agree.

    Raises:
        ConfigurationError: the function has no stable name.
    """
    qualified = getattr(function, "__qualname__", "")
    module = getattr(function, "__module__", "")
    if not qualified or "<lambda>" in qualified:
        raise ConfigurationError(f"{function!r} has no name to store jobs under; pass name=.")
    return f"{_imported_name(module)}.{qualified}".replace("<locals>.", "")


def _imported_name(module: str) -> str:
    """The name *module* is imported by; another one than its ``__name__`` when the program was started with it."""
    started = sys.modules.get(module) if module in STARTED else None
    spec, file = getattr(started, "__spec__", None), getattr(started, "__file__", None)
    if spec is not None:
        return str(spec.name)
    return Path(file).stem if file else module


def _stopping(policy: Policy) -> dict[str, Any]:
    """What a policy says about how attempts are stopped, and about those that end with their process."""
    isolation, memory, grace = policy.get("isolation"), policy.get("memory"), policy.get("grace")
    if isolation not in (None, "process"):
        raise ConfigurationError(f"isolation={isolation!r} must be 'process' or None.")
    if memory is not None and isolation is None:
        raise ConfigurationError("memory= caps a process; pass isolation='process' with it.")
    on_crash = policy.get("on_crash", "retry")
    if on_crash not in ("retry", "hold"):
        raise ConfigurationError(f"on_crash={on_crash!r} must be 'retry' or 'hold'.")
    crashes = _counted("crashes", policy.get("crashes", defaults.CRASH_CAP), 1)
    return {
        "isolated": isolation == "process",
        "memory": None if memory is None else _counted("memory", memory, LEAST_MEMORY),
        "grace": None if grace is None else delay_of("grace", grace),
        "crash_cap": 0 if on_crash == "hold" else crashes,
    }


def _counted(name: str, value: object, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigurationError(f"{name}={value!r} must be a whole number from {least:,} on.")
    return value


def _positive(timeout: timedelta | float) -> int:
    micros = to_duration(timeout)
    if micros <= 0:
        raise ConfigurationError(f"timeout={timeout!r} must be longer than nothing.")
    return micros
