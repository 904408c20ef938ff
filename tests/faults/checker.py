"""The history checker: compares what processes wrote in their ledgers with what the database says at the end.

It knows nothing of Treadle's code, only of its tables and promises. Every check is set algebra over unique ids: each
job id, lease, token and attempt row is unique, so no search is needed. See :func:`check`.

Ledger records: producers write ``intent`` (token, count) before they store anything, then ``ack`` (token, ids),
``fail`` (token) or ``rollback`` (token); handlers write ``start`` and ``end`` (job, lease, attempt, and
``boss``, the worker's pid, when they run in a process of their own), ``follow``
(lease, token), ``checkpoint`` (job, value) after it was accepted, and ``resumed`` (job, value); the conductor writes
``kill`` (victim, the pid) just before each SIGKILL. What operators write stands in :mod:`faults.verbs`.
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from faults import verbs
from faults.history import (
    CALLED_OFF,
    CRASHED,
    HELD,
    LIVE,
    MAY_VANISH,
    OK,
    OUTCOME_HELD,
    RELEASED,
    RUNNING,
    SUCCEEDED,
    AttemptRow,
    History,
    JobRow,
    read_database,
)
from faults.ledger import Record, read_all

__all__ = ["CRASHED", "HELD", "OK", "SUCCEEDED", "Anomaly", "AttemptRow", "History", "JobRow", "check", "read_database"]


MAYBE_UNSTARTED = (CRASHED, OUTCOME_HELD, RELEASED, CALLED_OFF)
"""Outcomes of attempts that may have ended just before the first line of their handler."""


class Anomaly(NamedTuple):
    """One broken promise: which check, and the facts."""

    check: str
    text: str


def check(history: History) -> list[Anomaly]:
    """Every anomaly of *history*; an empty list means that all promises held."""
    return [Anomaly(one.__name__.strip("_"), text) for one in CHECKS for text in one(history)]


# What producers were told ----------------------------------------------------------------------------------------


def _accepted_lost(history: History) -> Iterator[str]:
    """Every acknowledged id is in the database: ended, or held with a reason, or live while work goes on."""
    for record in history.of("ack"):
        for number in record["ids"]:
            job = history.by_id.get(number)
            if job is None and record["token"] in history.may_vanish:
                continue
            if job is None:
                yield f"job {number} (token {record['token']}) was acknowledged and is not there"
            elif job.token != record["token"]:
                yield f"job {number} was acknowledged for token {record['token']} but carries {job.token}"


def _forgotten(history: History) -> Iterator[str]:
    """Once drained, every job has ended, or is held with a reason."""
    for job in history.jobs:
        if job.state == HELD and not job.reason:
            yield f"job {job.id} is held without a reason"
        if history.drained and job.state in (*LIVE, RUNNING):
            yield f"job {job.id} is still in state {job.state} after everything was drained"


def _half_a_batch(history: History) -> Iterator[str]:
    """What was acknowledged is there whole; refused or rolled back is not there; cut off is all or nothing."""
    told = {record["token"]: record for kind in ("ack", "fail", "rollback") for record in history.of(kind)}
    for record in history.of("intent"):
        token, count = record["token"], record["count"]
        found = len(history.by_token.get(token, ()))
        end = told.get(token)
        allowed = {0, count} if end is None or token in history.may_vanish else {count} if end["kind"] == "ack" else {0}
        if found not in allowed:
            yield f"token {token} ({'cut off' if end is None else end['kind']}): {found} of {count} jobs are there"


def _unexpected(history: History) -> Iterator[str]:
    """Nothing is there that nobody asked for, and nothing twice."""
    known = {record["token"] for kind in ("intent", "follow") for record in history.of(kind)}
    for token, jobs in history.by_token.items():
        if token not in known:
            yield f"jobs of unknown token {token}: {[job.id for job in jobs]}"
        places = Counter(job.place for job in jobs)
        yield from (f"token {token} place {place} is stored {n} times" for place, n in places.items() if n > 1)


# What handlers saw -----------------------------------------------------------------------------------------------


def _lease_started_twice(history: History) -> Iterator[str]:
    """A lease is the right of one attempt: at most one handler begins under it."""
    for lease, count in Counter(record["lease"] for record in history.of("start")).items():
        if count > 1:
            yield f"lease {lease} was started {count} times"


def _overlap(history: History) -> Iterator[str]:
    """No two attempts of one job run at the same time; one cut off by a kill ran at least until the kill."""
    ended = {record["lease"]: record["at"] for record in history.of("end")}
    for job, starts in history.starts_of.items():
        for first, second in pairwise(starts):
            until = ended.get(first["lease"], _cut_off(history, first))
            evicted = history.evicted.get(first.get("boss", first["pid"]))
            if evicted is not None:  # a person has said that it may run twice from now on
                until = min(evicted["at"], until or evicted["at"])
            if until is None or second["at"] < until:
                yield f"job {job}: lease {second['lease']} started while lease {first['lease']} ran"


def _cut_off(history: History, start: Record) -> int | None:
    """When an attempt without an end was over at the earliest: at its worker's kill, or when its child was.

    A child that was killed leaves no end; its worker waits for the child's end before it stores what came of it.
    """
    kill = history.killed.get(start.get("boss", start["pid"]))
    ends = [] if kill is None else [int(kill["at"])]
    if "boss" in start:
        stored = [row.finished_at for row in history.rows_of.get(start["job"], ()) if row.lease == start["lease"]]
        ends += [start["at"] + 1000 * (finished_at - start["wall"]) for finished_at in stored]
    return min(ends, default=None)


def _stale_accepted(history: History) -> Iterator[str]:
    """An outcome is accepted only from the newest attempt: commit order and start order agree."""
    leases = Counter(row.lease for row in history.attempts)
    yield from (f"lease {lease} has {n} outcomes" for lease, n in leases.items() if n > 1)
    for job, rows in history.rows_of.items():
        for before, after in pairwise(rows):
            if after.attempt <= before.attempt:
                yield f"job {job}: attempt {after.attempt} was accepted after attempt {before.attempt}"
        order = {record["lease"]: place for place, record in enumerate(history.starts_of.get(job, ()))}
        places = [(order[row.lease], row.lease) for row in rows if row.lease in order]
        for (first, _), (second, lease) in pairwise(places):
            if second < first:
                yield f"job {job}: lease {lease} was accepted after a newer attempt had been"
        done = [row.lease for row in rows if row.outcome == OK]
        newest = history.starts_of.get(job, [{}])[-1].get("lease")
        if done and done[-1] != newest:
            yield f"job {job}: success of lease {done[-1]} was accepted, but lease {newest} started after it"


def _finished_twice(history: History) -> Iterator[str]:
    """A job succeeds at most once, and nothing is stored after that."""
    for job, rows in history.rows_of.items():
        successes = [row for row in rows if row.outcome == OK]
        if len(successes) > 1:
            yield f"job {job} succeeded {len(successes)} times"
        elif successes and rows[-1] is not successes[0]:
            yield f"job {job} has outcomes after its success"


def _rescued_alive(history: History) -> Iterator[str]:
    """Only a dead worker's jobs are rescued; workers of a run are called w<pid>."""
    if history.clocks_jump:
        return
    by_itself = {record["lease"] for record in history.of("die")}
    for row in history.attempts:
        if row.outcome != CRASHED or not row.worker.startswith("w") or row.lease in by_itself:
            continue
        pid = int(row.worker[1:])
        kill = history.evicted.get(pid) or history.killed.get(pid)
        if kill is None or row.finished_at < kill["wall"]:
            yield f"job {row.job_id}: lease {row.lease} was rescued while worker {row.worker} lived"


