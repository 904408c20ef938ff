"""What races on PostgreSQL only: two transactions at once, one of them stopped before its commit.

Who has to wait is seen to wait by the server before the first is let go; who need not, ends before it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import psycopg
import pytest

import postgres
from store.making import (
    PATIENCE,
    SECOND,
    START,
    apply,
    change,
    count,
    failure,
    get,
    job,
    one,
    put,
    register,
    registration,
    request,
    success,
    take,
)
from treadle.clock import HeldClock
from treadle.errors import JobNotFound, JobStateError, QueueFull
from treadle.host.failpoints import Stall, arm, disarm, recording
from treadle.model.job import Claimed, JobState, LogLine
from treadle.store.ops import change as changing
from treadle.store.ops import find, logs, meta, pauses, prune, rescue, settle, unknown, workers
from treadle.store.ops.claim import claim
from treadle.store.options import StoreOptions
from treadle.store.session import Session
from treadle.store.store import Store
from treadle.store.work import Insert
from worker.kit import eventually

WAITING = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
Operation = Callable[[Session], Any]


@pytest.fixture
def server() -> Iterator[str]:
    """A database on PostgreSQL."""
    with postgres.database() as made:
        yield made


class Race:
    """Two stores on one database, and a connection that looks on."""

    def __init__(self, url: str) -> None:
        self.clock = HeldClock(START)
        self.store, self.other = (Store(url, StoreOptions(durability="off"), self.clock) for _ in range(2))
        self.looking = psycopg.connect(url, autocommit=True)
        self.pool = ThreadPoolExecutor(4)

    def waiting(self) -> int:
        """How many sessions wait for a lock."""
        found = self.looking.execute(WAITING).fetchone()
        return found[0] if found else 0

    def run(self, first: Operation, second: Operation, *, waits: bool) -> tuple[Any, Any]:
        """Run *second* while *first* is about to commit; what each came to, an error too, is returned."""
        stall = Stall()
        arm(stall, "*.before_commit")
        ahead = self.pool.submit(self.store.run, first)
        assert stall.reached.wait(PATIENCE)
        behind = self.pool.submit(self.other.run, second)
        try:
            if waits:
                eventually(lambda: self.waiting() or behind.done())
                assert not behind.done(), "the second did not wait"
            else:
                _outcome(behind)
        finally:
            stall.release()
        return _outcome(ahead), _outcome(behind)

    def close(self) -> None:
        """End everything."""
        self.pool.shutdown()
        self.looking.close()
        self.store.close()
        self.other.close()


@pytest.fixture
def race(server: str) -> Iterator[Race]:
    """Two stores on one database."""
    made = Race(server)
    yield made
    disarm()
    made.close()


def _outcome(future: Future[Any]) -> Any:
    error = future.exception(PATIENCE)
    return future.result() if error is None else error


def taking(most: int, epoch: int = 1) -> Operation:
    """A claim."""
    return partial(claim, request=request(most, epoch=epoch))


def settling(*transitions: Any) -> Operation:
    """A settle, and the leases it finds lost."""
    return lambda session: settle.apply(session, transitions, "w1").lost


def cancelling(number: int) -> Operation:
    """A cancel."""
    return partial(changing.apply_one, change=changing.cancel("no more"), job_id=number)


def outcomes(race: Race, number: int) -> list[str]:
    """The history of a job."""
    return [str(attempt.outcome) for attempt in get(race.store, number).attempts]


# Claims ------------------------------------------------------------------------------------------------------------


def test_two_claims_share_the_jobs_without_waiting(race: Race) -> None:
    """Each job goes to one of two claims at once, and none waits for the other."""
    numbers = put(race.store, 10)
    first, second = race.run(taking(5), taking(10, epoch=2), waits=False)
    assert [one.id for one in (*first.jobs, *second.jobs)] == numbers
    assert len(second.jobs) == 5
    assert len({one.lease for one in (*first.jobs, *second.jobs)}) == 10


def test_two_claims_promote_different_jobs(race: Race) -> None:
    """What is due is promoted by one of two claims; the other passes it over."""
    number, *_ = put(race.store, delay=SECOND)
    race.clock.advance(seconds=2)
    first, second = race.run(taking(5), taking(5, epoch=2), waits=False)
    assert [one.id for one in first.jobs] == [number]
    assert second.jobs == []
    assert get(race.store, number).attempt == 1


def test_many_claims_at_once_take_each_job_once(race: Race) -> None:
    """Four threads on two stores empty a queue: every job is claimed once."""
    numbers, start = put(race.store, 400), threading.Barrier(4)

    def drain(store: Store, epoch: int) -> list[int]:
        start.wait(PATIENCE)
        found: list[int] = []
        while jobs := store.run(taking(7, epoch)).jobs:
            found += [one.id for one in jobs]
        return found

    parts = [race.pool.submit(drain, (race.store, race.other)[epoch % 2], epoch) for epoch in range(4)]
    assert sorted(number for part in parts for number in part.result(PATIENCE)) == numbers


def test_a_cancel_finds_the_job_that_a_claim_has_just_taken(race: Race) -> None:
    """Cancelled while its claim commits: the attempt is asked to stop, and nobody's word is lost."""
    (number,) = put(race.store)
    first, second = race.run(taking(1), cancelling(number), waits=True)
    assert len(first.jobs) == 1
    assert second == 1
    assert get(race.store, number).cancel_reason == "no more"
    assert get(race.store, number).state is JobState.RUNNING


