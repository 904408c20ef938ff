"""Workers in the tables: registering, signs of life, rescue, unknown tasks."""

from __future__ import annotations

from functools import partial

import pytest

from store.making import SECOND, START, apply, change, count, get, one, put, register, request, state, success, take
from treadle.clock import HeldClock, to_datetime
from treadle.model.job import AttemptOutcome, JobState
from treadle.store.ops import rescue as rescuing
from treadle.store.ops import unknown, workers
from treadle.store.ops.claim import claim
from treadle.store.ops.heads import heads
from treadle.store.store import Store


def rescue(store: Store, epoch: int = 1) -> int:
    """Take the jobs of a worker back, as if its death were proved."""
    return store.run(partial(rescuing.rescue, epoch=epoch, worker="w1", why="crash: test"))


def unknown_waits(store: Store) -> bool:
    """Whether a job waits whose task nobody knows."""
    return store.read(lambda session: unknown.has_unknown(session, heads(session)))


def rows(store: Store) -> list[workers.WorkerRow]:
    """Every registered worker."""
    return store.read(workers.every)


def test_a_worker_is_registered_as_it_came(store: Store) -> None:
    """The row tells who it is, since when, and what it runs."""
    register(store, 3, epoch=9, tasks=("mail", "scan"))
    (row,) = rows(store)
    assert (row.slot, row.epoch, row.name, row.host, row.pid, row.concurrency) == (3, 9, "w3", "here", 103, 10)
    assert (row.queues, row.tasks) == ('["default"]', '["mail","scan"]')
    assert (row.started_at, row.seen_at, row.running) == (START, START, 0)


def test_running_jobs_are_counted_by_worker(store: Store) -> None:
    """Each worker is shown with the jobs it runs."""
    register(store, 1, epoch=1)
    register(store, 2, epoch=2)
    put(store, 5)
    take(store, 2, epoch=1)
    take(store, 3, epoch=2)
    assert [(row.slot, row.running) for row in rows(store)] == [(1, 2), (2, 3)]


def test_registering_rescues_the_slots_last_owner(store: Store) -> None:
    """Whoever takes over a slot first takes back what its last owner held, and nobody else's."""
    register(store, 1, epoch=1)
    register(store, 2, epoch=2)
    put(store, 3)
    dead, other = take(store, 2, epoch=1), take(store, 1, epoch=2)
    assert register(store, 1, epoch=3) == 2
    assert {state(store, each.id) for each in dead} == {JobState.READY}
    assert state(store, other[0].id) is JobState.RUNNING


def test_registering_replaces_the_slots_row(store: Store) -> None:
    """A slot has one owner."""
    register(store, 1, epoch=1)
    register(store, 1, epoch=2)
    assert [row.epoch for row in rows(store)] == [2]


def test_registering_anew_rescues_nothing(store: Store) -> None:
    """A first owner finds nothing to rescue."""
    assert register(store, 1, epoch=1) == 0


def test_leaving_removes_the_row(store: Store) -> None:
    """A worker that stops in good order is gone from the list."""
    register(store, 1, epoch=1)
    store.run(partial(workers.leave, slot=1, epoch=1))
    assert rows(store) == []


def test_leaving_gives_back_what_is_held(store: Store) -> None:
    """What a leaving worker did not settle is ready again at once."""
    register(store, 1, epoch=1)
    claimed = one(store)
    store.run(partial(workers.leave, slot=1, epoch=1))
    assert state(store, claimed.id) is JobState.READY


def test_a_former_owner_cannot_remove_its_successor(store: Store) -> None:
    """Leaving is guarded by the epoch."""
    register(store, 1, epoch=1)
    register(store, 1, epoch=2)
    store.run(partial(workers.leave, slot=1, epoch=1))
    assert [row.epoch for row in rows(store)] == [2]


