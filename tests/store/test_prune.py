"""Deleting history, backup marks and declared queues."""

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
    one,
    put,
    register,
    state,
    success,
    take,
)
from treadle.clock import HeldClock
from treadle.errors import StoreError
from treadle.model.job import Claimed, JobState
from treadle.store.adoption import adopt
from treadle.store.ops import meta, notes, workers
from treadle.store.ops.prune import count_old, cutoff_by_count, prune
from treadle.store.store import Store

TABLES = ("jobs", "payloads", "results", "attempts", "tags", "progress", "checkpoints", "immediates")


def ended(store: Store, number: int, at: int = START, into: JobState = JobState.SUCCEEDED) -> list[int]:
    """Jobs that ended at the moment *at*."""
    made = put(store, number)
    for each in made:
        change(
            store, "UPDATE treadle_jobs SET state = ?, finished_at = ? WHERE id = ?", into.code, at, each
        )  # fmt: skip
    return made


def pruned(store: Store, before: int, most: int = 100, of: JobState = JobState.SUCCEEDED) -> int:
    """How many were deleted."""
    return store.run(partial(prune, state=of, before=before, most=most))


def keep(store: Store, newest: int) -> None:
    """Prune succeeded jobs down to the newest *newest*, as upkeep does."""
    cutoff = store.read(partial(cutoff_by_count, state=JobState.SUCCEEDED, keep=newest))
    if cutoff is not None:
        before, below = cutoff
        store.run(partial(prune, state=JobState.SUCCEEDED, before=before, below=below, most=100))


def test_only_older_jobs_are_deleted(store: Store) -> None:
    """What ended before the moment goes, what ended at it or later stays."""
    ended(store, 2, START - 1)
    kept = ended(store, 1, START) + ended(store, 1, START + 1)
    assert pruned(store, START) == 2
    assert [state(store, number) for number in kept] == [JobState.SUCCEEDED] * 2
    assert count(store, "treadle_jobs") == 2


@pytest.mark.parametrize("of", [JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED])
def test_each_ended_state_is_pruned_by_itself(store: Store, of: JobState) -> None:
    """A rule for one state touches no other."""
    for each in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED):
        ended(store, 1, START - 1, each)
    assert pruned(store, START, of=of) == 1
    assert count(store, "treadle_jobs") == 2


def test_what_would_be_pruned_is_counted(store: Store) -> None:
    """The count is what all slices together delete."""
    ended(store, 3, START - 1)
    ended(store, 2, START)
    look = partial(count_old, state=JobState.SUCCEEDED, before=START)
    assert store.read(look) == 3
    assert pruned(store, START, most=2) + pruned(store, START) == 3
    assert store.read(look) == 0
    with pytest.raises(ValueError, match="Only ended jobs are pruned"):
        store.read(partial(count_old, state=JobState.READY, before=START))


@pytest.mark.parametrize("of", [each for each in JobState if not each.ended])
def test_living_jobs_cannot_be_pruned(store: Store, of: JobState) -> None:
    """Asking to prune a state that is no end is refused."""
    with pytest.raises(ValueError, match="Only ended jobs are pruned"):
        pruned(store, START, of=of)


def test_jobs_that_go_on_are_never_deleted(store: Store) -> None:
    """Ready, scheduled and running jobs stay, however old."""
    put(store)
    put(store, delay=SECOND)
    take(store, 1)
    assert sum(pruned(store, START * 2, of=of) for of in JobState if of.ended) == 0
    assert count(store, "treadle_jobs") == 2


def test_pruning_goes_in_slices_oldest_first(store: Store) -> None:
    """At most as many as asked for are deleted, and the oldest go first."""
    new, old = ended(store, 3, START - 1), ended(store, 3, START - 9)
    assert pruned(store, START, 4) == 4
    left = [number for number in new + old if store.read(lambda s, n=number: s.value(EXISTS, (n,)))]
    assert len(left) == 2
    assert set(left) < set(new)


EXISTS = "SELECT 1 FROM treadle_jobs WHERE id = ?"


def test_a_short_slice_says_that_none_is_left(store: Store) -> None:
    """Fewer than asked for means done."""
    ended(store, 5, START - 1)
    assert [pruned(store, START, 2) for _ in range(4)] == [2, 2, 1, 0]


def full(store: Store) -> Claimed:
    """A job with a row in every table."""
    claimed = one(store, tags=("x", "y"))
    apply(store, failure(claimed, due_at=START, immediate="X"))
    (claimed,) = take(store)
    store.run(partial(notes.progress, lease=claimed.lease, fraction=0.5, message="m"))
    store.run(partial(notes.checkpoint, lease=claimed.lease, codec="json", data=b"1"))
    apply(store, success(claimed, data=b"2"))
    return claimed


def test_everything_of_a_job_goes_with_it(store: Store) -> None:
    """Arguments, result, history, tags and notes are deleted with their job."""
    full(store)
    assert all(count(store, f"treadle_{table}") for table in TABLES)
    assert pruned(store, START + 9 * SECOND) == 1
    assert {table: count(store, f"treadle_{table}") for table in TABLES} == dict.fromkeys(TABLES, 0)


