"""Pickup: how long an idle worker takes to begin a job stored by another process, and what waiting costs."""

from __future__ import annotations

import os
import random
import sqlite3
import time
from collections.abc import Iterator
from functools import partial

from benchmarks.app import Stamps, make
from benchmarks.child import Child
from benchmarks.floor import IDS_FROM, Bare, send
from benchmarks.measure import Bench, Figure, Section, Target, median, percentile
from treadle import Treadle

Rounds = list[list[float]]
SEED = 7


def run(bench: Bench) -> Section:
    jobs, seconds = bench.size(300, 30), bench.size(20, 3)
    taken: dict[str, Rounds] = {"Treadle": [], "Treadle, caller's transaction": [], "floor": []}
    costs: list[dict[str, float]] = []
    bench.interleave({
        "Treadle": partial(treadle, bench, jobs, taken["Treadle"]),
        "own": partial(callers_own, bench, jobs, taken["Treadle, caller's transaction"]),
        "floor": partial(floor, bench, jobs, taken["floor"]),
    })  # fmt: skip
    bare: list[float] = []
    bench.interleave({"cost": partial(cost, bench, seconds, costs), "bare": partial(bare_cost, bare)})
    return Section(
        name="pickup",
        title="Pickup on an idle queue, across processes",
        settings=(
            f"From before enqueue to the first line of the handler on CLOCK_MONOTONIC, {jobs} jobs at random intervals "
            "of 20 to 80 ms, durability full, so two disk syncs are part of it (the enqueue's and the claim's). Floor: "
            "two INSERTs, COMMIT, a byte into a FIFO, claim and decode in a bare loop. Waiting worker: user and system "
            f"time over {seconds} s without work."
        ),
        figures=tuple(figures(taken, costs, bare)),
        targets=tuple(targets(taken, costs)),
    )


def figures(taken: dict[str, Rounds], costs: list[dict[str, float]], bare: list[float]) -> list[Figure]:
    found = [
        Figure(name=f"{name}, {label}", values=tuple(percentile(values, percent) for values in rounds), unit="ms")
        for name, rounds in taken.items()
        for label, percent in (("p50", 50), ("p99", 99), ("max", 100))
    ]
    found.append(Figure(name="waiting worker, CPU", values=tuple(one["cpu"] for one in costs), unit="% of a core"))
    found.append(Figure(name="waiting worker, RSS", values=tuple(one["rss"] for one in costs), unit="MB"))
    found.append(Figure(name="bare asyncio + sqlite3 + msgspec, RSS", values=tuple(bare), unit="MB"))
    return found


def targets(taken: dict[str, Rounds], costs: list[dict[str, float]]) -> list[Target]:
    def middle(name: str, percent: float) -> float:
        return median([percentile(values, percent) for values in taken[name]])

    own = "Treadle, caller's transaction"
    return [
        Target(name="p50", value=middle("Treadle", 50), target=1, unit="ms", least=False),
        Target(name="p99", value=middle("Treadle", 99), target=10, unit="ms", least=False),
        Target(name="p50 from a caller's transaction", value=middle(own, 50), target=10, unit="ms", least=False),
        Target(
            name="waiting worker", value=median([one["cpu"] for one in costs]), target=0.3, unit="% of a core",
            least=False,
        ),
        Target(name="RSS", value=median([one["rss"] for one in costs]), target=40, unit="MB", least=False),
    ]  # fmt: skip


def treadle(bench: Bench, jobs: int, rounds: Rounds) -> float:
    path = bench.database()
    worker = Child("benchmarks.workers:stamp", path=path).ready()
    with Treadle(f"sqlite:///{path}") as app:
        task = app.task(name="stamp")(Stamps().stamp)
        for _ in pauses(jobs):
            task.enqueue(time.monotonic_ns())
        time.sleep(0.5)
    return keep(worker, jobs, rounds)


def callers_own(bench: Bench, jobs: int, rounds: Rounds) -> float:
    path = bench.database()
    worker = Child("benchmarks.workers:stamp", path=path).ready()
    with Treadle(f"sqlite:///{path}") as app:
        task = app.task(name="stamp")(Stamps().stamp)
        connection = sqlite3.connect(path, isolation_level=None)
        inside = task.using(connection=connection)
        for _ in pauses(jobs):
            sent = time.monotonic_ns()
            connection.execute("BEGIN IMMEDIATE")
            inside.enqueue(sent)
            connection.execute("COMMIT")
        time.sleep(1.5)
        connection.close()
    return keep(worker, jobs, rounds)


def floor(bench: Bench, jobs: int, rounds: Rounds) -> float:
    path = bench.database()
    with make(path).app as app:
        _ = app.store
    fifo = f"{path}-fifo"
    os.mkfifo(fifo)
    receiver = Child("benchmarks.floor:listen", path=path, durability="full", fifo=fifo, jobs=jobs).ready().go()
    bare = Bare(path, "full")
    descriptor = os.open(fifo, os.O_RDWR)
    for number in pauses(jobs):
        send(bare, descriptor, IDS_FROM + number)
    rounds.append([waited / 1e6 for waited in receiver.result()])
    os.close(descriptor)
    bare.close()
    return 0.0


def pauses(jobs: int) -> Iterator[int]:
    """Yield job numbers at random intervals, the same ones for every variant."""
    chance = random.Random(SEED)
    for number in range(jobs):
        time.sleep(chance.uniform(0.02, 0.08))
        yield number


def keep(worker: Child, jobs: int, rounds: Rounds) -> float:
    waited = worker.go().result()
    assert len(waited) == jobs, f"{len(waited)} of {jobs} jobs began"
    rounds.append([one / 1e6 for one in waited])
    return 0.0


def cost(bench: Bench, seconds: float, costs: list[dict[str, float]]) -> float:
    costs.append(Child("benchmarks.workers:wait", path=bench.database(), seconds=seconds).run())
    return 0.0


def bare_cost(found: list[float]) -> float:
    found.append(Child("benchmarks.bare:memory").run())
    return 0.0
