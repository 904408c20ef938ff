"""huey on SQLite: one process, thread workers, no results kept.

huey takes a task off the queue before it runs it and acknowledges nothing: a killed consumer loses the
job. ``fsync=False`` is ``PRAGMA synchronous = OFF``, its fastest setting and weaker than Treadle's NORMAL.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from huey import SqliteHuey

from benchmarks.app import SUBJECT, TO
from benchmarks.child import Role


class Countdown:
    """Tells when so many tasks have run."""

    def __init__(self, jobs: int) -> None:
        self._left = jobs
        self._lock = threading.Lock()
        self.done = threading.Event()

    def __call__(self) -> None:
        with self._lock:
            self._left -= 1
            if self._left == 0:
                self.done.set()


def make(path: str, fsync: bool | None, countdown: Countdown) -> tuple[Any, Any]:
    huey = SqliteHuey(filename=path, fsync=fsync, results=False, utc=True)

    def noop(to: str, subject: str) -> None:
        countdown()

    return huey, huey.task(name="noop")(noop)


def drain(path: str, jobs: int, workers: int, fsync: bool | None = None) -> Role:
    """Seconds from the consumer's start to the last of *jobs*."""
    countdown = Countdown(jobs)
    huey, noop = make(path, False, countdown)
    for _ in range(jobs):
        noop(TO, SUBJECT)
    huey.storage.close()
    huey.storage._fsync = fsync
    consumer = huey.create_consumer(
        workers=workers, periodic=False, initial_delay=0.001, max_delay=0.01, check_worker_health=False
    )
    yield
    begun = time.perf_counter()
    consumer.start()
    countdown.done.wait()
    taken = time.perf_counter() - begun
    consumer.stop(graceful=True)
    return {"seconds": taken}


def enqueue(path: str, jobs: int, fsync: bool | None = None) -> Role:
    """Seconds to enqueue *jobs* one by one."""
    _, noop = make(path, fsync, Countdown(0))
    yield
    begun = time.perf_counter()
    for _ in range(jobs):
        noop(TO, SUBJECT)
    return {"seconds": time.perf_counter() - begun}
