"""What a run in a test came to: one value for each attempt, and the errors of handlers as they were raised."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, NoReturn

from treadle.app import Treadle
from treadle.errors import JobFailed, ResultError
from treadle.model.job import Attempt, AttemptOutcome, Claimed, JobState
from treadle.results import value_of
from treadle.store.ops import find
from treadle.store.store import Store

BAD: Final = frozenset(
    {AttemptOutcome.FAILED, AttemptOutcome.ABORTED, AttemptOutcome.HELD, AttemptOutcome.CRASHED}
)
"""Outcomes that ``raise_errors`` raises."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RanJob:
    """One attempt that ran.

    Attributes:
        id: the job's id.
        task: its task's name.
        attempt: number of the attempt, from 1.
        outcome: what the attempt came to: ``succeeded``, ``failed``, ``snoozed``, ``held`` …
        state: the job's state when the run was over, None when it was deleted.
        result: what the handler returned, None when the attempt did not succeed.
        error: what the handler raised, with its traceback; None when it raised nothing, or not in this process.
        message: the same in words, or why the job is held.
        followers: ids of the jobs it has asked for with ``on_success``, where one job was run by itself.

    Example:
        >>> RanJob(id=1, task="send", attempt=1, outcome=AttemptOutcome.SUCCEEDED, state=JobState.SUCCEEDED).error
    """

    id: int
    task: str
    attempt: int
    outcome: AttemptOutcome
    state: JobState | None
    result: Any = None
    error: BaseException | None = None
    message: str | None = None
    followers: tuple[int, ...] = ()

    def __str__(self) -> str:
        told = f": {self.message}" if self.message else ""
        return f"job {self.id} {self.task}, attempt {self.attempt} {self.outcome}{told}"


def history(app: Treadle, after: int, errors: Mapping[int, BaseException]) -> list[RanJob]:
    """The attempts that ended after a place in commit order, as values.

    Args:
        app: whose jobs.
        after: the ``seq`` of the attempt that had ended last before.
        errors: what handlers raised, by lease.
    """
    found: list[Attempt] = []
    while page := app.store.read(partial(find.settled, after=after, most=500)):
        found += page
        after = page[-1].seq
    states = app.store.read(partial(find.states, ids=[one.job_id for one in found]))
    return [_ran(app, one, states.get(one.job_id), errors.get(one.lease)) for one in found]


def last_place(store: Store) -> int:
    """The place of the attempt that ended last, for :func:`history`."""
    return store.read(find.last_settled)


def of_lease(
    app: Treadle, claimed: Claimed, error: BaseException | None, followers: tuple[int, ...] = ()
) -> RanJob | None:
    """One attempt that ended just now, None when nothing was kept of it."""
    for one in reversed(app.store.read(partial(find.attempts, job_id=claimed.id))):
        if one.lease == claimed.lease:
            ran = _ran(app, replace(one, task=claimed.task), app.get(claimed.id).state, error)
            return replace(ran, followers=followers)
    return None


def raise_first(ran: Sequence[RanJob]) -> None:
    """Raise what the first attempt that went wrong raised; does nothing when none did."""
    wrong = [one for one in ran if one.outcome in BAD]
    if wrong:
        raise_for(wrong[0], wrong[1:])


def raise_for(one: RanJob, others: Iterable[RanJob] = ()) -> NoReturn:
    """Raise an attempt's own error, or one that says in words what came of it; *others* become notes."""
    error = one.error or JobFailed(f"Job {one.id} {one.state}: {one.message or one.outcome}")
    told = getattr(error, "__notes__", ())
    for note in (f"raised by {one}", *(f"and then: {other}" for other in others)):
        if note not in told:
            error.add_note(note)
    raise error


def _ran(app: Treadle, one: Attempt, state: JobState | None, error: BaseException | None) -> RanJob:
    bad = one.outcome in BAD
    return RanJob(
        id=one.job_id, task=one.task or "", attempt=one.attempt, outcome=one.outcome, state=state,
        result=_result(app, one), error=error if bad else None, message=one.message,
    )  # fmt: skip


def _result(app: Treadle, one: Attempt) -> object:
    if one.outcome is not AttemptOutcome.SUCCEEDED:
        return None
    ending = app.store.read(partial(find.ending, job_id=one.job_id))
    try:
        definition = app.registry.find(one.task or "")
        return None if ending is None else value_of(one.job_id, ending, definition, app.codecs)
    except ResultError:
        return None  # it was too large to be kept; job.result() says so