def test_a_claim_passes_over_a_job_that_is_being_cancelled(race: Race) -> None:
    """A cancel that is about to commit keeps claims away from its job."""
    (number,) = put(race.store)
    first, second = race.run(cancelling(number), taking(1), waits=False)
    assert first == 1
    assert second.jobs == []
    assert get(race.store, number).state is JobState.CANCELLED


def test_an_eviction_finds_what_a_claim_of_that_worker_takes(race: Race) -> None:
    """Evicted while it claims: its jobs are taken back at once, not left under a registration that is gone."""
    (number,) = put(race.store)
    register(race.store, 1, epoch=1)
    wanted = request(1)._replace(slot=1)
    evicting = partial(rescue.evict, slot=1, epoch=1, worker="w1", why="stalls")
    first, second = race.run(partial(claim, request=wanted), evicting, waits=True)
    assert len(first.jobs) == 1
    assert second == 1
    assert get(race.store, number).state is JobState.READY


def test_who_is_being_evicted_claims_nothing(race: Race) -> None:
    """A claim that comes while its worker is evicted takes no job."""
    (number,) = put(race.store)
    register(race.store, 1, epoch=1)
    wanted = request(1)._replace(slot=1)
    evicting = partial(rescue.evict, slot=1, epoch=1, worker="w1", why="stalls")
    _, second = race.run(evicting, partial(claim, request=wanted), waits=True)
    assert second.jobs == []
    assert get(race.store, number).attempt == 0


class Interrupted:
    """A session during whose first read something else happens."""

    def __init__(self, session: Session, meanwhile: Callable[[], None]) -> None:
        self._session = session
        self._meanwhile: Callable[[], None] | None = meanwhile

    def row(self, *words: Any) -> Any:
        found = self._session.row(*words)
        meanwhile, self._meanwhile = self._meanwhile, None
        if meanwhile is not None:
            meanwhile()
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)


@pytest.mark.parametrize(("kind", "name"), [("queue", "default"), ("task", "mail")])
def test_what_is_enqueued_after_a_pause_is_not_taken(race: Race, kind: str, name: str) -> None:
    """Not even by a claim that had begun before the pause was stored."""
    register(race.store, 1, epoch=1)

    def paused() -> None:
        race.other.run(partial(pauses.pause, kind=kind, name=name, by="ada", reason="enough"))
        put(race.other)

    wanted = request(1)._replace(slot=1)
    found = race.store.run(lambda session: claim(Interrupted(session, paused), wanted))  # type: ignore[arg-type]
    assert found.jobs == []
    race.store.run(partial(pauses.resume, kind=kind, name=name))
    assert len(race.store.run(partial(claim, request=wanted)).jobs) == 1


def test_a_worker_that_leaves_gives_back_what_its_claim_takes(race: Race) -> None:
    """Leaving while a claim commits: the job is ready again."""
    (number,) = put(race.store)
    register(race.store, 1, epoch=1)
    wanted = request(1)._replace(slot=1)
    race.run(partial(claim, request=wanted), partial(workers.leave, slot=1, epoch=1, begun=()), waits=True)
    assert get(race.store, number).state is JobState.READY
    assert outcomes(race, number) == []


def test_a_sign_of_life_does_not_wait_for_a_claim(race: Race) -> None:
    """However long a claim takes, its worker can say that it lives."""
    put(race.store)
    register(race.store, 1, epoch=1)
    wanted = request(1)._replace(slot=1)
    first, second = race.run(partial(claim, request=wanted), partial(workers.seen, slot=1, epoch=1), waits=False)
    assert len(first.jobs) == 1
    assert second == ""


