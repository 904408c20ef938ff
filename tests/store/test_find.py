"""Reading jobs: one, many, counts."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from store.making import SECOND, START, apply, change, count, failure, get, job, put, register, state, success, take
from treadle.clock import HeldClock, to_datetime
from treadle.model.job import AttemptOutcome, JobFilter, JobState, Page
from treadle.store.ops import find, meta
from treadle.store.store import Store


def page(store: Store, before: int | None = None, most: int = 100, **which: Any) -> Page:
    """One page of what matches."""
    return store.read(partial(find.find, which=JobFilter(**which), before=before, most=most))


def found(store: Store, **which: Any) -> list[int]:
    """The ids of everything that matches, on one page."""
    return [each.id for each in page(store, **which).jobs]


def test_a_job_that_does_not_exist_is_none(store: Store) -> None:
    """No job, no record."""
    assert store.read(partial(find.get, job_id=1)) is None


@pytest.mark.parametrize("number", [2**63 - 1, 2**63, 2**64, 2**70, -(2**63), -(2**63) - 1, -(2**70), 0, -1])
def test_a_number_no_job_can_have_is_not_found(store: Store, number: int) -> None:
    """Numbers the database cannot hold are looked for like any other, and found nowhere."""
    (there,) = put(store)
    assert store.read(partial(find.get, job_id=number)) is None
    assert store.read(partial(find.ending, job_id=number)) is None
    assert store.read(partial(find.attempts, job_id=number)) == ()
    assert store.read(partial(find.states, ids=[number, there])) == {there: JobState.READY}
    assert found(store, ids=(number, there)) == [there]
    assert [each.id for each in page(store, before=number).jobs] == [there] * (number > 0)


def test_get_brings_the_latest_attempts_oldest_first(store: Store) -> None:
    """Attempts come in the order in which they ended, with the latest 200 at most."""
    (number,) = put(store)
    for _ in range(3):
        apply(store, failure(take(store)[0], due_at=START, failed=0))
    change(
        store,
        "WITH RECURSIVE n (i) AS (SELECT 4 UNION ALL SELECT i + 1 FROM n WHERE i < 250) "
        "INSERT INTO treadle_attempts (job_id, lease, attempt, worker, outcome, started_at, finished_at) "
        "SELECT ?, 1000 + i, i, 'w', 2, 1, 2 FROM n",
        number,
    )
    assert [each.attempt for each in get(store, number).attempts] == list(range(51, 251))


def test_an_attempt_is_read_as_it_was_stored(store: Store) -> None:
    """Every field of the history comes back."""
    (number,) = put(store)
    (claimed,) = take(store)
    apply(store, failure(claimed), worker="w9")
    (attempt,) = store.read(partial(find.attempts, job_id=number))
    assert (attempt.job_id, attempt.lease, attempt.attempt, attempt.worker) == (number, claimed.lease, 1, "w9")
    assert attempt.outcome is AttemptOutcome.FAILED
    assert (attempt.error_type, attempt.message, attempt.traceback) == ("ValueError", "no", "tb")


def test_newest_jobs_come_first(store: Store) -> None:
    """A page is in falling order of ids."""
    made = put(store, 5)
    assert found(store) == made[::-1]


def test_pages_meet_without_gap_or_overlap(store: Store) -> None:
    """Following Page.next shows every job once, and the last page has no next."""
    made = put(store, 25)
    seen: list[int] = []
    before: int | None = None
    while True:
        one = page(store, before, 10)
        seen += [each.id for each in one.jobs]
        before = one.next
        if before is None:
            break
    assert seen == list(reversed(made))


def test_pages_are_bounded(store: Store) -> None:
    """However much is asked for, a page has 1 to 500 jobs."""
    put(store, 510)
    assert len(page(store, most=10_000).jobs) == 500
    assert len(page(store, most=0).jobs) == 1
    assert len(page(store, most=-5).jobs) == 1


def test_filter_by_ids(store: Store) -> None:
    """Only the ids asked for, those that exist."""
    made = put(store, 5)
    assert found(store, ids=(made[0], made[3], 10_000)) == [made[3], made[0]]


def test_filter_by_queue(store: Store) -> None:
    """Only jobs of that queue."""
    put(store)
    made = put(store, 2, queue="q")
    assert found(store, queue="q") == made[::-1]


def test_filter_by_task(store: Store) -> None:
    """Only jobs of that task."""
    put(store)
    made = put(store, 2, task="scan")
    assert found(store, task="scan") == made[::-1]


def test_filter_by_tag(store: Store) -> None:
    """Only jobs that carry the tag, whatever else they carry."""
    put(store, tags=("b",))
    made = [*put(store, tags=("a", "b")), *put(store, tags=("a",))]
    assert found(store, tag="a") == made[::-1]
    assert found(store, tag="A") == []


@pytest.mark.parametrize("wanted", list(JobState))
def test_filter_by_state(store: Store, wanted: JobState) -> None:
    """Every state can be asked for, and only that state is found."""
    made = put(store, 9)
    for number, each in zip(made, JobState, strict=True):
        lease = number if each is JobState.RUNNING else None
        change(store, "UPDATE treadle_jobs SET state = ?, lease = ? WHERE id = ?", each.code, lease, number)
    (record,) = page(store, states=(wanted,)).jobs
    assert record.state is wanted


def test_filter_by_several_states(store: Store) -> None:
    """Any of the states given matches."""
    ready, scheduled = put(store)[0], put(store, delay=SECOND)[0]
    put(store, task="gone")
    change(store, "UPDATE treadle_jobs SET state = 9 WHERE task = 'gone'")
    assert found(store, states=(JobState.READY, JobState.SCHEDULED)) == [scheduled, ready]


def test_filters_are_joined_with_and(store: Store) -> None:
    """Every field that is given must match."""
    store.insert([job(queue=q, task=t, tags=(tag,)) for q in "ab" for t in "cd" for tag in "ef"])
    (record,) = page(store, queue="a", task="d", tag="e", states=(JobState.READY,), ids=tuple(range(1, 99))).jobs
    assert (record.queue, record.task) == ("a", "d")


def test_paging_works_with_filters(store: Store) -> None:
    """Before and filter are joined."""
    made = put(store, 5, queue="q")
    put(store, 5)
    assert [each.id for each in page(store, made[3], queue="q").jobs] == made[:3][::-1]


@pytest.mark.parametrize("text", ["' OR 1=1 --", '"', "%", "\\"])
def test_filter_values_are_only_values(store: Store, text: str) -> None:
    """No text of a filter is read as SQL."""
    put(store, 2)
    assert found(store, queue=text) == found(store, task=text) == found(store, tag=text) == []


def test_filter_by_start_and_end(store: Store, clock: HeldClock) -> None:
    """What started before a moment, and what ended from a moment on or before it."""
    first, second, third = put(store, 3)
    (early,) = take(store, 1)
    clock.advance(seconds=60)
    (late,) = take(store, 1)
    middle = to_datetime(START + 30 * SECOND)
    assert (early.id, late.id) == (first, second)
    assert found(store, started_before=middle) == [first]
    assert found(store, started_before=to_datetime(START + 61 * SECOND)) == [second, first]
    apply(store, success(early, finished_at=START + 10 * SECOND))
    apply(store, success(late, finished_at=START + 90 * SECOND))
    assert found(store, ended_after=middle) == [second]
    assert found(store, ended_after=to_datetime(START + 90 * SECOND)) == [second]
    assert found(store, ended_before=middle) == [first]
    assert third not in found(store, ended_after=to_datetime(0))


def test_a_running_job_names_its_worker(store: Store) -> None:
    """Only while it runs, and only when the worker is registered."""
    register(store, 3, epoch=1)
    put(store, 2)
    (claimed,) = take(store, 1)
    (other,) = take(store, 1, epoch=9)
    assert [get(store, one.id).worker for one in (claimed, other)] == ["w3", None]
    assert [each.worker for each in page(store).jobs] == [None, "w3"]
    apply(store, success(claimed))
    assert get(store, claimed.id).worker is None


def test_a_census_counts_what_matches_by_task_and_state(store: Store) -> None:
    """Each task and state once, and together as many as are found."""
    put(store, 3)
    put(store, 2, task="other", queue="q")
    take(store, 1)
    everything = store.read(partial(find.census, which=JobFilter()))
    assert sorted(everything) == [
        ("mail", JobState.READY, 2), ("mail", JobState.RUNNING, 1), ("other", JobState.READY, 2),
    ]  # fmt: skip
    assert store.read(partial(find.census, which=JobFilter(queue="q"))) == [("other", JobState.READY, 2)]
    assert store.read(partial(find.census, which=JobFilter(queue="none"))) == []


def test_counts_are_by_queue_and_state(store: Store) -> None:
    """Each queue with its states; states without jobs are left out."""
    put(store, 3)
    put(store, 2, queue="q", delay=SECOND)
    apply(store, success(take(store, 1)[0]))
    assert store.read(find.counts) == {
        "default": {JobState.READY: 2, JobState.SUCCEEDED: 1}, "q": {JobState.SCHEDULED: 2},
    }  # fmt: skip


def test_states_of_many_jobs(store: Store) -> None:
    """The states of those that exist."""
    first, second = put(store)[0], put(store, delay=SECOND)[0]
    assert store.read(partial(find.states, ids=[first, second, 10_000])) == {
        first: JobState.READY, second: JobState.SCHEDULED,
    }  # fmt: skip
    assert store.read(partial(find.states, ids=[])) == {}


def test_next_due_is_the_earliest_moment(store: Store) -> None:
    """None without scheduled jobs, else the earliest of them."""
    put(store)
    assert store.read(find.next_due) is None
    put(store, delay=9 * SECOND)
    put(store, delay=4 * SECOND)
    assert store.read(find.next_due) == to_datetime(START + 4 * SECOND)


def test_declared_queues_are_listed(store: Store) -> None:
    """Cap and behaviour, as last declared."""
    store.run(partial(meta.declare_queue, name="q", max_length=5, when_full="wait"))
    store.run(partial(meta.declare_queue, name="r", max_length=None, when_full="refuse"))
    store.run(partial(meta.declare_queue, name="q", max_length=7, when_full="refuse"))
    assert store.read(find.queues) == {"q": (7, "refuse"), "r": (None, "refuse")}


def test_the_ending_of_no_job_is_none(store: Store) -> None:
    """An id that does not exist has no ending."""
    assert store.read(partial(find.ending, job_id=1)) is None


def test_the_ending_of_a_success_has_its_result(store: Store) -> None:
    """State, codec and bytes."""
    (number,) = put(store)
    apply(store, success(take(store)[0], data=b"[1]", codec="msgpack"))
    ending = store.read(partial(find.ending, job_id=number))
    assert ending == find.Ending(JobState.SUCCEEDED, None, "msgpack", b"[1]", None)


def test_the_ending_of_a_failure_has_its_last_error(store: Store) -> None:
    """Reason and the message of the latest attempt."""
    (number,) = put(store)
    apply(store, failure(take(store)[0], due_at=START, message="first"))
    apply(store, failure(take(store)[0], state=JobState.FAILED, due_at=None, message="last", reason="spent"))
    ending = store.read(partial(find.ending, job_id=number))
    assert ending == find.Ending(JobState.FAILED, "spent", None, None, "last")


def test_reading_changes_nothing(store: Store) -> None:
    """A read cannot write, whatever it runs."""
    put(store)
    with pytest.raises(Exception, match=r"readonly|read-only|cannot be written"):
        store.read(lambda session: session.change("DELETE FROM treadle_jobs"))
    assert count(store, "treadle_jobs") == 1


def test_a_read_sees_one_moment(store: Store) -> None:
    """Within one read nothing changes, whatever is committed meanwhile."""

    def look_twice(session: Any) -> tuple[int, int]:
        first = session.value("SELECT count(*) FROM treadle_jobs")
        put(store)
        return first, session.value("SELECT count(*) FROM treadle_jobs")

    put(store)
    assert store.read(look_twice) == (1, 1)
    assert count(store, "treadle_jobs") == 2


def test_reads_see_what_was_acknowledged(store: Store, clock: HeldClock) -> None:
    """A write is visible to every read after its answer."""
    for _ in range(50):
        (number,) = put(store)
        assert state(store, number) is JobState.READY
        assert store.submit_read(partial(find.states, ids=[number])).result(30)[number] is JobState.READY
