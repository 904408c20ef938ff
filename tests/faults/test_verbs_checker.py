"""Negative controls: for each promise about operators' verbs a history that breaks it, and one that does not."""

from __future__ import annotations

from typing import Any

import pytest

from faults import verbs
from faults.checker import check
from faults.history import CRASHED, FAILED, OK, SUCCEEDED, AttemptRow, History, JobRow
from faults.ledger import Record

SECOND = 1_000_000_000
JOB = JobRow(1, SUCCEEDED, 1, 0, None, "t", 0)
ROW = AttemptRow(1, 1, 11, 1, "w7", OK, 20_000_000)


def record(kind: str, seconds: float, **facts: Any) -> Record:
    """A record of pid 7; the wall clock and the other one are the same."""
    return {"kind": kind, "pid": 7, "at": int(seconds * SECOND), "wall": int(seconds * 1_000_000), **facts}


def ran(seconds: float, lease: int = 11, attempt: int = 1, **facts: Any) -> list[Record]:
    """An attempt of a tenth of a second."""
    facts = {"job": 1, "lease": lease, "attempt": attempt, "task": "work", "queue": "default", **facts}
    return [record("start", seconds, **facts), record("end", seconds + 0.1, **facts)]


def asked(**facts: Any) -> list[Record]:
    """The job was stored, with facts of its intent."""
    return [record("intent", 0, token="t", count=1, **facts), record("ack", 0.1, token="t", ids=[1])]


def anomalies(ledger: list[Record], job: JobRow = JOB, rows: tuple[AttemptRow, ...] = (ROW,)) -> set[str]:
    """Which checks find something."""
    return {one.check for one in check(History(sorted(ledger, key=lambda one: one["at"]), [job], rows))}


FAILURES = tuple(AttemptRow(number, 1, 10 + number, number, "w7", FAILED, number * 1_000_000) for number in range(1, 6))
FAILED_RUNS = [one for number in range(1, 6) for one in ran(number, 10 + number, number)]
SPENT = JOB._replace(state=8, attempt=5)
BAD: dict[str, list[tuple[list[Record], JobRow, tuple[AttemptRow, ...]]]] = {
    "cancelled_ran": [([*asked(), *ran(10), record("cancelled", 9, job=1)], JOB, (ROW,))],
    "retry_lost": [([*asked(), *ran(1), record("retry", 9, job=1), record("retried", 9, job=1)], JOB, (ROW,))],
    "over_budget": [([*asked(), *FAILED_RUNS], SPENT, FAILURES)],
    "paused_ran": [([*asked(), *ran(10), record("paused", 1, queue="default")], JOB, (ROW,))],
    "expired_ran": [([*asked(expires=1_000_000), *ran(10)], JOB, (ROW,))],
    "evicted_wrote": [
        ([*asked(), *ran(10), record("evict", 9, victim=7), record("evicted", 9, victim=7)], JOB, (ROW,)),
    ],
}
GOOD = [
    ([*asked(), *ran(10), record("cancelled", 9, job=1), record("retry", 9.5, job=1)], JOB, (ROW,)),
    ([*asked(), *ran(10), record("retry", 9, job=1), record("retried", 9, job=1)], JOB, (ROW,)),
    ([*asked(), *FAILED_RUNS, record("retry", 4.5, job=1)], SPENT, FAILURES),
    ([*asked(), *ran(10), record("paused", 1, queue="other")], JOB, (ROW,)),
    ([*asked(), *ran(10), record("paused", 1, queue="default"), record("resumed_queue", 9, queue="default")], JOB,
     (ROW,)),
    ([*asked(), *ran(3), record("paused", 1, queue="default")], JOB, (ROW,)),
    ([*asked(expires=1_000_000), *ran(10), record("retry", 9, job=1), record("retried", 9, job=1)], JOB, (ROW,)),
    ([*asked(), *ran(10), record("evict", 25, victim=7), record("evicted", 25, victim=7)], JOB, (ROW,)),
    ([*asked(), *ran(10)[:1], record("evict", 11, victim=7), *ran(13, 12, 2), ran(14)[1]], JOB._replace(attempt=2),
     (ROW._replace(outcome=CRASHED), ROW._replace(seq=2, lease=12, attempt=2, worker="w8"))),
]  # fmt: skip


def test_every_check_has_a_control() -> None:
    """Nobody adds a check that was never seen to find anything."""
    assert set(BAD) == {one.__name__.strip("_") for one in verbs.CHECKS}


@pytest.mark.parametrize(("name", "history"), [(name, one) for name, several in BAD.items() for one in several])
def test_a_broken_promise_is_seen(name: str, history: tuple[list[Record], JobRow, tuple[AttemptRow, ...]]) -> None:
    """A history with one fault is an anomaly of just that kind."""
    assert anomalies(*history) == {name}


@pytest.mark.parametrize("history", GOOD)
def test_what_is_allowed_is_no_anomaly(history: tuple[list[Record], JobRow, tuple[AttemptRow, ...]]) -> None:
    """Retries, slack, other queues and evictions are no excuse for more than they allow, but for that much."""
    assert anomalies(*history) == set()


@pytest.mark.parametrize(
    ("facts", "expected"),
    [({}, {"accepted_lost", "half_a_batch"}), ({"may_vanish": True}, set())],
    ids=["counted", "may vanish"],
)
def test_only_what_may_be_deleted_is_gone(facts: dict[str, bool], expected: set[str]) -> None:
    """A job that is not there any more is lost, unless its producer had said that somebody may delete it."""
    ledger = [*asked(**facts)]
    assert {one.check for one in check(History(ledger, [], ()))} == expected


def test_a_child_that_was_killed_has_an_end() -> None:
    """Without an end in the ledger an attempt in a child is over when its outcome was stored, not before."""
    child = {"boss": 7, "pid": 70}
    second = ROW._replace(seq=2, lease=12, attempt=2)
    first = ROW._replace(outcome=FAILED, finished_at=11_000_000)
    job = JOB._replace(attempt=2)
    for begins, expected in ((12, set()), (10.5, {"overlap"})):
        ledger = [*asked(), {**ran(10)[0], **child}, *ran(begins, 12, 2)]
        assert anomalies(ledger, job, (first, second)) == expected
