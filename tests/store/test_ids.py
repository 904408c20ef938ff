"""Job ids and leases: numbers never given twice."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain

import pytest

from store.making import PATIENCE, count, job, put, refuse
from treadle.errors import QueueFull
from treadle.store.ids import LARGEST_BLOCK, IdBlock
from treadle.store.ops import meta
from treadle.store.ops.sequences import burn
from treadle.store.store import Store
from treadle.store.work import Insert, Operation


def test_burned_numbers_follow_each_other(store: Store) -> None:
    """A sequence gives neighbouring numbers, each once."""
    taken = [store.run(partial(burn, name="job", count=size)) for size in (1, 5, 2)]
    first = taken[0][0]
    assert [number for block in taken for number in block] == list(range(first, first + 8))


def test_ids_start_above_zero(store: Store) -> None:
    """No id is 0, so an id is always true."""
    assert put(store)[0] >= 1


def test_no_id_twice_over_reopening(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A store opened again never gives an id that was given before, deleted jobs included."""
    url = f"sqlite:///{tmp_path_factory.mktemp('ids') / 'jobs.db'}"
    seen: list[int] = []
    for _ in range(4):
        store = Store(url)
        seen += put(store, 3)
        store.run(lambda session: session.change("DELETE FROM treadle_jobs"))
        store.close()
    assert len(set(seen)) == 12
    assert seen == sorted(seen)


def test_no_id_twice_after_a_refused_insert(store: Store) -> None:
    """Ids of an insert that failed are gaps, not spares."""
    store.run(partial(meta.declare_queue, name="q", max_length=2, when_full="refuse"))
    before = put(store, 2)
    with pytest.raises(QueueFull):
        put(store, 3, queue="q")
    after = put(store, 2)
    assert after[0] > before[-1] + 3


def test_no_id_twice_after_a_failed_operation(store: Store) -> None:
    """A transaction that is undone gives no number back."""
    before = put(store)
    with pytest.raises(ValueError, match="refused"):
        store.run(refuse)
    assert put(store)[0] > before[0]


@pytest.mark.parametrize("burst", [1, 15, 16, 17, 100, LARGEST_BLOCK, LARGEST_BLOCK + 1])
def test_bursts_of_any_size_get_neighbouring_ids(store: Store, burst: int) -> None:
    """However many ids are asked for, they come as one run."""
    first = list(store._ids.take(burst))
    second = list(store._ids.take(burst))
    assert first == list(range(first[0], first[0] + burst))
    assert second[0] > first[-1]


def test_blocks_grow_for_busy_producers(store: Store) -> None:
    """Ten thousand single jobs burn few blocks."""
    burned: list[int] = []

    def run(operation: Operation[int]) -> int:
        burned.append(1)
        return store.run(operation)

    block = IdBlock(run, store.arun)
    for _ in range(10_000):
        block.take(1)
    assert len(burned) < 20


def test_threads_never_share_an_id(store: Store) -> None:
    """Many threads taking ids at once all get different ones."""
    start = threading.Barrier(8)

    def work() -> list[int]:
        start.wait(PATIENCE)
        return list(chain.from_iterable(store._ids.take(size) for size in (1, 3, 40) * 20))

    with ThreadPoolExecutor(8) as pool:
        taken = list(chain.from_iterable(future.result() for future in [pool.submit(work) for _ in range(8)]))
    assert len(taken) == len(set(taken)) == 8 * 20 * 44


def test_two_stores_never_share_an_id(path: object) -> None:
    """Two programs on one file draw from one sequence."""
    stores = [Store(f"sqlite:///{path}") for _ in range(2)]
    ids = [put(stores[turn % 2], 1 + turn % 3) for turn in range(20)]
    flat = list(chain.from_iterable(ids))
    assert len(flat) == len(set(flat))
    for store in stores:
        store.close()


def test_async_callers_never_share_an_id(store: Store) -> None:
    """Concurrent ainsert calls on a cold store give every job an id of its own."""

    async def work() -> list[Sequence[int]]:
        return await asyncio.gather(*[store.ainsert([job(), job()]) for _ in range(100)])

    ids = list(chain.from_iterable(asyncio.run(work())))
    assert len(ids) == len(set(ids)) == 200


@pytest.mark.sqlite
def test_a_failed_burn_reaches_the_caller(store: Store) -> None:
    """When no block can be burned, nothing is stored and the caller hears of it."""
    store.run(lambda session: session.change("DELETE FROM treadle_sequences"))
    with pytest.raises(Exception, match=r"NoneType|sequence"):
        put(store)
    assert count(store, "treadle_jobs") == 0


def test_a_block_forgotten_is_not_used_again(store: Store) -> None:
    """After forget, as in a forked child, ids come from a new block."""
    before = put(store)
    store._ids.forget()
    assert put(store)[0] > before[0] + 1


def test_numbers_given_by_hand_do_not_disturb(store: Store) -> None:
    """An insert under explicit ids leaves the sequence as it was."""
    store.run(Insert([job()], [1_000_000]))
    assert put(store)[0] < 1000
