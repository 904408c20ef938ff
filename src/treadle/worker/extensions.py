"""What an app adds around its handlers: middleware, resources, subscribers of events. Free when unused."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

from treadle.errors import ConfigurationError, DuplicateTask
from treadle.model.parameters import label_of, resolved_hints
from treadle.worker.context import JobContext
from treadle.worker.events import KINDS, Event

Scope = Literal["worker", "job"]
YIELDING: Final = ("Iterator", "Generator", "AsyncIterator", "AsyncGenerator")


@dataclass(slots=True)
class Call:
    """The call of a handler that is about to happen; middleware may change its arguments.

    Attributes:
        job: the running job.
        args: positional arguments; most calls have none.
        kwargs: arguments by name.
    """

    job: JobContext
    args: list[object]
    kwargs: dict[str, object]


class Layer(NamedTuple):
    """One middleware: a generator function, or a coroutine function that is given what comes next."""

    function: Callable[..., Any]
    is_async: bool
    tasks: frozenset[str] | None


class Resource(NamedTuple):
    """How to make a value that handlers get by its type.

    Attributes:
        kind: the type.
        function: makes it: returns it, or yields it and cleans up afterwards.
        scope: one for the whole worker, or one for each attempt.
        is_async: made on the worker's loop.
        yields: it cleans up.
        needs: what *function* gets itself: parameter name to type.
    """

    kind: type
    function: Callable[..., Any]
    scope: Scope
    is_async: bool
    yields: bool
    needs: dict[str, type]


class Extensions:
    """What one app has declared. Workers read it; declare before they start."""

    def __init__(self) -> None:
        self.layers: list[Layer] = []
        self.resources: dict[type, Resource] = {}
        self.subscribers: dict[str, list[Callable[[Event], Any]]] = {}

    def add_middleware(self, function: Callable[..., Any], tasks: Collection[str] | None) -> None:
        """Put a layer inside the ones declared before.

        Raises:
            ConfigurationError: it is neither a generator function nor a coroutine function.
        """
        is_async = inspect.iscoroutinefunction(function)
        if not is_async and not inspect.isgeneratorfunction(function):
            raise ConfigurationError(
                f"{label_of(function)}() cannot be middleware. Write a generator function, "
                "`def it(call): result = yield; ...`, or `async def it(call, proceed): return await proceed()`."
            )
        self.layers.append(Layer(function, is_async, None if tasks is None else frozenset(tasks)))

    def add_resource(self, function: Callable[..., Any], scope: Scope) -> None:
        """Let handlers have what *function* makes, by the type in its return annotation.

        Raises:
            ConfigurationError: there is no such annotation, or a parameter is of no known resource.
            DuplicateTask: another function makes this type already.
        """
        if scope not in ("worker", "job"):
            raise ConfigurationError(f"scope={scope!r} must be 'worker' or 'job'.")
        label = label_of(function)
        hints = resolved_hints(function, label)
        kind, yields = _made(label, hints.pop("return", None))
        if kind in self.resources:
            raise DuplicateTask(f"Two functions make {kind.__qualname__}: {label}() and another one.")
        names = inspect.signature(function).parameters
        unknown = [name for name in names if not self._can_give(hints.get(name), scope)]
        if unknown:
            raise ConfigurationError(
                f"{label}(): parameter {unknown[0]!r} is of no resource that it can have. Declare that one before it; "
                "only resources of a job may take the JobContext or other resources of a job."
            )
        is_async = inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)
        self.resources[kind] = Resource(kind, function, scope, is_async, yields, typing.cast("dict[str, type]", hints))

    def subscribe(self, kinds: Collection[str], function: Callable[[Event], Any]) -> None:
        """Call *function* for each event of these kinds.

        Raises:
            ConfigurationError: there is no such kind.
        """
        for kind in kinds:
            if kind not in KINDS:
                raise ConfigurationError(f"There are no events {kind!r}; there are {', '.join(KINDS)}.")
            if kind == "enqueued" and inspect.iscoroutinefunction(function):
                raise ConfigurationError("Subscribers of 'enqueued' run in the thread that enqueues; make it a `def`.")
            self.subscribers.setdefault(kind, []).append(function)

    def layers_of(self, task: str) -> tuple[Layer, ...]:
        """The middleware of a task, outermost first."""
        return tuple(layer for layer in self.layers if layer.tasks is None or task in layer.tasks)

    def _can_give(self, kind: object, scope: Scope) -> bool:
        if kind is JobContext:
            return scope == "job"
        found = self.resources.get(typing.cast("type", kind))
        return found is not None and (found.scope == "worker" or scope == "job")


def _made(label: str, annotation: object) -> tuple[type, bool]:
    """The type a function gives, and whether it yields it."""
    origin = typing.get_origin(annotation)
    yields = origin is not None and origin.__name__ in YIELDING
    kind = typing.get_args(annotation)[0] if yields else annotation
    if not isinstance(kind, type):
        raise ConfigurationError(
            f"{label}() must say what it gives, as `-> Database` or `-> Iterator[Database]`, not {annotation!r}."
        )
    return kind, yields
