"""What is left of a database after a power cut, compared with what was told before it."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from faults.checker import OK, SUCCEEDED
from faults.ledger import Record

Wrong = dict[str, list[str]]


@dataclass
class Left:
    """What one image came to.

    Attributes:
        wrong: texts by kind: corrupt, acks lost, order, half, other.
        normal_lost: acknowledgements at durability normal that are gone, which is allowed.
        next_lease: the first lease that was not given yet as far as the file knows.
        usable: whether there are tables at all.
    """

    wrong: Wrong = field(default_factory=dict)
    normal_lost: int = 0
    next_lease: int = 0
    usable: bool = False


class Rows(NamedTuple):
    """The tables of an image."""

    jobs: dict[int, tuple[int, int]]  # id: state, attempt
    tokens: dict[str, list[int]]
    attempts: list[tuple[int, int, int]]  # job, lease, outcome
    checkpoints: dict[int, Any]
    next_lease: int


def look(path: Path, notes: list[Record]) -> Left:
    """Open an image, check it, and compare it with what the ledger had by then."""
    left = Left()
    try:
        rows = _read(path)
    except sqlite3.DatabaseError as error:
        left.wrong["corrupt"] = [str(error)]
        return left
    left.usable = rows is not None
    rows = rows or Rows({}, {}, [], {}, 0)
    left.next_lease = rows.next_lease
    told = _Told(notes)
    checks: tuple[tuple[str, Callable[[Rows, _Told], Iterator[str]]], ...] = (
        ("acks lost", _acks_lost), ("acks lost", _facts_lost), ("order", _order), ("half", _half), ("other", _other),
    )  # fmt: skip
    for kind, one in checks:
        found = list(one(rows, told))
        if found:
            left.wrong.setdefault(kind, []).extend(found)
    left.normal_lost = sum(not one.is_in(rows) for one in told.acked if one.level != "full")
    return left


def _read(path: Path) -> Rows | None:
    """The rows of a whole database; None when it was cut before it had tables."""
    if not path.exists():
        return None
    with closing(sqlite3.connect(path, timeout=5, isolation_level=None)) as connection:
        verdict = connection.execute("PRAGMA integrity_check(5)").fetchall()
        if verdict != [("ok",)]:
            raise sqlite3.DatabaseError("; ".join(row[0] for row in verdict))
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'treadle_jobs'").fetchone():
            return None
        jobs = {row[0]: (row[1], row[2]) for row in connection.execute("SELECT id, state, attempt FROM treadle_jobs")}
        tokens = defaultdict(list)
        for job_id, data in connection.execute("SELECT job_id, data FROM treadle_payloads"):
            if b'"token"' in data:
                tokens[json.loads(data)["token"]].append(job_id)
        attempts = connection.execute("SELECT job_id, lease, outcome FROM treadle_attempts ORDER BY seq").fetchall()
        points = connection.execute("SELECT job_id, data FROM treadle_checkpoints").fetchall()
        (lease,) = connection.execute("SELECT next FROM treadle_sequences WHERE name = 'lease'").fetchone()
    return Rows(jobs, dict(tokens), attempts, {row[0]: json.loads(row[1]) for row in points}, lease)


@dataclass
class _Enqueue:
    """One enqueue as its producer saw it; places are positions in the ledger."""

    token: str
    count: int
    began: int
    level: str
    ended: int | None = None
    how: str = ""
    ids: tuple[int, ...] = ()

    def is_in(self, rows: Rows) -> bool:
        """True when the enqueue's jobs are there, all of them and no others."""
        return sorted(rows.tokens.get(self.token, ())) == sorted(self.ids)


