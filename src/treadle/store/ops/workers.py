"""Workers: registering under a locked slot, signs of life, and what people want of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from treadle.store.dialect import Sql
from treadle.store.ops.rescue import leave as forget
from treadle.store.ops.rescue import rescue
from treadle.store.ops.unknown import free_known
from treadle.store.session import Session

FIND: Final = "SELECT epoch, name FROM treadle_workers WHERE slot = ?"
REGISTER: Final = """
INSERT INTO treadle_workers
    (slot, epoch, name, host, pid, pid_started, pid_namespace, boot_id, dev, ino,
     started_at, seen_at, queues, tasks, concurrency)
VALUES (:slot, :epoch, :name, :host, :pid, :pid_started, :pid_namespace, :boot_id, :dev, :ino,
     :now, :now, :queues, :tasks, :concurrency)
ON CONFLICT (slot) DO UPDATE
SET epoch = excluded.epoch, name = excluded.name, host = excluded.host, pid = excluded.pid,
    pid_started = excluded.pid_started, pid_namespace = excluded.pid_namespace, boot_id = excluded.boot_id,
    dev = excluded.dev, ino = excluded.ino, started_at = excluded.started_at, seen_at = excluded.seen_at,
    queues = excluded.queues, tasks = excluded.tasks, concurrency = excluded.concurrency, orders = NULL,
    ordered_by = NULL
"""
SEEN: Final = """
UPDATE treadle_workers SET seen_at = :now WHERE slot = :slot AND epoch = :epoch RETURNING coalesce(orders, '')
"""
LEARN: Final = "UPDATE treadle_workers SET tasks = :tasks WHERE slot = :slot AND epoch = :epoch"
ORDERS_OF: Final = "SELECT coalesce(orders, '') FROM treadle_workers WHERE slot = :slot AND epoch = :epoch"
ORDER: Final = """
UPDATE treadle_workers SET orders = :orders, ordered_by = :by WHERE slot = :slot AND epoch = :epoch
"""
CANCELLED: Final = Sql(lambda d: f"""
SELECT lease, cancel_reason FROM treadle_jobs {d.index("treadle_jobs_cancelling")}
WHERE state = 5 AND cancel_reason IS NOT NULL AND epoch = :epoch
""")
ALL: Final = Sql(lambda d: f"""
SELECT w.slot, w.epoch, w.name, w.host, w.pid, w.pid_started, w.pid_namespace, w.boot_id, w.dev, w.ino,
    w.started_at, w.seen_at, w.queues, w.tasks, w.concurrency,
    (SELECT count(*) FROM treadle_jobs j {d.index("treadle_jobs_running")}
     WHERE j.state = 5 AND j.epoch = w.epoch), w.orders, w.ordered_by
FROM treadle_workers w ORDER BY w.slot
""")
IDENTITIES: Final = """
SELECT slot, epoch, name, pid, pid_started, pid_namespace, boot_id, dev, ino, seen_at
FROM treadle_workers ORDER BY slot
"""


class Registration(NamedTuple):
    """Who registers: its slot, how to prove it dead, and what it can run."""

    slot: int
    name: str
    host: str
    pid: int
    pid_started: int
    pid_namespace: int
    boot_id: str
    dev: int
    ino: int
    queues: tuple[str, ...]
    tasks: tuple[str, ...]
    concurrency: int


class IdentityRow(NamedTuple):
    """What proves a worker alive or dead."""

    slot: int
    epoch: int
    name: str
    pid: int
    pid_started: int
    pid_namespace: int
    boot_id: str
    dev: int
    ino: int
    seen_at: int


class WorkerRow(NamedTuple):
    """One row of the workers table, with how many jobs it runs."""

    slot: int
    epoch: int
    name: str
    host: str
    pid: int
    pid_started: int
    pid_namespace: int
    boot_id: str
    dev: int
    ino: int
    started_at: int
    seen_at: int
    queues: str
    tasks: str
    concurrency: int
    running: int
    orders: str | None
    ordered_by: str | None

    @property
    def identity(self) -> IdentityRow:
        """What proves it alive or dead."""
        return IdentityRow(
            self.slot, self.epoch, self.name, self.pid, self.pid_started, self.pid_namespace, self.boot_id, self.dev,
            self.ino, self.seen_at,
        )  # fmt: skip


def register(
    session: Session, who: Registration, epoch: int, roll: Callable[[int], Sequence[int] | None] = lambda _: None
) -> int:
    """Register the holder of a slot's lock: whatever the slot's last owner held is rescued first.

    Args:
        session: an open transaction.
        who: the new holder.
        epoch: its number, never used before.
        roll: tells which leases of an earlier epoch had begun.

    Returns:
        How many jobs were rescued.
    """
    last = session.row(FIND, (who.slot,))
    rescued = rescue(session, last[0], last[1], "crash: its worker died", begun=roll(last[0])) if last else 0
    row: dict[str, Any] = who._asdict()
    row |= {"epoch": epoch, "now": session.clock.now()}
    row |= {name: msgspec.json.encode(row[name]).decode() for name in ("queues", "tasks")}
    session.change(REGISTER, row)
    free_known(session, who.tasks)
    return rescued


def learn(session: Session, slot: int, epoch: int, tasks: Sequence[str]) -> None:
    """Say that a worker knows these tasks now; jobs held for want of one are ready again."""
    session.change(LEARN, {"slot": slot, "epoch": epoch, "tasks": msgspec.json.encode(tasks).decode()})
    free_known(session, tuple(tasks))


def last_epoch(session: Session, slot: int) -> int | None:
    """The registration a slot had last, None when it has none."""
    found: int | None = session.value(FIND, (slot,))
    return found


def leave(session: Session, slot: int, epoch: int, begun: Sequence[int] | None = None) -> None:
    """Remove a worker that stops in good order; anything it still holds is rescued at once.

    A claim or a release that the stop cut short leaves leases nobody runs: those not in *begun* are not charged.
    """
    forget(session, slot, epoch)  # first: it waits for a claim that is about to commit, and then we see what that took
    rescue(session, epoch, f"slot {slot}", "crash: its worker stopped without settling it", begun=begun)


def seen(session: Session, slot: int, epoch: int) -> str | None:
    """Write a sign of life and return what people want of the worker: "", "pause" or "drain".

    None when this registration is no longer the slot's: the worker was evicted.
    """
    found: str | None = session.value(SEEN, {"slot": slot, "epoch": epoch, "now": session.clock.now()})
    return found


def orders_of(session: Session, slot: int, epoch: int) -> str | None:
    """The same without a sign of life; a read."""
    found: str | None = session.value(ORDERS_OF, {"slot": slot, "epoch": epoch})
    return found


def order(session: Session, slot: int, epoch: int, orders: str | None, by: str) -> bool:
    """Say what a worker should do: "pause", "drain", or None to work; False when it is not registered any more."""
    session.ring(b"o")
    return bool(session.change(ORDER, {"slot": slot, "epoch": epoch, "orders": orders, "by": by}))


def cancelled(session: Session, epoch: int) -> dict[int, str]:
    """Leases of a worker whose attempts were asked to stop, each with the reason."""
    return dict(session.rows(CANCELLED, {"epoch": epoch}))


def every(session: Session) -> list[WorkerRow]:
    """Every registered worker, dead ones not yet noticed included."""
    return [WorkerRow(*row) for row in session.rows(ALL)]


def identities(session: Session) -> list[IdentityRow]:
    """What proves each registered worker alive or dead."""
    return [IdentityRow(*row) for row in session.rows(IDENTITIES)]
