"""What an idle worker leaves out, because every wake-up costs, and what it does not miss for it."""

from __future__ import annotations

import asyncio
import sys
from functools import partial
from pathlib import Path

import pytest

from faults.helpers import process
from treadle import AttemptOutcome, Job, JobState, Treadle, current_job
from worker.isolated import TASKS, heard
from worker.kit import aeventually, eventually


@pytest.mark.sqlite
def test_workers_are_read_again_only_after_a_commit(app: Treadle) -> None:
    """Two looks for the dead share what was read, until anybody has committed anything, or a second has passed."""
    nothing = app.remote("nothing")
    with app.worker(name="idle") as worker:
        upkeep = worker._upkeep
        upkeep.stop()
        eventually(lambda: upkeep._registered() is upkeep._registered())
        read = upkeep._registered()
        assert [row.name for row in read] == ["idle"]
        nothing.enqueue()
        after = upkeep._registered()
        assert after is not read
        eventually(lambda: upkeep._registered() is not after)


@pytest.mark.skipif(sys.platform != "linux", reason="processes as Linux has them")
def test_a_lone_worker_notices_another_one_and_its_death(shop: Treadle, tmp_path: Path) -> None:
    """It looks for the dead less often while it knows of nobody; one that comes and dies is rescued all the same."""
    job = TASKS["thread"].enqueue("wait", "job")
    with shop.worker(name="lone", queues=["elsewhere"]) as lone:
        lone._upkeep.first_round.wait()
        assert lone._upkeep._until_rescue() == 1
        with process("worker.isolated", "doomed", log=tmp_path / "log") as doomed:
            heard("job begun")
            eventually(lambda: lone._upkeep._until_rescue() < 1)
            doomed.kill()
        eventually(lambda: job.record().state is JobState.READY)
        assert [(one.worker, one.outcome) for one in job.record().attempts] == [("doomed", AttemptOutcome.CRASHED)]


def test_the_first_word_after_a_long_silence_is_stored(app: Treadle) -> None:
    """Nobody looks for progress while there is none; what a thread says then is seen while its handler runs."""

    @app.task(name="tell")
    async def tell(share: float) -> None:
        await asyncio.to_thread(current_job().progress, share, "so far")
        await asyncio.Event().wait()

    def told(job: Job[None], share: float) -> bool:
        found = job.record().progress
        return found is not None and found.fraction == share

    async def main() -> None:
        async with app.worker():
            for share in (0.25, 0.75):
                job = await tell.aenqueue(share)
                await aeventually(partial(told, job, share))
                await job.acancel()
                await aeventually(lambda one=job: one.record().state is JobState.CANCELLED)

    asyncio.run(main())
