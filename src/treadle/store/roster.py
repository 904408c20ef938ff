"""The workers of a store as people see them: which are alive, which are stalled, what they run."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from treadle import defaults
from treadle.clock import to_datetime, to_duration
from treadle.errors import WorkerNotFound
from treadle.host.roll import read_roll
from treadle.model.job import WorkerRecord
from treadle.store.engine import Judge
from treadle.store.ops import rescue, workers
from treadle.store.session import Session
from treadle.store.store import Store


def roster(store: Store, session: Session) -> tuple[WorkerRecord, ...]:
    """Every registered worker. *alive* is read from its lock; *stalled* means no sign of life for 60 s."""
    rows = workers.every(session)
    if not rows:
        return ()
    judge = store.engine.judge()
    try:
        return tuple(_record(row, judge, session.clock.now()) for row in rows)
    finally:
        judge.close()


def evict(store: Store, meant: Callable[[WorkerRecord], bool], why: str, session: Session) -> int:
    """Take the jobs and registrations of the workers that are *meant* away; how many jobs is returned.

    Raises:
        WorkerNotFound: there is no such worker.
    """
    found = [record for record in roster(store, session) if meant(record)]
    if not found:
        raise WorkerNotFound("No such worker is registered; see 'treadle workers list'.")
    taken = 0
    for one in found:
        begun = read_roll(store.side / f"roll-{one.epoch}")
        taken += rescue.evict(session, one.slot, one.epoch, one.name, why, begun) or 0
    return taken


def _record(row: workers.WorkerRow, judge: Judge, now: int) -> WorkerRecord:
    alive = judge.looks_alive(row.identity, now)
    return WorkerRecord(
        slot=row.slot, epoch=row.epoch, name=row.name, host=row.host, pid=row.pid,
        started_at=to_datetime(row.started_at), seen_at=to_datetime(row.seen_at),
        queues=tuple(msgspec.json.decode(row.queues)), tasks=tuple(msgspec.json.decode(row.tasks)),
        concurrency=row.concurrency, alive=alive,
        stalled=alive and now - row.seen_at > to_duration(defaults.STALLED_AFTER), running=row.running,
        orders=row.orders, ordered_by=row.ordered_by,
    )  # fmt: skip
