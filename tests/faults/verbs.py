"""The checker's part about what operators do: cancel, retry, pause, evict, and about expiry and retry budgets.

Ledger records: an ``intent`` may have ``expires`` (microseconds since 1970); handlers write ``die`` (lease) before they
end their own process. An operator writes ``cancelled`` (job) once a job that did not run is cancelled, ``retry`` (job)
before and ``retried`` (job) after a retry, ``paused`` (queue) after a pause and ``resumed_queue`` (queue) before its
end, ``evict`` (victim) before and ``evicted`` (victim) after an eviction.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator

from faults.history import CANCELLED, CRASHED, FAILED, History
from faults.ledger import Record

SLACK = 3.0
"""Seconds for which handlers may begin after a pause or an expiry, because their jobs were claimed before."""
BUDGET = 4
"""Failures that a job of a run has: the first run and three retries."""


def _cancelled_ran(history: History) -> Iterator[str]:
    """A job that was cancelled while it did not run begins no more, unless somebody retries it."""
    retries = _by_job(history, "retry")
    for record in history.of("cancelled"):
        job, at = record["job"], record["at"]
        again = min((one["at"] for one in retries[job] if one["at"] > at), default=None)
        for start in history.starts_of.get(job, ()):
            if start["at"] > at and (again is None or start["at"] < again):
                yield f"job {job}: lease {start['lease']} started after it was cancelled"


def _retry_lost(history: History) -> Iterator[str]:
    """A retried job runs again, or was called off meanwhile."""
    begun = _by_job(history, "retry")
    for record in history.of("retried") if history.drained else ():
        job = record["job"]
        since = max((one["at"] for one in begun[job] if one["at"] <= record["at"]), default=record["at"])
        row = history.by_id.get(job)
        ran = any(start["at"] > since for start in history.starts_of.get(job, ()))
        if row is not None and row.state != CANCELLED and not ran:
            yield f"job {job} was retried, is in state {row.state} and did not run again"


def _over_budget(history: History) -> Iterator[str]:
    """Failures spend the budget; every retry by hand grants it once more, and nothing else does."""
    granted = Counter(record["job"] for record in history.of("retry"))
    for job, rows in history.rows_of.items():
        failures, most = sum(row.outcome == FAILED for row in rows), BUDGET * (1 + granted[job])
        if failures > most:
            yield f"job {job} failed {failures} times, {most} were granted"


def _paused_ran(history: History) -> Iterator[str]:
    """Nothing of a paused queue begins, but for what was claimed before."""
    pauses: list[tuple[str, int, int]] = []
    for record in history.of("paused"):
        ends = [one["at"] for one in history.of("resumed_queue") if one["queue"] == record["queue"]]
        pauses.append((record["queue"], record["at"], min((at for at in ends if at > record["at"]), default=2**63)))
    for start in history.of("start"):
        for queue, begins, ends in pauses:
            if start.get("queue") == queue and begins + SLACK * 1e9 < start["at"] < ends:
                seconds = (start["at"] - begins) / 1e9
                yield f"lease {start['lease']} started {seconds:.1f} s after queue {queue} was paused"


def _expired_ran(history: History) -> Iterator[str]:
    """No attempt begins after a job's expiry, unless somebody retries it."""
    retries = _by_job(history, "retry")
    expiries = {record["token"]: record["expires"] for record in history.of("intent") if "expires" in record}
    for job in history.jobs:
        limit = expiries.get(job.token or "")
        if limit is None or history.clocks_jump:
            continue
        until = min((one["wall"] for one in retries[job.id]), default=2**63)
        late = [one["lease"] for one in history.starts_of.get(job.id, ()) if limit + SLACK * 1e6 < one["wall"] < until]
        yield from (f"job {job.id}: lease {lease} started after the job had expired" for lease in late)


def _evicted_wrote(history: History) -> Iterator[str]:
    """An evicted worker stores nothing more; what it had is told as crashes."""
    done = {f"w{record['victim']}": record for record in history.of("evicted")}
    for row in history.attempts:
        record = done.get(row.worker)
        if record is not None and row.outcome != CRASHED and row.finished_at > record["wall"]:
            yield f"job {row.job_id}: lease {row.lease} of {row.worker} was stored after its eviction"


def _by_job(history: History, kind: str) -> dict[int, list[Record]]:
    found: dict[int, list[Record]] = defaultdict(list)
    for record in history.of(kind):
        found[record["job"]].append(record)
    return found


CHECKS = (_cancelled_ran, _retry_lost, _over_budget, _paused_ran, _expired_ran, _evicted_wrote)