def test_the_rows_of_other_jobs_stay(store: Store) -> None:
    """Deleting one job leaves its neighbours whole."""
    full(store)
    change(store, "UPDATE treadle_jobs SET finished_at = ?", START - SECOND)
    full(store)
    before = {table: count(store, f"treadle_{table}") for table in TABLES}
    assert pruned(store, START) == 1
    assert {table: count(store, f"treadle_{table}") for table in TABLES} == {
        table: number // 2 for table, number in before.items()
    }


def test_the_newest_are_kept_by_count(store: Store) -> None:
    """With one end a moment, exactly the newest stay."""
    made = [number for place in range(10) for number in ended(store, 1, START + place)]
    keep(store, 4)
    assert {number: get(store, number).id for number in made[-4:]} == {number: number for number in made[-4:]}
    assert count(store, "treadle_jobs") == 4


@pytest.mark.parametrize("newest", [10, 11, 1000])
def test_fewer_than_the_count_are_all_kept(store: Store, newest: int) -> None:
    """Nothing is deleted while there are not too many."""
    for place in range(10):
        ended(store, 1, START + place)
    keep(store, newest)
    assert count(store, "treadle_jobs") == 10


def test_keeping_none_deletes_all(store: Store) -> None:
    """A count of 0 keeps nothing."""
    for place in range(3):
        ended(store, 1, START + place)
    keep(store, 0)
    assert count(store, "treadle_jobs") == 0


def test_jobs_that_ended_together_are_kept_by_count(store: Store) -> None:
    """Of a batch settled at one moment exactly the count is kept, those with the largest ids."""
    made = put(store, 10)
    apply(store, *[success(each) for each in take(store)])
    keep(store, 4)
    assert left(store) == made[-4:]


@pytest.mark.parametrize("newest", [0, 1, 4, 10, 13, 20])
def test_a_count_is_exact_across_batches(store: Store, newest: int) -> None:
    """What ended last is kept first, whatever its id; within one moment the larger ids."""
    late, early = ended(store, 10, START + 1), ended(store, 10, START)
    by_age = early + late
    keep(store, newest)
    assert left(store) == sorted(by_age[20 - newest :])


def left(store: Store) -> list[int]:
    """The ids of all jobs, in order."""
    return [row[0] for row in store.read(lambda session: session.rows("SELECT id FROM treadle_jobs ORDER BY id"))]


# --- facts about the file ---------------------------------------------------------------------------


def test_a_new_store_is_no_backup(store: Store) -> None:
    """Only copies carry the mark."""
    assert store.read(meta.backup_mark) is None


def test_a_backup_is_marked_with_its_moment(store: Store, clock: HeldClock) -> None:
    """The mark is when the copy was made; a second one replaces it."""
    store.run(meta.mark_backup)
    clock.advance(seconds=1)
    store.run(meta.mark_backup)
    assert store.read(meta.backup_mark) == str(START + SECOND)


def test_adopting_clears_the_mark_and_the_workers(store: Store) -> None:
    """The copy is an ordinary file again, without workers."""
    register(store, 1, epoch=1)
    store.run(meta.mark_backup)
    assert store.run(meta.adopt) == 0
    assert store.read(meta.backup_mark) is None
    assert store.read(workers.every) == []


def test_adopting_takes_running_jobs_back(store: Store) -> None:
    """What ran when the copy was made, under any worker, is ready again and charged with nothing."""
    put(store, 3)
    running = [*take(store, 1, epoch=1), *take(store, 1, epoch=7)]
    assert store.run(meta.adopt) == 2
    assert {(get(store, each.id).state, get(store, each.id).crashes) for each in running} == {(JobState.READY, 0)}
    assert count(store, "treadle_attempts") == 0


def test_adopting_again_and_again_holds_no_job(store: Store) -> None:
    """However often a copy is restored, a job does not reach its cap of crashes by it."""
    (number,) = put(store)
    for epoch in range(10):
        take(store, epoch=epoch)
        assert store.run(meta.adopt) == 1
    assert state(store, number) is JobState.READY


@pytest.mark.sqlite
def test_an_ordinary_file_is_not_adopted(store: Store) -> None:
    """Without the mark of a copy nothing is taken back."""
    claimed = one(store)
    assert adopt(store) is None
    assert state(store, claimed.id) is JobState.RUNNING
    store.run(meta.mark_backup)
    assert adopt(store) == 1


def test_every_store_has_a_name_of_its_own(store: Store) -> None:
    """The id of a store is stable and differs from another's."""
    other = Store("memory://")
    assert store.read(meta.store_id) == store.read(meta.store_id)
    assert store.read(meta.store_id) != other.read(meta.store_id)
    other.close()


@pytest.mark.parametrize(("most", "when_full"), [(0, "refuse"), (-1, "refuse"), (5, "explode")])
def test_senseless_queue_declarations_are_refused(store: Store, most: int, when_full: str) -> None:
    """The tables themselves refuse caps below 1 and unknown behaviour."""
    with pytest.raises(StoreError):
        store.run(partial(meta.declare_queue, name="q", max_length=most, when_full=when_full))
