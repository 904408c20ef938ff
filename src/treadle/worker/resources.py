"""Values that handlers get by their type: made when first needed, cleaned up at the end of their scope."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from typing import Any, TypeVar

from treadle.worker.context import JobContext
from treadle.worker.extensions import Resource

T = TypeVar("T")


class Resources:
    """The resources of one worker, or of one child process.

    Args:
        known: every resource by its type.
        on_loop: runs a coroutine on the loop that async resources live on, from another thread, and waits for it.
    """

    def __init__(
        self, known: Mapping[type, Resource], on_loop: Callable[[Coroutine[Any, Any, Any]], Any]
    ) -> None:
        self._known = known
        self._on_loop = on_loop
        self._made: dict[type, object] = {}
        self._plain = ExitStack()
        self._async = AsyncExitStack()
        self._plain_turn = threading.RLock()
        self._async_turn: asyncio.Lock | None = None

    async def give(
        self, wanted: Mapping[str, type], job: JobContext, stack: AsyncExitStack
    ) -> dict[str, object]:
        """What a handler gets, on the loop; what is made for this job alone is cleaned up with *stack*."""
        own: dict[type, object] = {JobContext: job}
        return {name: await self._get(kind, own, stack) for name, kind in wanted.items()}

    def give_plain(
        self, wanted: Mapping[str, type], job: JobContext, stack: ExitStack
    ) -> dict[str, object]:
        """The same on a thread."""
        own: dict[type, object] = {JobContext: job}
        return {name: self._get_plain(kind, own, stack) for name, kind in wanted.items()}

    async def close(self) -> None:
        """Clean up what was made for the whole worker, the last first."""
        await asyncio.to_thread(self._plain.close)
        await self._async.aclose()
        self._made.clear()

    async def _get(self, kind: type, own: dict[type, object], stack: AsyncExitStack) -> object:
        if kind in own:
            return own[kind]
        resource = self._known[kind]
        if resource.scope == "job":
            given = {name: await self._get(need, own, stack) for name, need in resource.needs.items()}
            own[kind] = await _enter(resource, given, stack)
            return own[kind]
        if kind in self._made:
            return self._made[kind]
        if not resource.is_async:
            return await asyncio.to_thread(self._get_plain, kind, own, ExitStack())
        if self._async_turn is None:
            self._async_turn = asyncio.Lock()
        given = {name: await self._get(need, own, stack) for name, need in resource.needs.items()}
        async with self._async_turn:
            if kind not in self._made:
                self._made[kind] = await _enter(resource, given, self._async)
        return self._made[kind]

    def _get_plain(self, kind: type, own: dict[type, object], stack: ExitStack) -> object:
        if kind in own:
            return own[kind]
        resource = self._known[kind]
        if resource.is_async and resource.scope == "worker":
            return self._on_loop(self._get(kind, own, AsyncExitStack()))
        if resource.scope == "job":
            given = {name: self._get_plain(need, own, stack) for name, need in resource.needs.items()}
            own[kind] = self._enter_plain(resource, given, stack)
            return own[kind]
        with self._plain_turn:
            if kind not in self._made:
                given = {name: self._get_plain(need, own, stack) for name, need in resource.needs.items()}
                self._made[kind] = self._enter_plain(resource, given, self._plain)
        return self._made[kind]

    def _enter_plain(self, resource: Resource, given: dict[str, object], stack: ExitStack) -> object:
        if resource.is_async:
            inner = AsyncExitStack()
            value = self._on_loop(_enter(resource, given, inner))
            stack.push(lambda *error: bool(self._on_loop(inner.__aexit__(*error))))
            return value
        if resource.yields:
            return stack.enter_context(contextmanager(resource.function)(**given))
        return resource.function(**given)


async def _enter(resource: Resource, given: dict[str, object], stack: AsyncExitStack) -> object:
    if not resource.yields:
        made = resource.function(**given)
        return await made if resource.is_async else made
    if resource.is_async:
        return await stack.enter_async_context(asynccontextmanager(resource.function)(**given))
    return stack.enter_context(contextmanager(resource.function)(**given))
