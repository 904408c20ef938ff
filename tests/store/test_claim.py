"""Taking jobs."""

from __future__ import annotations

from functools import partial
from itertools import chain

import pytest

from store.making import (
    SECOND,
    START,
    apply,
    change,
    claims,
    failure,
    get,
    job,
    put,
    request,
    state,
    success,
    take,
)
from treadle.clock import HeldClock, to_datetime
from treadle.errors import StoreError
from treadle.model.job import Claimed, JobState
from treadle.store.ops.claim import INLINE_MOST, PROMOTE_LEAST, arguments, claim, expire, has_expired
from treadle.store.ops.rescue import rescue
from treadle.store.session import Session
from treadle.store.store import Store


def ids(taken: list[Claimed]) -> list[int]:
    """The ids of claimed jobs."""
    return [each.id for each in taken]


def test_a_claim_of_nothing_brings_nothing(store: Store) -> None:
    """An empty store gives no jobs and no next moment."""
    assert claims(store) == ([], None)


def test_higher_priority_comes_first(store: Store) -> None:
    """Order is by priority, highest first."""
    made = {priority: put(store, priority=priority)[0] for priority in (0, -100, 50, 100, -1)}
    assert ids(take(store)) == [made[priority] for priority in (100, 50, 0, -1, -100)]


def test_earlier_due_comes_first_within_a_priority(store: Store) -> None:
    """Among equals in priority the one due first wins, whatever its id."""
    late, early = put(store, due_at=START - 1)[0], put(store, due_at=START - 5)[0]
    assert ids(take(store)) == [early, late]


def test_lower_id_comes_first_among_equals(store: Store) -> None:
    """Equal priority and due moment: in order of enqueueing."""
    made = put(store, 20)
    assert ids(take(store)) == made


def test_a_claim_takes_at_most_what_was_asked(store: Store) -> None:
    """The rest stays ready for the next claim."""
    made = put(store, 5)
    assert ids(take(store, 3)) == made[:3]
    assert ids(take(store, 3)) == made[3:]


def test_a_running_job_is_not_taken_again(store: Store) -> None:
    """A job belongs to one claim at a time."""
    put(store)
    take(store)
    assert take(store) == []


def test_named_queues_are_strict(store: Store) -> None:
    """Queues are emptied in the order given, priorities notwithstanding."""
    low = put(store, 2, queue="low", priority=100)
    high = put(store, 2, queue="high", priority=-100)
    assert ids(take(store, 3, queues=("high", "low"))) == [*high, low[0]]


def test_only_named_queues_are_taken_from(store: Store) -> None:
    """What is not named stays."""
    put(store, queue="other")
    assert take(store, queues=("default",)) == []


def test_a_queue_named_twice_is_taken_once(store: Store) -> None:
    """Naming a queue twice gives no job two leases."""
    made = put(store, 3, queue="q")
    assert ids(take(store, queues=("q", "q"))) == made


def test_without_names_every_queue_is_taken_from(store: Store) -> None:
    """None means all queues that have work."""
    made = [put(store, queue=name)[0] for name in "abcde"]
    assert sorted(ids(take(store))) == made


def test_turns_rotate_the_queues(store: Store) -> None:
    """With None the turn decides which queue is first, so none starves."""
    made = {name: put(store, 10, queue=name) for name in "abc"}
    first = [take(store, 1, turn=turn)[0].id for turn in (0, 1, 2, 3)]
    assert first == [made["a"][0], made["b"][0], made["c"][0], made["a"][1]]


def test_only_known_tasks_are_taken(store: Store) -> None:
    """A job whose task the worker does not know is left alone, and does not block those behind it."""
    put(store, 3, task="unknown", priority=100)
    (known,) = put(store, task="mail")
    assert ids(take(store, 1)) == [known]
    assert take(store, tasks=()) == []


def test_a_claim_tells_everything_about_a_job(store: Store) -> None:
    """The claimed job carries its row, its arguments and its lease."""
    (number,) = put(store, data=b"[1]", queue="q", priority=4, codec="json", due_at=START - 7)
    (found,) = take(store)
    assert found == (
        number, "mail", 1, 0, 0, 4, START - 7, START, "json", 3, None, 1, "q", found.lease, b"[1]", START
    )  # fmt: skip


def test_a_claim_marks_the_job_as_running(store: Store) -> None:
    """The record shows state, lease, attempt and start."""
    (number,) = put(store)
    (found,) = take(store)
    record = get(store, number)
    assert (record.state, record.lease, record.attempt) == (JobState.RUNNING, found.lease, 1)
    assert record.started_at == to_datetime(START)


