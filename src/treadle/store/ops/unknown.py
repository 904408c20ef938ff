"""Jobs whose task no live worker knows: held with the reason, freed when a worker that knows it comes."""

from __future__ import annotations

from typing import Final

import msgspec

from treadle.store.dialect import Sql
from treadle.store.ops.heads import heads
from treadle.store.session import Session

UNKNOWN_TASK: Final = "unknown task"

LIVE_TASKS: Final = Sql(lambda d: f"SELECT DISTINCT t.value FROM treadle_workers w CROSS JOIN {d.members('w.tasks')} t")
# Where several may write at once: whoever registers meanwhile, or learns a task, waits for us. It would find nothing to
# free before our commit, and we would hold what it knows.
KEEP_WORKERS: Final = "LOCK TABLE treadle_workers IN SHARE ROW EXCLUSIVE MODE"
HOLD: Final = Sql(lambda d: f"""
UPDATE treadle_jobs SET state = 6, reason = :reason WHERE id {d.among}
    SELECT id FROM treadle_jobs {d.index("treadle_jobs_ready")}
    WHERE state = 3 AND queue = :queue AND task = :task LIMIT 1000 {d.taken}
""")
FREEABLE: Final = Sql(lambda d: f"""
SELECT 1 FROM treadle_jobs {d.index("treadle_jobs_held")}
WHERE state = 6 AND reason LIKE 'unknown task%' AND task {d.one_of_texts("tasks")} LIMIT 1
""")
FREE: Final = Sql(lambda d: f"""
UPDATE treadle_jobs SET state = 3, reason = NULL WHERE id {d.among}
    SELECT id FROM treadle_jobs {d.index("treadle_jobs_held")}
    WHERE state = 6 AND reason LIKE 'unknown task%' AND task {d.one_of_texts("tasks")} LIMIT 1000 {d.taken}
""")


def has_unknown(session: Session, at_heads: list[tuple[str, str]]) -> bool:
    """True when a ready job's task is known to no registered worker; a read, so that idle costs nothing."""
    return bool(_unknown(session, at_heads))


def hold_unknown(session: Session) -> int:
    """Hold ready jobs whose task no registered worker knows; nothing of their budget is spent."""
    if session.dialect.shares_rows:
        session.change(KEEP_WORKERS)
    held = 0
    for queue, task in _unknown(session, heads(session)):
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


def _unknown(session: Session, at_heads: list[tuple[str, str]]) -> list[tuple[str, str]]:
    known = {row[0] for row in session.rows(LIVE_TASKS)}
    return [(queue, task) for queue, task in at_heads if task not in known]