def test_a_sign_of_life_is_written(store: Store, clock: HeldClock) -> None:
    """Seen_at follows the clock, started_at does not."""
    register(store, 1, epoch=1)
    clock.advance(seconds=7)
    assert store.run(partial(workers.seen, slot=1, epoch=1)) == ""
    (row,) = rows(store)
    assert (row.started_at, row.seen_at) == (START, START + 7 * SECOND)


def test_a_former_owner_learns_that_it_is_gone(store: Store, clock: HeldClock) -> None:
    """A sign of life under an old epoch writes nothing and says so."""
    register(store, 1, epoch=1)
    register(store, 1, epoch=2)
    clock.advance(seconds=7)
    assert not store.run(partial(workers.seen, slot=1, epoch=1))
    assert rows(store)[0].seen_at == START


def test_identities_prove_who_is_dead(store: Store) -> None:
    """What is needed to prove a death is listed, by slot."""
    register(store, 2, epoch=5)
    register(store, 1, epoch=4)
    assert store.read(workers.identities) == [
        workers.IdentityRow(1, 4, "w1", 101, 5, 6, "boot", 7, 8, START),
        workers.IdentityRow(2, 5, "w2", 102, 5, 6, "boot", 7, 8, START),
    ]


def test_a_rescue_counts_a_crash_and_no_failure(store: Store) -> None:
    """A crash leaves the retry budget alone."""
    claimed = one(store)
    assert rescue(store) == 1
    found = get(store, claimed.id)
    assert (found.state, found.attempt, found.failures, found.crashes) == (JobState.READY, 1, 0, 1)
    assert (found.lease, found.reason, found.finished_at) == (None, None, None)


def test_a_rescue_leaves_one_row_of_history(store: Store, clock: HeldClock) -> None:
    """The crashed attempt is in the history with the worker and the reason."""
    claimed = one(store)
    clock.advance(seconds=3)
    rescue(store)
    (attempt,) = get(store, claimed.id).attempts
    assert (attempt.outcome, attempt.lease, attempt.worker) == (AttemptOutcome.CRASHED, claimed.lease, "w1")
    assert attempt.message == "crash: test"
    assert (attempt.started_at, attempt.finished_at) == (to_datetime(START), to_datetime(START + 3 * SECOND))


def test_a_rescued_job_keeps_its_place(store: Store) -> None:
    """Due moment and priority stay, so it runs before what came later."""
    claimed = one(store, due_at=START - 9)
    put(store)
    rescue(store)
    assert take(store)[0].id == claimed.id


def test_only_the_dead_workers_jobs_are_rescued(store: Store) -> None:
    """Other workers' jobs and settled ones are left alone."""
    put(store, 3)
    first, second = take(store, 2, epoch=1)
    (other,) = take(store, 1, epoch=2)
    apply(store, success(first))
    assert rescue(store, 1) == 1
    states = [state(store, each.id) for each in (first, second, other)]
    assert states == [JobState.SUCCEEDED, JobState.READY, JobState.RUNNING]


def test_a_second_rescue_finds_nothing(store: Store) -> None:
    """A crash is counted once."""
    claimed = one(store)
    rescue(store)
    assert rescue(store) == 0
    assert (get(store, claimed.id).crashes, count(store, "treadle_attempts")) == (1, 1)


def test_the_crash_cap_holds_with_the_reason(store: Store) -> None:
    """At its cap the job is held, not run again, and says how often its process ended."""
    (number,) = put(store)
    for _ in range(3):
        take(store)
        rescue(store)
    found = get(store, number)
    assert (found.state, found.crashes, found.failures) == (JobState.HELD, 3, 0)
    assert found.reason is not None
    assert "crash cap" in found.reason
    assert "3 times" in found.reason
    assert len(found.attempts) == 3


def test_a_cap_of_one_is_told_in_the_singular(store: Store) -> None:
    """Where the first crash is one too many, nobody reads of "1 times"."""
    (number,) = put(store)
    store.run(partial(claim, request=request()._replace(caps='{"mail":1}')))
    rescue(store)
    assert get(store, number).reason == "crash cap: an attempt ended with its process"


