"""What people may do to jobs by id: legal in the states each change names, guarded, counted."""

from __future__ import annotations

from functools import partial

import pytest

from store.making import SECOND, START, apply, failure, get, moved, one, put, state, success, take
from store.making import change as sql
from treadle.errors import JobNotFound, JobStateError
from treadle.model.job import AttemptOutcome, JobFilter, JobState
from treadle.model.settle import MOVES
from treadle.store.ops import change, find, pauses, settle, workers
from treadle.store.ops import rescue as rescuing
from treadle.store.ops.change import Arguments, Change
from treadle.store.store import Store

S = JobState
CHANGES = {
    "retry": change.retry(), "cancel": change.cancel("not wanted"), "reschedule": change.reschedule(START + SECOND),
    "set_priority": change.set_priority(7), "move": change.move("other"), "delete": change.delete(),
}  # fmt: skip


def make(store: Store, what: Change, *ids: int) -> int:
    """Make a change to jobs."""
    return store.run(partial(change.apply, change=what, ids=ids))


def job_in(store: Store, wanted: JobState) -> int:
    """A job in a state, as the table allows it."""
    if wanted is S.RUNNING:
        return one(store).id
    (number,) = put(store)
    sql(store, "UPDATE treadle_jobs SET state = ?, reason = 'x' WHERE id = ?", wanted.code, number)
    return number


@pytest.mark.parametrize("wanted", list(S))
@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_made_exactly_where_it_is_legal(store: Store, name: str, wanted: JobState) -> None:
    """In every other state nothing is changed, and for one job the refusal names its state."""
    number, what = job_in(store, wanted), CHANGES[name]
    before = get(store, number)
    if wanted in what.states:
        assert make(store, what, number) == 1
        return
    with pytest.raises(JobStateError, match=f"Job {number} is {wanted}"):
        store.run(partial(change.apply_one, change=what, job_id=number))
    assert make(store, what, number) == 0
    assert get(store, number) == before


@pytest.mark.parametrize(("name", "after"), [("retry", S.READY), ("cancel", S.CANCELLED)])
def test_states_of_changes_are_those_the_table_allows(name: str, after: JobState) -> None:
    """No change makes a move that is not in the one table of moves; a running job is only asked."""
    assert all(after in MOVES[before] for before in CHANGES[name].states - {S.RUNNING})


@pytest.mark.parametrize("name", CHANGES)
def test_a_job_that_is_not_there_is_said_to_be_unknown(store: Store, name: str) -> None:
    """One id that means nothing is an error, among many it is passed over."""
    with pytest.raises(JobNotFound, match="no job 99"):
        store.run(partial(change.apply_one, change=CHANGES[name], job_id=99))
    assert make(store, CHANGES[name], 99, 100) == 0


def test_many_jobs_are_changed_where_it_is_legal(store: Store) -> None:
    """Of a list of ids those in other states are left alone, and only the others are counted."""
    running, waiting = one(store), put(store, 3)
    assert make(store, change.set_priority(5), *waiting, running.id, 99) == 4
    assert make(store, change.move("other"), *waiting, running.id) == 3
    assert {get(store, number).queue for number in waiting} == {"other"}
    assert get(store, running.id).queue == "default"


def test_reschedule_moves_between_scheduled_and_ready(store: Store) -> None:
    """A moment that has passed makes the job ready, a later one schedules it; a delay counts from now."""
    (number,) = put(store, delay=60 * SECOND)
    make(store, change.reschedule(due_at=START - 1), number)
    assert state(store, number) is S.READY
    make(store, change.reschedule(delay=5 * SECOND), number)
    found = get(store, number)
    assert (found.state, (found.due_at - found.enqueued_at).total_seconds()) == (S.SCHEDULED, 5)


def test_a_retry_takes_other_arguments(store: Store) -> None:
    """The next attempt gets them; the history of the earlier ones stays."""
    claimed = one(store, data=b'{"n":1}')
    apply(store, moved(claimed, S.FAILED, AttemptOutcome.FAILED, failed=1, reason="no"))
    store.run(partial(change.apply_one, change=change.retry(Arguments("json", b'{"n":2}', 3)), job_id=claimed.id))
    (again,) = take(store)
    assert (again.id, again.data, again.version, again.failures) == (claimed.id, b'{"n":2}', 3, 0)
    assert len(get(store, claimed.id).attempts) == 1


