"""Storing outcomes: guarded by the lease, whole batches at a time."""

from __future__ import annotations

from functools import partial

import pytest

from store.making import (
    SECOND,
    START,
    apply,
    change,
    count,
    failure,
    get,
    job,
    moved,
    one,
    put,
    state,
    success,
    take,
)
from treadle.clock import HeldClock, to_datetime
from treadle.errors import QueueFull, StoreError
from treadle.model.job import AttemptOutcome, Claimed, JobState, LogLine, Usage
from treadle.model.settle import Transition
from treadle.store.ops import find, logs, meta, settle
from treadle.store.ops import rescue as rescuing
from treadle.store.store import Store

EVERY_BYTE = bytes(range(256))
READY = JobState.READY


def rescue(store: Store, epoch: int = 1) -> int:
    """Take the jobs of a worker back, as if it were dead."""
    return store.run(partial(rescuing.rescue, epoch=epoch, worker="w", why="test"))


def result(store: Store, number: int) -> bytes | None:
    """The stored result of a job."""
    found = store.read(partial(find.ending, job_id=number))
    assert found is not None
    return found.data


def test_success_ends_the_job(store: Store) -> None:
    """The job is succeeded, without lease, with its end."""
    claimed = one(store)
    assert apply(store, success(claimed)) == []
    found = get(store, claimed.id)
    assert (found.state, found.lease, found.failures) == (JobState.SUCCEEDED, None, 0)
    assert found.finished_at == to_datetime(START + SECOND)


def test_success_leaves_one_row_of_history(store: Store) -> None:
    """The attempt keeps lease, number, worker, start and end."""
    claimed = one(store)
    apply(store, success(claimed), worker="w7")
    (attempt,) = get(store, claimed.id).attempts
    assert (attempt.lease, attempt.attempt, attempt.worker) == (claimed.lease, 1, "w7")
    assert attempt.outcome is AttemptOutcome.SUCCEEDED
    assert (attempt.started_at, attempt.finished_at) == (to_datetime(START), to_datetime(START + SECOND))


def test_success_without_a_result_stores_none(store: Store) -> None:
    """A handler that returned None leaves no result row."""
    claimed = one(store)
    apply(store, success(claimed))
    assert count(store, "treadle_results") == 0
    assert result(store, claimed.id) is None


@pytest.mark.parametrize("data", [b"", b"\0", EVERY_BYTE, EVERY_BYTE * 3516])
def test_results_keep_any_bytes(store: Store, data: bytes) -> None:
    """A result comes back byte for byte, empty and large ones too."""
    claimed = one(store)
    apply(store, success(claimed, data=data))
    assert result(store, claimed.id) == data


def test_results_of_a_batch_stay_with_their_jobs(store: Store) -> None:
    """Several codecs and sizes in one batch, some without a result."""
    put(store, 30)
    taken = take(store)
    data = {each.id: EVERY_BYTE[: each.id] if each.id % 3 else None for each in taken}
    codecs = {each.id: ("json", "msgpack")[each.id % 2] for each in taken}
    apply(store, *[success(each, data=data[each.id], codec=codecs[each.id]) for each in taken])
    found = {each.id: store.read(partial(find.ending, job_id=each.id)) for each in taken}
    assert {number: ending and ending.data for number, ending in found.items()} == data
    kept = {number: ending.codec for number, ending in found.items() if ending and ending.data is not None}
    assert kept == {number: codecs[number] for number in kept}


def test_a_new_result_replaces_the_old(store: Store) -> None:
    """A job that is run again keeps its last result only."""
    claimed = one(store)
    apply(store, success(claimed, data=b"1"))
    change(store, "UPDATE treadle_jobs SET state = 3 WHERE id = ?", claimed.id)
    apply(store, success(take(store)[0], data=b"2"))
    assert result(store, claimed.id) == b"2"


