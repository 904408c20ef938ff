"""Storing new jobs."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from datetime import timedelta
from functools import partial
from itertools import product

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from store.making import PATIENCE, SECOND, START, change, count, get, job, notes, put, refuse, state, take
from treadle.clock import to_datetime
from treadle.errors import QueueFull, StoreError, StoreFull
from treadle.model.job import JobState, NewJob, Options
from treadle.store.ops import meta
from treadle.store.ops.insert import placed
from treadle.store.options import StoreOptions
from treadle.store.store import Store
from treadle.store.work import Insert

EVERY_BYTE = bytes(range(256))


def test_one_job_is_stored_as_given(store: Store) -> None:
    """A single job keeps its task, queue, priority, codec and arguments."""
    (number,) = store.insert([job(b"[1]", queue="q", priority=7, codec="msgpack")])
    found = get(store, number)
    assert (found.task, found.queue, found.priority, found.codec) == ("mail", "q", 7, "msgpack")
    assert found.arguments == b"[1]"


def test_a_new_job_has_no_history(store: Store) -> None:
    """Nothing is counted before the first claim."""
    found = get(store, *put(store))
    assert (found.attempt, found.failures, found.crashes, found.lease, found.reason) == (0, 0, 0, None, None)
    assert (found.started_at, found.finished_at, found.attempts) == (None, None, ())


def test_a_job_without_delay_is_ready_now(store: Store) -> None:
    """Neither delay nor due_at means ready, due and enqueued at this moment."""
    found = get(store, *put(store))
    assert found.state is JobState.READY
    assert found.due_at == found.enqueued_at == to_datetime(START)


def test_a_delay_makes_it_scheduled(store: Store) -> None:
    """A delayed job is scheduled for now plus the delay."""
    found = get(store, *put(store, delay=5 * SECOND))
    assert found.state is JobState.SCHEDULED
    assert found.due_at == to_datetime(START) + timedelta(seconds=5)


def test_due_at_wins_over_delay(store: Store) -> None:
    """With both given, the moment counts."""
    found = get(store, *put(store, delay=5 * SECOND, due_at=START + 9 * SECOND))
    assert found.due_at == to_datetime(START + 9 * SECOND)


@pytest.mark.parametrize("due_at", [START, START - 60 * SECOND])
def test_a_due_moment_that_has_come_is_ready(store: Store, due_at: int) -> None:
    """A job due now or earlier is ready at once and keeps its moment."""
    found = get(store, *put(store, due_at=due_at))
    assert (found.state, found.due_at) == (JobState.READY, to_datetime(due_at))


def test_a_group_may_mix_options(store: Store) -> None:
    """One batch holds any mix of tasks, queues, delays and codecs."""
    mixed = [
        job(b"a"), job(b"b", task="scan", queue="slow"), job(b"c", priority=3), job(b"d", delay=SECOND),
        job(b"e", codec="msgpack"), job(b"f", extra='{"meta":{"k":1}}'), job(b"g", tags=("x",)),
    ]  # fmt: skip
    found = [get(store, number) for number in store.insert(mixed)]
    assert [each.arguments for each in found] == [b"a", b"b", b"c", b"d", b"e", b"f", b"g"]
    assert [each.task for each in found] == ["mail", "scan", *["mail"] * 5]
    assert [each.state for each in found].count(JobState.SCHEDULED) == 1


def test_ids_come_in_input_order(store: Store) -> None:
    """The nth id belongs to the nth job, also when options alternate."""
    jobs = [job(str(place).encode(), task=("mail", "scan")[place % 2]) for place in range(50)]
    ids = store.insert(jobs)
    assert [get(store, number).arguments for number in ids] == [each.data for each in jobs]
    assert list(ids) == sorted(ids)


def test_equal_options_in_two_objects_are_one_kind(store: Store) -> None:
    """Options are compared by value, so jobs made one by one are stored as well as those made together."""
    jobs = [NewJob(Options(task="mail", tags=("x",)), str(place).encode()) for place in range(20)]
    ids = store.insert(jobs)
    assert [get(store, number).arguments for number in ids] == [each.data for each in jobs]


@pytest.mark.parametrize("size", [1, 2])
def test_tags_are_stored_once_for_each_job(store: Store, size: int) -> None:
    """Each job carries its own tags, sorted."""
    ids = put(store, size, tags=("red", "blue"))
    assert [get(store, number).tags for number in ids] == [("blue", "red")] * size


@pytest.mark.parametrize("size", [1, 2])
def test_extra_is_kept(store: Store, size: int) -> None:
    """What only some jobs carry comes back as meta and with the claim."""
    extra = '{"meta":{"tenant":7}}'
    ids = put(store, size, extra=extra)
    assert [get(store, number).meta for number in ids] == [{"tenant": 7}] * size
    assert [each.extra for each in take(store)] == [extra] * size


@pytest.mark.parametrize("size", [1, 3])
def test_large_arguments_are_kept(store: Store, size: int) -> None:
    """900 kB of arguments come back byte for byte."""
    data = EVERY_BYTE * 3516
    ids = store.insert([job(data)] * size)
    assert all(get(store, number).arguments == data for number in ids)


@pytest.mark.parametrize("data", [b"", b"\0", b"\0a\0", EVERY_BYTE, b"\xff\xfe", b"'\";--"])
@pytest.mark.parametrize("size", [1, 2])
def test_any_bytes_are_kept(store: Store, data: bytes, size: int) -> None:
    """Arguments are opaque: NUL, every byte value and nothing at all come back, by reading and by claiming."""
    ids = store.insert([job(data), job(b"-")][:size])
    assert get(store, ids[0]).arguments == data
    assert take(store)[0].data == data


@given(st.lists(st.binary(max_size=40), max_size=8))
def test_placed_says_where_every_piece_lies(pieces: list[bytes]) -> None:
    """Offsets and lengths cut the joined bytes back into the pieces."""
    places, blob = placed(list(enumerate(pieces)))
    found = msgspec.json.decode(places, type=dict[str, int])
    cut = {int(key): blob[at >> 31 : (at >> 31) + (at & 2**31 - 1)] for key, at in found.items()}
    assert cut == dict(enumerate(pieces))


def test_names_of_any_letters_are_kept(store: Store) -> None:
    """Quotes, braces and other alphabets in task and queue names come back and can be claimed."""
    name = "päck'\"{}[]\\%日本"
    put(store, 2, task=name, queue=name, tags=(name,))
    assert [(each.task, each.queue) for each in take(store, tasks=(name,))] == [(name, name)] * 2


def test_an_empty_batch_stores_nothing(store: Store) -> None:
    """No jobs, no ids, no error."""
    assert list(store.insert([])) == []
    assert count(store, "treadle_jobs") == 0


def test_a_full_queue_refuses_all_of_a_batch(store: Store) -> None:
    """A batch that does not fit stores nothing and names queue, length and cap."""
    store.run(partial(meta.declare_queue, name="q", max_length=3, when_full="refuse"))
    put(store, 2, queue="q")
    with pytest.raises(QueueFull, match="'q' holds 2 ready jobs of at most 3; 2 more refused") as caught:
        store.insert([job(queue="other"), job(queue="q"), job(queue="q")])
    assert not caught.value.wait
    assert count(store, "treadle_jobs") == 2


def test_a_queue_can_be_filled_to_its_cap(store: Store) -> None:
    """The cap itself is allowed."""
    store.run(partial(meta.declare_queue, name="q", max_length=3, when_full="refuse"))
    assert len(put(store, 3, queue="q")) == 3


def test_only_ready_jobs_count_against_the_cap(store: Store) -> None:
    """What is scheduled or running is no backlog."""
    store.run(partial(meta.declare_queue, name="q", max_length=1, when_full="refuse"))
    put(store, queue="q", due_at=START - 1)
    take(store)
    put(store, queue="q", delay=SECOND)
    assert len(put(store, queue="q")) == 1


def test_a_queue_that_waits_says_so(store: Store) -> None:
    """QueueFull tells the caller that the queue was declared when_full="wait"."""
    store.run(partial(meta.declare_queue, name="q", max_length=1, when_full="wait"))
    put(store, queue="q")
    with pytest.raises(QueueFull) as caught:
        put(store, queue="q")
    assert caught.value.wait


def test_other_queues_are_not_capped(store: Store) -> None:
    """A cap holds for its queue only."""
    store.run(partial(meta.declare_queue, name="q", max_length=1, when_full="refuse"))
    assert len(put(store, 5, queue="default")) == 5


@pytest.mark.sqlite
def test_a_size_budget_refuses_with_the_remedy(url: str) -> None:
    """Beyond max_size enqueue raises StoreFull and stores nothing."""
    store = Store(url, StoreOptions(max_size=200_000))
    with pytest.raises(StoreFull, match=r"budget of 200,000 \(max_size\).*Nothing was enqueued"):
        store.insert([job(b"x" * 300_000)])
    assert count(store, "treadle_jobs") == 0
    store.close()


@pytest.mark.sqlite
def test_a_nearly_full_disk_refuses(url: str) -> None:
    """When less than min_free would stay free, enqueue raises StoreFull and stores nothing."""
    store = Store(url, StoreOptions(min_free=2**62))
    with pytest.raises(StoreFull, match="min_free"):
        put(store)
    assert count(store, "treadle_jobs") == 0
    store.close()


@pytest.mark.sqlite
def test_a_refusal_reaches_async_callers(url: str) -> None:
    """Callers on an event loop get the same StoreFull."""
    store = Store(url, StoreOptions(max_size=200_000))
    with pytest.raises(StoreFull):
        asyncio.run(store.ainsert([job(b"x" * 300_000)]))
    store.close()


def test_ainsert_brings_the_ids(store: Store) -> None:
    """Callers on an event loop get their ids after the commit, in input order."""
    ids = asyncio.run(store.ainsert([job(b"1"), job(b"2")]))
    assert [get(store, number).arguments for number in ids] == [b"1", b"2"]


def test_an_empty_batch_stores_nothing_for_async_callers(store: Store) -> None:
    """No jobs, no ids, no error."""
    assert list(asyncio.run(store.ainsert([]))) == []


def test_inserts_of_one_lane_group_are_merged(store: Store) -> None:
    """Inserts that wait together are stored together, each future with its own ids."""
    ids = [range(100 + 3 * place, 103 + 3 * place) for place in range(20)]
    futures = [store.submit(Insert([job(f"{n}".encode()) for n in each], each)) for each in ids]
    assert [future.result(PATIENCE) for future in futures] == ids
    assert [get(store, n).arguments for each in ids for n in each] == [f"{n}".encode() for n in range(100, 160)]


def test_one_bad_insert_fails_alone(store: Store) -> None:
    """A job the database refuses does not take its neighbours in the group down."""
    bad = job(queue="")
    futures = [store.submit(Insert([bad if place == 2 else job()], [place + 1])) for place in range(5)]
    errors = [future.exception(PATIENCE) for future in futures]
    assert [isinstance(error, StoreError) for error in errors] == [False, False, True, False, False]
    assert count(store, "treadle_jobs") == 4


def test_a_full_queue_fails_alone_in_a_group(store: Store) -> None:
    """QueueFull for one caller is not QueueFull for its neighbours."""
    store.run(partial(meta.declare_queue, name="q", max_length=1, when_full="refuse"))
    queues = ["default", "q", "q", "default"]
    futures: list[Future[object]] = [
        store.submit(Insert([job(queue=queue)], [place + 1])) for place, queue in enumerate(queues)
    ]
    before, *capped, after = [future.exception(PATIENCE) for future in futures]
    assert (before, after) == (None, None)
    refused = [error for error in capped if error is not None]  # where there are several lanes, either may be first
    assert [type(error) for error in refused] == [QueueFull]


def test_an_id_is_never_overwritten(store: Store) -> None:
    """Storing under a taken id is refused and the first job stays."""
    store.run(Insert([job(b"first")], [7]))
    with pytest.raises(StoreError):
        store.run(Insert([job(b"second")], [7]))
    assert get(store, 7).arguments == b"first"


@pytest.mark.parametrize(("field", "value"), list(product(["task", "queue"], ["", "x" * 201])))
def test_names_that_cannot_be_are_refused(store: Store, field: str, value: str) -> None:
    """The tables themselves refuse empty and endless names."""
    with pytest.raises(StoreError):
        put(store, **{field: value})


@pytest.mark.parametrize("priority", [-101, 101])
def test_priorities_out_of_range_are_refused(store: Store, priority: int) -> None:
    """The tables themselves refuse priorities beyond -100 to 100."""
    with pytest.raises(StoreError):
        put(store, priority=priority)


def test_a_failed_operation_leaves_nothing(store: Store) -> None:
    """What an operation wrote before it failed is undone."""
    with pytest.raises(ValueError, match="refused"):
        store.run(refuse)
    assert notes(store) == []
    assert change(store, "DELETE FROM treadle_meta WHERE name = 'refused'") == 0


def test_plain_update_of_the_state_is_seen(store: Store) -> None:
    """The store keeps no second truth beside the tables."""
    (number,) = put(store)
    change(store, "UPDATE treadle_jobs SET state = 9 WHERE id = ?", number)
    assert state(store, number) is JobState.CANCELLED
    assert take(store) == []