def test_below_the_crash_cap_it_runs_again(store: Store) -> None:
    """One crash less than the cap is forgiven."""
    (number,) = put(store)
    for _ in range(2):
        take(store)
        rescue(store)
    assert state(store, number) is JobState.READY


def test_rescuing_the_dead_forgets_them(store: Store) -> None:
    """A dead worker's registration goes with its jobs."""
    register(store, 1, epoch=1)
    one(store)
    (row,) = store.read(workers.identities)
    assert store.run(partial(rescuing.rescue_dead, slot=1, epoch=1, worker="w1", seen_at=row.seen_at)) == 1
    assert rows(store) == []


def test_a_sign_of_life_stops_a_rescue(store: Store, clock: HeldClock) -> None:
    """A judgement that rests on an older sign of life takes nothing; nor does the second one of two."""
    register(store, 1, epoch=1)
    taken = one(store)
    (row,) = store.read(workers.identities)
    clock.advance(seconds=1)
    assert store.run(partial(workers.seen, slot=1, epoch=1)) == ""
    take = partial(rescuing.rescue_dead, slot=1, epoch=1, worker="w1")
    assert store.run(partial(take, seen_at=row.seen_at)) is None
    assert state(store, taken.id) is JobState.RUNNING
    (row,) = store.read(workers.identities)
    assert store.run(partial(take, seen_at=row.seen_at)) == 1
    assert store.run(partial(take, seen_at=row.seen_at)) is None


def test_who_was_evicted_can_be_told_from_who_was_silent(store: Store) -> None:
    """People's eviction leaves a note for the worker, a rescue leaves none."""
    register(store, 1, epoch=1)
    register(store, 2, epoch=2)
    assert store.run(partial(rescuing.evict, slot=1, epoch=1, worker="w1", why="by me")) == 0
    (row,) = store.read(workers.identities)
    assert store.run(partial(rescuing.rescue_dead, slot=2, epoch=2, worker="w2", seen_at=row.seen_at)) == 0
    assert [store.read(partial(rescuing.was_evicted, epoch=epoch)) for epoch in (1, 2)] == [True, False]


def test_orphans_are_noticed_and_taken_back(store: Store) -> None:
    """Jobs of a worker whose row was removed by hand are found and rescued, others are not."""
    register(store, 2, epoch=2)
    put(store, 2)
    (orphan,) = take(store, 1, epoch=1)
    (owned,) = take(store, 1, epoch=2)
    assert store.read(rescuing.has_orphans)
    assert store.run(rescuing.rescue_orphans) == 1
    assert not store.read(rescuing.has_orphans)
    assert [state(store, each.id) for each in (orphan, owned)] == [JobState.READY, JobState.RUNNING]


def test_a_task_nobody_knows_is_held_with_the_reason(store: Store) -> None:
    """Jobs of a task no registered worker knows are held; nothing of their budget is spent."""
    register(store, 1, epoch=1)
    strange, known = put(store, task="strange")[0], put(store)[0]
    assert unknown_waits(store)
    assert store.run(unknown.hold_unknown) == 1
    found = get(store, strange)
    assert (found.state, found.attempt, found.failures) == (JobState.HELD, 0, 0)
    assert found.reason == "unknown task: no live worker knows 'strange'; it runs once one registers"
    assert state(store, known) is JobState.READY
    assert not unknown_waits(store)


def test_a_task_any_worker_knows_is_not_held(store: Store) -> None:
    """One worker that knows it is enough."""
    register(store, 1, epoch=1)
    register(store, 2, epoch=2, tasks=("scan",))
    put(store, task="scan")
    assert store.run(unknown.hold_unknown) == 0


def test_registering_frees_what_it_knows(store: Store) -> None:
    """Held jobs of an unknown task are ready again when a worker that knows it registers."""
    register(store, 1, epoch=1)
    strange = put(store, 2, task="strange")
    store.run(unknown.hold_unknown)
    register(store, 2, epoch=2, tasks=("strange",))
    assert {state(store, number) for number in strange} == {JobState.READY}
    assert get(store, strange[0]).reason is None