def test_a_result_that_was_not_stored_is_explained(store: Store) -> None:
    """The reason why there is no result is kept, the neighbours have none."""
    put(store, 2)
    first, second = take(store)
    apply(store, success(first, reason="too large"), success(second, data=b"1"))
    assert [get(store, each.id).reason for each in (first, second)] == ["too large", None]


def test_a_failure_is_scheduled_again(store: Store) -> None:
    """The job waits for its retry, one failure spent, with the error in its history."""
    claimed = one(store)
    assert apply(store, failure(claimed)) == []
    found = get(store, claimed.id)
    assert (found.state, found.failures, found.lease) == (JobState.SCHEDULED, 1, None)
    assert found.due_at == to_datetime(START + 60 * SECOND)
    (attempt,) = found.attempts
    assert (attempt.outcome, attempt.error_type, attempt.message, attempt.traceback) == (
        AttemptOutcome.FAILED, "ValueError", "no", "tb",
    )  # fmt: skip


def test_a_failure_for_good_ends_the_job(store: Store) -> None:
    """A failed job has an end and a reason and is not claimed again."""
    claimed = one(store)
    apply(store, failure(claimed, state=JobState.FAILED, due_at=None, reason="spent"))
    found = get(store, claimed.id)
    assert (found.state, found.reason) == (JobState.FAILED, "spent")
    assert found.finished_at == to_datetime(START + SECOND)
    assert take(store) == []


def test_a_job_that_goes_on_has_no_end(store: Store) -> None:
    """Only ended jobs have finished_at."""
    claimed = one(store)
    apply(store, failure(claimed))
    assert get(store, claimed.id).finished_at is None


def test_snooze_spends_nothing(store: Store, clock: HeldClock) -> None:
    """A snoozed job comes back at its moment with its budget untouched."""
    claimed = one(store)
    snoozed = moved(claimed, JobState.SCHEDULED, AttemptOutcome.SNOOZED, due_at=START + 5 * SECOND)
    apply(store, snoozed)
    clock.advance(seconds=5)
    (again,) = take(store)
    assert (again.id, again.attempt, again.failures, again.crashes) == (claimed.id, 2, 0, 0)


def test_a_release_with_history_is_ready_at_once(store: Store) -> None:
    """An attempt given back after its start is in the history and keeps its place in the queue."""
    claimed = one(store, due_at=START - 5)
    apply(store, moved(claimed, READY, AttemptOutcome.RELEASED, reason="shutdown"))
    found = get(store, claimed.id)
    assert (found.state, found.failures, found.due_at) == (READY, 0, to_datetime(START - 5))
    assert [(each.outcome, each.message) for each in found.attempts] == [(AttemptOutcome.RELEASED, "shutdown")]


def test_a_release_before_the_start_leaves_no_history(store: Store) -> None:
    """A lease returned before its handler began leaves no row."""
    claimed = one(store)
    assert apply(store, moved(claimed, READY, AttemptOutcome.RELEASED, history=False)) == []
    assert (state(store, claimed.id), count(store, "treadle_attempts")) == (READY, 0)


def test_leases_are_released_in_one_go(store: Store) -> None:
    """Ops.settle.release gives many leases back; those that are lost do not count."""
    put(store, 5)
    taken = take(store)
    apply(store, success(taken[0]))
    leases = [each.lease for each in taken]
    assert store.run(partial(settle.release, leases=leases, epoch=2)) == 0  # somebody else's
    assert store.run(partial(settle.release, leases=leases, epoch=1)) == 4
    assert {state(store, each.id) for each in taken[1:]} == {READY}
    assert state(store, taken[0].id) is JobState.SUCCEEDED


def test_held_keeps_the_reason(store: Store) -> None:
    """A held job is parked with a reason a person can act on."""
    claimed = one(store)
    apply(store, moved(claimed, JobState.HELD, AttemptOutcome.HELD, reason="unreadable"))
    found = get(store, claimed.id)
    assert (found.state, found.reason, found.failures, found.finished_at) == (
        JobState.HELD, "unreadable", 0, None,
    )  # fmt: skip


