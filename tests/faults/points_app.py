"""The victim of the fail points: one process that does everything a store is asked for, with traps set in it.

It runs a worker and enqueues in every way meanwhile. What it does is written to the ledgers, so the history checker can
judge; which traps sprang it says on a pipe.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from datetime import timedelta
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from faults.chaos_app import App, Setup, arguments, attempt, build
from treadle import JobContext, Keep, Retention, Task, TreadleError, Worker, WorkerOptions, defaults
from treadle.errors import OutcomeUnknown, StoreLost
from treadle.host import failpoints
from treadle.host.files import FileIdentity, identity_of
from treadle.host.process import own_identity
from treadle.store.ops import meta, rescue, unknown, workers
from treadle.store.seats import SLOTS
from treadle.store.sqlite import failure, is_damage
from treadle.store.store import Store
from treadle.worker import settler
from treadle.worker.presence import Presence

LOST, BROKEN = 70, 1
ERRORS = {"busy": "SQLITE_BUSY", "full": "SQLITE_FULL", "ioerr": "SQLITE_IOERR_FSYNC"}
FAULTS = ("exception", "exit", "kill", "stall", *ERRORS)
WORKER_TRIES = 20
PAUSE = 0.1
FOR_EVER = 0.7


class Injected(Exception):
    """The unknown error of fault "exception"."""


class Plan(NamedTuple):
    """Which traps a victim gets.

    Attributes:
        fault: one of :data:`FAULTS`, or "" for a dry run.
        points: patterns, and at the how-manieth time each springs.
        times: how often from then on; None for ever, which is until :data:`FOR_EVER` seconds are over.
        rounds: rounds of enqueueing.
    """

    fault: str = ""
    points: tuple[tuple[str, int], ...] = ()
    times: int | None = 1
    rounds: int = 6


class Victim(NamedTuple):
    """A victim's app, with the tasks that only it has."""

    app: App
    setup: Setup
    noise: Task[Any, Any]
    luck: random.Random
    healed: threading.Event
    stall: failpoints.Stall


def live(setup: Setup, pipe: Connection, plan: Plan) -> None:
    """Be the victim; says on *pipe* which traps spring, and at the end which points it reached.

    Exit code 70 when its worker ended because of the disk, 1 when a part of it broke, else 0.
    """
    hasten()
    victim = make(setup)
    _confess(victim)
    threading.Thread(target=_obey, args=(pipe, victim.stall), daemon=True).start()
    with failpoints.recording() as reached:
        code = asyncio.run(_live(victim, pipe, plan))
        failpoints.disarm()
        victim.app.treadle.close()
    pipe.send(("reached", reached))
    os._exit(code)  # a thread may stall still


def _obey(pipe: Connection, stall: failpoints.Stall) -> None:
    """Go on when the conductor says so, and do not outlive it."""
    try:
        while pipe.recv_bytes():
            stall.release()
    except (EOFError, OSError):
        os._exit(BROKEN)


def hasten() -> None:
    """Make what is rare in production happen within a victim's short life."""
    defaults.CHECKPOINT_FRAMES = 12  # type: ignore[misc]
    defaults.BEAT = timedelta(seconds=0.1)  # type: ignore[misc]
    defaults.PRUNE_EVERY = timedelta(seconds=0.1)  # type: ignore[misc]
    settler.PROGRESS_EVERY = 0.01  # type: ignore[misc]
    os.environ["TREADLE_LOCK_TIMEOUT"] = "0.5"


def make(setup: Setup, **how: Any) -> Victim:
    """The app of a victim; nothing is opened yet. *how* goes to ``build``."""
    app = build(setup, **how)

    @app.treadle.task(name="noise")
    def noise(job: JobContext) -> None:
        with attempt(app.ledger, job):
            """Nobody counts it: it may be cancelled and pruned before it runs."""

    luck = random.Random(setup.seed * 1_000_003 + os.getpid())
    return Victim(app, setup, noise, luck, threading.Event(), failpoints.Stall())


# Traps ---------------------------------------------------------------------------------------------------------------


def set_traps(victim: Victim, pipe: Connection, plan: Plan) -> None:
    """Arm what *plan* says; each writes down that it sprang before it acts."""
    if plan.fault:
        act = _action(victim, pipe, plan.fault)
        for point, at in plan.points:
            failpoints.arm(act, point, at=at, times=plan.times)


