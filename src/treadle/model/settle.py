"""The state machine: which moves are legal, and what an outcome does to a job.

Everything here is pure; ``now`` and ``luck`` are arguments. ``docs/design.md`` draws :data:`MOVES`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from treadle import defaults
from treadle.errors import JobStateError
from treadle.model.job import AttemptOutcome, Claimed, JobState, LogLine, NewJob, Usage
from treadle.model.outcome import (
    Aborted,
    Cancelled,
    Crashed,
    Failed,
    Held,
    Outcome,
    Released,
    RetryLater,
    Snoozed,
    Succeeded,
)
from treadle.model.retry import Retry

S = JobState
MOVES: Final[dict[JobState, frozenset[JobState]]] = {
    S.WAITING: frozenset({S.READY, S.SCHEDULED, S.CANCELLED, S.FAILED}),
    S.SCHEDULED: frozenset({S.READY, S.HELD, S.CANCELLED}),
    S.READY: frozenset({S.RUNNING, S.SCHEDULED, S.BLOCKED, S.HELD, S.CANCELLED}),
    S.BLOCKED: frozenset({S.READY, S.HELD, S.CANCELLED}),
    S.RUNNING: frozenset(
        {S.SUCCEEDED, S.FAILED, S.CANCELLED, S.READY, S.SCHEDULED, S.HELD, S.WAITING, S.BLOCKED}
    ),
    S.HELD: frozenset({S.READY, S.SCHEDULED, S.CANCELLED, S.FAILED}),
    S.SUCCEEDED: frozenset({S.READY}),
    S.FAILED: frozenset({S.READY, S.SCHEDULED}),
    S.CANCELLED: frozenset({S.READY, S.SCHEDULED}),
}
"""Which state may follow which. Back from an ended state only when a person asks."""


class Transition(NamedTuple):
    """What one settled attempt changes; stored by ``ops.settle.apply``, guarded by *lease*."""

    lease: int
    job_id: int
    state: JobState
    outcome: AttemptOutcome
    started_at: int
    finished_at: int
    due_at: int | None = None
    failed: int = 0
    """1 when this outcome spends one retry."""
    reason: str | None = None
    error_type: str | None = None
    message: str | None = None
    traceback: str | None = None
    codec: str = "json"
    data: bytes | None = None
    follow: tuple[NewJob, ...] = ()
    followed: Sequence[int] = ()
    """Ids of the jobs in *follow*, known once they are stored."""
    history: bool = True
    """False for a lease returned before its handler began: that leaves no row."""
    immediate: str | None = None
    """Error class whose immediate retry this is; counted apart, persisted."""
    crashed: int = 0
    """1 when this attempt ended with its own process."""
    usage: Usage | None = None
    logs: tuple[LogLine, ...] = ()
    """Lines not stored yet."""
    claimed: Claimed | None = None
    """The attempt itself; only where somebody wants to be told of it."""


def check_move(before: JobState, after: JobState) -> None:
    """Raise unless a job may go from *before* to *after*.

    Raises:
        JobStateError: the move is not in :data:`MOVES`.
    """
    if after not in MOVES[before]:
        raise JobStateError(f"A {before} job cannot become {after}; from there it may only become "
                            f"{', '.join(sorted(MOVES[before]))}.")


def settle(
    job: Claimed,
    outcome: Outcome,
    retry: Retry,
    started_at: int,
    now: int,
    luck: float = 0.5,
    immediates: dict[str, int] | None = None,
    crash_cap: int = defaults.CRASH_CAP,
) -> Transition:
    """Decide what *outcome* makes of *job*.

    Args:
        job: the attempt that ended.
        outcome: what it came to.
        retry: the policy in force for this job.
        started_at: when its handler began, microseconds.
        now: when it ended, microseconds.
        luck: random number in [0, 1) for the jitter.
        immediates: immediate retries already granted, by error class name.
        crash_cap: crashes at which the job is held; 0 when it must not be repeated blindly.

    Returns:
        The transition to store.
    """
    base = Transition(job.lease, job.id, S.READY, AttemptOutcome.RELEASED, started_at, now)
    match outcome:
        case Succeeded():
            return succeeded(job, outcome, started_at, now)
        case Failed():
            return _failed(base, job, outcome, retry, luck, immediates or {})
        case RetryLater(delay, message):
            return _retry_later(base, job, retry, delay, message)
        case Snoozed(delay):
            return base._replace(state=S.SCHEDULED, outcome=AttemptOutcome.SNOOZED, due_at=now + max(0, delay))
        case Released(reason, started):
            return base._replace(reason=reason if started else None, history=started)
        case Held(reason):
            return base._replace(state=S.HELD, outcome=AttemptOutcome.HELD, reason=reason)
        case Aborted(reason):
            return base._replace(
                state=S.FAILED, outcome=AttemptOutcome.ABORTED, failed=1, reason=reason, message=reason
            )
        case Cancelled(reason):
            return base._replace(state=S.CANCELLED, outcome=AttemptOutcome.CANCELLED, reason=reason)
        case Crashed():
            return _crashed(base, job, outcome, crash_cap)
    raise AssertionError(f"unreachable: {outcome!r}")


def succeeded(job: Claimed, outcome: Succeeded, started_at: int, now: int) -> Transition:
    """What success makes of *job*; no policy has a say in it."""
    return Transition(
        job.lease, job.id, S.SUCCEEDED, AttemptOutcome.SUCCEEDED, started_at, now,
        None, 0, outcome.reason, None, None, None, outcome.codec, outcome.data, outcome.follow,
    )  # fmt: skip


def called_off(one: Transition, reason: str) -> Transition:
    """What *one* becomes when its job was asked to stop: a success counts, anything else is no reason to try again.

    What the attempt came to stays in the history.
    """
    if one.state is S.SUCCEEDED:
        return one
    quiet = one.outcome in (AttemptOutcome.RELEASED, AttemptOutcome.SNOOZED)
    return one._replace(
        state=S.CANCELLED, outcome=AttemptOutcome.CANCELLED if quiet else one.outcome, due_at=None,
        reason=reason, message=one.reason if one.message is None else one.message, immediate=None,
    )  # fmt: skip


def _crashed(base: Transition, job: Claimed, outcome: Crashed, cap: int) -> Transition:
    told = base._replace(
        outcome=AttemptOutcome.CRASHED, crashed=1, message=f"crash: {outcome.message}", traceback=outcome.traceback
    )
    if cap == 0:
        reason = f'outcome unknown: {outcome.message}, and on_crash is "hold"'
        return told._replace(state=S.HELD, reason=reason)
    if job.crashes + 1 >= cap:
        return told._replace(state=S.HELD, reason=_crash_cap(job.crashes + 1, outcome.message))
    return told


def _crash_cap(crashes: int, last: str) -> str:
    if crashes == 1:
        return f"crash cap: an attempt ended with its process: {last}"
    return f"crash cap: its attempts ended with their process {crashes} times; the last time {last}"


def _failed(
    base: Transition,
    job: Claimed,
    outcome: Failed,
    retry: Retry,
    luck: float,
    immediates: dict[str, int],
) -> Transition:
    told = base._replace(
        outcome=AttemptOutcome.FAILED,
        error_type=outcome.error_type,
        message=outcome.message,
        traceback=outcome.traceback,
    )
    decision = retry.decide_for(outcome.kinds, job.failures + 1, immediates, luck=luck)
    match decision.kind:
        case "now":
            return told._replace(due_at=base.finished_at, immediate=decision.counted)
        case "stop":
            return told._replace(state=S.FAILED, failed=1, reason=decision.reason)
        case "later":
            return told._replace(state=S.SCHEDULED, failed=1, due_at=base.finished_at + decision.delay)


def _retry_later(base: Transition, job: Claimed, retry: Retry, delay: int, message: str) -> Transition:
    told = base._replace(outcome=AttemptOutcome.FAILED, failed=1, message=message or "the handler asked to retry")
    if job.failures >= retry.retries:
        return told._replace(state=S.FAILED, reason=f"all {retry.retries} retries are spent")
    return told._replace(state=S.SCHEDULED, due_at=base.finished_at + max(0, delay))