def test_immediate_retries_are_counted_by_class(store: Store) -> None:
    """Each granted immediate retry is kept, by job and error class."""
    claimed = one(store)
    for name in ("HashMismatch", "HashMismatch", "Other"):
        apply(store, failure(claimed, state=READY, failed=0, due_at=START, immediate=name))
        (claimed,) = take(store)
    found = store.read(partial(settle.immediates, job_id=claimed.id))
    assert found == {"HashMismatch": 2, "Other": 1}


def test_immediate_retries_of_a_lost_lease_are_not_counted(store: Store) -> None:
    """A stale attempt grants nothing."""
    claimed = one(store)
    rescue(store)
    apply(store, failure(claimed, state=READY, failed=0, immediate="X"))
    assert store.read(partial(settle.immediates, job_id=claimed.id)) == {}


def test_follow_up_jobs_come_with_the_outcome(store: Store) -> None:
    """Jobs made by a handler are stored in the transaction that accepts its outcome."""
    claimed = one(store)
    apply(store, success(claimed, follow=(job(b"next", task="scan"), job(b"later", delay=SECOND))))
    found = store.read(partial(find.find, which=find.JobFilter(), before=None, most=10)).jobs
    assert [(each.task, each.arguments, each.state) for each in found] == [
        ("mail", b"later", JobState.SCHEDULED), ("scan", b"next", READY), ("mail", b"{}", JobState.SUCCEEDED),
    ]  # fmt: skip


def test_follow_up_jobs_of_a_lost_lease_are_not_stored(store: Store) -> None:
    """A stale attempt enqueues nothing."""
    put(store, 2)
    first, second = take(store)
    apply(store, failure(first))
    assert apply(store, success(first, follow=(job(),)), success(second, follow=(job(b"x"),))) == [first.lease]
    assert count(store, "treadle_jobs") == 3


def test_a_full_queue_does_not_undo_finished_work(store: Store) -> None:
    """Follow-up jobs are stored past the cap of their queue: the work that asks for them is done."""
    claimed = one(store)
    store.run(partial(meta.declare_queue, name="q", max_length=1, when_full="refuse"))
    assert apply(store, success(claimed, follow=(job(queue="q"),) * 3)) == []
    assert state(store, claimed.id) is JobState.SUCCEEDED
    assert count(store, "treadle_jobs") == 4
    with pytest.raises(QueueFull):
        put(store, queue="q")


def test_follow_up_jobs_are_undone_with_the_outcome(store: Store) -> None:
    """When the batch cannot be stored, neither the outcome nor the follow-up is."""
    claimed = one(store)
    with pytest.raises(StoreError):
        apply(store, success(claimed, follow=(job(queue=""),)))
    assert (state(store, claimed.id), count(store, "treadle_jobs")) == (JobState.RUNNING, 1)


LATE = [
    pytest.param(lambda c: success(c, data=b"late"), id="success"),
    pytest.param(failure, id="failure"),
    pytest.param(lambda c: moved(c, JobState.HELD, AttemptOutcome.HELD, reason="late"), id="held"),
    pytest.param(lambda c: moved(c, READY, AttemptOutcome.RELEASED, history=False), id="released"),
    pytest.param(lambda c: moved(c, JobState.SCHEDULED, AttemptOutcome.SNOOZED, due_at=1), id="snoozed"),
]


def everything(store: Store) -> list[list[tuple[object, ...]]]:
    """All rows of all tables that outcomes change."""
    tables = ("jobs", "payloads", "results", "attempts", "tags", "immediates", "progress", "checkpoints")
    return [store.read(lambda s, t=table: s.rows(f"SELECT * FROM treadle_{t} ORDER BY 1")) for table in tables]


