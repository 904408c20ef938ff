"""Programs that a handler starts by its job end with the attempt, and with the worker, however each ends."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from faults.helpers import process
from treadle import AttemptOutcome, JobContext, JobState, Treadle
from worker.isolated import SLEEPER, TASKS, alive, heard
from worker.kit import PATIENCE, aeventually, eventually, run_all

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes as Linux has them")
PROGRAM = [sys.executable, "-c", SLEEPER]


def family(name: str) -> list[int]:
    """The processes of a program, once all of them are there."""
    return [int(word) for word in heard(f"{name} begun").split()]


@pytest.mark.parametrize("task", ["thread", "act"])
def test_what_is_left_ends_with_the_attempt(shop: Treadle, task: str) -> None:
    """A handler leaves a program, its child and a daemon behind: all are gone when the job has succeeded."""
    job = TASKS[task].enqueue("employ", "left")
    with shop.worker():
        job.result(PATIENCE)
        assert not any(map(alive, family("left")))


@pytest.mark.parametrize("task", ["thread", "act"])
def test_a_cancel_wakes_who_waits_for_a_program(shop: Treadle, task: str) -> None:
    """The thread that waits for it goes on, because the program is told to end; so it costs no slot."""
    job = TASKS[task].enqueue("employ", "long")
    with shop.worker():
        pids = family("long")
        job.cancel()
        assert job.result(PATIENCE) == -signal.SIGTERM
        assert not any(map(alive, pids))


def test_a_killed_worker_takes_its_programs_with_it(shop: Treadle, tmp_path: Path) -> None:
    """SIGKILL: they are gone before the job begins again, and the next attempt sees none of them."""
    job = TASKS["thread"].enqueue("employ", "doomed")
    with process("worker.isolated", "doomed", log=tmp_path / "log") as worker:
        assert all(map(alive, family("doomed")))
        worker.kill()
    with shop.worker():
        assert job.result(PATIENCE) == []
    assert [one.outcome for one in job.record().attempts] == [AttemptOutcome.CRASHED, AttemptOutcome.SUCCEEDED]


def test_a_stop_ends_the_programs_of_what_is_given_back(app: Treadle) -> None:
    """A handler that hears nothing goes back unspent; its program is gone before anybody else can begin."""
    started: list[Any] = []

    @app.task(name="deaf", retry=0)
    async def deaf(job: JobContext) -> None:
        started.append(await job.apopen(PROGRAM))
        while started:
            try:
                await asyncio.sleep(PATIENCE)
            except asyncio.CancelledError:
                continue

    async def main() -> None:
        async with app.worker(grace=0):
            job = await deaf.aenqueue()
            await aeventually(lambda: started)
        program = started.pop()
        assert job.record().state is JobState.READY
        assert not alive(program.pid)

    asyncio.run(main())


@pytest.mark.parametrize("how", ["returns", "raises", "is cancelled"])
def test_a_coroutine_has_programs_too(app: Treadle, how: str) -> None:
    """However it ends, what it started is gone, and what it printed could be read."""
    found: list[Any] = []

    @app.task(name="work", retry=0)
    async def work(job: JobContext) -> bytes:
        echo = await job.apopen(["echo", "heard"], stdout=asyncio.subprocess.PIPE)
        found.append(await job.apopen(PROGRAM))
        if how == "raises":
            raise ValueError
        if how == "is cancelled":
            await asyncio.Event().wait()
        return (await echo.communicate())[0]

    job = work.enqueue()
    with app.worker():
        eventually(lambda: found)
        if how == "is cancelled":
            job.cancel()
        app.wait([job], PATIENCE)
        assert not alive(found[0].pid)
    if how == "returns":
        assert job.result(0) == b"heard\n"


def test_nothing_is_started_after_the_end(app: Treadle) -> None:
    """A thread that a handler left behind cannot start a program that nobody would end."""
    contexts: list[JobContext] = []

    @app.task(name="work")
    def work(job: JobContext) -> None:
        contexts.append(job)
        job.popen(["true"]).wait()

    work.enqueue()
    run_all(app)
    with pytest.raises(RuntimeError, match="has ended"):
        contexts[0].popen(PROGRAM)


def test_a_program_has_the_environment_it_was_given(app: Treadle) -> None:
    """And by default that of the worker; an error of the start is the handler's."""

    @app.task(name="work", retry=0)
    def work(job: JobContext) -> list[str]:
        with pytest.raises(FileNotFoundError):
            job.popen(["/nowhere/at/all"])
        given: tuple[dict[str, Any], ...] = ({}, {"env": {"MINE": "1"}})
        return [job.popen(["env"], stdout=-1, text=True, **options).communicate()[0] for options in given]

    job = work.enqueue()
    run_all(app)
    whole, own = job.result(0)
    assert "PATH=" in whole
    assert sorted(line.partition("=")[0] for line in own.split()) == ["MINE", "TREADLE_CHILD_OF"]
