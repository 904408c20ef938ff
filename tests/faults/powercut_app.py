"""What runs in the processes of a power cut: the traced run, and the worker that drains what is left of its files."""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from faults import vfs
from faults.chaos_app import Setup
from faults.images import Event, LostSync
from faults.ledger import Ledger
from faults.points_app import Victim, at_once, batch, hasten, make, noise, own, refused, single, unusual
from treadle import Keep, Retention, TreadleError, defaults

LEVELS = {"full": ("full", "full"), "normal": ("normal", "normal"), "mixed": ("full", "normal")}
"""Durability of the producers, and of the worker."""
PATIENCE = 30.0
FRAMES = (12, 60, 900)


class Run(NamedTuple):
    """What to trace.

    Attributes:
        level: of :data:`LEVELS`; with mixed every other producer is full.
        rounds: rounds of each of the producers.
        failing: so many syncs of the log fail on the way, one after another.
        alone: one producer and no worker, so that nobody else keeps the file open; after a failure it closes its
            app and makes a new one, if *restarts*.
    """

    level: str
    rounds: int = 3
    failing: int = 0
    alone: bool = False
    restarts: bool = False


class TraceLedger(Ledger):
    """A ledger that writes into the trace, between the touches of files."""

    def __init__(self, trace: list[Any], level: str) -> None:
        super().__init__(Path())
        self._trace = trace
        self._level = level

    def write(self, kind: str, **facts: Any) -> None:
        """Append one record."""
        self._trace.append({
            "kind": kind, "pid": os.getpid(), "at": time.monotonic_ns(), "wall": time.time_ns() // 1000,
            "level": self._level, **facts,
        })  # fmt: skip


class Recorder(vfs.Disk):
    """Writes every touch into the trace; may fail some syncs of the log, as a disk does that has given up pages."""

    def __init__(self, trace: list[Any], failing: int, fail_at: int) -> None:
        self._trace = trace
        self._failing = range(fail_at, fail_at + failing)
        self._syncs = 0

    def before(self, touch: vfs.Touch) -> int:
        """Fail the syncs whose turn it is."""
        if touch.kind != "sync" or not touch.name.endswith("-wal"):
            return vfs.OK
        self._syncs += 1
        if self._syncs not in self._failing:
            return vfs.OK
        self._trace.append(LostSync(touch.name))
        return sqlite3.SQLITE_IOERR_FSYNC

    def after(self, touch: vfs.Touch) -> None:
        """Append the touch; what comes from temporary files is no part of the database."""
        if touch.name:
            self._trace.append(touch)


# Tracing -------------------------------------------------------------------------------------------------------------


def trace_run(setup: Setup, run: Run, out: Path) -> None:
    """Do everything a store is asked for, and leave the trace of it in *out*."""
    luck = random.Random(setup.seed)
    hasten()
    os.environ["TREADLE_LOCK_TIMEOUT"] = str(PATIENCE)
    defaults.CHECKPOINT_FRAMES = luck.choice(FRAMES)  # type: ignore[misc]
    trace: list[Any] = []
    vfs.install(Recorder(trace, run.failing, luck.randint(8, 40)))
    levels = LEVELS[run.level][: 1 if run.alone else 2]
    victims = [make(setup, ledger=TraceLedger(trace, level), durability=level) for level in levels]
    if run.alone:
        victims = [_produce_alone(victims[0], run, setup.seed)]
    else:
        asyncio.run(_work(victims, run, setup.seed))
    for victim in victims:
        victim.app.treadle.close()
    write_trace(out, trace)
    os._exit(0)


async def _work(victims: list[Victim], run: Run, seed: int) -> None:
    worker = victims[-1].app.treadle.worker(
        name=f"w{os.getpid()}", concurrency=4, retention=Retention(cancelled=Keep(count=0)), grace=5
    )
    await worker.start()
    answer = partial(answered, settled_at=LEVELS[run.level][-1])
    acts = [single, batch, own, at_once, answer, noise, own, single, unusual]
    producers = [
        threading.Thread(target=_produce, args=(victims[number % 2], acts, run.rounds, seed * 10 + number))
        for number in range(3)
    ]
    for thread in producers:
        thread.start()
    for thread in producers:
        await asyncio.to_thread(thread.join)
    await worker.stop()
    assert run.failing or worker.failure is None, worker.failure


def _produce_alone(victim: Victim, run: Run, seed: int) -> Victim:
    """Enqueue; the victim that is in use at the end."""
    for number in range(run.rounds * 10):
        _produce(victim, [single, batch], 1, seed * 100 + number)
        if run.restarts and victim.app.treadle.store.damage is not None:
            victim.app.treadle.close()
            victim = make(victim.setup, ledger=victim.app.ledger, durability=run.level)
    return victim


def _produce(victim: Victim, given: list[Callable[[Victim, str], None]], rounds: int, seed: int) -> None:
    luck, acts = random.Random(seed), list(given)
    mine = victim._replace(luck=luck)
    for number in range(rounds):
        luck.shuffle(acts)
        for place, act in enumerate(acts):
            act(mine, f"{seed}-{number}-{place}")


def answered(victim: Victim, token: str, settled_at: str) -> None:
    """One enqueue whose result is waited for; it is as durable as the worker is."""
    write = victim.app.ledger.write
    write("intent", token=token, count=1)
    try:
        job = victim.app.coroutine.enqueue(token=token, place=0, kind="ok", millis=1)
    except TreadleError as error:
        refused(victim, token, error)
        return
    write("ack", token=token, ids=[job.id])
    try:
        job.result(timeout=2)
    except TreadleError:
        return  # the worker ended because of the disk
    write("result", job=job.id, level=settled_at)


# Traces in files -----------------------------------------------------------------------------------------------------


def write_trace(out: Path, trace: list[Any]) -> None:
    """Keep a trace."""
    out.write_bytes(msgspec.msgpack.encode([event if isinstance(event, dict) else list(event) for event in trace]))


def read_trace(path: Path) -> list[Event | LostSync]:
    """Read what :func:`write_trace` kept."""
    return [_event(item) for item in msgspec.msgpack.decode(path.read_bytes())]


def _event(item: Any) -> Event | LostSync:
    if isinstance(item, dict):
        return item
    return LostSync(*item) if len(item) == 1 else vfs.Touch(*item)


# Draining ------------------------------------------------------------------------------------------------------------


def drain_image(setup: Setup) -> None:
    """Work off everything that is left in an image; exit code 1 when something stays."""
    app = make(setup).app.treadle
    done = asyncio.run(_drain(partial(_live_jobs, setup.database), app.worker(name=f"w{os.getpid()}")))
    app.close()
    os._exit(0 if done else 1)


async def _drain(left: Callable[[], int], worker: Any) -> bool:
    until = time.monotonic() + PATIENCE
    async with worker:
        while await asyncio.to_thread(left):
            if time.monotonic() > until:
                return False
            await asyncio.sleep(0.01)
    return worker.failure is None


def _live_jobs(path: Path) -> int:
    connection = sqlite3.connect(path, timeout=30)
    try:
        return int(connection.execute("SELECT count(*) FROM treadle_jobs WHERE state < 6").fetchone()[0])
    finally:
        connection.close()