def _history_disagrees(history: History) -> Iterator[str]:
    """Rows of the history, rows of jobs and the ledger tell the same story."""
    starts = {record["lease"]: record for record in history.of("start")}
    ends = {record["lease"] for record in history.of("end")}
    for row in history.attempts:
        start = starts.get(row.lease)
        if start is None and row.outcome not in MAYBE_UNSTARTED:
            yield f"lease {row.lease} of job {row.job_id} has outcome {row.outcome} but never started"
        if start is not None and (start["job"], start["attempt"]) != (row.job_id, row.attempt):
            seen = f"{start['job']}/{start['attempt']}"
            yield f"lease {row.lease} started as {seen}, stored as {row.job_id}/{row.attempt}"
        if row.outcome == OK and row.lease not in ends:
            yield f"job {row.job_id}: lease {row.lease} succeeded, but its handler never ended"
    for job in history.jobs:
        rows = history.rows_of.get(job.id, [])
        if (job.state == SUCCEEDED) != any(row.outcome == OK for row in rows):
            yield f"job {job.id} is in state {job.state}, its outcomes are {[row.outcome for row in rows]}"
        if rows and job.attempt < rows[-1].attempt:
            yield f"job {job.id} counts {job.attempt} attempts, its history {rows[-1].attempt}"


def _left_no_row(history: History) -> Iterator[str]:
    """Once drained, every attempt that a handler began has a row, unless it is pruned or began without its lease."""
    stored = {row.lease for row in history.attempts}
    for record in history.of("start") if history.drained else ():
        pruned = record.get("task") in MAY_VANISH and record["job"] not in history.by_id
        evicted = history.evicted.get(record.get("boss", record["pid"]))
        unheard = evicted is not None and evicted["at"] < record["at"]  # it did not know yet that the lease was gone
        if record["lease"] not in stored and not pruned and not unheard:
            yield f"lease {record['lease']} of job {record['job']} started and left no row"


def _follow_up(history: History) -> Iterator[str]:
    """A follow-up job exists exactly when the success that asked for it was accepted."""
    accepted = {row.lease for row in history.attempts if row.outcome == OK}
    for record in history.of("follow"):
        found, wanted = len(history.by_token.get(record["token"], ())), int(record["lease"] in accepted)
        if found != wanted:
            yield f"lease {record['lease']}: {found} follow-up jobs instead of {wanted}"


def _checkpoint_lost(history: History) -> Iterator[str]:
    """An attempt sees the last checkpoint that was acknowledged before it started."""
    told: dict[int, list[Record]] = defaultdict(list)
    for record in history.of("checkpoint"):
        told[record["job"]].append(record)
    for record in history.of("resumed"):
        before = [one["value"] for one in told[record["job"]] if one["at"] < record["at"]]
        if before and (record["value"] is None or record["value"] < max(before)):
            yield f"job {record['job']} resumed from {record['value']} after {max(before)} was acknowledged"


CHECKS = (
    _accepted_lost, _forgotten, _half_a_batch, _unexpected, _lease_started_twice, _overlap, _stale_accepted,
    _finished_twice, _rescued_alive, _history_disagrees, _left_no_row, _follow_up, _checkpoint_lost,
    *verbs.CHECKS,
)  # fmt: skip


def main(folder: Path) -> int:
    """Check a run's folder from a process of its own: ``PYTHONPATH=tests python -m faults.checker FOLDER``."""
    jobs, attempts = read_database(folder / "jobs.db")
    found = check(History(read_all(folder / "ledgers"), jobs, attempts))
    for anomaly in found:
        print(f"{anomaly.check}: {anomaly.text}")
    print(f"{len(jobs)} jobs, {len(attempts)} attempts, {len(found)} anomalies")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve()))
