"""What the benchmark measured, worked out from the history alone."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from treadle.store.ops.runs import Run


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """How a measure is spread, milliseconds."""

    min: float
    median: float
    p95: float
    p99: float
    max: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What came of a run.

    Attributes:
        done: jobs that have succeeded.
        missing: jobs that were stored and have not; anything but 0 is a defect.
        duplicates: attempts beyond the first of a job; anything but 0 is a defect.
        given_back: claims that were given back before anything began; harmless.
        produced_per_second: the rate at which jobs were really stored.
        jobs_per_second: from the first job's enqueue to the last one's end.
        seconds: the same time.
        pickup_ms: from a job's enqueue to the beginning of its handler.
        enqueue_ms: how long the producer waited for each commit.
        idle_cpu_percent: of one core, for each worker process with nothing to do; None when not measured.
    """

    done: int
    missing: int
    duplicates: int
    given_back: int
    produced_per_second: float
    jobs_per_second: float
    seconds: float
    pickup_ms: Spread | None
    enqueue_ms: Spread
    idle_cpu_percent: float | None

    @property
    def good(self) -> bool:
        """True when every job ran once."""
        return not self.missing and not self.duplicates


def spread(values: Sequence[float]) -> Spread:
    """Of at least one value, to the microsecond; percentiles by nearest rank.

    Example:
        >>> spread([3.0, 1.0, 2.0])
        Spread(min=1.0, median=2.0, p95=3.0, p99=3.0, max=3.0)
    """
    ordered = sorted(round(value, 3) for value in values)

    def percentile(percent: int) -> float:
        return ordered[-(-len(ordered) * percent // 100) - 1]

    return Spread(
        min=ordered[0], median=round(statistics.median(ordered), 3), p95=percentile(95), p99=percentile(99),
        max=ordered[-1],
    )  # fmt: skip


def work_out(
    runs: Sequence[Run],
    *,
    jobs: int,
    succeeded: int,
    claims: int,
    enqueues: Sequence[float],
    producing: float,
    idle: float | None,
) -> Figures:
    """Put the figures together.

    Args:
        runs: every attempt, in commit order.
        jobs: how many were stored.
        succeeded: how many of them have.
        claims: how often jobs were claimed.
        enqueues: seconds each enqueue took.
        producing: seconds from the first enqueue to the last.
        idle: share of a core a waiting worker used, percent.
    """
    firsts: dict[int, Run] = {}
    for run in runs:
        firsts.setdefault(run.job_id, run)
    seconds = (
        (max(run.finished_at for run in runs) - min(run.enqueued_at for run in runs)) / 1_000_000 if runs else 0.0
    )
    return Figures(
        done=succeeded, missing=jobs - succeeded, duplicates=len(runs) - len(firsts),
        given_back=claims - len(runs), produced_per_second=jobs / max(producing, 1e-6),
        jobs_per_second=succeeded / max(seconds, 1e-6), seconds=seconds,
        pickup_ms=spread([(run.started_at - run.enqueued_at) / 1000 for run in firsts.values()]) if firsts else None,
        enqueue_ms=spread([1000 * each for each in enqueues]), idle_cpu_percent=idle,
    )  # fmt: skip