# --- cancelling what runs ----------------------------------------------------------------------------


def test_a_running_job_is_asked_to_stop(store: Store) -> None:
    """It goes on until its attempt ends; its worker finds the wish under its registration."""
    claimed = one(store)
    make(store, change.cancel("not wanted"), claimed.id)
    make(store, change.cancel("me too"), claimed.id)
    assert (state(store, claimed.id), get(store, claimed.id).cancel_reason) == (S.RUNNING, "not wanted")
    assert store.read(partial(workers.cancelled, epoch=1)) == {claimed.lease: "not wanted"}
    assert store.read(partial(workers.cancelled, epoch=2)) == {}


def test_a_success_counts_although_it_was_called_off(store: Store) -> None:
    """What was done is done."""
    claimed = one(store)
    make(store, change.cancel("not wanted"), claimed.id)
    apply(store, success(claimed))
    assert state(store, claimed.id) is S.SUCCEEDED


def test_a_failure_is_not_tried_again_after_it_was_called_off(store: Store) -> None:
    """The worker had decided on a retry before it heard of the wish: the wish wins, the error stays in the history."""
    claimed = one(store)
    make(store, change.cancel("not wanted"), claimed.id)
    apply(store, failure(claimed))
    found = get(store, claimed.id)
    assert (found.state, found.reason, found.cancel_reason) == (S.CANCELLED, "not wanted", None)
    assert [(each.outcome, each.error_type) for each in found.attempts] == [(AttemptOutcome.FAILED, "ValueError")]


@pytest.mark.parametrize("begun", [None, ()])
def test_a_rescue_does_not_forget_the_wish(store: Store, begun: tuple[int, ...] | None) -> None:
    """A job that was called off is not run again because its worker died before it heard of it."""
    claimed = one(store)
    make(store, change.cancel("not wanted"), claimed.id)
    store.run(partial(rescuing.rescue, epoch=1, worker="w", why="crash: test", begun=begun))
    assert (get(store, claimed.id).state, get(store, claimed.id).reason) == (S.CANCELLED, "not wanted")


def test_a_lease_that_goes_back_does_not_forget_the_wish(store: Store) -> None:
    """Neither does one that was claimed ahead and returned."""
    claimed = one(store)
    make(store, change.cancel("not wanted"), claimed.id)
    store.run(partial(settle.release, leases=[claimed.lease], epoch=1))
    assert state(store, claimed.id) is S.CANCELLED


def test_a_later_attempt_knows_nothing_of_an_old_wish(store: Store) -> None:
    """A person who retries a cancelled job means it."""
    claimed = one(store)
    make(store, change.cancel("not wanted"), claimed.id)
    apply(store, failure(claimed))
    make(store, change.retry(), claimed.id)
    (again,) = take(store)
    assert get(store, again.id).cancel_reason is None


# --- taking out ---------------------------------------------------------------------------------------


def test_take_out_deletes_what_is_as_expected(store: Store) -> None:
    """With other arguments than those that were read, or once it has begun, the job stays."""
    (number,) = put(store, data=b'{"n":1}')
    taken_out = partial(change.take_out, job_id=number)
    assert not store.run(partial(taken_out, expected=Arguments("json", b'{"n":2}')))
    assert store.run(partial(taken_out, expected=Arguments("json", b'{"n":1}')))
    assert store.read(partial(find.get, job_id=number)) is None
    running = one(store, data=b"{}")
    assert not store.run(partial(change.take_out, job_id=running.id, expected=Arguments("json", b"{}")))


# --- ids by filter -------------------------------------------------------------------------------------


def test_ids_are_found_in_slices_oldest_first(store: Store) -> None:
    """Jobs that came after the first look are not among them."""
    numbers = put(store, 5)
    newest = store.read(find.newest_id)
    put(store, 2)
    ids = partial(find.ids, which=JobFilter(queue="default"), states=[S.READY], newest=newest, most=2)
    assert store.read(partial(ids, after=0)) == numbers[:2]
    assert store.read(partial(ids, after=numbers[3])) == numbers[4:]
    assert store.read(partial(ids, after=numbers[4])) == []


