"""Lines that running attempts logged: stored under their lease, read in commit order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

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
# The same for an attempt that has ended, by its place in the history.
WRITE_ENDED: Final = Sql(lambda d: f"""
INSERT INTO treadle_logs (job_id, lease, logged_at, level, source, text)
SELECT a.job_id, a.lease, {d.item("e.value", 1)}, {d.item("e.value", 2)}, {d.item("e.value", 3, "text")},
    {d.item("e.value", 4, "text")}
FROM {d.rows("lines")} e CROSS JOIN treadle_attempts a
WHERE a.job_id = :job AND a.lease = {d.item("e.value", 0)}
ORDER BY e.place
""")
COLUMNS: Final = "SELECT l.seq, l.job_id, l.lease, l.logged_at, l.level, l.source, l.text FROM treadle_logs l"
AFTER: Final = f"{COLUMNS} WHERE {{conditions}} ORDER BY l.seq LIMIT :most"
LAST: Final = f"SELECT * FROM ({COLUMNS} WHERE {{conditions}} ORDER BY l.seq DESC LIMIT :most) AS newest ORDER BY seq"
OF_TASK: Final = "EXISTS (SELECT 1 FROM treadle_jobs j WHERE j.id = l.job_id AND j.task = :task)"
NEWEST: Final = Sql(lambda d: f"SELECT coalesce(max(seq), 0) FROM treadle_logs WHERE {d.final('seq')}")


class Lines(NamedTuple):
    """Which lines are meant: of one job, of at least one level, of one task; every one that is given must match."""

    job: int | None = None
    level: int = 0
    task: str | None = None


def write(session: Session, lines: Iterable[tuple[int, Sequence[LogLine]]]) -> None:
    """Store lines, each with the lease of its attempt; those of a lease that owns nothing any more are dropped.

    Texts are storable already: without NUL and lone surrogates.
    """
    rows = [(lease, *line) for lease, told in lines for line in told]
    if rows:
        session.change(WRITE, {"lines": msgspec.json.encode(rows).decode()})


def write_ended(session: Session, job_id: int, lease: int, lines: Sequence[LogLine]) -> None:
    """Store lines of an attempt that has ended, which came after its outcome was stored."""
    rows = [(lease, *line) for line in lines]
    if rows:
        session.change(WRITE_ENDED, {"lines": msgspec.json.encode(rows).decode(), "job": job_id})


def read(session: Session, job_id: int | None, after: int, most: int) -> tuple[LogRecord, ...]:
    """Lines after the place *after* in commit order, of one job or of all; at most 1000."""
    return _read(session, AFTER, Lines(job=job_id), after, most)


def last(session: Session, which: Lines, most: int) -> tuple[LogRecord, ...]:
    """The newest lines that match, oldest first; at most 1000."""
    return _read(session, LAST, which, 0, most)


def news(session: Session, which: Lines, after: int, most: int) -> tuple[tuple[LogRecord, ...], int]:
    """Matching lines after the place *after*, at most 1000, and the place to go on from.

    That place is beyond lines that do not match, so that nobody looks at them twice.
    """
    end = newest(session)
    found = _read(session, AFTER, which, after, most) if end > after else ()
    return found, found[-1].seq if len(found) == most else max(after, end)


def newest(session: Session) -> int:
    """The place of the last line, 0 when there is none."""
    return int(session.value(NEWEST))


def _read(session: Session, sql: str, which: Lines, after: int, most: int) -> tuple[LogRecord, ...]:
    conditions = ["l.seq > :after"]
    if which.job is not None:
        conditions.append("l.job_id = :job")  # written by one worker after the other: nothing comes in between
    else:
        conditions.append(session.dialect.final("l.seq"))
    if which.level:
        conditions.append("l.level >= :level")
    if which.task is not None:
        conditions.append(OF_TASK)
    values = {"after": after, "most": max(1, min(most, PAGE_MOST)), **which._asdict()}
    rows = session.rows(sql.format(conditions=" AND ".join(conditions)), values)
    return tuple(
        LogRecord(seq=seq, job_id=job, lease=lease, logged_at=to_datetime(at), level=level, source=source, text=text)
        for seq, job, lease, at, level, source, text in rows
    )
