"""The call of a handler with what the app has put around it: resources first, then middleware, outermost first."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from contextlib import AsyncExitStack, ExitStack
from typing import Any, Final, NamedTuple

from treadle.model.definition import TaskDefinition
from treadle.worker.context import JobContext
from treadle.worker.extensions import Call, Extensions, Layer
from treadle.worker.resources import Resources

Middleware = Generator[None, Any, Any]
NOTHING: Final = object()


class Wrapping(NamedTuple):
    """What surrounds the handler of one task.

    Attributes:
        layers: middleware, outermost first.
        resources: parameter name to type, for what is not the job itself.
        on_loop: some layer has to run on an event loop, so a plain handler is called from there too.
    """

    layers: tuple[Layer, ...]
    resources: dict[str, type]
    on_loop: bool


class Around:
    """Calls handlers with what surrounds them.

    Args:
        extensions: what the app has declared.
        resources: makes what handlers get.
    """

    def __init__(self, extensions: Extensions, resources: Resources) -> None:
        self._extensions = extensions
        self._resources = resources
        self._known: dict[str, Wrapping | None] = {}

    def of(self, definition: TaskDefinition) -> Wrapping | None:
        """What surrounds a task's handler; None for nothing, and then it is called directly."""
        try:
            return self._known[definition.name]
        except KeyError:
            found = self._known[definition.name] = self._look(definition)
            return found

    async def call(self, wrapping: Wrapping, call: Call, handler: Callable[[Call], Awaitable[object]]) -> object:
        """Call a handler on the event loop."""
        async with AsyncExitStack() as stack:
            call.kwargs.update(await self._resources.give(wrapping.resources, call.job, stack))
            return await _layered(wrapping.layers, call, handler)

    def call_plain(self, wrapping: Wrapping, call: Call, handler: Callable[[Call], object]) -> object:
        """Call a plain handler on this thread."""
        with ExitStack() as stack:
            call.kwargs.update(self._resources.give_plain(wrapping.resources, call.job, stack))
            return _layered_plain(wrapping.layers, call, handler)

    def _look(self, definition: TaskDefinition) -> Wrapping | None:
        layers = self._extensions.layers_of(definition.name)
        injected = definition.signature.injected
        resources = {name: kind for name, kind in injected.items() if kind is not JobContext}
        if not layers and not resources:
            return None
        return Wrapping(layers, resources, any(layer.is_async for layer in layers))


async def _layered(layers: tuple[Layer, ...], call: Call, handler: Callable[[Call], Awaitable[object]]) -> object:
    if not layers:
        return await handler(call)
    layer, inner = layers[0], layers[1:]
    if layer.is_async:
        return await layer.function(call, lambda: _layered(inner, call, handler))
    around = layer.function(call)
    early = _begin(around)
    if early is not NOTHING:
        return early
    try:
        value = await _layered(inner, call, handler)
    except BaseException as error:
        return _throw(around, error)
    return _finish(around, value)


def _layered_plain(layers: tuple[Layer, ...], call: Call, handler: Callable[[Call], object]) -> object:
    if not layers:
        return handler(call)
    around = layers[0].function(call)
    early = _begin(around)
    if early is not NOTHING:
        return early
    try:
        value = _layered_plain(layers[1:], call, handler)
    except BaseException as error:
        return _throw(around, error)
    return _finish(around, value)


def _begin(around: Middleware) -> object:
    """Run a middleware up to its yield; what it returns before that is the result, and the handler is not called."""
    try:
        next(around)
    except StopIteration as end:
        return end.value
    return NOTHING


def _finish(around: Middleware, value: object) -> object:
    """Give a middleware the result; what it returns replaces it, unless that is None."""
    try:
        around.send(value)
    except StopIteration as end:
        return value if end.value is None else end.value
    raise RuntimeError(f"the middleware {_name(around)}() yields twice; it must yield once")


def _throw(around: Middleware, error: BaseException) -> object:
    """Raise the handler's error inside a middleware; if it returns instead, that is the result."""
    try:
        around.throw(error)
    except StopIteration as end:
        return end.value
    raise RuntimeError(f"the middleware {_name(around)}() yields twice; it must yield once") from error


def _name(around: Middleware) -> str:
    return str(getattr(around, "__qualname__", around))
