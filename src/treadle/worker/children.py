"""Attempts in processes of their own: a few warm children, each running one attempt at a time, replaced when they die.

A child gets work only after it holds its lock, so a job is never without somebody whose end the kernel tells.
"""

from __future__ import annotations

from collections import deque
from itertools import count
from typing import Final

from treadle.model.job import Usage
from treadle.model.outcome import Outcome, Released
from treadle.worker import wire
from treadle.worker.context import Desk
from treadle.worker.runner import STOPPED, Attempt
from treadle.worker.talk import NOTHING, Birth, ChildEnded, Talk

JOBS_EACH: Final = 200
"""Attempts after which a child is replaced, so that what its code leaks does not add up for ever."""


class Children:
    """The child processes of one worker; used from its event loop.

    Args:
        birth: what they are told at their start.
        desk: where notes of their jobs go.
    """

    def __init__(self, birth: Birth, desk: Desk) -> None:
        self._birth = birth
        self._desk = desk
        self._idle: deque[Talk] = deque()
        self._busy: dict[int, Talk] = {}
        self._places = count()
        self._closed = False

    async def run(self, attempt: Attempt) -> tuple[Outcome, Usage]:
        """Run an attempt in a child.

        Raises:
            ChildEnded: the child ended before it said what came of it.
        """
        while (talk := self._take_idle()) is not None:
            try:
                return await self._run_in(talk, attempt)
            except ChildEnded as end:
                if end.begun or talk.killed:
                    raise
                # It died while it was idle, or just then, and no job is to blame: another one is tried.
        if self._closed:
            return Released(STOPPED, started=False), NOTHING
        return await self._run_in(Talk(self._birth, next(self._places), self._desk), attempt)

    async def _run_in(self, talk: Talk, attempt: Attempt) -> tuple[Outcome, Usage]:
        lease = attempt.claimed.lease
        self._busy[lease] = talk
        kept = False
        try:
            found = await talk.run(attempt)
            kept = talk.fit and talk.jobs < JOBS_EACH
            return found
        finally:
            del self._busy[lease]
            if kept and not self._closed:
                self._idle.append(talk)
            else:
                talk.close()

    def interrupt(self, lease: int, reason: str | None) -> None:
        """Tell the handler of *lease* to stop."""
        talk = self._busy.get(lease)
        if talk is not None:
            talk.tell(wire.Cancel(reason))

    def kill(self, lease: int) -> None:
        """Kill the child that runs *lease*, with everything it started."""
        talk = self._busy.get(lease)
        if talk is not None:
            talk.kill()

    async def stack(self, lease: int, patience: float) -> str:
        """Where the child of *lease* stands; empty when it does not tell within *patience* seconds."""
        talk = self._busy.get(lease)
        return "" if talk is None else await talk.stack(patience)

    async def close(self) -> None:
        """Kill every child and wait until all are gone; no other one is started."""
        self._closed = True
        talks = [*self._idle, *self._busy.values()]
        self._idle.clear()
        for talk in talks:
            talk.kill()
        for talk in talks:
            await talk.gone.wait()
            talk.close()

    def _take_idle(self) -> Talk | None:
        """A child that waits for work; those that died meanwhile are let go."""
        while self._idle:
            talk = self._idle.pop()
            if talk.fit:
                return talk
            talk.close()
        return None
