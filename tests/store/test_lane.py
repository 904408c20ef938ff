"""The lane: one transaction at a time, everybody answered."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for

import pytest

from store.making import PATIENCE, SHORT, change, count, job, note, notes, put, refuse
from treadle.errors import StoreBusy, StoreClosed, StoreError
from treadle.store.options import StoreOptions
from treadle.store.replies import LoopReply, deliver
from treadle.store.session import Session
from treadle.store.store import Store
from worker.kit import eventually


class Stopper:
    """An operation that keeps the lane in its transaction until it is let go."""

    def __init__(self) -> None:
        self.inside = threading.Event()
        self.go = threading.Event()

    def __call__(self, session: Session) -> None:
        self.inside.set()
        assert self.go.wait(PATIENCE)


@pytest.fixture
def impatient(url: str) -> Iterator[Store]:
    """A store of each kind that waits for a lock for a moment only."""
    opened = Store(url, StoreOptions(durability="normal", lock_timeout=SHORT))
    yield opened
    opened.close()


@pytest.fixture
def stopper(store: Store) -> Iterator[Stopper]:
    """The lane of *store*, stopped inside a transaction."""
    held = Stopper()
    future = store.submit(held)
    assert held.inside.wait(PATIENCE)
    yield held
    held.go.set()
    future.result(PATIENCE)


@pytest.mark.sqlite
def test_operations_commit_in_the_order_submitted(store: Store, stopper: Stopper) -> None:
    """First come, first stored."""
    futures = [store.submit(note(str(place))) for place in range(700)]
    stopper.go.set()
    assert [future.result(PATIENCE) for future in futures] == [str(place) for place in range(700)]
    assert notes(store) == [str(place) for place in range(700)]


@pytest.mark.sqlite
def test_what_waits_together_is_committed_together(store: Store, stopper: Stopper) -> None:
    """Operations that wait share one transaction."""
    seen: list[int] = []

    def look(session: Session) -> None:
        seen.append(id(session))

    futures = [store.submit(look) for _ in range(10)]
    stopper.go.set()
    wait_for(futures, PATIENCE)
    assert len(seen) == 10
    assert len(set(seen)) == 1


def test_nobody_is_answered_before_the_commit(store: Store) -> None:
    """While the transaction is open nobody sees its rows and no future is done."""
    future = store.submit(note("early"))
    future.result(PATIENCE)
    held = Stopper()
    first = store.submit(note("inside"))
    second = store.submit(held)
    assert held.inside.wait(PATIENCE)
    assert first.done() == ("inside" in notes(store))
    held.go.set()
    second.result(PATIENCE)
    assert notes(store) == ["early", "inside"]


def test_a_failing_operation_fails_alone(store: Store, stopper: Stopper) -> None:
    """Its neighbours in the group are stored, its own writes are undone."""
    futures = [store.submit(refuse if place == 2 else note(str(place))) for place in range(5)]
    stopper.go.set()
    errors = [future.exception(PATIENCE) for future in futures]
    assert [type(error) for error in errors] == [type(None), type(None), ValueError, type(None), type(None)]
    assert sorted(notes(store)) == ["0", "1", "3", "4"]
    assert change(store, "DELETE FROM treadle_meta WHERE name = 'refused'") == 0


def test_an_unguarded_failure_fails_alone(store: Store, stopper: Stopper) -> None:
    """Without a savepoint the group is rolled back and run again one by one."""

    def bad(session: Session) -> None:
        session.change("INSERT INTO treadle_meta (name, value) VALUES (NULL, NULL)")

    futures: list[Future[object]] = [
        store.submit(bad if place == 2 else note(str(place)), guarded=place != 2) for place in range(5)
    ]
    stopper.go.set()
    errors = [future.exception(PATIENCE) for future in futures]
    assert [isinstance(error, StoreError) for error in errors] == [False, False, True, False, False]
    assert sorted(notes(store)) == ["0", "1", "3", "4"]


def test_an_operation_that_ends_the_transaction_is_told(store: Store) -> None:
    """When the whole group was rolled back inside an operation, every future is answered."""
    futures = [store.submit(lambda s: s.change("ROLLBACK")), store.submit(note("after"))]
    assert isinstance(futures[0].exception(PATIENCE), StoreError)
    wait_for(futures, PATIENCE)
    put(store)
    assert count(store, "treadle_jobs") == 1


def test_a_cancelled_operation_is_not_run(store: Store, stopper: Stopper) -> None:
    """What its caller gave up before it began leaves no trace."""
    futures = [store.submit(note(str(place))) for place in range(3)]
    assert futures[1].cancel()
    stopper.go.set()
    wait_for(futures, PATIENCE)
    assert sorted(notes(store)) == ["0", "2"]


def test_what_has_begun_cannot_be_cancelled(store: Store) -> None:
    """An operation inside its transaction is brought to its end and told."""
    held = Stopper()
    future = store.submit(held)
    assert held.inside.wait(PATIENCE)
    assert not future.cancel()
    held.go.set()
    assert future.result(PATIENCE) is None


def test_many_threads_store_everything_once(store: Store) -> None:
    """Concurrent callers lose nothing and get different ids."""
    with ThreadPoolExecutor(8) as pool:
        ids = [number for part in pool.map(lambda size: put(store, size), [1, 2, 3] * 30) for number in part]
    assert len(set(ids)) == len(ids) == count(store, "treadle_jobs") == 180


def test_async_callers_store_everything_once(store: Store) -> None:
    """Concurrent tasks on an event loop lose nothing."""

    async def work() -> None:
        await asyncio.gather(*[store.ainsert([job()]) for _ in range(300)])

    asyncio.run(work())
    assert count(store, "treadle_jobs") == 300


def test_a_loop_that_is_gone_does_not_stop_the_lane(store: Store, stopper: Stopper) -> None:
    """Answers whose event loop was closed meanwhile are dropped; everybody else is served."""
    loop = asyncio.new_event_loop()

    async def leave() -> None:
        task = loop.create_task(store.arun(note("nobody waits")))
        await asyncio.sleep(0)
        task.add_done_callback(lambda _: None)

    loop.run_until_complete(leave())
    other = store.submit(note("waits"))
    reply: LoopReply[str] = loop.run_until_complete(_reply())
    loop.close()
    deliver([reply])
    stopper.go.set()
    assert other.result(PATIENCE) == "waits"
    # Where there are several lanes, another one may be storing what nobody waits for.
    eventually(lambda: sorted(notes(store)) == ["nobody waits", "waits"])


async def _reply() -> LoopReply[str]:
    return LoopReply()


def test_an_async_caller_hears_its_error(store: Store) -> None:
    """Arun raises what the operation raised."""
    with pytest.raises(ValueError, match="refused"):
        asyncio.run(store.arun(refuse))


@pytest.mark.sqlite
def test_a_slow_lane_is_no_transaction_of_the_callers(impatient: Store) -> None:
    """A caller that waits for our own lane's long transaction is told StoreBusy, not to look for its own."""
    held = Stopper()
    future = impatient.submit(held)
    assert held.inside.wait(PATIENCE)
    with pytest.raises(StoreBusy, match="Nothing was stored"):
        impatient.run(note("late"))
    held.go.set()
    future.result(PATIENCE)
    assert notes(impatient) == []