def test_a_filter_and_a_change_have_no_state_in_common(store: Store) -> None:
    """Then nothing is meant, and not everything."""
    put(store)
    which = JobFilter(states=(S.READY,))
    assert store.read(partial(find.ids, which=which, states=[S.FAILED], after=0, newest=99, most=9)) == []
    assert store.read(partial(find.count, which=which, states=[S.FAILED])) == 0
    assert store.read(partial(find.count, which=which, states=list(S))) == 1


def test_jobs_are_found_by_the_errors_of_their_attempts(store: Store) -> None:
    """The class as the history shows it, of any attempt."""
    claimed, _ = one(store), put(store)
    apply(store, failure(claimed, error_type="smtplib.SMTPServerDisconnected"))
    which = JobFilter(error="smtplib.SMTPServerDisconnected")
    assert [job.id for job in store.read(partial(find.find, which=which, before=None, most=9)).jobs] == [claimed.id]


# --- pauses --------------------------------------------------------------------------------------------


def pause(store: Store, kind: str, name: str, until: int | None = None) -> None:
    """Pause a queue or task."""
    store.run(partial(pauses.pause, kind=kind, name=name, by="me@here", reason="fire drill", until=until))


def test_a_paused_queue_gives_no_jobs(store: Store) -> None:
    """Others do; resumed, it gives again."""
    paused, other = put(store, queue="mail")[0], put(store)[0]
    pause(store, "queue", "mail")
    assert [each.id for each in take(store, queues=("mail", "default"))] == [other]
    assert take(store, queues=None) == []
    assert store.run(partial(pauses.resume, kind="queue", name="mail"))
    assert [each.id for each in take(store, queues=None)] == [paused]
    assert not store.run(partial(pauses.resume, kind="queue", name="mail"))


def test_jobs_of_a_paused_task_are_parked_with_the_reason(store: Store) -> None:
    """They are blocked and say who paused the task; jobs of other tasks in their queue run."""
    parked, other = put(store, 2), put(store, task="scan")[0]
    pause(store, "task", "mail")
    assert {get(store, number).state for number in parked} == {S.BLOCKED}
    assert get(store, parked[0]).reason == "task paused by me@here: fire drill"
    assert [each.id for each in take(store, tasks=("mail", "scan"))] == [other]
    store.run(partial(pauses.resume, kind="task", name="mail"))
    assert [each.id for each in take(store, tasks=("mail", "scan"))] == parked
    assert get(store, parked[0]).reason is None


def test_what_comes_for_a_paused_task_is_not_started(store: Store) -> None:
    """A claim leaves it alone at once; upkeep parks it."""
    pause(store, "task", "mail")
    (number,) = put(store)
    assert take(store, tasks=("mail", "scan")) == []
    assert state(store, number) is S.READY
    assert store.read(lambda session: pauses.has_work(session, [("default", "mail")]))
    assert store.run(pauses.look_after) == 1
    assert state(store, number) is S.BLOCKED


def test_a_pause_ends_by_itself(store: Store, clock: object) -> None:
    """Past its moment it counts no more, and upkeep frees what it parked."""
    (number,) = put(store)
    pause(store, "task", "mail", until=START + 60 * SECOND)
    assert state(store, number) is S.BLOCKED
    clock.advance(seconds=61)  # type: ignore[attr-defined]
    assert store.read(lambda session: pauses.has_work(session, []))
    store.run(pauses.look_after)
    assert store.read(pauses.every) == ()
    assert [each.id for each in take(store)] == [number]


def test_pauses_are_shown_with_who_and_why(store: Store) -> None:
    """The last word about one queue counts."""
    pause(store, "queue", "mail")
    store.run(partial(pauses.pause, kind="queue", name="mail", by="you@there", reason="again"))
    (found,) = store.read(pauses.every)
    assert (found.kind, found.name, found.paused_by, found.reason, found.until) == (
        "queue", "mail", "you@there", "again", None,
    )  # fmt: skip
