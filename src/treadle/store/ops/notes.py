"""What a running attempt writes about itself, each write guarded by its lease."""

from __future__ import annotations

from typing import Final

from treadle.errors import LeaseLost
from treadle.store.dialect import Sql
from treadle.store.session import Session

PROGRESS: Final = Sql(lambda d: f"""
INSERT INTO treadle_progress (job_id, fraction, message, updated_at)
SELECT id, :fraction, :message, :now FROM treadle_jobs {d.index("treadle_jobs_running")}
WHERE state = 5 AND lease = :lease {d.for_update}
ON CONFLICT (job_id) DO UPDATE
SET fraction = excluded.fraction, message = excluded.message, updated_at = excluded.updated_at
""")
CHECKPOINT: Final = Sql(lambda d: f"""
INSERT INTO treadle_checkpoints (job_id, codec, data, updated_at)
SELECT id, :codec, :data, :now FROM treadle_jobs {d.index("treadle_jobs_running")}
WHERE state = 5 AND lease = :lease {d.for_update}
ON CONFLICT (job_id) DO UPDATE SET codec = excluded.codec, data = excluded.data, updated_at = excluded.updated_at
""")
LAST_CHECKPOINT: Final = "SELECT codec, data FROM treadle_checkpoints WHERE job_id = ?"


def progress(session: Session, lease: int, fraction: float, message: str) -> None:
    """Replace the progress of the job that *lease* owns.

    Raises:
        LeaseLost: the lease owns nothing any more.
    """
    now = session.clock.now()
    _guard(lease, session.change(
        PROGRESS, {"lease": lease, "fraction": fraction, "message": message, "now": now}
    ))  # fmt: skip


def checkpoint(session: Session, lease: int, codec: str, data: bytes) -> None:
    """Replace the checkpoint of the job that *lease* owns.

    Raises:
        LeaseLost: the lease owns nothing any more.
    """
    now = session.clock.now()
    _guard(lease, session.change(CHECKPOINT, {"lease": lease, "codec": codec, "data": data, "now": now}))


def last_checkpoint(session: Session, job_id: int) -> tuple[str, bytes] | None:
    """The codec and bytes of a job's last checkpoint, None when it has none."""
    row = session.row(LAST_CHECKPOINT, (job_id,))
    return (row[0], row[1]) if row else None


def lost(lease: int) -> LeaseLost:
    """What is said to an attempt that no longer owns its job."""
    return LeaseLost(f"Lease {lease} no longer owns its job: it was rescued, evicted or ended. Nothing was written.")


def _guard(lease: int, changed: int) -> None:
    if changed != 1:
        raise lost(lease)