def test_every_claim_counts_an_attempt(store: Store) -> None:
    """Attempts count claims, and failures and crashes come along."""
    put(store)
    apply(store, failure(take(store)[0], due_at=START))
    (again,) = take(store)
    assert (again.attempt, again.failures, again.crashes) == (2, 1, 0)


def test_a_new_claim_forgets_the_old_reason(store: Store) -> None:
    """The reason of an earlier outcome does not stick to a running job."""
    (number,) = put(store)
    change(store, "UPDATE treadle_jobs SET reason = 'old', finished_at = 5 WHERE id = ?", number)
    take(store)
    record = get(store, number)
    assert (record.reason, record.finished_at) == (None, None)


def test_leases_are_neighbours_in_claim_order(store: Store) -> None:
    """The nth job of a claim holds the nth lease, over several queues, in the table too."""
    for name in "ab":
        put(store, 3, queue=name)
    taken = take(store)
    assert [each.lease for each in taken] == list(range(taken[0].lease, taken[0].lease + 6))
    assert [get(store, each.id).lease for each in taken] == [each.lease for each in taken]


def test_leases_are_never_equal(store: Store) -> None:
    """Over many claims and returns no lease is seen twice."""
    put(store, 10)
    seen: list[int] = []
    for _ in range(10):
        taken = take(store, 7)
        seen += [each.lease for each in taken]
        apply(store, *[failure(each, due_at=START) for each in taken])
    assert len(seen) == len(set(seen)) == 70


def test_a_claim_undone_takes_nothing(store: Store) -> None:
    """A claim whose transaction fails leaves its jobs ready."""
    (number,) = put(store)

    def claim_and_fail(session: Session) -> None:
        assert len(claim(session, request()).jobs) == 1
        raise ValueError("refused")

    with pytest.raises(ValueError, match="refused"):
        store.run(claim_and_fail)
    assert state(store, number) is JobState.READY


def test_the_database_refuses_a_lease_held_twice(store: Store) -> None:
    """Two running jobs cannot hold one lease, whatever writes it."""
    put(store, 2)
    first, second = take(store)
    with pytest.raises(StoreError):
        change(store, "UPDATE treadle_jobs SET lease = ? WHERE id = ?", first.lease, second.id)


def test_the_database_refuses_running_without_a_lease(store: Store) -> None:
    """A job is running exactly when it has a lease."""
    put(store)
    with pytest.raises(StoreError):
        change(store, "UPDATE treadle_jobs SET state = 5")


def test_scheduled_jobs_wait_for_their_time(store: Store, clock: HeldClock) -> None:
    """A job is taken when its moment has come, not before."""
    (number,) = put(store, delay=5 * SECOND)
    assert take(store) == []
    clock.advance(seconds=5)
    assert ids(take(store)) == [number]


def test_a_claim_says_when_the_next_job_is_due(store: Store) -> None:
    """next_due is the earliest scheduled moment."""
    put(store, delay=9 * SECOND)
    put(store, delay=5 * SECOND)
    assert claims(store).next_due == START + 5 * SECOND


def test_next_due_is_that_after_promotion(store: Store, clock: HeldClock) -> None:
    """What was promoted by this claim is no longer waited for."""
    put(store, delay=5 * SECOND)
    put(store, delay=9 * SECOND)
    clock.advance(seconds=6)
    found = claims(store)
    assert (len(found.jobs), found.next_due) == (1, START + 9 * SECOND)


def test_a_claim_promotes_a_slice(store: Store, clock: HeldClock) -> None:
    """A flood of due jobs is promoted in slices, earliest first, and next_due asks to come back at once."""
    made = put(store, PROMOTE_LEAST + 50, delay=5 * SECOND)
    (first,) = put(store, delay=4 * SECOND)
    clock.advance(seconds=10)
    found = claims(store, 2)
    assert ids(found.jobs) == [first, made[0]]
    assert found.next_due == START + 5 * SECOND
    promoted = [number for number in made if state(store, number) is not JobState.SCHEDULED]
    assert len(promoted) == PROMOTE_LEAST - 1


def test_every_promoted_job_is_taken_in_the_end(store: Store, clock: HeldClock) -> None:
    """Slice by slice nothing is left behind."""
    made = put(store, PROMOTE_LEAST * 2 + 3, delay=5 * SECOND)
    clock.advance(seconds=5)
    taken = list(chain.from_iterable(ids(take(store, 400)) for _ in range(4)))
    assert sorted(taken) == made


def test_small_arguments_come_with_the_claim(store: Store) -> None:
    """Arguments up to 16 KiB travel with the job, in any mix of sizes."""
    sizes = [0, 1, INLINE_MOST, 100, 0, 5]
    store.insert([job(bytes([place]) * size) for place, size in enumerate(sizes)])
    taken = take(store)
    assert [each.data for each in taken] == [bytes([place]) * size for place, size in enumerate(sizes)]
    assert [each.size for each in taken] == sizes


