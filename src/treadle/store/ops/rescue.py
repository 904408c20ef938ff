"""Taking back what a worker held that is provably over: rescue, eviction, orphans."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from treadle.store.dialect import Sql
from treadle.store.session import Session

# Where several may write at once: nobody settles one of these between the statements below.
TAKE_HOLD: Final = Sql(lambda d: f"""
SELECT id FROM treadle_jobs {d.index("treadle_jobs_running")} WHERE state = 5 AND epoch = :epoch
ORDER BY id + 0 {d.for_update}
""")
CRASHED_HISTORY: Final = Sql(lambda d: f"""
INSERT INTO treadle_attempts (job_id, lease, attempt, worker, outcome, started_at, finished_at, message)
SELECT id, lease, attempt, :worker, 8, started_at, :now, :why
FROM treadle_jobs {d.index("treadle_jobs_running")} WHERE state = 5 AND epoch = :epoch
""")
# A crash leaves the retry budget alone but has its own cap, written by the claim: at it the job is held with the
# reason. Work that must not be repeated blindly has the cap 0. Who was asked to stop gets no other attempt.
RESCUE: Final = Sql(lambda d: f"""
UPDATE treadle_jobs {d.index("treadle_jobs_running")}
SET state = CASE WHEN cancel_reason IS NOT NULL THEN 9 WHEN crashes + 1 >= crash_cap THEN 6 ELSE 3 END,
    reason = CASE WHEN cancel_reason IS NOT NULL THEN cancel_reason
        WHEN crash_cap = 0 THEN 'outcome unknown: its process ended while it ran, and on_crash is "hold"'
        WHEN crashes + 1 >= crash_cap AND crashes = 0 THEN 'crash cap: an attempt ended with its process'
        WHEN crashes + 1 >= crash_cap
        THEN 'crash cap: its attempts ended with their process ' || (crashes + 1) || ' times' END,
    finished_at = CASE WHEN cancel_reason IS NOT NULL THEN CAST(:now AS BIGINT) END,
    crashes = crashes + 1, lease = NULL, cancel_reason = NULL
WHERE state = 5 AND epoch = :epoch
""")
RETURN: Final = Sql(lambda d: f"""
UPDATE treadle_jobs {d.index("treadle_jobs_running")}
SET state = CASE WHEN cancel_reason IS NULL THEN 3 ELSE 9 END, reason = cancel_reason,
    finished_at = CASE WHEN cancel_reason IS NOT NULL THEN CAST(:now AS BIGINT) END, lease = NULL, cancel_reason = NULL
WHERE state = 5 AND epoch = :epoch AND lease NOT IN ({d.ints("begun")})
""")
ORPHANS: Final = Sql(lambda d: f"""
SELECT DISTINCT epoch FROM treadle_jobs {d.index("treadle_jobs_running")}
WHERE state = 5 AND epoch NOT IN (SELECT epoch FROM treadle_workers)
""")
LEAVE: Final = "DELETE FROM treadle_workers WHERE slot = :slot AND epoch = :epoch"
LEAVE_SILENT: Final = f"{LEAVE} AND seen_at = :seen_at"
EVICTED: Final = "evicted "
"""How the note in ``treadle_meta`` begins by which a worker learns, if it ever asks, that people did that."""
NOTE: Final = f"""
INSERT INTO treadle_meta (name, value) VALUES ('{EVICTED}' || CAST(:epoch AS TEXT), CAST(:now AS TEXT))
ON CONFLICT (name) DO NOTHING
"""
NOTED: Final = f"SELECT count(*) FROM treadle_meta WHERE name = '{EVICTED}' || CAST(? AS TEXT)"
FORGET: Final = f"""
DELETE FROM treadle_meta WHERE name >= '{EVICTED}' AND name < 'evicted!' AND CAST(value AS BIGINT) < :before
"""
KEPT: Final = 24 * 3600 * 1_000_000


def rescue(session: Session, epoch: int, worker: str, why: str, begun: Sequence[int] | None = None) -> int:
    """Take back every job that *epoch* still holds; its death must be proved before.

    Args:
        session: an open transaction.
        epoch: the registration that is over.
        worker: its name, for the history.
        why: in words, for the history.
        begun: leases whose attempts had begun; only those are charged. None charges every one.

    Returns:
        How many jobs were taken back.
    """
    now, untouched = session.clock.now(), 0
    if session.dialect.shares_rows:
        session.rows(TAKE_HOLD, {"epoch": epoch})
    if begun is not None:
        begun_json = msgspec.json.encode(begun).decode()
        untouched = session.change(RETURN, {"epoch": epoch, "begun": begun_json, "now": now})
    session.ring()
    session.settle()
    found = session.change(CRASHED_HISTORY, {"epoch": epoch, "worker": worker, "why": why, "now": now})
    if found:
        session.change(RESCUE, {"epoch": epoch, "now": now})
    return untouched + found


def rescue_dead(
    session: Session, slot: int, epoch: int, worker: str, seen_at: int, begun: Sequence[int] | None = None
) -> int | None:
    """Rescue a dead worker's jobs and forget its registration.

    Args:
        session: an open transaction.
        slot: its slot.
        epoch: its registration.
        worker: its name.
        seen_at: the last sign of life that the judgement rests on, microseconds.
        begun: see :func:`rescue`.

    Returns:
        How many jobs were taken back; None when it has shown another sign since or somebody else was faster: then
        nothing was changed.
    """
    if not session.change(LEAVE_SILENT, {"slot": slot, "epoch": epoch, "seen_at": seen_at}):
        return None
    return rescue(session, epoch, worker, "crash: its worker died", begun=begun)


def evict(
    session: Session, slot: int, epoch: int, worker: str, why: str, begun: Sequence[int] | None = None
) -> int | None:
    """Take a worker's jobs and its registration away although it lives: whatever it still writes changes nothing.

    Attempts that had begun are charged with a crash: one that stalls every worker it meets must come to its cap.

    Returns:
        How many jobs were taken back; None when this registration is over already, and then nothing was changed.
    """
    if not leave(session, slot, epoch):
        return None
    now = session.clock.now()
    session.change(FORGET, {"before": now - KEPT})
    session.change(NOTE, {"epoch": epoch, "now": now})
    session.ring(b"o")  # so that it hears of it, if it hears at all
    return rescue(session, epoch, worker, f"evicted: {why}", begun=begun)


def was_evicted(session: Session, epoch: int) -> bool:
    """True when people took that registration away, in the last day."""
    return bool(session.value(NOTED, (epoch,)))


def leave(session: Session, slot: int, epoch: int) -> bool:
    """Forget a registration; False when it is not the slot's any more."""
    return bool(session.change(LEAVE, {"slot": slot, "epoch": epoch}))


def rescue_orphans(session: Session) -> int:
    """Take back jobs whose worker is no longer registered at all (a row removed by hand)."""
    return sum(
        rescue(session, row[0], f"epoch {row[0]}", "crash: its worker is gone") for row in session.rows(ORPHANS)
    )


def has_orphans(session: Session) -> bool:
    """True when a job runs under a worker that is not registered; a read, so that idle costs nothing."""
    return bool(session.rows(ORPHANS))
