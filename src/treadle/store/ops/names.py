"""Names to offer a person who types: found without reading the jobs, so they need not be all there are."""

from __future__ import annotations

from typing import Any, Final

from treadle.store.dialect import Sql
from treadle.store.session import Session

QUEUES: Final = Sql(lambda d: f"""
SELECT name FROM treadle_queues
UNION SELECT name FROM treadle_pauses WHERE kind = 'queue'
UNION SELECT q.value FROM treadle_workers w CROSS JOIN {d.members("w.queues")} q
UNION SELECT queue FROM (SELECT queue FROM treadle_jobs ORDER BY id DESC LIMIT 500) AS newest
ORDER BY 1
""")
TASKS: Final = Sql(lambda d: f"""
SELECT name FROM treadle_pauses WHERE kind = 'task'
UNION SELECT t.value FROM treadle_workers w CROSS JOIN {d.members("w.tasks")} t
UNION SELECT task FROM (SELECT task FROM treadle_jobs ORDER BY id DESC LIMIT 500) AS newest
ORDER BY 1
""")
WORKERS: Final = "SELECT DISTINCT name FROM treadle_workers ORDER BY name"
NEWEST_JOBS: Final = "SELECT id FROM treadle_jobs ORDER BY id DESC LIMIT 20"


def queues(session: Session) -> list[str]:
    """Queues that were declared or paused, that workers name, or that one of the newest 500 jobs is in."""
    return _column(session, QUEUES)


def tasks(session: Session) -> list[str]:
    """Tasks that were paused, that workers know, or that one of the newest 500 jobs is of."""
    return _column(session, TASKS)


def workers(session: Session) -> list[str]:
    """Names of registered workers."""
    return _column(session, WORKERS)


def newest_jobs(session: Session) -> list[int]:
    """Ids of the newest 20 jobs, newest first."""
    return _column(session, NEWEST_JOBS)


def _column(session: Session, sql: Sql | str) -> list[Any]:
    return [value for (value,) in session.rows(sql)]
