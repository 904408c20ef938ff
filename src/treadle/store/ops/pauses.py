"""Queues and tasks nobody may start jobs of; who said so and why is kept with each.

A paused queue is left out of the claim. Jobs of a paused task are parked as ``blocked``, outside the index of ready
jobs: otherwise every claim would walk over all of them to find the others of their queue.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from treadle.clock import to_datetime
from treadle.model.job import Pause
from treadle.store.dialect import Sql
from treadle.store.ops.heads import heads
from treadle.store.session import Session

PAUSE: Final = """
INSERT INTO treadle_pauses (kind, name, paused_at, paused_by, reason, until_at)
VALUES (:kind, :name, :now, :by, :reason, :until)
ON CONFLICT (kind, name) DO UPDATE
SET paused_at = excluded.paused_at, paused_by = excluded.paused_by, reason = excluded.reason,
    until_at = excluded.until_at
"""
RESUME: Final = "DELETE FROM treadle_pauses WHERE kind = :kind AND name = :name"
ALL: Final = "SELECT kind, name, paused_at, paused_by, reason, until_at FROM treadle_pauses ORDER BY kind, name"
IN_FORCE: Final = "SELECT kind, name FROM treadle_pauses WHERE until_at IS NULL OR until_at > :now"
OVER: Final = "SELECT kind, name FROM treadle_pauses WHERE until_at <= :now"
# Slices, so that a pause of a million jobs does not keep the write lock.
PARK: Final = Sql(lambda d: f"""
UPDATE treadle_jobs SET state = 4, reason = :reason WHERE id {d.among}
    SELECT id FROM treadle_jobs {d.index("treadle_jobs_ready")}
    WHERE state = 3 AND queue = :queue AND task = :task LIMIT 1000 {d.taken}
""")
# Loose index scan: one seek for each task that has blocked jobs, however many they are.
BLOCKED_TASKS: Final = Sql(lambda d: f"""
WITH RECURSIVE found (task) AS (
    SELECT (SELECT min(task) FROM treadle_jobs {d.index("treadle_jobs_blocked")} WHERE state = 4)
    UNION ALL
    SELECT (SELECT min(task) FROM treadle_jobs {d.index("treadle_jobs_blocked")} WHERE state = 4 AND task > found.task)
    FROM found WHERE found.task IS NOT NULL)
SELECT task FROM found WHERE task IS NOT NULL
""")
PARKED: Final = Sql(lambda d: f"""
SELECT 1 FROM treadle_jobs {d.index("treadle_jobs_blocked")}
WHERE state = 4 AND task = :task AND reason LIKE 'task paused%' LIMIT 1
""")
UNPARK: Final = Sql(lambda d: f"""
UPDATE treadle_jobs SET state = 3, reason = NULL WHERE id {d.among}
    SELECT id FROM treadle_jobs {d.index("treadle_jobs_blocked")}
    WHERE state = 4 AND task = :task AND reason LIKE 'task paused%' LIMIT 1000 {d.taken}
""")


class Paused(NamedTuple):
    """Names of what is paused now."""

    queues: frozenset[str]
    tasks: frozenset[str]


def pause(session: Session, kind: str, name: str, *, by: str, reason: str, until: int | None = None) -> None:
    """Let nobody start jobs of a queue or a task; running ones go on. A second call replaces the first.

    Args:
        session: an open transaction.
        kind: "queue" or "task".
        name: which.
        by: who says so.
        reason: why, in words.
        until: moment (microseconds) at which the pause ends by itself, None for until it is resumed.
    """
    now = session.clock.now()
    session.change(PAUSE, {"kind": kind, "name": name, "now": now, "by": by, "reason": reason, "until": until})
    if kind == "task":
        look_after(session)


def resume(session: Session, kind: str, name: str) -> bool:
    """Let workers start jobs of a queue or task again; False when it was not paused."""
    found = session.change(RESUME, {"kind": kind, "name": name}) > 0
    if kind == "task":
        session.change(UNPARK, {"task": name})
    session.ring()
    return found


def every(session: Session) -> tuple[Pause, ...]:
    """Every pause, those whose time has run out included until upkeep removes them."""
    return tuple(
        Pause(kind=kind, name=name, paused_at=to_datetime(at), paused_by=by, reason=reason,
              until=None if until is None else to_datetime(until))
        for kind, name, at, by, reason, until in session.rows(ALL)
    )  # fmt: skip


def in_force(session: Session, now: int) -> Paused | None:
    """What is paused at the moment *now*, None when nothing is."""
    rows = session.rows(IN_FORCE, {"now": now})
    if not rows:
        return None
    return Paused(*(frozenset(name for kind, name in rows if kind == wanted) for wanted in ("queue", "task")))


def look_after(session: Session) -> int:
    """Park what came for paused tasks, free what is paused no more, forget pauses whose time is over.

    Returns:
        How many jobs changed their state; at most 1000 a task and queue are changed.
    """
    now = session.clock.now()
    for kind, name in session.rows(OVER, {"now": now}):
        session.change(RESUME, {"kind": kind, "name": name})
        session.ring()
    paused = {(one.kind, one.name): one for one in every(session)}
    changed = 0
    for queue, task in heads(session):
        one = paused.get(("task", task))
        if one is not None:
            reason = f"task paused by {one.paused_by}" + (f": {one.reason}" if one.reason else "")
            changed += session.change(PARK, {"queue": queue, "task": task, "reason": reason})
    for task in _parked(session):
        if ("task", task) not in paused:
            changed += session.change(UNPARK, {"task": task})
            session.ring()
    return changed


def has_work(session: Session, at_heads: Iterable[tuple[str, str]]) -> bool:
    """True when :func:`look_after` would do something; a read, so that idle costs nothing.

    Args:
        session: an open read.
        at_heads: (queue, task) of jobs at the heads of the queues.
    """
    pauses = session.rows(IN_FORCE, {"now": session.clock.now()})
    tasks = {name for kind, name in pauses if kind == "task"}
    if any(task in tasks for _, task in at_heads) or session.rows(OVER, {"now": session.clock.now()}):
        return True
    return any(task not in tasks for task in _parked(session))


def _parked(session: Session) -> list[str]:
    """Tasks with parked jobs."""
    return [task for (task,) in session.rows(BLOCKED_TASKS) if session.rows(PARKED, {"task": task})]
