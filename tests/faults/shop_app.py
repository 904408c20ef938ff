"""The app that tests run with the real command: ``treadle worker faults.shop_app:app``.

Its folder comes from the environment. Every attempt is in the ledgers, so the history checker can judge; ``hold_*``
handlers run until the file ``go`` is there or they are asked to stop.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from faults.ledger import Ledger
from treadle import Abort, JobContext, Retry, RetryAfter, Snooze, Treadle
from treadle.clock import SystemClock
from treadle.host import failpoints

FOLDER, STALL, CHILD = "TREADLE_TEST_FOLDER", "TREADLE_TEST_STALL", "TREADLE_CHILD_OF"
folder = Path(os.environ[FOLDER])
ledger = Ledger(folder / "ledgers")
importer = os.getpid()
QUICK = Retry(3, backoff=(0.01, 0.03, 0.05))


class Shifted(SystemClock):
    """The wall clock, moved by the seconds that stand in the file ``shift``."""

    def now(self) -> int:
        try:
            seconds = int((folder / "shift").read_text())
        except (FileNotFoundError, ValueError):
            seconds = 0
        return super().now() + seconds * 1_000_000


app = Treadle(f"sqlite:///{folder / 'jobs.db'}", clock=Shifted())


@contextmanager
def attempt(job: JobContext) -> Iterator[None]:
    """Write down that an attempt begins, on disk before it goes on, and that it ended, whatever ended it.

    An attempt in a process of its own also says which worker that process belongs to.
    """
    facts: dict[str, Any] = {"job": job.id, "lease": job.lease, "attempt": job.attempt, "task": job.task,
                             "queue": job.queue}  # fmt: skip
    if CHILD in os.environ:
        facts["boss"] = os.getppid()
    ledger.write("start", sync=True, **facts)
    try:
        yield
    finally:
        ledger.write("end", sync=True, **facts)


def going() -> bool:
    """True once those who wait may go on."""
    return (folder / "go").exists()


# What runs until it may end ------------------------------------------------------------------------------------------


def _hold(job: JobContext) -> str:
    with attempt(job):
        while not going():
            if job.cancelled:
                return "asked to stop"
            threading.Event().wait(0.005)
        return "went on"


@app.task(name="hold_sync", retry=QUICK)
def hold_sync(job: JobContext, token: str, place: int) -> str:
    """Waits on a thread."""
    return _hold(job)


@app.task(name="hold_async", retry=QUICK)
async def hold_async(job: JobContext, token: str, place: int) -> str:
    """Waits on the event loop."""
    with attempt(job):
        while not going():
            await asyncio.sleep(0.005)
        return "went on"


@app.task(name="hold_process", retry=QUICK, isolation="process")
def hold_process(job: JobContext, token: str, place: int) -> str:
    """Waits in a process of its own."""
    return _hold(job)


@app.task(name="stuck", retry=0)
def stuck(job: JobContext, token: str, place: int) -> str:
    """Hears nothing, as a call into C may."""
    with attempt(job):
        while not going():
            threading.Event().wait(0.005)
        return "went on"


@app.task(name="endless", retry=0, grace=1)
async def endless(job: JobContext, token: str, place: int) -> None:
    """Ends when it is cancelled."""
    with attempt(job):
        await asyncio.Event().wait()


# What ends by itself -------------------------------------------------------------------------------------------------


@app.task(name="mail", retry=0)
async def mail(job: JobContext, token: str, place: int) -> str:
    """Done at once."""
    with attempt(job):
        return token


@app.task(name="waste", retry=0)
async def waste(job: JobContext, token: str, place: int) -> None:
    """Done at once; may be deleted at any time."""
    with attempt(job):
        """Nobody counts it."""


def _fragile(job: JobContext) -> str:
    with attempt(job):
        if not (folder / "mended").exists():
            raise LookupError(f"attempt {job.attempt}")
        return "mended"


@app.task(name="fragile_0", retry=0)
def fragile_0(job: JobContext, token: str, place: int) -> str:
    """Fails until it is mended; no retry."""
    return _fragile(job)


@app.task(name="fragile_3", retry=Retry(3, backoff=(0.01,), jitter=0))
def fragile_3(job: JobContext, token: str, place: int) -> str:
    """Fails until it is mended; three retries."""
    return _fragile(job)


# The mixture of the long run -----------------------------------------------------------------------------------------


def _work(job: JobContext, kind: str, millis: int) -> str:
    with attempt(job):
        if kind != "deaf":
            job.progress(0.5, kind)
        until = time.monotonic() + millis / 1000
        while time.monotonic() < until and not (job.cancelled and kind != "deaf"):
            threading.Event().wait(0.005)
        return _act(job, kind)


def _act(job: JobContext, kind: str) -> str:
    if kind == "die" and job.crashes < 2 and CHILD in os.environ:
        ledger.write("die", lease=job.lease)
        os._exit(9)
    if kind == "always" or (kind == "fail" and job.failures == 0):
        raise ValueError(f"failure {job.failures}")
    if kind == "snooze" and job.attempt == 1:
        raise Snooze(0.02)
    if kind == "again" and job.failures == 0:
        raise RetryAfter(0.02, "busy")
    if kind == "abort":
        raise Abort("not wanted here")
    if kind == "follow":
        token = f"after-{job.lease}"
        ledger.write("follow", lease=job.lease, token=token)
        job.on_success(mail.job(token=token, place=0))
    return kind


@app.task(name="work_sync", retry=QUICK, timeout=5)
def work_sync(job: JobContext, token: str, place: int, kind: str, millis: int) -> str:
    """Works on a thread."""
    return _work(job, kind, millis)


@app.task(name="work_async", retry=QUICK, timeout=5)
async def work_async(job: JobContext, token: str, place: int, kind: str, millis: int) -> str:
    """Works on the event loop."""
    with attempt(job):
        await asyncio.sleep(millis / 1000)
        return _act(job, kind)


@app.task(name="work_process", retry=QUICK, timeout=5, grace=0.2, isolation="process")
def work_process(job: JobContext, token: str, place: int, kind: str, millis: int) -> str:
    """Works in a process of its own."""
    return _work(job, kind, millis)


def _stall(point: str) -> None:
    (folder / "stalled").touch()
    while not going():
        threading.Event().wait(0.005)


if os.environ.get(STALL) and CHILD not in os.environ:
    failpoints.arm(_stall, os.environ[STALL])
