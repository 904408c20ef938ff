"""What keeps the store healthy beside the jobs: rescue, signs of life, checks, unknown tasks, pruning.

It has a thread of its own: a handler that blocks the event loop must not stop the rescue of others.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable
from functools import partial
from typing import Final

from treadle import defaults
from treadle.clock import Clock, to_duration
from treadle.errors import StoreClosed, StoreLost, TreadleError
from treadle.host.files import remove_quietly
from treadle.model.job import JobState
from treadle.store.ops import claim, pauses, prune, unknown, workers
from treadle.store.ops import rescue as rescuing
from treadle.store.ops.heads import heads
from treadle.store.session import Session
from treadle.store.store import Store
from treadle.worker.failing import broken
from treadle.worker.options import WorkerOptions, seconds_of
from treadle.worker.presence import Presence, children_lock, has_survivors, roll_of, roll_path

UNKNOWN_EVERY: Final = 5.0
EXPIRE_EVERY: Final = 1.0
TOGETHER: Final = 0.05
"""Seconds that a duty may be done early, so that it costs no wake-up of its own."""
LOOK_AGAIN: Final = 1.0
"""Seconds after which the workers are read again although nobody has committed anything."""
OF_EPOCH: Final = re.compile(r"(?:roll|children)-(\d+)")
log = logging.getLogger("treadle.worker")


class Upkeep:
    """Periodic duties of one worker.

    Args:
        store: which store.
        presence: this worker's registration.
        tasks: the task names this worker knows now.
        options: how long history is kept, and when a stalled worker is evicted.
        clock: for intervals and ages.
        on_gone: called when this worker is not registered any more.
        on_fatal: called when the store can no longer be used.
    """

    def __init__(
        self,
        store: Store,
        presence: Presence,
        tasks: Callable[[], tuple[str, ...]],
        options: WorkerOptions,
        store_id: str,
        clock: Clock,
        on_gone: Callable[[], None],
        on_fatal: Callable[[TreadleError], None],
    ) -> None:
        self._store = store
        self._presence = presence
        self._tasks = tasks
        self._options = options
        self._store_id = store_id
        self._clock = clock
        self._on_gone = on_gone
        self._on_fatal = on_fatal
        self._stop = threading.Event()
        self._judge = store.engine.judge()
        self._watch = store.engine.watch()
        self._others: list[workers.IdentityRow] = []
        self._read_at = -LOOK_AGAIN
        self._roll = roll_of(store)
        self._signs: dict[int, tuple[int, float]] = {}
        self.first_round = threading.Event()
        """Set once every duty was done, or none will be any more."""
        self._thread = threading.Thread(target=self._serve, name="treadle-upkeep", daemon=True)

    def start(self) -> None:
        """Begin; the first round runs at once."""
        self._thread.start()

    def stop(self) -> None:
        """End and wait for the round that is under way, at most 10 s."""
        self._stop.set()
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join(10)
        self._judge.close()
        self._watch.close()

    def _serve(self) -> None:
        try:
            self._do_duties()
        finally:
            self.first_round.set()

    def _do_duties(self) -> None:
        duties: list[tuple[float, Callable[[], None]]] = [
            (0.0, self.rescue),
            (self._store.engine.beat_every, self.beat),
            (UNKNOWN_EVERY, self.look_after_heads),
            (EXPIRE_EVERY, self.expire),
            (defaults.PRUNE_EVERY.total_seconds(), self.prune),
            (defaults.PRUNE_EVERY.total_seconds(), self.sweep),
        ]
        due = [0.0] * len(duties)
        while not self._stop.is_set():
            for place, (interval, duty) in enumerate(duties):
                now = self._clock.monotonic()
                if now < due[place] - TOGETHER:
                    continue
                if not self._do(duty):
                    return
                due[place] = now + (interval or self._until_rescue())
            self.first_round.set()
            self._stop.wait(max(0.01, min(due) - self._clock.monotonic()))

    def _do(self, duty: Callable[[], None]) -> bool:
        """Run a duty; False when the store is gone. Other database errors are told and tried again."""
        try:
            duty()
        except (StoreLost, StoreClosed) as error:
            if not self._stop.is_set():
                self._on_fatal(error)
            return False
        except (TreadleError, OSError) as error:
            log.warning("%s failed and is tried again: %s", duty.__name__, error)
        except Exception as error:
            self._on_fatal(broken(duty.__name__, error))
            return False
        return True

    def rescue(self) -> None:
        """Take back the jobs of workers that are dead, by what the store takes for a proof."""
        for row in self._registered():
            if row.epoch == self._presence.epoch:
                continue
            if not self._judge.is_dead(row):
                self._look_for_stall(row)
                continue
            if has_survivors(self._store, self._store_id, row.epoch):
                continue
            begun = self._roll(row.epoch)
            take = partial(rescuing.rescue_dead, slot=row.slot, epoch=row.epoch, worker=row.name, begun=begun)
            rescued = self._store.submit(partial(take, seen_at=row.seen_at)).result()
            if rescued is None:
                continue
            self._forget(row.epoch)
            log.warning("Worker %s (pid %s) is dead; %d of its jobs were rescued.", row.name, row.pid, rescued)

    def _until_rescue(self) -> float:
        """Seconds until the next look for the dead: a worker that was alone at the last look has nobody to rescue."""
        often = self._store.engine.look_every
        return often if len(self._others) > 1 else max(often, LOOK_AGAIN)

    def _registered(self) -> list[workers.IdentityRow]:
        """Who is registered: the rows of the last look where nothing was committed since; four looks a second cost."""
        now = self._clock.monotonic()
        if self._watch.changed():
            self._read_at = -LOOK_AGAIN  # also when the read fails
        if now >= self._read_at + LOOK_AGAIN:
            self._others, self._read_at = self._store.read(workers.identities), now
        return self._others

    def beat(self) -> None:
        """Check that our locks still hold and the disk has not failed, and write a sign of life."""
        self._presence.check()
        if self._store.damage is not None:
            raise self._store.damage
        if self._store.engine.sign(self._sign) is None:
            self._on_gone()

    def _sign(self, session: Session) -> str | None:
        self._store.engine.check_health(session)
        return self._presence.beat(session)

    def look_after_heads(self) -> None:
        """Hold jobs whose task no live worker knows, free those that this worker knows now, park and free by pauses.

        Each changes a slice at a time, until nothing is left to change.
        """
        changed = True
        while changed and not self._stop.is_set():
            changed = any([self._store.submit(operation).result() for operation in self._store.read(self._needed)])

    def expire(self) -> None:
        """Call off jobs that were not started before their time ran out."""
        while not self._stop.is_set() and self._store.read(claim.has_expired):
            self._store.submit(claim.expire, guarded=False).result()

    def _needed(self, session: Session) -> list[Callable[[Session], int]]:
        """What has something to do; a read, so that idle costs nothing."""
        if workers.orders_of(session, self._presence.slot, self._presence.epoch) is None:
            return []  # evicted: nobody would know our tasks, so they would be held and freed in turns
        at_heads = heads(session)
        tasks = self._tasks()
        free = partial(unknown.free_known, tasks=tasks)
        needed: list[tuple[bool, Callable[[Session], int]]] = [
            (unknown.has_freeable(session, tasks), free),
            (unknown.has_unknown(session, at_heads), unknown.hold_unknown),
            (pauses.has_work(session, at_heads), pauses.look_after),
            (rescuing.has_orphans(session), rescuing.rescue_orphans),
        ]
        return [operation for wanted, operation in needed if wanted]

    def prune(self) -> None:
        """Delete history beyond its retention, slice by slice, with room for others in between."""
        now = self._clock.now()
        for state, rule in self._options.retention.rules():
            cutoff = None if rule.age is None else (now - to_duration(rule.age), 0)
            if rule.count is not None:
                keep = rule.count
                counted = self._store.read(partial(prune.cutoff_by_count, state=state, keep=keep))
                cutoff = max(filter(None, (cutoff, counted)), default=None)
            if cutoff is not None:
                self._prune_state(state, *cutoff)

    def sweep(self) -> None:
        """Remove what evicted workers left beside the database; nobody will ask for it any more."""
        # Listed before the workers are read: a registration is older than its files.
        found = [(path, OF_EPOCH.fullmatch(path.name)) for path in self._store.side.iterdir()]
        registered = {row.epoch for row in self._store.read(workers.identities)}
        for path, of_epoch in found:
            if of_epoch is not None and int(of_epoch[1]) not in registered:
                remove_quietly(path)

    def _prune_state(self, state: JobState, before: int, below: int) -> None:
        if not self._store.read(partial(prune.has_old, state=state, before=before, below=below)):
            return
        slice_ = partial(prune.prune, state=state, before=before, below=below, most=defaults.PRUNE_SLICE)
        while not self._stop.is_set():
            if self._store.submit(slice_, guarded=False).result() < defaults.PRUNE_SLICE:
                return
            self._stop.wait(0.02)

    def _look_for_stall(self, row: workers.IdentityRow) -> None:
        """Evict a live worker that shows no sign for too long, if that was asked for.

        The time without a sign is our own: the wall clocks of two moments prove nothing.
        """
        limit, now = self._options.evict_stalled_after, self._clock.monotonic()
        if limit is None:
            return
        seen_at, since = self._signs.setdefault(row.epoch, (row.seen_at, now))
        if seen_at != row.seen_at:
            self._signs[row.epoch] = (row.seen_at, now)
        elif now - since > seconds_of(limit):
            why = f"no sign of life for {now - since:.0f} s, seen by {self._presence.name}"
            begun = self._roll(row.epoch)
            taken = self._store.submit(
                partial(rescuing.evict, slot=row.slot, epoch=row.epoch, worker=row.name, why=why, begun=begun)
            ).result()
            self._signs.pop(row.epoch, None)
            log.warning("Worker %s (pid %s) was evicted: %s; %s jobs go on elsewhere.", row.name, row.pid, why, taken)

    def _forget(self, epoch: int) -> None:
        """Remove what a dead worker left beside the database."""
        remove_quietly(roll_path(self._store, epoch))
        remove_quietly(children_lock(self._store, epoch))
        self._signs.pop(epoch, None)
