"""What an operator says to queues, tasks and workers: each verb for plain code, and its twin for async code."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Final

from treadle.changing import REASON_CAP, Changing
from treadle.errors import ConfigurationError, WorkerNotFound
from treadle.host.process import account_name
from treadle.model.job import WorkerRecord
from treadle.model.sanitise import clean_text
from treadle.options import check_name, moment_of
from treadle.store.ops import pauses, workers
from treadle.store.roster import evict
from treadle.store.session import Session

WORKER: Final = "worker"


class Operating(Changing):
    """The operators' half of :class:`treadle.Treadle`."""

    def pause(
        self,
        *,
        queue: str | None = None,
        task: str | None = None,
        worker: str | int | None = None,
        reason: str = "",
        by: str | None = None,
        until: datetime | None = None,
    ) -> None:
        """Let nobody start jobs of a queue or a task, or let one worker start none; running attempts go on.

        It is stored, so it outlives every process. Jobs of a paused task are ``blocked`` and say why.

        Args:
            queue: name of a queue.
            task: name of a task; where that task is declared in this program, its aliases are meant too.
            worker: name or slot of a live worker; it forgets the pause when it ends.
            reason: why, in words.
            by: who says so; by default the account and the host.
            until: aware datetime at which the pause of a queue or task ends by itself.

        Raises:
            WorkerNotFound: no such worker is registered.
        """
        operation = self._pause(queue, task, worker, reason, by, until)
        self.store.run(operation)

    async def apause(
        self,
        *,
        queue: str | None = None,
        task: str | None = None,
        worker: str | int | None = None,
        reason: str = "",
        by: str | None = None,
        until: datetime | None = None,
    ) -> None:
        """The same from async code."""
        operation = self._pause(queue, task, worker, reason, by, until)
        await (await self.aopen()).arun(operation)

    def resume(
        self, *, queue: str | None = None, task: str | None = None, worker: str | int | None = None
    ) -> bool:
        """Take a pause back; False when a queue or task was not paused.

        Raises:
            WorkerNotFound: no such worker is registered.
        """
        return self.store.run(self._resume(queue, task, worker))

    async def aresume(
        self, *, queue: str | None = None, task: str | None = None, worker: str | int | None = None
    ) -> bool:
        """The same from async code."""
        return await (await self.aopen()).arun(self._resume(queue, task, worker))

    def drain(self, worker: str | int, *, by: str | None = None) -> None:
        """Let a worker finish what it runs, start nothing more, and end. A supervisor starts another one.

        Raises:
            WorkerNotFound: no such worker is registered.
        """
        self.store.run(partial(self._order, worker=worker, orders="drain", by=_who(by)))

    async def adrain(self, worker: str | int, *, by: str | None = None) -> None:
        """The same from async code."""
        await (await self.aopen()).arun(partial(self._order, worker=worker, orders="drain", by=_who(by)))

    def evict(self, worker: str | int, *, reason: str = "", by: str | None = None) -> int:
        """Take a worker's jobs away although it lives, so that others run them; how many is returned.

        Its attempts that had begun are charged with a crash. What it still does changes nothing in the database, but
        its handlers may go on beside the new attempts until it notices and ends: a person has to judge that.

        Raises:
            WorkerNotFound: no such worker is registered.
        """
        why = f"by {_who(by)}" + (f": {clean_text(reason, REASON_CAP)}" if reason else "")
        store = self.store
        return store.run(partial(evict, store, _same(worker), why))

    async def aevict(self, worker: str | int, *, reason: str = "", by: str | None = None) -> int:
        """The same from async code."""
        why = f"by {_who(by)}" + (f": {clean_text(reason, REASON_CAP)}" if reason else "")
        store = await self.aopen()
        return await store.arun(partial(evict, store, _same(worker), why))

    def _pause(
        self,
        queue: str | None,
        task: str | None,
        worker: str | int | None,
        reason: str,
        by: str | None,
        until: datetime | None,
    ) -> Callable[[Session], object]:
        kind, name = _target(queue, task, worker)
        if kind == WORKER:
            assert worker is not None
            return partial(self._order, worker=worker, orders="pause", by=_who(by))
        pause = partial(
            pauses.pause, kind=kind, by=_who(by), reason=clean_text(reason, REASON_CAP),
            until=None if until is None else moment_of("until", until),
        )  # fmt: skip
        names = self._names(kind, name)
        return lambda session: [pause(session, name=one) for one in names]

    def _resume(self, queue: str | None, task: str | None, worker: str | int | None) -> Callable[[Session], bool]:
        kind, name = _target(queue, task, worker)
        if kind == WORKER:
            assert worker is not None
            return partial(self._order, worker=worker, orders=None, by="")
        names = self._names(kind, name)
        return lambda session: any([pauses.resume(session, kind=kind, name=one) for one in names])

    def _names(self, kind: str, name: str) -> tuple[str, ...]:
        """The names by which jobs are stored: a task that is known here has those of its aliases too."""
        definition = self.registry.find(name) if kind == "task" else None
        return (name,) if definition is None else definition.names

    @staticmethod
    def _order(session: Session, worker: str | int, orders: str | None, by: str) -> bool:
        """Give an order to every worker of a name, or to the one of a slot."""
        meant = [row for row in workers.every(session) if worker in (row.slot, row.name)]
        if not meant:
            raise WorkerNotFound(f"No worker {worker!r} is registered; see 'treadle workers list'.")
        return all([workers.order(session, row.slot, row.epoch, orders, by) for row in meant])


def _target(queue: str | None, task: str | None, worker: str | int | None) -> tuple[str, str]:
    given = {"queue": queue, "task": task, WORKER: worker}
    named = [(kind, str(name)) for kind, name in given.items() if name is not None]
    if len(named) != 1:
        raise ConfigurationError("Pass queue=, task= or worker=, one of them.")
    kind, name = named[0]
    return kind, check_name(kind, name, 200)


def _same(worker: str | int) -> Callable[[WorkerRecord], bool]:
    return lambda record: worker in (record.slot, record.name)


def _who(by: str | None) -> str:
    return clean_text(by, REASON_CAP) if by else account_name()
