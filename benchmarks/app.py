"""The tasks that are measured, and the files they are stored in."""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path
from typing import NamedTuple

from treadle import Keep, NewJob, Retention, Task, Treadle, current_job

TO, SUBJECT = "ada@example.org", "hello"
ENCODED = b'{"to":"ada@example.org","subject":"hello"}'
FOREVER = Retention(succeeded=Keep(), failed=Keep(), cancelled=Keep())
CHUNK = 1000


async def noop(to: str, subject: str) -> None:
    """Nothing, asynchronously."""


class Stamps:
    """Notes when its task began: nanoseconds of CLOCK_MONOTONIC, which all processes share."""

    def __init__(self) -> None:
        self.waited: list[int] = []

    async def stamp(self, sent: int) -> None:
        self.waited.append(time.monotonic_ns() - sent)


async def linger(log: str) -> None:
    """Note that an attempt began; the first one never ends, the second is the rescue."""
    job = current_job()
    note(Path(log), job=job.id, attempt=job.attempt)
    if job.attempt == 1:
        await asyncio.sleep(3600)


async def block(seconds: float) -> None:
    """Block the event loop, as a careless handler would."""
    time.sleep(seconds)


def note(log: Path, **facts: object) -> None:
    line = json.dumps({"at": time.monotonic_ns(), "pid": os.getpid(), **facts}) + "\n"
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, line.encode())
    os.close(descriptor)


class Kit(NamedTuple):
    """An application and its tasks."""

    app: Treadle
    noop: Task[[str, str], None]
    linger: Task[[str], None]
    block: Task[[float], None]

    def job(self) -> NewJob:
        """One no-op job, its arguments bound and encoded now."""
        return self.noop.job(TO, SUBJECT)


def make(path: str, durability: str = "full") -> Kit:
    """An application on the database *path* with every task that is measured."""
    app = Treadle(address(path), durability=durability)
    return Kit(
        app, app.task(name="noop")(noop), app.task(name="linger")(linger),
        app.task(name="block", queue="bystander")(block),
    )  # fmt: skip


def address(path: str) -> str:
    """The store's address: of a file, unless it is one already."""
    return path if "://" in path else f"sqlite:///{path}"


def fill(path: str, count: int) -> None:
    """Store *count* ready jobs of the no-op task, as users would."""
    kit = make(path, "normal")
    with kit.app:
        kit.app.enqueue_many((kit.job() for _ in range(count)), chunk=CHUNK)


def ask(path: str, sql: str) -> int:
    """One number from the database."""
    with Treadle(f"sqlite:///{path}") as app:
        return int(app.store.read(lambda session: session.value(sql)))
