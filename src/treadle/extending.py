"""What an app can be extended by: middleware, resources, events, a stream of what was settled, claims by hand."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar, overload

from treadle import results
from treadle.leased import LeasedJob, leased
from treadle.model.job import Attempt
from treadle.operating import Operating
from treadle.store.ops import find
from treadle.store.session import Session
from treadle.worker.extensions import Extensions, Scope
from treadle.worker.manual import Claims

F = TypeVar("F", bound=Callable[..., Any])
PAGE = 500


class Extending(Operating):
    """The extensible half of :class:`treadle.Treadle`."""

    extensions: Extensions
    _claims: Claims | None
    _claiming: threading.Lock

    @overload
    def middleware(self, function: F, /) -> F: ...
    @overload
    def middleware(self, /, *, tasks: Collection[str]) -> Callable[[F], F]: ...

    def middleware(self, function: F | None = None, /, *, tasks: Collection[str] | None = None) -> Any:
        """Put a function around the call of every handler, or of those of *tasks*; the first declared is outermost.

        Write a generator function: what stands before its one ``yield`` happens before the handler, ``yield`` gives
        the result or raises the handler's error, and what it returns replaces the result unless it is None. Returning
        before the ``yield`` skips the handler. It runs where the handler runs. Or write
        ``async def it(call, proceed): return await proceed()``, which runs on the worker's loop.

        Example:
            >>> @app.middleware  # doctest: +SKIP
            ... def timed(call: Call) -> Generator[None, object, None]:
            ...     began = time.monotonic()
            ...     yield
            ...     print(call.job.task, time.monotonic() - began)
        """
        if function is not None:
            self.extensions.add_middleware(function, None)
            return function
        return partial(_declared, lambda given: self.extensions.add_middleware(given, tasks))

    @overload
    def resource(self, function: F, /) -> F: ...
    @overload
    def resource(self, /, *, scope: Scope = "worker") -> Callable[[F], F]: ...

    def resource(self, function: F | None = None, /, *, scope: Scope = "worker") -> Any:
        """Let handlers have what *function* makes by annotating a parameter with its type.

        Declare it before the tasks, or give the parameter the default ``injected``. The function returns the value,
        or yields it once and cleans up afterwards; it may be ``async``.

        Args:
            function: its return annotation is the type: ``-> Database`` or ``-> Iterator[Database]``.
            scope: "worker": made once, when first needed, for each worker and each child process. "job": made for each
                attempt; only such a one may take the ``JobContext``.

        Raises:
            ConfigurationError: there is no usable annotation.
            DuplicateTask: the type is taken.
        """
        if function is not None:
            self.extensions.add_resource(function, "worker")
            return function
        return partial(_declared, lambda given: self.extensions.add_resource(given, scope))

    def on(self, *kinds: str) -> Callable[[F], F]:
        """Call a function for each event of these kinds in this process; see :data:`treadle.worker.events.KINDS`.

        It runs on the worker's loop and must be quick, or be ``async def``; for ``enqueued`` it runs in the thread
        that enqueued. What it raises is logged.

        Example:
            >>> @app.on("failed", "held")  # doctest: +SKIP
            ... def tell(event: Event) -> None:
            ...     print(event.task, event.job_id, event.reason)
        """

        def subscribe(function: F) -> F:
            self.extensions.subscribe(kinds, function)
            return function

        return subscribe

    def settled(self, after: int = 0, *, size: int = PAGE) -> tuple[Attempt, ...]:
        """Attempts that ended, in commit order, after the place *after*: the ``seq`` of the last one seen.

        Nothing is ever inserted before a place that was read, so a reader that keeps its place misses nothing that
        retention has not pruned.
        """
        return self.store.read(partial(find.settled, after=after, most=size))

    async def asettled(self, after: int = 0, *, size: int = PAGE) -> tuple[Attempt, ...]:
        """The same from async code."""
        return await self._aread(partial(find.settled, after=after, most=size))

    def stream(self, after: int = 0) -> Iterator[Attempt]:
        """Every attempt that ends, in commit order, for ever; woken by each settle.

        Args:
            after: where to begin; 0 for the oldest there is.

        Example:
            >>> for attempt in app.stream(after=last_seen):  # doctest: +SKIP
            ...     print(attempt.job_id, attempt.outcome, attempt.seq)
        """
        while True:
            for attempt in results.wait_for(self.store, partial(_next, after), None):
                yield attempt
                after = attempt.seq

    async def astream(self, after: int = 0) -> AsyncIterator[Attempt]:
        """The same from async code."""
        store = await self.aopen()
        while True:
            for attempt in await results.await_for(store, partial(_next, after), None):
                yield attempt
                after = attempt.seq

    def claim(
        self, most: int = 1, *, tasks: Sequence[str] | None = None, queues: Sequence[str] | None = None
    ) -> list[LeasedJob]:
        """Take ready jobs to run them yourself; comes back at once, with an empty list when there is nothing.

        The first call registers this process like a worker. Whatever it has not settled when it dies runs elsewhere.

        Args:
            most: how many, 1 to 1000.
            tasks: names of tasks, of this app or of others; by default all of this app.
            queues: in the order to try; by default every queue.

        Example:
            >>> for leased in app.claim(10):  # doctest: +SKIP
            ...     leased.complete(do(leased.arguments))
        """
        claims = self._registered()
        found = self.store.run(claims.request(most, tasks, queues))
        return leased(self.store, claims, claims.leased(found.jobs))

    async def aclaim(
        self, most: int = 1, *, tasks: Sequence[str] | None = None, queues: Sequence[str] | None = None
    ) -> list[LeasedJob]:
        """The same from async code."""
        store = await self.aopen()
        claims = await asyncio.to_thread(self._registered)
        found = await store.arun(claims.request(most, tasks, queues))
        return leased(store, claims, await asyncio.to_thread(claims.leased, found.jobs))

    def _registered(self) -> Claims:
        with self._claiming:
            if self._claims is not None and self._claims.has_expired:
                self._claims.close()
                self._claims = None
            if self._claims is None:
                self._claims = Claims(self.store, self.registry, self.codecs)
            return self._claims

    def _forget_claims(self) -> None:
        with self._claiming:
            claims, self._claims = self._claims, None
        if claims is not None:
            claims.close()


def _declared(declare: Callable[[F], None], function: F) -> F:
    declare(function)
    return function


def _next(after: int, session: Session) -> tuple[Attempt, ...] | None:
    return find.settled(session, after, PAGE) or None
