from __future__ import annotations

import asyncio

import pytest

from treadle import Treadle
from treadle.errors import StoreClosed
from worker.kit import PATIENCE


def other(number: int) -> int:
    return number


@pytest.mark.parametrize("opened", [True, False])
def test_a_closed_app_says_so(opened: bool) -> None:
    """Every verb after close raises StoreClosed, whether the store was ever opened or not."""
    app = Treadle("memory://")
    task = app.task(other)
    job = task.enqueue(1).id if opened else 1
    app.close()
    app.close()
    for verb in (
        lambda: task.enqueue(1),
        lambda: app.enqueue_many([task.job(1)]),
        lambda: app.get(job),
        app.find,
        app.counts,
        app.queues,
        app.workers,
        app.next_due,
        lambda: app.result(job, timeout=PATIENCE),
        lambda: app.wait([job], timeout=PATIENCE),
        lambda: app.worker().__enter__(),
    ):
        with pytest.raises(StoreClosed, match="closed"):
            verb()


@pytest.mark.parametrize("opened", [True, False])
def test_a_closed_app_says_so_to_async_code(opened: bool) -> None:
    """The same for the async verbs."""
    app = Treadle("memory://")
    task = app.task(other)
    job = task.enqueue(1).id if opened else 1
    app.close()
    for verb in (
        lambda: task.aenqueue(1),
        lambda: app.aenqueue_many([task.job(1)]),
        lambda: app.aget(job),
        app.afind,
        app.acounts,
        app.aqueues,
        app.aworkers,
        app.anext_due,
        lambda: app.aresult(job, timeout=PATIENCE),
        lambda: app.await_jobs([job], timeout=PATIENCE),
    ):

        async def main(verb: object = verb) -> None:
            await verb()  # type: ignore[operator]

        with pytest.raises(StoreClosed, match="closed"):
            asyncio.run(main())
