"""A worker's proof of life: a locked slot, a row that says who holds it, and a bell to be woken by."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from treadle.host.children import children_live, kill_marked
from treadle.host.files import remove_quietly
from treadle.host.process import host_name, own_identity
from treadle.host.roll import Roll, read_roll
from treadle.store.engine import Bell, Seat
from treadle.store.ops import meta, workers
from treadle.store.ops.sequences import burn
from treadle.store.session import Session
from treadle.store.store import Store

log = logging.getLogger("treadle.worker")
ROLL_BEYOND: Final = 4096
"""Ended attempts whose outcomes are not stored yet stay on the roll too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Abilities:
    """What a worker tells others about itself."""

    name: str | None
    queues: tuple[str, ...]
    tasks: tuple[str, ...]
    concurrency: int


@dataclass(slots=True)
class Presence:
    """One registration, from :meth:`enter` to :meth:`leave`.

    Attributes:
        seat: what others prove our death by.
        epoch: number of this registration, never given twice; running jobs carry it.
        name: what people call this worker.
        bell: rung when there may be work; None where the system has no FIFOs.
        roll: which of our leases have begun, for whoever rescues them.
        mark: what the environment of everything our jobs start carries.
    """

    store: Store
    seat: Seat
    epoch: int
    name: str
    bell: Bell | None
    roll: Roll
    rescued: int
    mark: str

    @classmethod
    def enter(cls, store: Store, abilities: Abilities) -> Presence:
        """Take a free seat, then rescue what its last holder left and register, in one transaction."""
        store_id = store.read(meta.store_id)
        seat = store.engine.take_seat(partial(_is_deserted, store, store_id))
        who = own_identity()
        name = abilities.name or f"{host_name()}-{who.pid}-{seat.slot}"
        registration = workers.Registration(
            slot=seat.slot, name=name, host=host_name(), pid=who.pid, pid_started=who.started,
            pid_namespace=who.namespace, boot_id=who.boot_id, dev=seat.dev, ino=seat.ino,
            queues=abilities.queues, tasks=abilities.tasks, concurrency=abilities.concurrency,
        )  # fmt: skip
        try:
            epoch = store.submit(partial(burn, name="epoch", count=1), guarded=False).result()[0]
            enrol = partial(workers.register, who=registration, epoch=epoch, roll=roll_of(store))
            rescued = store.submit(enrol).result()
            seat.registered(epoch)
        except BaseException:
            seat.release()
            raise
        roll = Roll(roll_path(store, epoch), abilities.concurrency + ROLL_BEYOND)
        bell = store.engine.worker_bell(seat.slot)
        return cls(store, seat, epoch, name, bell, roll, rescued, mark_of(store_id, epoch))

    @property
    def slot(self) -> int:
        """The number of the seat."""
        return self.seat.slot

    @property
    def children_lock(self) -> Path:
        """The file in which the child processes of this worker lock a byte each."""
        return children_lock(self.store, self.epoch)

    def beat(self, session: Session) -> str | None:
        """Write a sign of life and say what people want; None when this registration was taken away."""
        return workers.seen(session, self.slot, self.epoch)

    def check(self) -> None:
        """Make sure that others can still see us.

        Raises:
            StoreLost: they cannot, so our jobs may be given to others at any time.
        """
        self.seat.check()

    def leave(self) -> None:
        """Deregister and let the slot go; what is still held is taken back at once."""
        try:
            begun = roll_of(self.store)(self.epoch)
            leave = partial(workers.leave, slot=self.slot, epoch=self.epoch, begun=begun)
            self.store.submit(leave).result(10)
            self.roll.close()
            remove_quietly(self.children_lock)
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Let the slot go without a word: others find it free and rescue what was held."""
        if self.bell is not None:
            self.bell.close()
        self.seat.release()


def roll_of(store: Store) -> Callable[[int], Sequence[int] | None]:
    """How to read which leases of an epoch had begun."""
    return lambda epoch: read_roll(roll_path(store, epoch))


def roll_path(store: Store, epoch: int) -> Path:
    """The file in which a registration notes which leases have begun."""
    return store.side / f"roll-{epoch}"


def children_lock(store: Store, epoch: int) -> Path:
    """The file in which the child processes of a registration lock a byte each."""
    return store.side / f"children-{epoch}"


def mark_of(store_id: str, epoch: int) -> str:
    """What the environment of every process carries that a registration's jobs start."""
    return f"{store_id}-{epoch}"


def has_survivors(store: Store, store_id: str, epoch: int) -> bool:
    """Kill what a dead worker's jobs have left running; True while some of its children live on all the same.

    A child can tell nobody any more what its job came to, so nothing is lost with it.
    """
    killed = kill_marked(mark_of(store_id, epoch))
    if killed:
        log.warning("%d processes that a dead worker's jobs had started were killed.", killed)
    # Killed is not dead yet: nobody takes the jobs before a later look finds nothing more to kill.
    return killed > 0 or children_live(children_lock(store, epoch))


def _is_deserted(store: Store, store_id: str, slot: int) -> bool:
    """True when the last holder of a slot has left no living children."""
    last = store.read(partial(workers.last_epoch, slot=slot))
    return last is None or not has_survivors(store, store_id, last)
