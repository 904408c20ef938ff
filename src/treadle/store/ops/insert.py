"""Storing new jobs: a few statements however many jobs, so a busy interpreter is not asked twice per row.

Ids and lengths travel as one JSON object, arguments as one concatenated blob. Arguments never pass
through SQL's JSON functions, which refuse blobs and cut text at NUL.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count
from typing import Final

import msgspec

from treadle import defaults
from treadle.errors import QueueFull
from treadle.model.job import JobState, NewJob, Options
from treadle.store.dialect import Sql
from treadle.store.session import Session

LENGTH_BITS: Final = 31
SLICE_BYTES: Final = 32_000_000

JOBS: Final = Sql(lambda d: f"""
INSERT INTO treadle_jobs (id, queue, task, state, priority, due_at, enqueued_at, expires_at)
SELECT key, :queue, :task, :state, :priority, :due_at, :now, CAST(:expires_at AS BIGINT) FROM {d.pairs("placed")} e
""")
PAYLOADS: Final = Sql(lambda d: f"""
INSERT INTO treadle_payloads (job_id, codec, data, extra, version)
SELECT key, :codec, {d.slice("blob", "value")}, :extra, :version FROM {d.pairs("placed")} e
""")
ONE_PAYLOAD: Final = "INSERT INTO treadle_payloads (job_id, codec, data, extra, version) VALUES (?, ?, ?, ?, ?)"
ONE_JOB: Final = """
INSERT INTO treadle_jobs (id, queue, task, state, priority, due_at, enqueued_at, expires_at)
VALUES (?, ?, ?, ?, ?, ?, ?, ?)
"""
TAGS: Final = Sql(lambda d: f"""
INSERT INTO treadle_tags (tag, job_id)
SELECT t.value, p.key FROM {d.pairs("placed")} p CROSS JOIN ({d.texts("tags")}) t
""")
CAPS: Final = "SELECT name, max_length, when_full FROM treadle_queues WHERE max_length IS NOT NULL"
# Where several may write at once, producers of a capped queue take turns, or together they would exceed its cap.
TURN: Final = Sql(lambda d: f"SELECT 1 FROM treadle_queues WHERE name = :queue {d.for_update}")
LENGTH: Final = Sql(lambda d: f"""
SELECT count(*) FROM (
    SELECT 1 FROM treadle_jobs {d.index("treadle_jobs_ready")} WHERE state = 3 AND queue = :queue LIMIT :most) AS first
""")


def insert(session: Session, jobs: Sequence[NewJob], ids: Sequence[int]) -> None:
    """Store *jobs* under *ids*, and ask for the bell when one of them can run now or soon.

    Raises:
        QueueFull: a queue would grow beyond its cap; nothing is stored.
    """
    check_caps(session, jobs)
    insert_accepted(session, jobs, ids)


def insert_accepted(session: Session, jobs: Sequence[NewJob], ids: Sequence[int]) -> None:
    """The same, whatever the caps: for jobs that must not be refused any more."""
    now = session.clock.now()
    if len(jobs) == 1:
        _insert_one(session, jobs[0], ids[0], now)
    else:
        for options, places in _grouped(jobs).items():
            for pieces in _slices([(ids[place], jobs[place].data) for place in places]):
                _insert_group(session, options, pieces, now)
    session.ring()


def check_caps(session: Session, jobs: Sequence[NewJob]) -> None:
    """Raise QueueFull when *jobs* would push a capped queue over its length.

    Only ready jobs count: what waits for its time is not a backlog. Counting stops at the cap.
    """
    caps = session.rows(CAPS)
    for queue, most, when_full in caps:
        coming = sum(1 for job in jobs if job.options.queue == queue)
        if not coming:
            continue
        if session.dialect.shares_rows:
            session.row(TURN, {"queue": queue})
        length = session.value(LENGTH, {"queue": queue, "most": most})
        if length + coming > most:
            raise QueueFull(
                f"Queue {queue!r} holds {length} ready jobs of at most {most}; {coming} more refused. "
                "Let workers drain it, raise the cap, or declare when_full='wait'.",
                wait=when_full == "wait",
            )


def placed(pieces: Sequence[tuple[int, bytes]]) -> tuple[bytes, bytes]:
    """Join blobs into one and say where each lies: ``{"id": offset << 31 | length}`` as JSON."""
    offset = 0
    places: dict[int, int] = {}
    for number, data in pieces:
        length = len(data)
        places[number] = offset << LENGTH_BITS | length
        offset += length
    return msgspec.json.encode(places), b"".join([data for _, data in pieces])


def _grouped(jobs: Sequence[NewJob]) -> dict[Options, list[int]]:
    # Keyed by identity first: hashing a dataclass per job costs more than storing it.
    seen: dict[int, list[int]] = {}
    for place, (options, _) in zip(count(), jobs, strict=False):
        found = seen.get(id(options))
        if found is None:
            seen[id(options)] = [place]
        else:
            found.append(place)
    merged: dict[Options, list[int]] = {}
    for places in seen.values():
        merged.setdefault(jobs[places[0]].options, []).extend(places)
    return merged


def _due(options: Options, now: int) -> tuple[int, int]:
    due_at = options.due_at if options.due_at is not None else now + options.delay
    return due_at, (JobState.SCHEDULED if due_at > now else JobState.READY).code


def _expiry(options: Options, now: int) -> int | None:
    if options.expires_at is not None or options.expires_in is None:
        return options.expires_at
    return now + options.expires_in


def _slices(pieces: list[tuple[int, bytes]]) -> Iterator[list[tuple[int, bytes]]]:
    """Runs of pieces short enough to travel as one blob: SQLite takes at most a gigabyte in one value."""
    held: list[tuple[int, bytes]] = []
    size = 0
    for piece in pieces:
        if held and (len(held) == defaults.CHUNK or size + len(piece[1]) > SLICE_BYTES):
            yield held
            held, size = [], 0
        held.append(piece)
        size += len(piece[1])
    yield held


def _insert_one(session: Session, job: NewJob, number: int, now: int) -> None:
    options = job.options
    due_at, state = _due(options, now)
    expires_at = _expiry(options, now)
    session.change(ONE_JOB, (number, options.queue, options.task, state, options.priority, due_at, now, expires_at))
    session.change(ONE_PAYLOAD, (number, options.codec, job.data, options.extra, options.version))
    if options.tags:
        _insert_tags(session, options, msgspec.json.encode({number: 0}).decode())


def _insert_group(session: Session, options: Options, pieces: list[tuple[int, bytes]], now: int) -> None:
    due_at, state = _due(options, now)
    places, blob = placed(pieces)
    text = places.decode()
    session.change(
        JOBS,
        {"queue": options.queue, "task": options.task, "state": state, "priority": options.priority,
         "due_at": due_at, "now": now, "expires_at": _expiry(options, now), "placed": text},
    )  # fmt: skip
    session.change(
        PAYLOADS,
        {"codec": options.codec, "blob": blob, "extra": options.extra, "version": options.version, "placed": text},
    )
    if options.tags:
        _insert_tags(session, options, text)


def _insert_tags(session: Session, options: Options, places: str) -> None:
    session.change(TAGS, {"placed": places, "tags": msgspec.json.encode(options.tags).decode()})
