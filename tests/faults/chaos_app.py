"""What runs inside the processes of a chaos run: the tasks, a worker, producers, and the nemeses that need SQLite."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from faults.ledger import Ledger
from treadle import JobContext, NewJob, Retry, Snooze, Task, Treadle
from treadle.clock import SystemClock
from treadle.errors import TreadleError

KINDS = ("ok", "ok", "ok", "fail", "always", "follow", "checkpoint", "snooze")
QUICK = Retry(3, backoff=(0.01, 0.03, 0.05))
LAST_SHIFT = 6 * 3600


class Setup(NamedTuple):
    """What every process of a run gets."""

    folder: Path
    seed: int
    jumps: bool = False

    @property
    def database(self) -> Path:
        return self.folder / "jobs.db"


class JumpingClock(SystemClock):
    """A wall clock that jumps by two hours either way every second; its monotonic side is honest."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def now(self) -> int:
        chosen = random.Random(self._seed + int(time.monotonic())).choice((-7200, 0, 0, 7200))
        return super().now() + chosen * 1_000_000


class LateClock(SystemClock):
    """A wall clock so late that everything any other clock scheduled is due."""

    def now(self) -> int:
        return super().now() + LAST_SHIFT * 1_000_000


class App(NamedTuple):
    """The app of a run and its tasks."""

    treadle: Treadle
    plain: Task[Any, Any]
    coroutine: Task[Any, Any]
    ledger: Ledger


def build(setup: Setup, *, late: bool = False, ledger: Ledger | None = None, **options: Any) -> App:
    """Make the app; nothing is opened yet."""
    logging.basicConfig(filename=setup.folder / "log", level=logging.WARNING, format="%(process)d %(message)s")
    clock = None
    if setup.jumps:
        clock = LateClock() if late else JumpingClock(setup.seed + os.getpid())
    app = Treadle(f"sqlite:///{setup.database}", clock=clock, **options)
    ledger = ledger or Ledger(setup.folder / "ledgers")

    @app.task(name="plain", retry=QUICK)
    def plain(job: JobContext, token: str, place: int, kind: str, millis: int) -> int:
        with attempt(ledger, job):
            job.progress(0.5, kind)
            if kind == "checkpoint":
                ledger.write("resumed", job=job.id, value=job.last_checkpoint())
                job.checkpoint(job.attempt)
                ledger.write("checkpoint", job=job.id, value=job.attempt)
            time.sleep(millis / 1000)
            return act(job, kind)

    @app.task(name="coroutine", retry=QUICK)
    async def coroutine(job: JobContext, token: str, place: int, kind: str, millis: int) -> int:
        with attempt(ledger, job):
            job.progress(0.5, kind)
            if kind == "checkpoint":
                ledger.write("resumed", job=job.id, value=await job.alast_checkpoint())
                await job.acheckpoint(job.attempt)
                ledger.write("checkpoint", job=job.id, value=job.attempt)
            await asyncio.sleep(millis / 1000)
            return act(job, kind)

    def act(job: JobContext, kind: str) -> int:
        if kind == "always" or (kind == "fail" and job.failures == 0):
            raise ValueError(f"failure {job.failures}")
        if kind == "snooze" and job.attempt == 1:
            raise Snooze(0.02)
        if kind == "follow":
            token = f"after-{job.lease}"
            ledger.write("follow", lease=job.lease, token=token)
            job.on_success((plain, coroutine)[job.lease % 2].job(token=token, place=0, kind="ok", millis=1))
        return job.id

    return App(app, plain, coroutine, ledger)


@contextmanager
def attempt(ledger: Ledger, job: JobContext) -> Iterator[None]:
    """Write down that an attempt begins, and that it ended, whatever ended it."""
    facts = {"job": job.id, "lease": job.lease, "attempt": job.attempt, "task": job.task}
    ledger.write("start", **facts)
    try:
        yield
    finally:
        ledger.write("end", **facts)


# Workers -----------------------------------------------------------------------------------------------------------


def work(setup: Setup, ready: Connection, late: bool = False) -> None:
    """A worker called w<pid>, until SIGTERM; says so on *ready* once it claims."""
    app = build(setup, late=late)
    asyncio.run(_work(app, ready))
    app.treadle.close()


async def _work(app: App, ready: Connection) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    worker = app.treadle.worker(name=f"w{os.getpid()}", concurrency=6)
    async with worker:
        ready.send_bytes(b"ready")
        ended = asyncio.ensure_future(worker.ended())
        await asyncio.wait({ended, asyncio.ensure_future(stop.wait())}, return_when=asyncio.FIRST_COMPLETED)
    if worker.failure is not None:
        raise worker.failure


