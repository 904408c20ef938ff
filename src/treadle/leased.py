"""A job claimed by hand, as the program that claimed it holds it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from treadle.errors import JobStateError
from treadle.handles import Arguments
from treadle.model.outcome import Abort, Outcome, Released, Snooze
from treadle.model.settle import Transition
from treadle.store.session import Session
from treadle.store.store import Store
from treadle.worker.context import JobContext
from treadle.worker.judging import judge
from treadle.worker.manual import Claims
from treadle.worker.runner import Attempt, raised, returned


class LeasedJob:
    """One attempt that this program runs by itself; made by :meth:`treadle.Treadle.claim`.

    End it with one of :meth:`complete`, :meth:`fail`, :meth:`snooze`, :meth:`abort` or :meth:`release`. A program that
    dies before gives it to others.

    Attributes:
        job: what a handler would get: ids, ``progress``, ``log``, ``checkpoint``, ``cancelled``, ``on_success``.
        arguments: what the job was enqueued with, typed when this app knows the task.
    """

    def __init__(self, store: Store, claims: Claims, attempt: Attempt, arguments: Arguments) -> None:
        self._store = store
        self._claims = claims
        self._attempt = attempt
        self._over = False
        self.job: JobContext = attempt.context
        self.arguments = arguments

    def __repr__(self) -> str:
        return f"<LeasedJob {self.job.id} {self.job.task} attempt {self.job.attempt}>"

    @property
    def task(self) -> str:
        """The task's name."""
        return self.job.task

    def complete(self, result: object = None) -> None:
        """The work is done; *result* is stored as a handler's would be.

        Raises:
            LeaseLost: the job belongs to another attempt now; nothing was changed.
            JobStateError: this attempt was ended before.
        """
        self._end(returned(self._attempt, result))

    async def acomplete(self, result: object = None) -> None:
        """The same from async code."""
        await self._aend(returned(self._attempt, result))

    def fail(self, error: BaseException) -> None:
        """The work failed with *error*; the task's retry rules decide what follows.

        Raises:
            LeaseLost, JobStateError: as in :meth:`complete`.
        """
        self._end(raised(self._attempt, error))

    async def afail(self, error: BaseException) -> None:
        """The same from async code."""
        await self._aend(raised(self._attempt, error))

    def snooze(self, delay: timedelta | float) -> None:
        """Run the job again after *delay* without spending a retry."""
        self._end(raised(self._attempt, Snooze(delay)))

    async def asnooze(self, delay: timedelta | float) -> None:
        """The same from async code."""
        await self._aend(raised(self._attempt, Snooze(delay)))

    def abort(self, reason: str) -> None:
        """Fail the job for good."""
        self._end(raised(self._attempt, Abort(reason)))

    async def aabort(self, reason: str) -> None:
        """The same from async code."""
        await self._aend(raised(self._attempt, Abort(reason)))

    def release(self) -> None:
        """Give the job back unspent: it is ready again as if it had not been claimed."""
        self._end(Released("given back by the program that had claimed it", started=False))

    async def arelease(self) -> None:
        """The same from async code."""
        await self._aend(Released("given back by the program that had claimed it", started=False))

    def extend(self) -> bool:
        """Make sure that this attempt still owns the job; call it now and then in long work.

        Returns:
            False when somebody wants the job called off: stop soon.

        Raises:
            LeaseLost: the job belongs to another attempt now.
        """
        self._store.read(self._claims.extending(self.job))
        return not self.job.cancelled

    async def aextend(self) -> bool:
        """The same from async code."""
        await asyncio.wrap_future(self._store.submit_read(self._claims.extending(self.job)))
        return not self.job.cancelled

    def _end(self, outcome: Outcome) -> None:
        self._check()
        counted = self._counted()
        granted = None if counted is None else self._store.read(counted)
        self._store.run(self._claims.settling(self._judged(outcome, granted)))
        self._over = True

    async def _aend(self, outcome: Outcome) -> None:
        self._check()
        counted = self._counted()
        granted = None if counted is None else await asyncio.wrap_future(self._store.submit_read(counted))
        await self._store.arun(self._claims.settling(self._judged(outcome, granted)))
        self._over = True

    def _counted(self) -> Callable[[Session], dict[str, int]] | None:
        counts = self._attempt.definition.retry.counts_immediates
        return self._claims.immediates(self.job.id) if counts else None

    def _judged(self, outcome: Outcome, granted: dict[str, int] | None) -> Transition:
        self.job.end_programs()
        now = self._store.clock.now()
        return judge(self._attempt, outcome, self._attempt.claimed.claimed_at, now, granted)

    def _check(self) -> None:
        if self.job.settled is not None and not self._over:
            self._over = True
            self._claims.settled(self.job.lease)
        if self._over:
            raise JobStateError(f"This attempt of job {self.job.id} was ended before; its outcome stands.")


def leased(store: Store, claims: Claims, found: list[tuple[Attempt, Any]]) -> list[LeasedJob]:
    """Handles of what was claimed."""
    return [LeasedJob(store, claims, attempt, Arguments(tuple(args), kwargs)) for attempt, (args, kwargs) in found]
