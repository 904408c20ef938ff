"""Storing outcomes: collects transitions, stores them in batches, never lets one go."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Final

from treadle.errors import LeaseLost, StoreBusy, StoreClosed, StoreFull, StoreLost, TreadleError
from treadle.model.job import AttemptOutcome, JobState, LogLine, Usage
from treadle.model.settle import Transition
from treadle.store.ops import logs, notes
from treadle.store.ops.settle import Applied, add, apply, live
from treadle.store.session import Session
from treadle.store.store import Store

BATCH_MOST: Final = 1000
PROGRESS_EVERY: Final = 0.5
PATIENCE: Final = (0.05, 0.2, 0.5, 1.0)
"""Seconds between tries while the database refuses; the last one repeats for as long as it takes."""
log = logging.getLogger("treadle.worker")

Notes = dict[int, tuple[float, str]]
Lines = dict[int, list[LogLine]]


class Settler:
    """Stores what attempts came to; used from the worker's event loop.

    Args:
        store: where.
        worker: the worker's name, for the history.
        on_stored: called with the transitions that are stored, and the leases of those that were refused.
        on_lost: called with each lease whose progress was refused: its attempt may still run.
        on_fatal: called when the store can no longer be used at all.
    """

    def __init__(
        self,
        store: Store,
        worker: str,
        on_stored: Callable[[Sequence[Transition], Sequence[int]], None],
        on_lost: Callable[[int], None],
        on_fatal: Callable[[TreadleError], None],
    ) -> None:
        self._store = store
        self.worker = worker
        self._on_stored = on_stored
        self._on_lost = on_lost
        self._on_fatal = on_fatal
        self._waiting: deque[Transition] = deque()
        self._parked = 0
        self.stored = 0
        """How many outcomes were stored or refused so far."""
        self._notes: Notes = {}
        self._lines: Lines = {}
        self._late: Lines = {}
        """Lines that were on their way when their lease was gone: its handler may have settled it meanwhile."""
        self._noting = threading.Lock()
        self._noted = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def add(self, transition: Transition) -> None:
        """Queue a transition; it is stored with its neighbours."""
        if self._notes:
            self._notes.pop(transition.lease, None)
        if self._late:
            self._late.pop(transition.lease, None)  # its lease was lost
        if self._lines and (lines := self._lines.pop(transition.lease, None)):
            transition = transition._replace(logs=(*lines, *transition.logs))
        self._waiting.append(transition)
        if len(self._waiting) == 1:
            self._idle.clear()
            self._wake.set()

    def note(self, lease: int, fraction: float, message: str) -> None:
        """Remember the last progress of an attempt; any thread may call this."""
        with self._noting:  # or a thread could still write into what is being stored
            self._tell_noted()
            self._notes[lease] = (fraction, message)

    def note_line(self, lease: int, line: LogLine) -> None:
        """Keep a line of an attempt; any thread may call this."""
        with self._noting:
            self._tell_noted()
            self._lines.setdefault(lease, []).append(line)

    def _tell_noted(self) -> None:
        if not self._notes and not self._lines:
            with suppress(RuntimeError):  # the loop is closed: a thread that a handler left behind, and nobody writes
                self._loop.call_soon_threadsafe(self._noted.set)

    def take_lines(self, lease: int) -> list[LogLine]:
        """The lines of an attempt that are not written yet, for whoever settles it; any thread may call this."""
        with self._noting:
            return self._lines.pop(lease, [])

    def settled_by_handler(self, transition: Transition, rest: Sequence[LogLine], usage: Usage | None) -> None:
        """A handler has committed its own success, *transition*: only what came too late for that is left to store."""
        self._notes.pop(transition.lease, None)
        late = self._late.pop(transition.lease, [])
        lines = (*late, *self.take_lines(transition.lease), *rest)
        if lines or usage is not None:
            added = self._store.submit(partial(add, ended=transition._replace(logs=lines, usage=usage)))
            added.add_done_callback(_tell_of_late)
        self.stored += 1
        self._on_stored([transition], [])

    async def drained(self) -> None:
        """Wait until everything queued so far is stored."""
        await self._idle.wait()

    @property
    def waiting(self) -> int:
        """How many outcomes are not stored yet."""
        return len(self._waiting) + self._parked

    async def serve(self) -> None:
        """Store what comes until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                batch = [self._waiting.popleft() for _ in range(min(BATCH_MOST, len(self._waiting)))]
                if not await self._store_batch(batch):
                    return
            if not self.waiting:
                self._idle.set()

    async def serve_notes(self) -> None:
        """Write progress half a second after it came until cancelled; where nothing comes, nothing wakes up."""
        while True:
            await self._noted.wait()
            await asyncio.sleep(PROGRESS_EVERY)
            self._noted.clear()
            if self._notes or self._lines:
                with self._noting:
                    taken, self._notes = self._notes, {}
                    lines, self._lines = self._lines, {}
                await self._write_notes(taken, lines)

    async def _store_batch(self, batch: list[Transition]) -> bool:
        tries = 0
        while True:
            try:
                lost = (await self._apply(batch)).lost
            except (StoreLost, StoreClosed) as error:
                self._on_fatal(error)
                return False
            except (StoreBusy, StoreFull) as error:
                await self._be_patient(tries, batch, error)
                tries += 1
            except Exception as error:  # whatever it is, the worker and the other outcomes must outlive it
                return await self._divide(batch, error)
            else:
                self.stored += len(batch)
                self._on_stored(batch, lost)
                for lease in lost:
                    log.warning("Lease %s was lost before its outcome could be stored; nothing was changed.", lease)
                return True

    async def _apply(self, batch: list[Transition]) -> Applied:
        return await self._store.apatient(partial(apply, transitions=batch, worker=self.worker))

    async def _divide(self, batch: list[Transition], error: Exception) -> bool:
        """Store each half by itself; the single culprit is held, so that its work is not repeated blindly."""
        if len(batch) > 1:
            middle = len(batch) // 2
            return await self._store_batch(batch[:middle]) and await self._store_batch(batch[middle:])
        culprit = batch[0]
        if culprit.outcome is AttemptOutcome.HELD:
            # Not even that can be stored now. It waits its turn, so that the others are not kept waiting.
            log.error("Job %s cannot be held either (%r); it is tried again.", culprit.job_id, error)
            self._parked += 1
            asyncio.get_running_loop().call_later(PATIENCE[-1], self._unpark, culprit)
            return True
        log.error("The outcome of job %s cannot be stored (%r); the job is held.", culprit.job_id, error)
        told = str(error) if isinstance(error, TreadleError) else repr(error)
        held = Transition(
            culprit.lease, culprit.job_id, JobState.HELD, AttemptOutcome.HELD, culprit.started_at,
            culprit.finished_at, reason=f"outcome not stored: {told}"[:500],
        )  # fmt: skip
        return await self._store_batch([held])

    def _unpark(self, transition: Transition) -> None:
        self._parked -= 1
        self.add(transition)

    async def _be_patient(self, tries: int, batch: list[Transition], error: TreadleError) -> None:
        if tries in (0, 10) or tries % 60 == 0:
            log.warning("%d outcomes wait to be stored: %s", len(batch), error)
        await asyncio.sleep(PATIENCE[min(tries, len(PATIENCE) - 1)])

    async def _write_notes(self, taken: Notes, lines: Lines) -> None:
        def progress(session: Session) -> list[int]:
            logs.write(session, lines.items())
            self._late |= _without(lines, live(session, list(lines))) if lines else {}
            return [lease for lease, note in taken.items() if not _write_note(session, lease, *note)]

        try:
            lost = await self._store.apatient(progress)
        except TreadleError as error:
            log.warning("Progress and %d lines of logs were not stored: %s", sum(map(len, lines.values())), error)
            return
        for lease in lost:
            self._on_lost(lease)


def _without(lines: Lines, kept: Mapping[int, object]) -> Lines:
    return {lease: said for lease, said in lines.items() if lease not in kept}


def _tell_of_late(added: Future[None]) -> None:
    if added.exception() is not None:
        log.warning("Lines of an attempt that had settled itself were not stored: %s", added.exception())


def _write_note(session: Session, lease: int, fraction: float, message: str) -> bool:
    try:
        notes.progress(session, lease, fraction, message)
    except LeaseLost:
        log.debug("Progress of lease %s came too late.", lease)
        return False
    return True