# Unknown tasks -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "knowing",
    [
        partial(workers.register, who=registration(2, ("new",)), epoch=2),
        partial(workers.learn, slot=1, epoch=1, tasks=("mail", "new")),
    ],
    ids=["register", "learn"],
)
def test_who_comes_while_its_task_is_held_frees_it(race: Race, knowing: Operation) -> None:
    """Held for want of a worker that knows it, while such a worker registers, or one learns it: ready all the same."""
    (number,) = put(race.store, task="new")
    register(race.store, 1, epoch=1)
    held, _ = race.run(unknown.hold_unknown, knowing, waits=True)
    assert held == 1
    assert get(race.store, number).state is JobState.READY


def test_a_task_that_is_being_learned_is_not_held(race: Race) -> None:
    """Whoever looks for unknown tasks waits for a worker that is about to know one."""
    (number,) = put(race.store, task="new")
    register(race.store, 1, epoch=1)
    learning = partial(workers.learn, slot=1, epoch=1, tasks=("mail", "new"))
    _, held = race.run(learning, unknown.hold_unknown, waits=True)
    assert held == 0
    assert get(race.store, number).state is JobState.READY


# Settles -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def claimed(race: Race) -> Claimed:
    """A job that runs, of a registered worker."""
    register(race.store, 1, epoch=1)
    return one(race.store)


def taking_back(race: Race) -> list[Operation]:
    """The ways to take a job from its worker."""
    seen_at = race.store.read(workers.identities)[0].seen_at
    return [
        partial(rescue.rescue_dead, slot=1, epoch=1, worker="w1", seen_at=seen_at),
        partial(rescue.evict, slot=1, epoch=1, worker="w1", why="stalls"),
        partial(workers.register, who=registration(1), epoch=9),
    ]


def test_a_cancel_comes_too_late_for_a_success(race: Race, claimed: Claimed) -> None:
    """A cancel that waits for a settle hears that the job has ended."""
    first, second = race.run(settling(success(claimed)), cancelling(claimed.id), waits=True)
    assert first == []
    assert isinstance(second, JobStateError)
    assert get(race.store, claimed.id).state is JobState.SUCCEEDED


def test_a_lease_that_was_given_again_settles_no_other_job(race: Race, claimed: Claimed) -> None:
    """As after a standby that lagged took over: the outcome of the first owner is refused, others are stored."""
    put(race.store, 2)
    again, neighbour = race.store.run(taking(2, epoch=1)).jobs
    stale = success(claimed)._replace(lease=again.lease)
    assert race.store.run(settling(stale, success(neighbour))) == [again.lease]
    assert get(race.store, again.id).state is JobState.RUNNING
    assert get(race.store, neighbour.id).state is JobState.SUCCEEDED
    assert race.store.run(settling(success(again))) == []


def test_a_failure_that_waits_for_a_cancel_is_called_off(race: Race, claimed: Claimed) -> None:
    """A settle judges by the cancel that it waited for: no retry follows."""
    first, second = race.run(cancelling(claimed.id), settling(failure(claimed)), waits=True)
    assert (first, second) == (1, [])
    assert get(race.store, claimed.id).state is JobState.CANCELLED
    assert outcomes(race, claimed.id) == ["failed"]


@pytest.mark.parametrize("way", range(3), ids=["rescue", "evict", "register"])
def test_a_settled_job_is_not_taken_back(race: Race, claimed: Claimed, way: int) -> None:
    """Who takes back waits for the settle, and finds nothing to take."""
    first, _ = race.run(settling(success(claimed)), taking_back(race)[way], waits=True)
    assert first == []
    assert get(race.store, claimed.id).state is JobState.SUCCEEDED
    assert outcomes(race, claimed.id) == ["succeeded"]


@pytest.mark.parametrize("way", range(3), ids=["rescue", "evict", "register"])
def test_an_outcome_that_waits_for_a_rescue_is_refused(race: Race, claimed: Claimed, way: int) -> None:
    """The lease is gone when the settle gets its turn; the history has one row."""
    first, second = race.run(taking_back(race)[way], settling(success(claimed)), waits=True)
    assert first == 1
    assert second == [claimed.lease]
    assert get(race.store, claimed.id).state is JobState.READY
    assert outcomes(race, claimed.id) == ["crashed"]


def test_one_of_two_rescuers_takes_the_jobs(race: Race, claimed: Claimed) -> None:
    """The second hears that somebody was faster, and nothing is charged twice."""
    dead = taking_back(race)[0]
    first, second = race.run(dead, dead, waits=True)
    assert (first, second) == (1, None)
    assert get(race.store, claimed.id).crashes == 1