@pytest.mark.sqlite
def test_a_slow_lane_is_no_transaction_of_an_async_callers(impatient: Store) -> None:
    """The same for callers on an event loop; what was given up is not stored later."""
    held = Stopper()
    future = impatient.submit(held)
    assert held.inside.wait(PATIENCE)
    with pytest.raises(StoreBusy, match="Nothing was stored"):
        asyncio.run(impatient.arun(note("late")))
    held.go.set()
    future.result(PATIENCE)
    assert notes(impatient) == []


@pytest.mark.sqlite
def test_a_caller_outlasts_a_slow_lane(store: Store, stopper: Stopper) -> None:
    """A caller waits for another operation of its own process as long as lock_timeout allows."""
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(store.run, note("patient"))
        with pytest.raises(TimeoutError):
            waiting.result(SHORT)
        stopper.go.set()
        assert waiting.result(PATIENCE) == "patient"


def test_close_finishes_what_waits(url: str) -> None:
    """Everything submitted before close is stored and answered."""
    store = Store(url, StoreOptions(durability="normal"))
    futures = [store.submit(note(str(place))) for place in range(1500)]
    store.close()
    assert [future.result(0) for future in futures] == [str(place) for place in range(1500)]


def test_after_close_nothing_is_stored(store: Store) -> None:
    """Every way to use a closed store says StoreClosed."""
    store.close()
    uses = [
        lambda: store.run(note("x")),
        lambda: store.submit(note("x")),
        store.engine.waiter_bell,
        lambda: store.read(lambda session: None),
        lambda: store.submit_read(lambda session: None),
        lambda: store.insert([job()]),
        lambda: asyncio.run(store.ainsert([job()])),
        lambda: asyncio.run(store.arun(note("x"))),
    ]
    for use in uses:
        with pytest.raises(StoreClosed, match="closed"):
            use()


def test_close_may_be_called_twice(store: Store) -> None:
    """A second close does nothing."""
    store.close()
    store.close()


def test_a_store_that_was_never_used_can_be_closed(url: str) -> None:
    """Opening and closing is all it needs."""
    Store(url).close()


def test_close_waits_for_the_operation_under_way(store: Store) -> None:
    """An operation that has begun is finished before the connection is closed."""
    held = Stopper()
    future = store.submit(held)
    assert held.inside.wait(PATIENCE)
    closing = threading.Thread(target=store.close)
    closing.start()
    held.go.set()
    closing.join(PATIENCE)
    assert future.result(0) is None


def test_an_operation_may_submit_another(store: Store) -> None:
    """Work may make work without a deadlock."""
    made: list[Future[str]] = []

    def outer(session: Session) -> None:
        made.append(store.submit(note("inner")))

    store.submit(outer).result(PATIENCE)
    assert made[0].result(PATIENCE) == "inner"


def test_keyboard_interrupts_leave_no_transaction_open(store: Store) -> None:
    """An operation interrupted on the caller's thread is undone, and the store goes on."""

    def interrupted(session: Session) -> None:
        note("half")(session)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.run(interrupted)
    assert store.run(note("next")) == "next"
    assert notes(store) == ["next"]
