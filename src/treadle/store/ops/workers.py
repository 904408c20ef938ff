"""Workers: registering under a locked slot, signs of life, rescue of what a dead one held."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from treadle import defaults
from treadle.store.ops.claim import READY_QUEUES
from treadle.store.session import Session

UNKNOWN_TASK: Final = "unknown task"

FIND: Final = "SELECT epoch, name FROM treadle_workers WHERE slot = ?"
REGISTER: Final = """
INSERT OR REPLACE INTO treadle_workers
    (slot, epoch, name, host, pid, pid_started, pid_namespace, boot_id, dev, ino,
     started_at, seen_at, queues, tasks, concurrency)
VALUES (:slot, :epoch, :name, :host, :pid, :pid_started, :pid_namespace, :boot_id, :dev, :ino,
     :now, :now, :queues, :tasks, :concurrency)
"""
LEAVE: Final = "DELETE FROM treadle_workers WHERE slot = :slot AND epoch = :epoch"
SEEN: Final = "UPDATE treadle_workers SET seen_at = :now WHERE slot = :slot AND epoch = :epoch"
ALL: Final = """
SELECT w.slot, w.epoch, w.name, w.host, w.pid, w.pid_started, w.pid_namespace, w.boot_id, w.dev, w.ino,
    w.started_at, w.seen_at, w.queues, w.tasks, w.concurrency,
    (SELECT count(*) FROM treadle_jobs j INDEXED BY treadle_jobs_running
     WHERE j.state = 5 AND j.epoch = w.epoch)
FROM treadle_workers w ORDER BY w.slot
"""
IDENTITIES: Final = """
SELECT slot, epoch, name, pid, pid_started, pid_namespace, boot_id, dev, ino FROM treadle_workers ORDER BY slot
"""
# A crash leaves the retry budget alone but has its own cap: the job is held with the reason.
CRASHED_HISTORY: Final = """
INSERT INTO treadle_attempts (job_id, lease, attempt, worker, outcome, started_at, finished_at, message)
SELECT id, lease, attempt, :worker, 8, started_at, :now, :why
FROM treadle_jobs INDEXED BY treadle_jobs_running WHERE state = 5 AND epoch = :epoch
"""
RESCUE: Final = """
UPDATE treadle_jobs INDEXED BY treadle_jobs_running
SET state = CASE WHEN crashes + 1 >= :cap THEN 6 ELSE 3 END,
    reason = CASE WHEN crashes + 1 >= :cap
        THEN 'crash cap: its attempts ended with their process ' || (crashes + 1) || ' times' END,
    crashes = crashes + 1, lease = NULL
WHERE state = 5 AND epoch = :epoch
"""
RETURN: Final = """
UPDATE treadle_jobs INDEXED BY treadle_jobs_running SET state = 3, lease = NULL
WHERE state = 5 AND epoch = :epoch AND lease NOT IN (SELECT value FROM json_each(:begun))
"""
ORPHANS: Final = """
SELECT DISTINCT epoch FROM treadle_jobs INDEXED BY treadle_jobs_running
WHERE state = 5 AND epoch NOT IN (SELECT epoch FROM treadle_workers)
"""
# What nobody takes gathers at the head of its queue, so looking at the head is enough.
HEAD_TASKS: Final = """
SELECT DISTINCT task FROM (
    SELECT task FROM treadle_jobs INDEXED BY treadle_jobs_ready
    WHERE state = 3 AND queue = :queue ORDER BY priority DESC, due_at, id LIMIT 2000)
"""
READY_QUEUE_NAMES: Final = f"SELECT value FROM json_each(({READY_QUEUES}))"
LIVE_TASKS: Final = "SELECT DISTINCT t.value FROM treadle_workers w CROSS JOIN json_each(w.tasks) t"
HOLD: Final = """
UPDATE treadle_jobs SET state = 6, reason = :reason WHERE id IN (
    SELECT id FROM treadle_jobs INDEXED BY treadle_jobs_ready
    WHERE state = 3 AND queue = :queue AND task = :task LIMIT 1000)
"""
FREEABLE: Final = """
SELECT 1 FROM treadle_jobs INDEXED BY treadle_jobs_held
WHERE state = 6 AND reason GLOB 'unknown task*' AND task IN (SELECT value FROM json_each(:tasks)) LIMIT 1
"""
FREE: Final = """
UPDATE treadle_jobs SET state = 3, reason = NULL WHERE id IN (
    SELECT id FROM treadle_jobs INDEXED BY treadle_jobs_held
    WHERE state = 6 AND reason GLOB 'unknown task*'
        AND task IN (SELECT value FROM json_each(:tasks)) LIMIT 1000)
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
    rescued = rescue(session, last[0], last[1], "its worker died", begun=roll(last[0])) if last else 0
    row: dict[str, Any] = who._asdict()
    row |= {"epoch": epoch, "now": session.clock.now()}
    row |= {name: msgspec.json.encode(row[name]).decode() for name in ("queues", "tasks")}
    session.change(REGISTER, row)
    session.change(FREE, {"tasks": row["tasks"]})
    return rescued