def _action(victim: Victim, pipe: Connection, fault: str) -> failpoints.Action:
    write, lock = victim.app.ledger.write, threading.Lock()
    told: list[str] = []

    def act(point: str) -> None:
        with lock:
            if fault == "stall" and told:
                return  # one stall a victim: who kills it must know where it stands
            if point not in told:
                told.append(point)
                pipe.send(("sprung", point))
        if fault in ("kill", "exit"):
            write("kill", victim=os.getpid(), role=fault)
            (failpoints.kill_self if fault == "kill" else failpoints.exit_self)(point)
        elif fault == "stall":
            victim.stall(point)
        elif fault == "exception":
            raise Injected(point)
        else:
            raise failure(ERRORS[fault])

    return act


# Working -------------------------------------------------------------------------------------------------------------


async def _live(victim: Victim, pipe: Connection, plan: Plan) -> int:
    if plan.times is not None:
        set_traps(victim, pipe, plan)
    try:
        await asyncio.to_thread(_prepare, victim)
        worker = await _started(victim)
    except StoreLost as error:
        logging.warning("the store cannot be used: %r", error)
        return LOST
    if worker is None:
        return BROKEN
    if plan.times is None:
        set_traps(victim, pipe, plan)  # for ever is from now on: no worker would start
        threading.Timer(FOR_EVER, _heal, [victim]).start()
    producing = asyncio.ensure_future(asyncio.to_thread(_produce, victim, plan))
    ended = asyncio.ensure_future(worker.ended())
    await asyncio.wait({producing, ended}, return_when=asyncio.FIRST_COMPLETED)
    if victim.app.treadle.store.damage is not None:
        await ended  # within a beat
    if not ended.done():
        await asyncio.wait({asyncio.ensure_future(_stopped(worker)), ended}, return_when=asyncio.FIRST_COMPLETED)
    await producing
    await ended
    if worker.failure is None:
        return 0
    logging.warning("worker failed: %r", worker.failure)
    return LOST if isinstance(worker.failure, StoreLost) else BROKEN


def _heal(victim: Victim) -> None:
    failpoints.disarm()
    victim.healed.set()


def _prepare(victim: Victim) -> None:
    """While nothing else is going on: a lone enqueue, and a worker that died in another slot, to be rescued."""
    store = _opened(victim)
    single(victim, f"{os.getpid()}-first")
    who = own_identity()
    identity = identity_of(store.side / SLOTS)
    dead = workers.Registration(
        slot=4000, name="long dead", host="here", pid=who.pid, pid_started=0, pid_namespace=0, boot_id="", queues=(),
        tasks=(), concurrency=1, **(identity or FileIdentity(0, 0))._asdict(),
    )  # fmt: skip
    quietly(lambda: store.run(partial(workers.register, who=dead, epoch=2**40)))


def _opened(victim: Victim) -> Store:
    for _ in range(WORKER_TRIES):
        try:
            return victim.app.treadle.store
        except StoreLost:
            raise
        except TreadleError as error:
            logging.warning("the store does not open: %r", error)
            time.sleep(PAUSE)
    raise AssertionError("the store never opened")


async def _started(victim: Victim) -> Worker | None:
    """A worker that has started; one that is refused is tried again, as a supervisor would; None when none starts."""
    for _ in range(WORKER_TRIES):
        options = WorkerOptions(
            name=f"w{os.getpid()}", concurrency=3, retention=Retention(cancelled=Keep(count=0)), grace=5
        )
        worker = victim.app.treadle.worker(options)
        try:
            await worker.start()
        except StoreLost:
            raise
        except (Injected, sqlite3.Error, TreadleError) as error:
            logging.warning("worker did not start: %r", error)
            await asyncio.sleep(PAUSE)
            continue
        return worker
    return None


def _confess(victim: Victim) -> None:
    """Write down that a worker's slot is free before anybody can see it, as the conductor does for a kill."""
    abandon = Presence.abandon

    def confess(presence: Presence) -> None:
        victim.app.ledger.write("kill", victim=os.getpid(), role="slot given up")
        abandon(presence)

    Presence.abandon = confess  # type: ignore[method-assign]


async def _stopped(worker: Worker) -> None:
    try:
        await worker.stop()
    except (Injected, sqlite3.Error, TreadleError) as error:
        logging.warning("worker did not stop in good order: %r", error)


# Enqueueing ----------------------------------------------------------------------------------------------------------


def _produce(victim: Victim, plan: Plan) -> None:
    for number in range(plan.rounds):
        if plan.times is None and number == plan.rounds // 2:
            victim.healed.wait()
        for place, act in enumerate((single, batch, own, at_once, single, noise, unusual)):
            act(victim, f"{os.getpid()}-{number}-{place}")