# Queues with a cap, history, tables --------------------------------------------------------------------------------


def inserting(race: Race, *queues: str) -> Operation:
    """An insert of one job for each queue."""
    jobs = [job(queue=queue) for queue in queues]
    return Insert(jobs, race.store._ids.take(len(jobs)))


def cap(store: Store, *queues: str, most: int) -> None:
    """Give queues a cap."""
    for queue in queues:
        store.run(partial(meta.declare_queue, name=queue, max_length=most, when_full="refuse"))


def test_two_producers_do_not_exceed_a_cap(race: Race) -> None:
    """Who waits for the other's turn counts the other's jobs."""
    cap(race.store, "small", most=3)
    first, second = race.run(
        inserting(race, "small", "small"), inserting(race, "small", "small"), waits=True
    )
    assert len(first) == 2
    assert isinstance(second, QueueFull)
    assert count(race.store, "treadle_jobs") == 2


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
def test_a_stricter_database_does_not_exceed_a_cap_either(server: str, isolation: str) -> None:
    """Treadle's transactions are READ COMMITTED whatever the default: statements see what they waited for."""
    with psycopg.connect(server, autocommit=True) as admin:
        admin.execute(f"ALTER DATABASE {admin.info.dbname} SET default_transaction_isolation = '{isolation}'")
    race = Race(server)
    try:
        test_two_producers_do_not_exceed_a_cap(race)
    finally:
        disarm()
        race.close()


def test_producers_of_two_capped_queues_meet_in_one_order(race: Race) -> None:
    """Batches that name the same queues in opposite orders wait for each other, and both are stored."""
    cap(race.store, "a", "b", most=10)
    first, second = race.run(inserting(race, "a", "b"), inserting(race, "b", "a"), waits=True)
    assert len(first) == len(second) == 2


def test_many_producers_fill_a_queue_exactly(race: Race) -> None:
    """Four threads push into a capped queue: it is full in the end and was never fuller."""
    cap(race.store, "small", most=25)
    start = threading.Barrier(4)

    def push(store: Store) -> int:
        start.wait(PATIENCE)
        for stored in range(26):
            try:
                store.insert([job(queue="small")])
            except QueueFull:
                return stored
        raise AssertionError("the queue took more than its cap")

    parts = [race.pool.submit(push, store) for store in (race.store, race.other) * 2]
    assert sum(part.result(PATIENCE) for part in parts) == count(race.store, "treadle_jobs") == 25


def failed(race: Race) -> int:
    """A job that has failed."""
    claimed = one(race.store)
    apply(race.store, failure(claimed, state=JobState.FAILED, due_at=None))
    race.clock.advance(seconds=10)
    return claimed.id


def pruning(race: Race) -> Operation:
    """Delete every failed job."""
    return partial(prune.prune, state=JobState.FAILED, before=race.clock.now(), most=10)


def test_a_retry_of_a_job_that_is_being_pruned_hears_that_it_is_gone(race: Race) -> None:
    """A retry that waits for the deletion says that there is no such job."""
    number = failed(race)
    again = partial(changing.apply_one, change=changing.retry(), job_id=number)
    first, second = race.run(pruning(race), again, waits=True)
    assert first == 1
    assert isinstance(second, JobNotFound)
    assert count(race.store, "treadle_attempts") == 0


def test_pruning_passes_over_a_job_that_is_being_retried(race: Race) -> None:
    """A job that somebody has just brought back stays, with its history."""
    number = failed(race)
    again = partial(changing.apply_one, change=changing.retry(), job_id=number)
    first, second = race.run(again, pruning(race), waits=False)
    assert (first, second) == (1, 0)
    assert get(race.store, number).state is JobState.READY
    assert outcomes(race, number) == ["failed"]


def test_many_processes_may_make_the_tables_at_once() -> None:
    """Four stores opened together on an empty database: the tables are made once, and each store works."""
    with postgres.database(empty=True) as url, ThreadPoolExecutor(4) as pool:
        start = threading.Barrier(4)

        def begin(_: int) -> tuple[list[int], int]:
            start.wait(PATIENCE)
            store = Store(url)
            try:
                return put(store), count(store, "treadle_migrations")
            finally:
                store.close()

        found = list(pool.map(begin, range(4)))
    assert len({number for numbers, _ in found for number in numbers}) == 4
    assert len({versions for _, versions in found}) == 1