class _Told:
    """The ledger, sorted by what it is about."""

    def __init__(self, notes: list[Record]) -> None:
        self.enqueues: dict[str, _Enqueue] = {}
        self.facts: list[Record] = []
        self.follows: list[Record] = []
        for place, note in enumerate(notes):
            kind = note["kind"]
            if kind == "intent":
                self.enqueues[note["token"]] = _Enqueue(note["token"], note["count"], place, note["level"])
            elif kind in ("ack", "fail", "rollback", "unknown"):
                one = self.enqueues[note["token"]]
                one.ended, one.how, one.ids = place, kind, tuple(note.get("ids", ()))
            elif kind == "follow":
                self.follows.append(note)
            elif kind in ("start", "checkpoint", "result"):
                self.facts.append({**note, "place": place})
        self.acked = [one for one in self.enqueues.values() if one.how == "ack"]


def _acks_lost(rows: Rows, told: _Told) -> Iterator[str]:
    """What was acknowledged at durability full is there."""
    for one in told.acked:
        if one.level == "full" and not one.is_in(rows):
            yield f"token {one.token} was acknowledged as {one.ids}, there is {rows.tokens.get(one.token)}"


def _facts_lost(rows: Rows, told: _Told) -> Iterator[str]:
    """What handlers and waiters saw of commits at durability full is there."""
    for fact in told.facts:
        if fact["level"] == "full" and not _is_in(rows, fact):
            yield f"{fact['kind']} of job {fact['job']} was seen and is not there: {rows.jobs.get(fact['job'])}"


def _is_in(rows: Rows, fact: Record) -> bool:
    job = rows.jobs.get(fact["job"])
    if job is None:
        return fact["kind"] == "start" and fact["lease"] < rows.next_lease  # noise that was pruned
    state, attempt = job
    if fact["kind"] == "start":
        return rows.next_lease > int(fact["lease"]) and attempt >= int(fact["attempt"])
    if fact["kind"] == "result":
        return bool(state == SUCCEEDED)
    return bool(state >= SUCCEEDED or rows.checkpoints.get(fact["job"], 0) >= fact["value"])


def _order(rows: Rows, told: _Told) -> Iterator[str]:
    """Commits are lost from the end only: whatever was acknowledged before a survivor began has survived too."""
    newest = max((one.began for one in told.enqueues.values() if rows.tokens.get(one.token)), default=-1)
    for one in told.acked:
        if one.ended is not None and one.ended < newest and not one.is_in(rows):
            yield f"token {one.token} (acknowledged at {one.ended}) is gone, what began at {newest} is there"
    for fact in told.facts:
        if fact["place"] < newest and not _is_in(rows, fact):
            yield f"{fact['kind']} of job {fact['job']} at {fact['place']} is gone, what began at {newest} is there"


def _half(rows: Rows, told: _Told) -> Iterator[str]:
    """Every enqueue is there whole or not at all; what was refused or rolled back is not."""
    for one in told.enqueues.values():
        found = len(rows.tokens.get(one.token, ()))
        allowed = {0} if one.how in ("fail", "rollback") else {0, one.count}
        if found not in allowed:
            yield f"token {one.token} ({one.how or 'cut off'}): {found} of {one.count} jobs"


def _other(rows: Rows, told: _Told) -> Iterator[str]:
    """One outcome a lease, one success a job, follow-ups exactly with it, nothing that nobody asked for."""
    for lease, count in Counter(lease for _, lease, _ in rows.attempts).items():
        if count > 1:
            yield f"lease {lease} has {count} outcomes"
    done = {lease for _, lease, outcome in rows.attempts if outcome == OK}
    for job, count in Counter(job for job, _, outcome in rows.attempts if outcome == OK).items():
        if count > 1:
            yield f"job {job} succeeded {count} times"
    for note in told.follows:
        if len(rows.tokens.get(note["token"], ())) != int(note["lease"] in done):
            yield f"lease {note['lease']}: follow-up and success disagree"
    known = told.enqueues.keys() | {note["token"] for note in told.follows}
    yield from (f"token {token} is there, nobody asked for it" for token in rows.tokens.keys() - known)
