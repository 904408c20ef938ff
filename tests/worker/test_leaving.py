"""How ``treadle worker`` leaves: threads that handlers have left behind do not keep the process."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from treadle import JobState, Treadle
from treadle.errors import StoreLost
from treadle.host import failpoints
from treadle.store.sqlite import failure
from worker.kit import PATIENCE, SOURCE, aheard, eventually, open_app

SHOP = """
import asyncio, pathlib, threading
from datetime import timedelta
from treadle import Retry, Treadle, defaults
HERE = pathlib.Path(__file__).parent
app = Treadle(f"sqlite:///{HERE}/jobs.db")
defaults.EXIT_PATIENCE = timedelta(seconds=0.3)

@app.task(name="stuck", timeout=0.1, grace=0.1, retry=Retry(0))
async def stuck() -> None:
    await asyncio.to_thread(threading.Event().wait)

@app.task(name="lingering")
def lingering() -> None:
    threading.Thread(target=threading.Event().wait, name="a thread of the shop", daemon=False).start()

@app.task(name="brief")
async def brief() -> str:
    return await asyncio.to_thread(str, "done")
"""
Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run_worker(tmp_path: Path) -> Run:
    """Run ``treadle worker`` until a job of *task* has ended, end it by SIGTERM; its exit code and what it said."""
    (tmp_path / "shop.py").write_text(SHOP)

    def run(task: str, *words: str) -> tuple[int, str]:
        with open_app(tmp_path / "jobs.db") as app, (tmp_path / "log").open("wb") as log:
            worker = subprocess.Popen(
                [sys.executable, "-m", "treadle", "worker", "shop:app", *words], cwd=tmp_path, stderr=log,
                env={**os.environ, "PYTHONPATH": SOURCE},
            )  # fmt: skip
            try:
                job = app.remote(task).enqueue()
                eventually(lambda: job.record().state in (JobState.SUCCEEDED, JobState.FAILED))
                worker.send_signal(signal.SIGTERM)
                code = worker.wait(PATIENCE)
            finally:
                worker.kill()
                worker.wait(PATIENCE)
            assert app.workers() == ()
        return code, (tmp_path / "log").read_text()

    return run


@pytest.mark.parametrize(
    ("task", "words", "thread"),
    [
        ("stuck", (), "asyncio_"), ("lingering", (), "a thread of the shop."),
        ("stuck", ("--processes", "2"), "asyncio_"),
    ],
)
def test_a_thread_left_behind_keeps_no_process(run_worker: Run, task: str, words: tuple[str, ...], thread: str) -> None:
    """A handler stuck in asyncio.to_thread, a thread that is no daemon: the drained process ends and names them."""
    code, told = run_worker(task, *words)
    assert code == 0
    assert f"The process ends although threads still run: {thread}" in told


def test_threads_that_end_are_not_complained_of(run_worker: Run) -> None:
    """An idle thread of asyncio.to_thread ends with the process as always; nothing is said."""
    code, told = run_worker("brief")
    assert code == 0
    assert "threads still run" not in told


def test_one_more_signal_does_not_make_a_good_end_bad(tmp_path: Path) -> None:
    """A process that has drained and is about to end, held up by a thread, still ends with 0."""
    (tmp_path / "shop.py").write_text(SHOP.replace("seconds=0.3", "seconds=60"))
    with open_app(tmp_path / "jobs.db") as app, (tmp_path / "log").open("wb") as log:
        worker = subprocess.Popen(
            [sys.executable, "-m", "treadle", "worker", "shop:app"], cwd=tmp_path, stderr=log,
            env={**os.environ, "PYTHONPATH": SOURCE},
        )  # fmt: skip
        try:
            job = app.remote("lingering").enqueue()
            eventually(lambda: job.record().state is JobState.SUCCEEDED)
            worker.send_signal(signal.SIGTERM)
            eventually(lambda: b"stopped." in (tmp_path / "log").read_bytes())
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(PATIENCE) == 0
        finally:
            worker.kill()
            worker.wait(PATIENCE)


@contextmanager
def armed(action: failpoints.Action, point: str) -> Iterator[None]:
    """A trap that springs each time, for the length of a block."""
    failpoints.arm(action, point, times=None)
    try:
        yield
    finally:
        failpoints.disarm()


def test_a_store_that_breaks_while_stopping_is_not_waited_for(path: Path) -> None:
    """The disk fails under the last outcomes: a stop with an hour of grace ends all the same and says why."""
    begun, go = asyncio.Event(), asyncio.Event()

    async def main(app: Treadle) -> None:
        @app.task
        async def work() -> None:
            begun.set()
            await go.wait()

        worker = app.worker(grace=3600)
        await worker.start()
        await work.aenqueue()
        await aheard(begun)
        stopping = asyncio.ensure_future(worker.stop())
        with armed(failpoints.raising(lambda: failure("SQLITE_IOERR_FSYNC")), "apply.before_commit"):
            go.set()
            async with asyncio.timeout(PATIENCE):
                await stopping
        assert isinstance(worker.failure, StoreLost)

    with open_app(path) as app:
        asyncio.run(main(app))
