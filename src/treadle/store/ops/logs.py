"""Lines that running attempts logged: stored under their lease, read in commit order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from treadle.clock import to_datetime
from treadle.model.job import LogLine, LogRecord
from treadle.store.dialect import Sql
from treadle.store.session import Session

PAGE_MOST: Final = 1000

# One row per line: lease, logged_at, level, source, text.
WRITE: Final = Sql(lambda d: f"""
INSERT INTO treadle_logs (job_id, lease, logged_at, level, source, text)
SELECT j.id, j.lease, {d.item("e.value", 1)}, {d.item("e.value", 2)}, {d.item("e.value", 3, "text")},
    {d.item("e.value", 4, "text")}
FROM {d.rows("lines")} e CROSS JOIN treadle_jobs j {d.index("treadle_jobs_running")}
WHERE j.state = 5 AND j.lease = {d.item("e.value", 0)}
ORDER BY e.place
""")
OF_JOB: Final = """
SELECT seq, job_id, lease, logged_at, level, source, text FROM treadle_logs
WHERE job_id = :job AND seq > :after ORDER BY seq LIMIT :most
"""
OF_ALL: Final = """
SELECT seq, job_id, lease, logged_at, level, source, text FROM treadle_logs WHERE seq > :after ORDER BY seq LIMIT :most
"""
NEWEST: Final = "SELECT coalesce(max(seq), 0) FROM treadle_logs"


def write(session: Session, lines: Iterable[tuple[int, Sequence[LogLine]]]) -> None:
    """Store lines, each with the lease of its attempt; those of a lease that owns nothing any more are dropped.

    Texts are storable already: without NUL and lone surrogates.
    """
    rows = [(lease, *line) for lease, told in lines for line in told]
    if rows:
        session.change(WRITE, {"lines": msgspec.json.encode(rows).decode()})


def read(session: Session, job_id: int | None, after: int, most: int) -> tuple[LogRecord, ...]:
    """Lines after the place *after* in commit order, of one job or of all; at most 1000."""
    values = {"job": job_id, "after": after, "most": max(1, min(most, PAGE_MOST))}
    rows = session.rows(OF_ALL if job_id is None else OF_JOB, values)
    return tuple(
        LogRecord(seq=seq, job_id=job, lease=lease, logged_at=to_datetime(at), level=level, source=source, text=text)
        for seq, job, lease, at, level, source, text in rows
    )


def newest(session: Session) -> int:
    """The place of the last line, 0 when there is none."""
    return int(session.value(NEWEST))