def test_large_arguments_are_read_later(store: Store) -> None:
    """Larger ones come as None with their size, between small ones, and ops.claim.arguments reads them."""
    large = b"\0" * (INLINE_MOST + 1)
    store.insert([job(b"a"), job(large), job(b"b")])
    taken = take(store)
    assert [each.data for each in taken] == [b"a", None, b"b"]
    assert taken[1].size == len(large)
    assert store.read(partial(arguments, job_id=taken[1].id)) == large


def test_missing_arguments_are_told(store: Store) -> None:
    """A job whose payload row was deleted is claimed with size None; its neighbours keep their bytes."""
    made = list(store.insert([job(b"a"), job(b"b"), job(b"c")]))
    change(store, "DELETE FROM treadle_payloads WHERE job_id = ?", made[1])
    taken = take(store)
    assert [(each.size, each.data) for each in taken] == [(1, b"a"), (None, None), (1, b"c")]
    assert store.read(partial(arguments, job_id=made[1])) is None


def test_a_thousand_jobs_keep_their_own_arguments(store: Store) -> None:
    """One large claim cuts every job's arguments out of the joined bytes correctly."""
    jobs = [job(bytes(range(256))[: place % 257], task="mail") for place in range(1000)]
    store.insert(jobs)
    assert [each.data for each in take(store, 1000)] == [each.data for each in jobs]


@pytest.mark.parametrize("ended", [JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.HELD])
def test_only_ready_jobs_are_taken(store: Store, ended: JobState) -> None:
    """Ended and held jobs are never claimed."""
    (number,) = put(store)
    change(store, "UPDATE treadle_jobs SET state = ? WHERE id = ?", ended.code, number)
    assert take(store) == []


def test_a_settled_job_is_not_taken_again(store: Store) -> None:
    """Success is final."""
    put(store)
    apply(store, success(take(store)[0]))
    assert take(store) == []


# --- expiry and crash caps ------------------------------------------------------------------------------


def test_an_expired_job_is_not_started(store: Store, clock: HeldClock) -> None:
    """At the moment it expires it is called off instead; jobs behind it run."""
    late, timely = put(store, expires_in=10 * SECOND)[0], put(store, expires_in=11 * SECOND)[0]
    clock.advance(seconds=10)
    assert ids(take(store)) == [timely]
    record = get(store, late)
    assert (record.state, record.attempt, record.lease) == (JobState.CANCELLED, 0, None)
    assert str(record.reason).startswith("expired")


def test_expired_arguments_do_not_shift_those_of_others(store: Store, clock: HeldClock) -> None:
    """Each claimed job gets its own bytes, whatever expired beside it."""
    for place in range(6):
        put(store, data=b"[%d]" % place, expires_in=SECOND if place % 2 else None)
    clock.advance(seconds=5)
    assert [each.data for each in take(store)] == [b"[0]", b"[2]", b"[4]"]


def test_a_sweep_calls_off_what_no_claim_meets(store: Store, clock: HeldClock) -> None:
    """Scheduled and blocked jobs expire too, and keep their reason."""
    scheduled, blocked = put(store, delay=100 * SECOND, expires_in=SECOND)[0], put(store, expires_in=SECOND)[0]
    change(store, "UPDATE treadle_jobs SET state = 4, reason = 'task paused' WHERE id = ?", blocked)
    assert not store.read(has_expired)
    clock.advance(seconds=2)
    assert store.read(has_expired)
    assert store.run(expire) == 2
    assert {get(store, number).state for number in (scheduled, blocked)} == {JobState.CANCELLED}
    assert "(task paused)" in str(get(store, blocked).reason)
    assert not store.read(has_expired)


def test_a_claim_writes_the_crash_cap_of_its_task(store: Store) -> None:
    """Whoever rescues the job later need not know its task."""
    put(store), put(store, task="pay")
    store.run(partial(claim, request=request(tasks=("mail", "pay"))._replace(caps='{"pay":0}')))
    rows = store.read(lambda session: session.rows("SELECT task, crash_cap FROM treadle_jobs ORDER BY id"))
    assert rows == [("mail", 3), ("pay", 0)]
    store.run(partial(rescue, epoch=1, worker="w", why="crash: test"))
    states = {record.task: record for record in map(partial(get, store), (1, 2))}
    assert states["mail"].state is JobState.READY
    assert (states["pay"].state, str(states["pay"].reason)[:15]) == (JobState.HELD, "outcome unknown")