@pytest.mark.parametrize("late", LATE)
@pytest.mark.parametrize("meanwhile", ["rescued", "claimed again", "settled", "cancelled", "deleted"])
def test_a_stale_attempt_changes_nothing(store: Store, late: object, meanwhile: str) -> None:
    """Whatever happened to the job meanwhile, the old lease is reported lost and no row differs."""
    claimed = one(store)
    match meanwhile:
        case "rescued":
            rescue(store)
        case "claimed again":
            rescue(store)
            take(store)
        case "settled":
            apply(store, success(claimed, data=b"first"))
        case "cancelled":
            change(store, "UPDATE treadle_jobs SET state = 9, lease = NULL")
        case "deleted":
            change(store, "DELETE FROM treadle_jobs")
    before = everything(store)
    transition: Transition = late(claimed)  # type: ignore[operator]
    assert apply(store, transition) == [claimed.lease]
    assert everything(store) == before


def test_a_lease_nobody_ever_held_changes_nothing(store: Store) -> None:
    """A wrong lease is refused even for a job that is running."""
    claimed = one(store)
    before = everything(store)
    assert apply(store, success(claimed._replace(lease=claimed.lease + 1000))) == [claimed.lease + 1000]
    assert everything(store) == before


def mixed(taken: list[Claimed]) -> list[Transition]:
    """Transitions of every kind."""
    kinds = [
        success, failure, lambda c: success(c, data=b"r"),
        lambda c: moved(c, JobState.HELD, AttemptOutcome.HELD, reason="h"),
        lambda c: moved(c, READY, AttemptOutcome.RELEASED, history=False),
    ]  # fmt: skip
    return [kinds[place % len(kinds)](each) for place, each in enumerate(taken)]


def test_a_mixed_batch_is_stored_together(store: Store) -> None:
    """One batch may hold outcomes of every kind."""
    put(store, 20)
    transitions = mixed(take(store))
    assert apply(store, *transitions) == []
    assert [state(store, each.job_id) for each in transitions] == [each.state for each in transitions]
    assert count(store, "treadle_attempts") == 16


@pytest.mark.parametrize("every", [2, 3, 5])
def test_lost_leases_do_not_disturb_a_batch(store: Store, every: int) -> None:
    """In a batch with some leases lost the others are stored, with their results."""
    put(store, 20)
    taken = take(store)
    gone = taken[::every]
    store.run(partial(settle.release, leases=[each.lease for each in gone], epoch=1))
    transitions = mixed(taken)
    assert apply(store, *transitions) == [each.lease for each in gone]
    kept = [each for each in transitions if each.lease not in {one.lease for one in gone}]
    assert [state(store, each.job_id) for each in kept] == [each.state for each in kept]
    assert {state(store, each.id) for each in gone} == {READY}
    assert count(store, "treadle_attempts") == sum(each.history for each in kept)
    assert count(store, "treadle_results") == sum(each.data is not None for each in kept)


def test_the_same_success_twice_in_a_batch_is_stored_once(store: Store) -> None:
    """At most one outcome is accepted, also within a batch."""
    claimed = one(store)
    assert apply(store, success(claimed, data=b"1"), success(claimed, data=b"2", follow=(job(),))) == [claimed.lease]
    assert (count(store, "treadle_attempts"), count(store, "treadle_jobs")) == (1, 1)
    assert result(store, claimed.id) == b"1"


def test_the_same_failure_twice_in_a_batch_is_stored_once(store: Store) -> None:
    """A failure given twice is one row of history and one failure spent."""
    claimed = one(store)
    assert apply(store, failure(claimed), failure(claimed), failure(claimed)) == [claimed.lease]
    assert (count(store, "treadle_attempts"), get(store, claimed.id).failures) == (1, 1)


@pytest.mark.parametrize("text", ["", "'\"\\{}[]%;--", "täck 日本 \U0001f600", "a\nb\tc", "x" * 32_000, "null", "1"])
def test_errors_keep_any_text(store: Store, text: str) -> None:
    """Message, traceback, class and reason come back letter by letter."""
    claimed = one(store)
    apply(store, failure(claimed, error_type=text, message=text, traceback=text, reason=text))
    found = get(store, claimed.id)
    (attempt,) = found.attempts
    assert {attempt.error_type, attempt.message, attempt.traceback, found.reason} == {text}


