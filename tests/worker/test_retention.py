from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from treadle import Abort, HeldClock, JobState, Keep, Retention, Treadle
from treadle.errors import ConfigurationError
from worker.kit import aeventually, every_job, states

FOREVER = Retention(succeeded=Keep(), failed=Keep(), cancelled=Keep())


@pytest.fixture
def task(held_app: Treadle) -> Any:
    """Succeeds, or fails when told so."""

    @held_app.task(name="work")
    def work(fails: bool = False) -> None:
        if fails:
            raise Abort("as told")

    return work


def run_all(app: Treadle, retention: Retention = FOREVER) -> None:
    async def main() -> None:
        async with app.worker(retention=retention) as worker:
            await worker.idle()

    asyncio.run(main())


def prune(app: Treadle, left: int, retention: Retention | None = None) -> None:
    """Let a worker prune until *left* jobs are there."""

    async def main() -> None:
        async with app.worker(**({} if retention is None else {"retention": retention})):
            await aeventually(lambda: len(states(app)) == left)

    asyncio.run(main())


def test_old_history_is_pruned_by_default(held_app: Treadle, task: Any, clock: HeldClock) -> None:
    """Without asking, succeeded jobs go after a week, and failed ones after ninety days."""
    task.enqueue()
    task.enqueue(fails=True)
    run_all(held_app)
    clock.advance(seconds=timedelta(days=7, seconds=1).total_seconds())
    prune(held_app, left=1)
    assert states(held_app) == ["failed"]
    clock.advance(seconds=timedelta(days=83).total_seconds())
    prune(held_app, left=0)


def test_an_age_of_nothing_keeps_nothing(held_app: Treadle, task: Any, clock: HeldClock) -> None:
    """Keep(age=0) prunes what ended, and nothing that did not."""
    for _ in range(5):
        task.enqueue()
    run_all(held_app)
    clock.advance(seconds=1)
    task.using(delay=3600).enqueue()
    prune(held_app, left=1, retention=Retention(succeeded=Keep(age=timedelta(0))))
    assert states(held_app) == ["scheduled"]


def test_a_count_keeps_the_newest(held_app: Treadle, task: Any, clock: HeldClock) -> None:
    """Keep(count=2) keeps the two that ended last, of each state by itself."""
    for number in range(10):
        task.enqueue(fails=number % 2 == 1)
        run_all(held_app)
        clock.advance(seconds=1)
    newest = [job.id for job in every_job(held_app) if job.state == JobState.SUCCEEDED][-2:]
    prune(held_app, left=7, retention=Retention(succeeded=Keep(count=2)))
    assert [job.id for job in every_job(held_app) if job.state == JobState.SUCCEEDED] == newest


def test_a_count_holds_for_jobs_that_ended_together(held_app: Treadle, task: Any, clock: HeldClock) -> None:
    """Jobs settled in one batch end in one instant; the count of them is kept all the same."""
    held_app.enqueue_many(task.job() for _ in range(20))
    run_all(held_app)
    clock.advance(seconds=1)

    async def main() -> None:
        async with held_app.worker(retention=Retention(succeeded=Keep(count=5))):
            await aeventually(lambda: len(states(held_app)) < 20)

    asyncio.run(main())
    assert len(states(held_app)) == 5


def test_a_count_of_nothing_keeps_nothing(held_app: Treadle, task: Any, clock: HeldClock) -> None:
    """Keep(count=0) prunes every job of its state."""
    for _ in range(3):
        task.enqueue()
    run_all(held_app)
    clock.advance(seconds=1)
    prune(held_app, left=0, retention=Retention(succeeded=Keep(count=0)))


def test_a_count_larger_than_what_there_is_keeps_all(held_app: Treadle, task: Any, clock: HeldClock) -> None:
    """Rules work by themselves: what one keeps, another may prune."""
    task.enqueue()
    task.enqueue(fails=True)
    run_all(held_app)
    clock.advance(seconds=1)
    prune(held_app, left=1, retention=Retention(succeeded=Keep(count=100), failed=Keep(count=0)))
    assert states(held_app) == ["succeeded"]


def test_pruning_takes_everything_of_a_job(held_app: Treadle, task: Any, clock: HeldClock) -> None:
    """Arguments, results, attempts, tags and progress go with the job."""
    task.using(tags=["red"]).enqueue()
    run_all(held_app)
    clock.advance(seconds=1)
    prune(held_app, left=0, retention=Retention(succeeded=Keep(count=0)))
    tables = ("payloads", "results", "attempts", "tags", "progress", "checkpoints")
    found = held_app.store.read(
        lambda session: [session.value(f"SELECT count(*) FROM treadle_{table}") for table in tables]
    )
    assert found == [0] * len(tables)


def test_pruned_jobs_are_left_out_of_a_wait(held_app: Treadle, task: Any, clock: HeldClock) -> None:
    """wait() for a job that was pruned is over."""
    job = task.enqueue()
    run_all(held_app)
    clock.advance(seconds=1)
    prune(held_app, left=0, retention=Retention(succeeded=Keep(count=0)))
    assert held_app.wait([job], timeout=0) == {}


@pytest.mark.parametrize("rule", [{"age": timedelta(-1)}, {"count": -1}], ids=repr)
def test_rules_that_mean_nothing_are_refused(rule: dict[str, Any]) -> None:
    """Less than nothing cannot be kept."""
    with pytest.raises(ConfigurationError, match="negative"):
        Keep(**rule)