def leave(session: Session, slot: int, epoch: int, begun: Sequence[int] | None = None) -> None:
    """Remove a worker that stops in good order; anything it still holds is rescued at once.

    A claim or a release that the stop cut short leaves leases nobody runs: those not in *begun* are not charged.
    """
    rescue(session, epoch, f"slot {slot}", "its worker stopped without settling it", begun=begun)
    session.change(LEAVE, {"slot": slot, "epoch": epoch})


def seen(session: Session, slot: int, epoch: int) -> bool:
    """Write a sign of life; False when this registration is no longer the slot's."""
    return bool(session.change(SEEN, {"slot": slot, "epoch": epoch, "now": session.clock.now()}))


def every(session: Session) -> list[WorkerRow]:
    """Every registered worker, dead ones not yet noticed included."""
    return [WorkerRow(*row) for row in session.rows(ALL)]


def identities(session: Session) -> list[IdentityRow]:
    """What proves each registered worker alive or dead."""
    return [IdentityRow(*row) for row in session.rows(IDENTITIES)]


def rescue(
    session: Session,
    epoch: int,
    worker: str,
    why: str,
    cap: int = defaults.CRASH_CAP,
    begun: Sequence[int] | None = None,
) -> int:
    """Take back every job that *epoch* still holds; its death must be proved before.

    Args:
        session: an open transaction.
        epoch: the registration that is over.
        worker: its name, for the history.
        why: in words, for the history.
        cap: crashes at which a job is held.
        begun: leases whose attempts had begun; only those are charged. None charges every one.

    Returns:
        How many jobs were taken back.
    """
    untouched = 0
    if begun is not None:
        untouched = session.change(RETURN, {"epoch": epoch, "begun": msgspec.json.encode(begun).decode()})
    return untouched + _charge(session, epoch, worker, why, cap)


def _charge(session: Session, epoch: int, worker: str, why: str, cap: int) -> int:
    session.ring()
    found = session.change(
        CRASHED_HISTORY, {"epoch": epoch, "worker": worker, "why": f"crash: {why}", "now": session.clock.now()}
    )
    if found:
        session.change(RESCUE, {"epoch": epoch, "cap": cap})
    return found


def rescue_dead(
    session: Session, slot: int, epoch: int, worker: str, begun: Sequence[int] | None = None
) -> int:
    """Rescue a dead worker's jobs and forget its registration."""
    rescued = rescue(session, epoch, worker, "its worker died", begun=begun)
    session.change(LEAVE, {"slot": slot, "epoch": epoch})
    return rescued


def rescue_orphans(session: Session) -> int:
    """Take back jobs whose worker is no longer registered at all (a row removed by hand)."""
    return sum(rescue(session, row[0], f"epoch {row[0]}", "its worker is gone") for row in session.rows(ORPHANS))


def has_orphans(session: Session) -> bool:
    """True when a job runs under a worker that is not registered; a read, so that idle costs nothing."""
    return bool(session.rows(ORPHANS))


def has_unknown(session: Session) -> bool:
    """True when a ready job's task is known to no registered worker; a read, so that idle costs nothing."""
    return bool(_unknown(session))


def hold_unknown(session: Session) -> int:
    """Hold ready jobs whose task no registered worker knows; nothing of their budget is spent."""
    held = 0
    for queue, task in _unknown(session):
        reason = f"{UNKNOWN_TASK}: no live worker knows {task!r}; it runs once one registers"
        held += session.change(HOLD, {"queue": queue, "task": task, "reason": reason})
    return held


def has_freeable(session: Session, tasks: tuple[str, ...]) -> bool:
    """True when a job is held for a task that is known now; a read, so that idle costs nothing."""
    return bool(session.rows(FREEABLE, {"tasks": msgspec.json.encode(tasks).decode()}))


def free_known(session: Session, tasks: tuple[str, ...]) -> int:
    """Make held jobs ready again whose task is known now; at most 1000 a call."""
    freed = session.change(FREE, {"tasks": msgspec.json.encode(tasks).decode()})
    if freed:
        session.ring()
    return freed


def _unknown(session: Session) -> list[tuple[str, str]]:
    known = {row[0] for row in session.rows(LIVE_TASKS)}
    return [
        (queue, task)
        for (queue,) in session.rows(READY_QUEUE_NAMES)
        for (task,) in session.rows(HEAD_TASKS, {"queue": queue})
        if task not in known
    ]