# Producers ---------------------------------------------------------------------------------------------------------


def produce(setup: Setup, ready: Connection, pause: float = 0.02) -> None:
    """Enqueue in every way there is until killed or told to stop by SIGTERM."""
    app, luck = build(setup), random.Random(setup.seed * 1_000_003 + os.getpid())
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
    _ = app.treadle.store
    ready.send_bytes(b"ready")
    number = 0
    while not stopped:
        number += 1
        token = f"{os.getpid()}-{time.monotonic_ns()}-{number}"
        luck.choice((single, single, batch, own_transaction))(app, setup, luck, token)
        time.sleep(luck.random() * 2 * pause)
    app.treadle.close()


def produce_durably(setup: Setup, ready: Connection) -> None:
    """Enqueue one job after another and say so on *ready* after each acknowledgement, until killed."""
    app = build(setup)
    for number in range(1_000_000):
        token = f"{os.getpid()}-{time.monotonic_ns()}-{number}"
        single(app, setup, random.Random(number), token)
        ready.send_bytes(b"acked")


def single(app: App, setup: Setup, luck: random.Random, token: str) -> None:
    """One enqueue."""
    task = luck.choice((app.plain, app.coroutine))
    _told(app, token, 1, lambda: [task.enqueue(**arguments(luck, token, 0)).id])


def batch(app: App, setup: Setup, luck: random.Random, token: str) -> None:
    """One transaction of several jobs."""
    jobs = [_job(app, luck, token, place) for place in range(luck.randint(2, 30))]
    _told(app, token, len(jobs), lambda: list(app.treadle.enqueue_many(jobs)))


def own_transaction(app: App, setup: Setup, luck: random.Random, token: str) -> None:
    """Several enqueues in the producer's own transaction, committed or rolled back."""
    count, commit = luck.randint(1, 4), luck.random() < 0.7
    app.ledger.write("intent", token=token, count=count)
    ids = []
    with closing(connect(setup.database)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
            for place in range(count):
                task = luck.choice((app.plain, app.coroutine)).using(connection=connection)
                ids.append(task.enqueue(**arguments(luck, token, place)).id)
            connection.execute("COMMIT" if commit else "ROLLBACK")
        except (sqlite3.OperationalError, TreadleError) as error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            app.ledger.write("fail", token=token, error=str(error))
            return
    app.ledger.write("ack" if commit else "rollback", token=token, ids=ids)


def arguments(luck: random.Random, token: str, place: int) -> dict[str, Any]:
    """Arguments of one job."""
    return {"token": token, "place": place, "kind": luck.choice(KINDS), "millis": luck.randint(0, 30)}


def _job(app: App, luck: random.Random, token: str, place: int) -> NewJob:
    return luck.choice((app.plain, app.coroutine)).job(**arguments(luck, token, place))


def _told(app: App, token: str, count: int, store: Callable[[], list[int]]) -> None:
    app.ledger.write("intent", token=token, count=count)
    try:
        ids = store()
    except TreadleError as error:
        app.ledger.write("fail", token=token, error=str(error))
        return
    app.ledger.write("ack", token=token, ids=ids)


# Nemeses that touch the database -------------------------------------------------------------------------------------


def hold_lock(setup: Setup, ready: Connection) -> None:
    """An outsider that holds the write lock for 0.1 to 2 s, again and again."""
    luck = random.Random(setup.seed + 7)
    ready.send_bytes(b"ready")
    with closing(connect(setup.database)) as connection:
        while True:
            time.sleep(luck.uniform(0.5, 4))
            connection.execute("BEGIN IMMEDIATE")
            time.sleep(luck.uniform(0.1, 2))
            connection.execute("ROLLBACK")


def race_checkpoints(setup: Setup, ready: Connection) -> None:
    """An outsider that checkpoints all the time, under the write lock as every checkpoint must be."""
    luck = random.Random(setup.seed + 8)
    ready.send_bytes(b"ready")
    with closing(connect(setup.database)) as keeper, closing(connect(setup.database)) as connection:
        while True:
            keeper.execute("BEGIN IMMEDIATE")
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            keeper.execute("ROLLBACK")
            time.sleep(luck.uniform(0, 0.05))


def connect(path: Path) -> sqlite3.Connection:
    """A patient connection such as a program of the user's may have; it never checkpoints by itself."""
    connection = sqlite3.connect(path, timeout=60, isolation_level=None)
    connection.execute("PRAGMA wal_autocheckpoint = 0")
    return connection


ROLES = {
    "worker": work,
    "drainer": partial(work, late=True),
    "producer": produce,
    "durable": produce_durably,
    "lock": hold_lock,
    "checkpoint": race_checkpoints,
}
