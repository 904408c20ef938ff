"""What stands at the heads of the queues, found without reading the queues."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from treadle.store.dialect import Sql
from treadle.store.session import Session

# Loose index scan: one seek per queue that has work, however long the queues are.
READY_QUEUES: Final = Sql(lambda d: f"""
WITH RECURSIVE found (queue) AS (
    SELECT (SELECT min(queue) FROM treadle_jobs {d.index("treadle_jobs_ready")} WHERE state = 3)
    UNION ALL
    SELECT (SELECT min(queue) FROM treadle_jobs {d.index("treadle_jobs_ready")}
            WHERE state = 3 AND queue > found.queue)
    FROM found WHERE found.queue IS NOT NULL)
SELECT {d.list_of("queue")} FROM found WHERE queue IS NOT NULL
""")
# What nobody takes gathers at the head of its queue, so looking at the head is enough.
HEAD_TASKS: Final = Sql(lambda d: f"""
SELECT DISTINCT task FROM (
    SELECT task FROM treadle_jobs {d.index("treadle_jobs_ready")}
    WHERE state = 3 AND queue = :queue ORDER BY priority DESC, due_at, id LIMIT 2000) AS head
""")
_NAMES: Final = msgspec.json.Decoder(list[str])


def ready_queues(session: Session) -> Sequence[str]:
    """Names of the queues that have ready jobs."""
    return _NAMES.decode(session.value(READY_QUEUES))


def heads(session: Session) -> list[tuple[str, str]]:
    """The (queue, task) pairs at the heads of the queues."""
    return [
        (queue, task) for queue in ready_queues(session) for (task,) in session.rows(HEAD_TASKS, {"queue": queue})
    ]
