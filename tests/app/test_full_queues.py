from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from treadle import Treadle
from treadle.errors import QueueFull, StoreFull
from worker.kit import PATIENCE, open_app, states


def other(number: int) -> int:
    return number


def test_a_full_queue_refuses(app: Treadle) -> None:
    """Beyond the cap enqueue is refused, other queues are not."""
    app.queue("small", max_length=2)
    task = app.task(other)
    small = task.using(queue="small")
    small.enqueue(1)
    small.enqueue(2)
    with pytest.raises(QueueFull, match="'small' holds 2"):
        small.enqueue(3)
    with pytest.raises(QueueFull):
        app.enqueue_many([task.job(1), small.job(3)])
    task.enqueue(4)
    assert len(states(app)) == 3


def test_a_full_queue_can_wait_for_room(app: Treadle) -> None:
    """With when_full="wait", enqueue goes on as soon as workers made room."""
    app.queue("small", max_length=1, when_full="wait")
    small = app.task(other).using(queue="small")
    with app.worker(concurrency=1):
        jobs = [small.enqueue(number) for number in range(20)]
        assert [job.result(timeout=PATIENCE) for job in jobs] == list(range(20))


def test_waiting_for_room_has_an_end(path: Path) -> None:
    """With when_full="wait", enqueue gives up after lock_timeout, says how long it waited, and stores nothing."""
    with open_app(path, lock_timeout=0.05) as app:
        app.queue("small", max_length=1, when_full="wait")
        small = app.task(other).using(queue="small")
        small.enqueue(1)
        with pytest.raises(QueueFull, match=r"'small' holds 1 .*Waited 0\.05 s \(lock_timeout\)"):
            small.enqueue(2)
        with pytest.raises(QueueFull, match=r"Waited 0\.05 s"):
            asyncio.run(small.aenqueue(2))
        with pytest.raises(QueueFull, match=r"Waited 0\.05 s"):
            asyncio.run(app.aenqueue_many([small.job(2)]))
        assert states(app) == ["ready"]


def test_async_code_waits_for_room_too(app: Treadle) -> None:
    """The async verb goes on as soon as workers made room."""
    app.queue("small", max_length=1, when_full="wait")
    small = app.task(other).using(queue="small")

    async def main() -> list[int]:
        async with app.worker(concurrency=1):
            jobs = [await small.aenqueue(number) for number in range(5)]
            return [await job.aresult(timeout=PATIENCE) for job in jobs]

    assert asyncio.run(main()) == list(range(5))


def test_min_free_keeps_room_for_running_work(tmp_path: Path) -> None:
    """With less than min_free bytes on the disk enqueue is refused, naming the setting; nothing is stored."""
    app = Treadle(f"sqlite:///{tmp_path / 'jobs.db'}", min_free=10**15)
    job = app.remote("anything")
    with pytest.raises(StoreFull, match="min_free"):
        job.enqueue(number=1)
    assert app.counts() == {}
    app.close()
