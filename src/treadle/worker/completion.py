"""Settling an attempt from inside its handler, in the very transaction of the handler's own rows."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from treadle.clock import SECOND
from treadle.errors import ConfigurationError, LeaseLost
from treadle.model.job import Claimed, LogLine
from treadle.model.outcome import Cancelled, Crashed, Failed, Outcome, Released, Succeeded
from treadle.model.settle import Transition
from treadle.store.lending import Buffered, Lent
from treadle.store.ops import notes, settle
from treadle.store.session import Session
from treadle.store.store import Store
from treadle.worker.judging import judge
from treadle.worker.runner import Attempt, returned

log = logging.getLogger("treadle.worker")


def _no_lines(_: int) -> list[LogLine]:
    return []


def tell_of_rest(claimed: Claimed, outcome: Outcome) -> None:
    """Log what a handler did after it had committed its success: it changes nothing."""
    if isinstance(outcome, Failed):
        log.error(
            "Job %s (%s) raised after it had committed its success, which stands: %s: %s\n%s", claimed.id, claimed.task,
            outcome.error_type, outcome.message, outcome.traceback,
        )  # fmt: skip
    elif isinstance(outcome, Succeeded) and outcome.data is not None:
        log.warning(
            "Job %s (%s) returned a value after it had committed its success; pass results to tx.succeed(...).",
            claimed.id, claimed.task,
        )  # fmt: skip
    elif isinstance(outcome, Crashed):
        log.error(
            "The process of job %s (%s) ended after it had committed its success, which stands: %s", claimed.id,
            claimed.task, outcome.message,
        )  # fmt: skip
    elif not isinstance(outcome, Succeeded | Released | Cancelled):
        log.error(
            "Job %s (%s) asked for %s after it had committed its success, which stands.", claimed.id, claimed.task,
            type(outcome).__name__,
        )  # fmt: skip


class AttemptCompletion(NamedTuple):
    """Settles one attempt; used by its handler, on its thread.

    Attributes:
        store: where.
        worker: the worker's name, for the history.
        attempt: which.
        started_at: when its handler began, microseconds.
        take_lines: gives the lines of a lease that are not written yet.
        give_lines: takes them back, when nothing was stored.
        on_settled: told of the success, once it is stored.
    """

    store: Store
    worker: str
    attempt: Attempt
    started_at: int
    take_lines: Callable[[int], list[LogLine]] = _no_lines
    give_lines: Callable[[int, LogLine], None] | None = None
    on_settled: Callable[[Transition], None] | None = None

    def lend(self, holder: str, deadline: float) -> Lent:
        """Begin a write transaction."""
        return self.store.lend(holder, deadline)

    def succeed(self, lent: Lent, result: object) -> None:
        """Store the success in it and commit.

        Raises:
            LeaseLost: the job belongs to another attempt.
            TimeoutError: the attempt's own timeout is over.
        """
        transition = self._judged(result)
        try:
            followed = lent.store(partial(_complete, transition=transition, worker=self.worker))
        except BaseException as error:
            self._failed(transition, error)
            raise
        self._settled(transition._replace(followed=followed))

    async def run(self, statements: Sequence[tuple[Any, Any]], holder: str, deadline: float, result: object) -> None:
        """Run statements, store the success and commit, in one go. A cancelled handler waits for the end of it."""
        running = asyncio.ensure_future(self._run(statements, holder, deadline, result))
        try:
            await asyncio.shield(running)
        except asyncio.CancelledError:
            await asyncio.wait([running])
            raise

    async def _run(self, statements: Sequence[tuple[Any, Any]], holder: str, deadline: float, result: object) -> None:
        transition = self._judged(result)
        complete = partial(_complete, transition=transition, worker=self.worker)
        try:
            work = Buffered(tuple(statements), complete, holder, deadline, self.store.place)
            followed = await self.store.apatient(work)
        except BaseException as error:
            self._failed(transition, error)
            raise
        self._settled(transition._replace(followed=followed))

    def _settled(self, transition: Transition) -> None:
        self.attempt.context.settled = transition
        if self.on_settled is not None:
            self.on_settled(transition)

    def _judged(self, result: object) -> Transition:
        attempt = self.attempt
        if attempt.context.overdue is not None:
            timeout = (attempt.definition.timeout or 0) / SECOND
            raise TimeoutError(f"the attempt took longer than its timeout of {timeout:g} s; nothing was committed")
        outcome = returned(attempt, result)
        if not isinstance(outcome, Succeeded):
            raise ConfigurationError(f"tx.succeed() takes a result, not {result!r}. To do something else, raise it.")
        lines = self.take_lines(attempt.claimed.lease)
        found = judge(attempt, outcome, self.started_at, self.store.clock.now())
        return found._replace(logs=(*lines, *found.logs)) if lines else found

    def _failed(self, transition: Transition, error: BaseException) -> None:
        if isinstance(error, LeaseLost):
            self.attempt.context.cancel()
        elif self.give_lines is not None:
            for line in transition.logs:
                self.give_lines(transition.lease, line)


def _complete(session: Session, transition: Transition, worker: str) -> Sequence[int]:
    applied = settle.apply(session, [transition], worker)
    if applied.lost:
        raise notes.lost(transition.lease)
    return applied.followed