def test_the_first_of_two_outcomes_counts(store: Store) -> None:
    """Of a failure and a success of one attempt the one that came first is stored; its neighbours are too."""
    put(store, 2)
    first, second = take(store)
    assert apply(store, failure(first), success(second), success(first)) == [first.lease]
    assert (state(store, first.id), state(store, second.id)) == (JobState.SCHEDULED, JobState.SUCCEEDED)


def test_two_outcomes_of_one_lease_in_a_batch_are_one(store: Store) -> None:
    """Success and failure of one attempt in one batch: one is stored, the other is reported."""
    claimed = one(store)
    assert apply(store, success(claimed), failure(claimed)) == [claimed.lease]
    assert count(store, "treadle_attempts") == 1


def test_an_empty_batch_is_nothing(store: Store) -> None:
    """No transitions, no losses."""
    assert apply(store) == []


def test_live_tells_leases_that_still_hold(store: Store) -> None:
    """Only leases that own a running job are alive."""
    put(store, 3)
    first, second, third = take(store)
    apply(store, success(first))
    leases = [first.lease, second.lease, third.lease, 10_000]
    assert store.read(partial(settle.live, leases=leases)) == {second.lease: None, third.lease: None}


@pytest.mark.parametrize("size", [1, 500])
def test_large_batches_are_stored_whole(store: Store, size: int) -> None:
    """Every outcome of a batch is stored, however many there are."""
    put(store, size)
    taken = take(store, size)
    assert apply(store, *[success(each, data=str(each.id).encode()) for each in taken]) == []
    assert result(store, taken[-1].id) == str(taken[-1].id).encode()
    assert (count(store, "treadle_attempts"), count(store, "treadle_results")) == (size, size)


# --- lines and usage -----------------------------------------------------------------------------------


def lines(store: Store, number: int) -> list[tuple[int, str]]:
    """What a job has logged, with the lease of each line."""
    found = store.read(partial(logs.read, job_id=number, after=0, most=100))
    return [(line.lease, line.text) for line in found]


def said(text: str) -> tuple[LogLine, ...]:
    return (LogLine(START, 20, "job", text),)


def test_last_lines_come_with_the_outcome(store: Store) -> None:
    """Of a success and of a failure, each under its own lease."""
    first, second = one(store), one(store)
    apply(store, success(first, logs=said("done")), failure(second, logs=said("failed")))
    assert lines(store, first.id) == [(first.lease, "done")]
    assert lines(store, second.id) == [(second.lease, "failed")]


def test_lines_of_two_outcomes_of_one_lease_are_stored_once(store: Store) -> None:
    """Those of the outcome that counts, the first."""
    claimed = one(store)
    apply(store, success(claimed, logs=said("first")), success(claimed, logs=said("second")))
    assert lines(store, claimed.id) == [(claimed.lease, "first")]


def test_lines_and_usage_of_a_lost_lease_are_dropped(store: Store) -> None:
    """The attempt that counts has its own."""
    claimed = one(store)
    store.run(partial(rescuing.rescue, epoch=1, worker="w", why="crash: test"))
    assert apply(store, failure(claimed, logs=said("late"), usage=Usage(1, 2, 3))) == [claimed.lease]
    assert lines(store, claimed.id) == []
    assert [each.usage for each in get(store, claimed.id).attempts] == [None]


def test_usage_is_kept_with_its_attempt(store: Store) -> None:
    """Peak memory, processor time and how the process ended."""
    claimed = one(store)
    apply(store, failure(claimed, usage=Usage(12_345_678, 90_000, -9)))
    assert [each.usage for each in get(store, claimed.id).attempts] == [Usage(12_345_678, 90_000, -9)]