def test_free_known_frees_only_known_tasks(store: Store) -> None:
    """What is still unknown, and what is held for another reason, stays held."""
    register(store, 1, epoch=1)
    known, strange = put(store, task="a")[0], put(store, task="b")[0]
    (parked,) = put(store, task="a", queue="other")
    change(store, "UPDATE treadle_jobs SET state = 6, reason = 'by hand' WHERE id = ?", parked)
    store.run(unknown.hold_unknown)
    assert store.run(partial(unknown.free_known, tasks=("a",))) == 1
    states = [state(store, number) for number in (known, strange, parked)]
    assert states == [JobState.READY, JobState.HELD, JobState.HELD]


@pytest.mark.parametrize("name", ["qu'ote", "percent%", "star*", "[x]", "日本"])
def test_any_task_name_is_held_and_freed(store: Store, name: str) -> None:
    """Odd letters in task names match only themselves."""
    register(store, 1, epoch=1)
    (number,) = put(store, task=name)
    store.run(unknown.hold_unknown)
    assert state(store, number) is JobState.HELD
    assert store.run(partial(unknown.free_known, tasks=(name,))) == 1


# --- evicting ----------------------------------------------------------------------------------------


def evict(store: Store, epoch: int, begun: tuple[int, ...] | None = None) -> int | None:
    """Take the jobs of slot 1's worker away."""
    return store.run(partial(rescuing.evict, slot=1, epoch=epoch, worker="w1", why="by me", begun=begun))


def test_an_evicted_worker_takes_nothing_back(store: Store) -> None:
    """Its claims bring nothing, whatever is ready; those of its successor do."""
    register(store, epoch=1)
    claimed = one(store)
    assert evict(store, 1) == 1
    for epoch, expected in ((1, []), (2, [claimed.id])):
        if epoch == 2:
            register(store, epoch=2)
        found = store.run(partial(claim, request=request(epoch=epoch)._replace(slot=1)))
        assert [each.id for each in found.jobs] == expected
    assert get(store, claimed.id).attempt == 2


def test_an_eviction_charges_what_had_begun(store: Store) -> None:
    """Attempts that stall every worker come to their cap; what was only claimed goes back as if never taken."""
    register(store, epoch=1)
    begun, claimed = one(store), one(store)
    assert evict(store, 1, begun=(begun.lease,)) == 2
    assert [get(store, each.id).crashes for each in (begun, claimed)] == [1, 0]
    (lost,) = get(store, begun.id).attempts
    assert (lost.outcome, lost.worker, lost.message) == (AttemptOutcome.CRASHED, "w1", "evicted: by me")
    assert get(store, claimed.id).attempts == ()


def test_an_eviction_of_who_is_gone_changes_nothing(store: Store) -> None:
    """Its slot may be somebody else's by then."""
    register(store, epoch=1)
    register(store, epoch=2)
    claimed = store.run(partial(claim, request=request(epoch=2)._replace(slot=1)))
    assert claimed.jobs == []
    assert evict(store, 1) is None
    assert [row.epoch for row in store.read(workers.every)] == [2]


def test_orders_are_for_one_registration(store: Store) -> None:
    """A successor in the same slot has none; a worker that is not there any more cannot be told."""
    register(store, epoch=1)
    assert store.run(partial(workers.order, slot=1, epoch=1, orders="drain", by="me"))
    assert store.read(partial(workers.orders_of, slot=1, epoch=1)) == "drain"
    register(store, epoch=2)
    assert store.read(partial(workers.orders_of, slot=1, epoch=1)) is None
    assert store.read(partial(workers.orders_of, slot=1, epoch=2)) == ""
    assert not store.run(partial(workers.order, slot=1, epoch=1, orders="drain", by="me"))