# Readers in commit order -------------------------------------------------------------------------------------------


def followed(race: Race, read: Callable[[Store, int], list[int]], write: Callable[[Claimed], Operation]) -> None:
    """Two writers, the first to begin being the last to commit; a reader follows and misses nothing."""
    put(race.store, 2)
    slow, quick = take(race.store)
    stall = Stall()
    arm(stall, "*.before_commit")
    ahead = race.pool.submit(race.store.run, write(slow))
    assert stall.reached.wait(PATIENCE)
    try:
        race.other.run(write(quick))
        seen = read(race.other, 0)
    finally:
        stall.release()
    ahead.result(PATIENCE)
    while news := read(race.other, seen[-1] if seen else 0):
        seen += news
    assert len(seen) == 2
    assert seen == sorted(seen)


def test_the_stream_misses_no_attempt(race: Race) -> None:
    """An attempt that is stored late comes before those stored after it, and is not skipped."""

    def read(store: Store, after: int) -> list[int]:
        return [one.seq for one in store.read(partial(find.settled, after=after, most=10))]

    followed(race, read, lambda claimed: settling(success(claimed)))


def test_the_logs_miss_no_line(race: Race) -> None:
    """The same for lines of log."""

    def read(store: Store, after: int) -> list[int]:
        return [one.seq for one in store.read(partial(logs.read, job_id=None, after=after, most=10))]

    def write(claimed: Claimed) -> Operation:
        return partial(logs.write, lines=[(claimed.lease, [LogLine(START, 20, "job", "hello")])])

    followed(race, read, write)


# Undone by the server ----------------------------------------------------------------------------------------------


def test_a_deadlock_runs_the_whole_unit_again(race: Race, server: str) -> None:
    """Locked in the opposite order by a stranger: our transaction is undone, run again as a whole, and stored once."""
    first, second = put(race.store, 2)
    lock = "SELECT 1 FROM treadle.treadle_jobs WHERE id = %s FOR UPDATE"

    def noted(session: Session) -> int:
        session.change("UPDATE treadle_jobs SET attempt = attempt + 1 WHERE id = ?", (first,))
        return session.change("UPDATE treadle_jobs SET attempt = attempt + 1 WHERE id = ?", (second,))

    with psycopg.connect(server) as stranger, recording() as points:
        stranger.execute("SET deadlock_timeout = '60s'")  # so that ours is the one that is chosen
        stranger.execute(lock, (second,))
        ours = race.pool.submit(race.store.run, noted)
        eventually(race.waiting)
        stranger.execute(lock, (first,))
        stranger.commit()
        assert ours.result(PATIENCE) == 1
    assert len([point for point in points if point.endswith("before_begin")]) == 2
    assert [get(race.store, number).attempt for number in (first, second)] == [1, 1]


def test_a_serialization_failure_runs_the_whole_unit_again(race: Race) -> None:
    """40001 of any statement: nothing of the first run is left."""
    runs: list[int] = []

    def unlucky(session: Session) -> int:
        runs.append(session.change("INSERT INTO treadle_meta (name, value) VALUES ('unlucky', 'x')"))
        if len(runs) < 3:
            session.rows("DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '40001'; END $$")
        return len(runs)

    assert race.store.run(unlucky) == 3
    assert change(race.store, "DELETE FROM treadle_meta WHERE name = 'unlucky'") == 1


def test_two_batches_in_opposite_orders_end_well(race: Race) -> None:
    """Settles and cancels of the same jobs in opposite orders, many at once: no caller hears of a deadlock."""
    put(race.store, 60)
    claimed, start = take(race.store), threading.Barrier(4)

    def settle_all(store: Store, jobs: list[Claimed]) -> list[int]:
        start.wait(PATIENCE)
        return store.run(settling(*(success(one) for one in jobs)))

    def cancel_all(store: Store, ids: list[int]) -> int:
        start.wait(PATIENCE)
        return store.run(partial(changing.apply, change=changing.cancel("no more"), ids=ids))

    ids = [one.id for one in claimed]
    parts: list[Future[Any]] = [
        race.pool.submit(settle_all, race.store, claimed), race.pool.submit(settle_all, race.other, claimed[::-1]),
        race.pool.submit(cancel_all, race.store, ids), race.pool.submit(cancel_all, race.other, ids[::-1]),
    ]  # fmt: skip
    lost = [part.result(PATIENCE) for part in parts]
    assert sorted(map(len, lost[:2])) == [0, 60]
    assert count(race.store, "treadle_attempts") == 60
