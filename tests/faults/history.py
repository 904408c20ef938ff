"""What is known of a run: the ledgers of its processes and the rows that are left. See :mod:`faults.checker`."""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from faults.ledger import Record

RUNNING, HELD, SUCCEEDED, CANCELLED = 5, 6, 7, 9
ENDED = (7, 8, 9)
LIVE = (1, 2, 3, 4)
OK, FAILED, RELEASED, OUTCOME_HELD, CALLED_OFF, CRASHED = 1, 2, 4, 5, 7, 8
MAY_VANISH = ("noise", "waste")
"""Tasks whose jobs nobody counts: cancelled jobs of theirs are pruned, history and all, as soon as they have ended."""


class JobRow(NamedTuple):
    """One row of treadle_jobs, with the token and place its arguments carry."""

    id: int
    state: int
    attempt: int
    crashes: int
    reason: str | None
    token: str | None
    place: int | None


class AttemptRow(NamedTuple):
    """One row of treadle_attempts; *seq* is commit order."""

    seq: int
    job_id: int
    lease: int
    attempt: int
    worker: str
    outcome: int
    finished_at: int


@dataclass(frozen=True)
class History:
    """Everything that is known about a run.

    *drained* says that workers ran until nothing was left, so every live job is one that was forgotten.
    *clocks_jump* says that wall-clock times of the database cannot be compared with the conductor's.
    """

    ledger: Sequence[Record]
    jobs: Sequence[JobRow]
    attempts: Sequence[AttemptRow]
    drained: bool = True
    clocks_jump: bool = False
    _kinds: dict[str, list[Record]] = field(default_factory=dict, init=False, compare=False)

    def of(self, kind: str) -> list[Record]:
        """Ledger records of one kind, in order of time."""
        if not self._kinds:
            for record in self.ledger:
                self._kinds.setdefault(record["kind"], []).append(record)
        return self._kinds.get(kind, [])

    @cached_property
    def by_id(self) -> dict[int, JobRow]:
        """Job rows by id."""
        return {job.id: job for job in self.jobs}

    @cached_property
    def by_token(self) -> dict[str, list[JobRow]]:
        """Job rows by the token of the enqueue that made them."""
        found: dict[str, list[JobRow]] = defaultdict(list)
        for job in self.jobs:
            if job.token is not None:
                found[job.token].append(job)
        return found

    @cached_property
    def rows_of(self) -> dict[int, list[AttemptRow]]:
        """Attempt rows by job, in commit order."""
        found: dict[int, list[AttemptRow]] = defaultdict(list)
        for row in sorted(self.attempts):
            found[row.job_id].append(row)
        return found

    @cached_property
    def starts_of(self) -> dict[int, list[Record]]:
        """Start records by job, in order of time."""
        found: dict[int, list[Record]] = defaultdict(list)
        for record in self.of("start"):
            found[record["job"]].append(record)
        return found

    @cached_property
    def may_vanish(self) -> set[str]:
        """Tokens of jobs that somebody may have deleted."""
        return {record["token"] for record in self.of("intent") if record.get("may_vanish")}

    @cached_property
    def evicted(self) -> dict[int, Record]:
        """Records of evictions, just before, by the victim's pid."""
        return {record["victim"]: record for record in self.of("evict")}

    @cached_property
    def killed(self) -> dict[int, Record]:
        """Kill records by the victim's pid."""
        return {record["victim"]: record for record in self.of("kill")}


def read_database(path: Path) -> tuple[list[JobRow], list[AttemptRow]]:
    """The final rows, read by plain sqlite3; call it in a process that has no Treadle store open."""
    connection = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=30)
    try:
        (verdict,) = connection.execute("PRAGMA integrity_check").fetchone()
        if verdict != "ok":
            raise AssertionError(f"the database is corrupt: {verdict}")
        jobs = connection.execute(
            "SELECT id, state, attempt, crashes, reason, data "
            "FROM treadle_jobs LEFT JOIN treadle_payloads ON job_id = id"
        ).fetchall()
        attempts = connection.execute(
            "SELECT seq, job_id, lease, attempt, worker, outcome, finished_at FROM treadle_attempts ORDER BY seq"
        ).fetchall()
    finally:
        connection.close()
    return [JobRow(*row[:5], *_named(row[5])) for row in jobs], [AttemptRow(*row) for row in attempts]


def _named(data: bytes | None) -> tuple[str | None, int | None]:
    try:
        found = json.loads(data or b"")
        return found["token"], found["place"]
    except (ValueError, KeyError, TypeError):
        return None, None