def single(victim: Victim, token: str) -> None:
    """One enqueue."""
    task = victim.luck.choice((victim.app.plain, victim.app.coroutine))
    told(victim, token, 1, lambda: [task.enqueue(**_arguments(victim, token)).id])


def batch(victim: Victim, token: str) -> None:
    """One transaction of several jobs."""
    jobs = [victim.app.plain.job(**_arguments(victim, token, place)) for place in range(victim.luck.randint(2, 6))]
    told(victim, token, len(jobs), lambda: list(victim.app.treadle.enqueue_many(jobs)))


def at_once(victim: Victim, token: str) -> None:
    """Several enqueues at the same time on an event loop, which share a commit."""

    async def one(number: int) -> None:
        name = f"{token}-{number}"
        victim.app.ledger.write("intent", token=name, count=1)
        try:
            job = await victim.app.coroutine.aenqueue(**_arguments(victim, name))
        except (Injected, TreadleError) as error:
            refused(victim, name, error)
            return
        victim.app.ledger.write("ack", token=name, ids=[job.id])

    async def several() -> None:
        await asyncio.gather(*map(one, range(4)))

    asyncio.run(several())


def own(victim: Victim, token: str) -> None:
    """Two enqueues in the victim's own transaction, committed or rolled back."""
    victim.app.ledger.write("intent", token=token, count=2)
    commit = victim.luck.random() < 0.7
    try:
        # Whatever fails, closing the connection rolls back.
        with closing(sqlite3.connect(victim.setup.database, timeout=0.5, isolation_level=None)) as connection:
            connection.execute("PRAGMA wal_autocheckpoint = 0")
            connection.execute(f"PRAGMA synchronous = {victim.app.treadle.settings.durability}")
            connection.execute("BEGIN IMMEDIATE")
            task = victim.app.plain.using(connection=connection)
            ids = [task.enqueue(**_arguments(victim, token, place)).id for place in range(2)]
            connection.execute("COMMIT" if commit else "ROLLBACK")
    except (Injected, sqlite3.Error, TreadleError) as error:
        refused(victim, token, error)
        return
    victim.app.ledger.write("ack" if commit else "rollback", token=token, ids=ids)


def noise(victim: Victim, _: str) -> None:
    """Jobs nobody counts: cancelled, retried, cancelled again; and one that no worker knows."""
    app = victim.app.treadle
    quietly(lambda: app.remote("nobody's").enqueue())
    made: list[Any] = []
    quietly(lambda: made.append(victim.noise.using(delay=0.1).enqueue()))
    for job in made:
        for verb in (job.cancel, job.retry, job.cancel):
            quietly(verb)


def unusual(victim: Victim, _: str) -> None:
    """What upkeep and starts do only now and then."""
    store = victim.app.treadle.store
    operations: Iterable[Callable[..., Any]] = (
        partial(unknown.free_known, tasks=("plain", "coroutine")), unknown.hold_unknown, rescue.rescue_orphans,
        partial(meta.declare_queue, name="spare", max_length=1_000_000, when_full="refuse"),
    )  # fmt: skip
    for operation in operations:
        quietly(store.submit(operation).result)
    quietly(lambda: store.run(partial(meta.declare_queue, name="spare", max_length=1_000_000, when_full="refuse")))


def told(victim: Victim, token: str, count: int, store: Callable[[], list[int]]) -> None:
    """Write the intent, store, and write what came of it."""
    victim.app.ledger.write("intent", token=token, count=count)
    try:
        ids = store()
    except (Injected, TreadleError) as error:
        refused(victim, token, error)
        return
    victim.app.ledger.write("ack", token=token, ids=ids)


def refused(victim: Victim, token: str, error: Exception) -> None:
    """A refusal says that nothing was stored, unless it says that nobody knows; of one's own COMMIT nobody does."""
    kind = "unknown" if isinstance(error, OutcomeUnknown) or is_damage(error) else "fail"
    victim.app.ledger.write(kind, token=token, error=repr(error))


def quietly(act: Callable[[], object]) -> None:
    """Do what may meet a fault and is in no ledger."""
    try:
        act()
    except (Injected, TreadleError) as error:
        logging.warning("refused: %r", error)


def _arguments(victim: Victim, token: str, place: int = 0) -> dict[str, Any]:
    return {**arguments(victim.luck, token, place), "millis": victim.luck.randint(0, 8)}

